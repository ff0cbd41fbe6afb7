"""Backslash escapes on the command line (`--escape`)."""

from __future__ import annotations

import re

from nbllama.errors import UsageError, shown

_ESCAPE = re.compile(r"\\(?:([nrt'\"\\])|x([0-9a-fA-F]{2}))")
_CHARACTERS = {"n": "\n", "r": "\r", "t": "\t"}


def unescape(text: str, option: str = "--sample-start") -> str:
    r"""Replace \n \r \t \' \" \\ and \xHH (a byte of UTF-8); other backslashes are kept.

    `option` is the name of the option that contains the text. Raises `UsageError` if the bytes are
    not UTF-8.
    """

    def byte(found: re.Match[str]) -> str:
        if found[2]:
            # a lone surrogate represents a byte until the whole text is decoded
            return bytes([int(found[2], 16)]).decode("utf-8", "surrogateescape")
        return _CHARACTERS.get(found[1], found[1])

    read = _ESCAPE.sub(byte, text)
    try:
        return read.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{option} '{shown(text)}' is not UTF-8") from None
