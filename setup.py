"""Build step: README.md with absolute links, as a package index shows it far from the repository.

All else is in pyproject.toml.
"""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

from setuptools import setup

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent
LINK = re.compile(r"(!?)(\[(?:[^\[\]]|\[[^\]]*\])*\])\((?![a-z]+:|#)([^()\s]+)\)")


def absolute(text: str, repository: str, ref: str) -> str:
    """Point every relative link of the Markdown `text` at the files of the tag `ref`."""

    def replace(link: re.Match[str]) -> str:
        mark, words, target = link.groups()
        return f"{mark}{words}({repository}/{'raw' if mark else 'blob'}/{ref}/{target})"

    return LINK.sub(replace, text)


def description() -> str:
    """Return README.md with links that work on a package index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project["urls"]["Repository"]
    if "example.org" in repository:
        warnings.warn("pyproject.toml: project.urls has no real address yet", stacklevel=1)
    init = (ROOT / "nbllama" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', init, re.MULTILINE)
    assert version is not None
    return absolute((ROOT / "README.md").read_text(encoding="utf-8"), repository, f"v{version[1]}")


if __name__ == "__main__":
    setup(long_description=description(), long_description_content_type="text/markdown")
