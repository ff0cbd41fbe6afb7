"""The type of an option whose value is the name of a file or folder."""

from __future__ import annotations

from dataclasses import dataclass

from nbllama.errors import UsageError, shown
from nbllama.options.values import Text


class NotAFileName(ValueError):
    """Raised for a word such as on, false or none, which is not meant as a file name."""


@dataclass(frozen=True)
class File(Text):
    """The name of a file or folder, or empty for none."""

    metavar: str = "FILE"

    def parse(self, text: str) -> str:
        """Return the text. Raises `NotAFileName`."""
        if text.lower() in ("true", "false", "yes", "no", "on", "off", "none", "null"):
            raise NotAFileName(f'use "" for no file, or ./{text} for a file of this name')
        return text

    def allowed(self) -> str:
        """Describe the allowed values, for help texts and error messages."""
        return f"the name of a {self.metavar.lower()}"


def check_name(where: str, name: str) -> None:
    r"""Raise `UsageError` for control characters, such as the tab in the string "C:\temp"."""
    if any(c < " " or c == "\x7f" for c in name):
        raise UsageError(
            f"{where}: '{shown(name)}' contains a control character; write the name on one line, "
            "with / or \\\\ instead of \\"
        )
