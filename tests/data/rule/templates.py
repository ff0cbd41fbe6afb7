"""The chat templates of llama.cpp's tests, which are not copied into this repository.

They are in the source distribution of llama-cpp-python, which pip gets from its usual registry.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "llama-cpp-python==0.3.36"
_FOLDER = "/models/templates/"


def llama_templates() -> dict[str, str]:
    """Sources by name; {} if the package is not available.

    `NBLLAMA_CHAT_TEMPLATES` may name a folder of `.jinja` files; else what was unpacked before is
    taken, in the system's folder for temporary files.
    """
    given = os.environ.get("NBLLAMA_CHAT_TEMPLATES")
    folder = Path(given or Path(tempfile.gettempdir()) / f"nbllama-{PACKAGE}")
    if not given and not any(folder.glob("*.jinja")):
        _unpack(folder)
    return {p.stem: p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.jinja"))}


def _unpack(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        words = ["-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", PACKAGE]
        done = subprocess.run(
            [sys.executable, *words], cwd=scratch, capture_output=True, timeout=900, check=False
        )
        archives = sorted(Path(scratch).glob("*.tar.gz"))
        if done.returncode or not archives:
            return
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                if _FOLDER in member.name and member.name.endswith(".jinja"):
                    file = archive.extractfile(member)
                    assert file is not None
                    (folder / Path(member.name).name).write_bytes(file.read())
