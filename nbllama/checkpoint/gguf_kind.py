"""Tell GGUF models, adapters and checkpoints apart, so that none replaces a file of another kind.

A model may be replaced only by another model, and so on. A file with a damaged header, which no
program can use, may be replaced by any of them.
"""

from __future__ import annotations

import os

from nbllama.checkpoint.legacy import is_old
from nbllama.errors import GGUFError
from nbllama.gguf_io.reader import read_metadata
from nbllama.system.replaced import GGUF, check_kind, other_kind

MODEL, ADAPTER, CHECKPOINT = "a model", "an adapter", "a checkpoint"


def gguf_kind(path: str | os.PathLike[str]) -> str:
    """Return `MODEL`, `ADAPTER` or `CHECKPOINT`, or "" if the file cannot be read as GGUF.

    Only the keys are read, so that models with unsupported tensors or missing parts are recognised.
    """
    try:
        metadata = read_metadata(path)
    except GGUFError:
        return ""
    if "training.type" in metadata or is_old(metadata):
        return CHECKPOINT
    return ADAPTER if metadata.get("general.type") == "adapter" else MODEL


def check_gguf_kind(path: str | os.PathLike[str], kind: str) -> None:
    """Raise `OutputError` if an existing file is not GGUF, or is GGUF but not of this kind."""
    check_kind(os.fspath(path), GGUF)
    found = gguf_kind(path)
    if found not in ("", kind):
        raise other_kind(path, f"is {found}")
