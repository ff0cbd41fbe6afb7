"""Recognise files that a failed download left in place of a model or an adapter."""

from __future__ import annotations

LOOKED_AT = 64  # number of bytes at the start of a file that are sufficient

_POINTER = b"version https://git-lfs"
_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")
_MESSAGE = (b'{"error', b"entry not found", b"repository not found", b"invalid username")


def wrong_download(start: bytes) -> str:
    """Return what a failed download left and what to do, or "" for any other file.

    `start` contains the first bytes of the file.
    """
    text = start[:LOOKED_AT].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_POINTER):
        return "a Git LFS pointer instead of the file; run git lfs pull"
    if text.startswith(_PAGE):
        return "a web page instead of the file; download the file again"
    if text.startswith(_MESSAGE):
        return "a server's error message instead of the file; download the file again"
    return ""
