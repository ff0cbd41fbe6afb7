"""The program `python -m nbllama.convert_lora IN OUT [--model-base FILE]`.

It converts an adapter between the current GGUF format, the old `.bin` format and a Hugging Face
PEFT folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from nbllama.errors import UsageError, shown
from nbllama.options.common import debug_option
from nbllama.options.familiar.others import CONVERT_LORA
from nbllama.options.file_names import File
from nbllama.options.parser import option, parse_into, table
from nbllama.options.words import take_words
from nbllama.system.program import run_program

PROG = "python -m nbllama.convert_lora"
ABOUT = """Convert a LoRA adapter. IN is a GGUF adapter, a .bin file of llama.cpp's old finetune, or
a PEFT folder; its name does not matter. OUT becomes a .bin file if its name ends in .bin, a PEFT
folder if the name ends in / or OUT is a folder, and otherwise a GGUF adapter. Values are
rounded only if OUT cannot store them exactly; notes say what was rounded or left out."""
EPILOG = """exit codes: 0 success, 1 failure, 2 bad usage or bad base model, 3 output cannot be
written, 5 adapter is damaged or does not fit the base model"""

_files = partial(option, "Options")


@dataclass(frozen=True)
class Options:
    """The parsed options, except for the two positional arguments."""

    model_base: str = _files(
        File(),
        "",
        "the adapter's base model (GGUF); required if IN lacks data that OUT needs (a .bin file "
        "does not contain the architecture, and only nbllama's files contain the head size, which "
        "determines the order of rows in PEFT); if given, every pair is checked against it",
        also=["-m"],
        shown_default="none",
    )
    debug: bool = debug_option("Options")


def parse(argv: Sequence[str]) -> tuple[str, str, Options]:
    """Parse IN, OUT and the options.

    Raises `UsageError`. `--help` prints its text and raises `SystemExit(0)`.
    """
    names, rest = take_words(argv, table(Options))
    options = parse_into(
        Options, rest, prog=PROG, about=ABOUT, epilog=EPILOG, familiar=CONVERT_LORA,
        forms=["IN OUT"],
    )  # fmt: skip
    if len(names) != 2:
        found = " ".join(map(repr, names)) or "none"
        raise UsageError(f"pass two names, IN and OUT (given: {shown(found, 400)}); see --help")
    return names[0], names[1], options


def convert(source: str, target: str, model_base: str = "") -> list[str]:
    """Convert the file or folder `source` to `target`; return notes about anything that was lost.

    `model_base` is a GGUF model, or "" for none. Raises `MissingAdapter`, `UsageError` and
    `OutputError`. Raises `CheckpointError` if the adapter cannot be used.
    """
    from nbllama.adapter.file import (
        check_format,
        check_replaced,
        format_of,
        read_stored,
        stored_notes,
        write_stored,
    )
    from nbllama.adapter.stored import Base
    from nbllama.arch import OLD_TOOL_ARCH, hparams_from_gguf
    from nbllama.gguf_io import open_gguf
    from nbllama.system.part_names import files_of

    check_format(target)
    for what, name in (("IN", source), ("--model-base", model_base)):
        for file in filter(os.path.exists, files_of(name)):
            if os.path.exists(target) and os.path.samefile(file, target):
                raise UsageError(
                    f"{shown(target, 400)}: {what} and OUT are the same file; choose another OUT"
                )
    check_replaced(target)
    base, notes, tied = Base(), [], False
    if model_base:
        with open_gguf(model_base) as f:
            hp = hparams_from_gguf(f)
            base = Base.of(hp, {name: t.shape for name, t in f.tensors.items()})
            tied = hp.tied_output
    stored = read_stored(source, base)
    if stored.base.arch is None:
        notes.append(
            f"{shown(source)} does not name an architecture; assuming {OLD_TOOL_ARCH}, the only "
            "one "
            "that llama.cpp's finetune supported (--model-base FILE overrides this)"
        )
        stored = stored.known(Base(OLD_TOOL_ARCH))
    notes += stored.notes
    notes += write_stored(target, stored)
    notes += stored_notes(stored, tied, format_of(target))
    return list(dict.fromkeys(notes))


def _run(words: list[str]) -> None:
    source, target, options = parse(words)
    from nbllama.adapter.stored import MissingAdapter

    try:
        notes = convert(source, target, options.model_base)
    except MissingAdapter as e:
        raise UsageError(str(e)) from e
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {shown(target, 400)}")


main = partial(run_program, _run)
