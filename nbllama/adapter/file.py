"""Read and write LoRA adapters; the name of a new file determines the format.

| name | format |
|---|---|
| ends in `.bin` | the format of llama.cpp's `finetune`, which llama.cpp versions from 2023 read |
| ends in `/`, or an existing folder | Hugging Face PEFT |
| anything else, such as `lora.gguf` | the format of current llama.cpp |

When a file is read, its contents determine the format, because the names of the old tool's `.bin`
files ended in `.gguf` by default. See docs/adapters.md.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nbllama.adapter.ggla import MAGIC_BYTES, read_ggla, write_ggla
from nbllama.adapter.gguf_lora import read_gguf_lora, write_gguf_lora
from nbllama.adapter.peft import CONFIG, WEIGHTS, norms_line, read_peft, write_peft
from nbllama.adapter.source import Path, Source
from nbllama.adapter.stored import Base, MissingAdapter, Stored, fitting, refuse
from nbllama.checkpoint.gguf_kind import ADAPTER, check_gguf_kind
from nbllama.errors import CheckpointError, UsageError, shown
from nbllama.lora.pairs import Adapter
from nbllama.lora.slots import SLOT_BY_NAME, slot_of
from nbllama.system.replaced import GGLA, check_kind

if TYPE_CHECKING:
    from nbllama.arch import Hparams

FOLDER_FILES = (WEIGHTS, CONFIG)  # files in a PEFT folder, in the order in which they are written
_EMBEDDING = SLOT_BY_NAME["tok_embd"].base_name()


def format_of(path: Path) -> str:
    """Return the format of an adapter file with this name: "gguf", "bin" or "peft"."""
    name = os.fspath(path)
    if is_folder(name):
        return "peft"
    return "bin" if name.lower().endswith(".bin") else "gguf"


def is_folder(path: Path) -> bool:
    """Return whether the path names a folder."""
    name = os.fspath(path)
    return name.endswith(("/", os.sep)) or os.path.isdir(name)


def check_format(path: Path) -> None:
    """Raise `UsageError` if the extension is for a format that cannot be written."""
    name = os.fspath(path)
    if not is_folder(name) and name.lower().endswith((".safetensors", ".json", ".pt", ".pth")):
        raise UsageError(f"{shown(name, 400)}: a PEFT adapter is a folder; end its name with /")


def check_replaced(path: Path) -> None:
    """Raise `OutputError` if an adapter with this name would replace a file of another kind.

    The files in a PEFT folder have unambiguous names and are not checked.
    """
    if (kind := format_of(path)) == "bin":
        check_kind(os.fspath(path), GGLA)
    elif kind == "gguf":
        check_gguf_kind(path, ADAPTER)


def adapter_notes(adapter: Adapter, hp: Hparams, path: Path = "") -> list[str]:
    """Return one line for each part of the adapter that readers of the format ignore or refuse.

    `path` determines the format.
    """
    return _notes(list(adapter.pairs), hp.tied_output, format_of(path))


def stored_notes(stored: Stored, tied_output: bool, kind: str) -> list[str]:
    """Return the same lines as `adapter_notes` for a stored adapter and the format `kind`."""
    return _notes(list(stored.pairs), tied_output, kind)


def _notes(names: list[str], tied_output: bool, kind: str) -> list[str]:
    norms = [n for n in names if (s := slot_of(n)) and s[0].kind == "norm"]
    tied = tied_output and _EMBEDDING in names
    if kind == "bin":
        return []
    if kind == "peft":
        notes = norms_line(norms)
        if tied:
            notes.append(
                "PEFT applies LoRA on token_embd only to the embedding, not to this model's tied "
                "output: merge the adapter into the model instead"
            )
        return notes
    notes = []
    if norms:
        notes.append(
            f"llama.cpp ignores LoRA on norm vectors ({len(norms)} here, such as {norms[0]}):"
            " merge the adapter into the model to use every trained pair"
        )
    if tied:
        notes.append(
            "llama.cpp aborts if an adapter has LoRA on token_embd and the output is tied to it, "
            "as in this model: merge the adapter into the model instead of loading it"
        )
    return notes


def save_adapter(
    path: Path, adapter: Adapter, hp: Hparams, *, july_2024: bool = False
) -> list[str]:
    """Write `adapter` atomically, in the format given by the name; return `adapter_notes`.

    With `july_2024`, write a `.bin` file that is byte-identical to the output of the July 2024
    version of the old tool.

    Raises `OutputError` if the path cannot be written or is a file of another kind, such as a
    model, and `UsageError` for a name or an adapter that the format does not support. Raises
    `ValueError` for an adapter that no reader would accept: one without pairs, with a non-positive
    alpha, or with a value that is not finite.
    """
    stored = Stored.of(adapter, Base.of(hp))
    write_stored(path, stored, july_2024=july_2024)
    return adapter_notes(adapter, hp, path)


def load_adapter(
    path: Path,
    hp: Hparams,
    shapes: Mapping[str, tuple[int, ...]],
    say: Callable[[str], None] | None = None,
) -> Adapter:
    """Read an adapter in any format, for a base model whose tensors have these numpy `shapes`.

    An adapter read from a file written by nbllama is equal to the trained adapter, and
    bit-identical if the format required no rounding. If pairs have different scales, as in files
    from `convert_lora_to_gguf.py`, lora_r is the largest rank, and B is rescaled to compensate.
    `say` is called with a line about ignored parts of the file; without `say`, a warning is issued.

    Raises `MissingAdapter` if the file does not exist, and `CheckpointError` if it is damaged or
    does not match the base model.
    """
    stored = read_stored(path, Base.of(hp, shapes))
    for note in stored.notes:
        if say is None:
            warnings.warn(note, stacklevel=2)
        else:
            say(note)
    try:
        return stored.adapter()
    except OverflowError as e:
        where = f"tensor '{e}.lora_b'"
        raise refuse(path, where, "overflows when rescaled to a single scale for all pairs") from e


def read_stored(path: Path, base: Base) -> Stored:
    """Read an adapter as stored in the file, and check it against the known properties of `base`.

    Raises the same errors as `load_adapter`, and `UsageError` if more information about the base
    model is required.
    """
    if not os.path.lexists(path):
        raise MissingAdapter(os.fspath(path))
    if os.path.isdir(path):
        return fitting(path, read_peft(path, base), base)
    with Source(path) as f:
        magic = f.take(min(4, f.size), "file")
    if magic == MAGIC_BYTES:
        return fitting(path, read_ggla(path), base)
    if magic[:2] == b"PK":
        problem = "a PyTorch file; only PEFT folders with safetensors can be read"
        raise refuse(path, "file", problem)
    if os.fspath(path).lower().endswith(".safetensors"):
        raise refuse(
            path, "file", f"a PEFT adapter is a folder: pass the folder that contains {CONFIG}"
        )
    return fitting(path, read_gguf_lora(path, base), base)


def write_stored(path: Path, stored: Stored, *, july_2024: bool = False) -> list[str]:
    """Write an adapter in the format given by the name; return lines about rounding and omissions.

    Raises `UsageError` if the format cannot store the adapter, and `OutputError` if the path cannot
    be written or is a file of another kind, such as a model. Raises `CheckpointError` for values
    that would become infinite in the format.
    """
    check_format(path)
    check_replaced(path)
    kind = format_of(path)
    try:
        if kind == "peft":
            return write_peft(path, stored)
        if kind == "bin":
            return write_ggla(path, stored, july_2024=july_2024)
        return write_gguf_lora(path, stored)
    except OverflowError as e:
        raise CheckpointError(
            f"{shown(path, 400)}: not written: {e}.lora_b would contain infinities in this format"
        ) from e
