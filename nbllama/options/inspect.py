"""The command line of `python -m nbllama.inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from nbllama.errors import UsageError
from nbllama.options.common import debug_option
from nbllama.options.familiar.others import INSPECT
from nbllama.options.file_names import File
from nbllama.options.parser import option, parse_into, table
from nbllama.options.values import Whole
from nbllama.options.words import take_words

PROG = "python -m nbllama.inspect"
ABOUT = """Show what is in FILE: a GGUF model, a checkpoint from nbllama or the old finetune, or an
adapter (GGUF, .bin or a PEFT folder). Prints metadata, tensors, types, sizes and trainable
parameters, and says why a file is refused."""
EPILOG = """exit codes: 0 the file can be used, 2 bad usage, or a model that cannot be used, 5 a
checkpoint or adapter that cannot be used or does not fit --model-base"""

_show = partial(option, "Show")


@dataclass(frozen=True)
class InspectOptions:
    """The options of `inspect`, except for FILE."""

    json: bool = _show(None, False, "print everything as one JSON document")
    all: bool = _show(None, False, "show every tensor and key instead of groups")
    lora_r: int | None = _show(
        Whole(1, 65536), None, "rank to assume when counting trainable parameters", also=["--rank"],
        shown_default="4 for plain text, 16 for records",
    )  # fmt: skip
    model_base: str = _show(
        File(), "", "check that the checkpoint or adapter fits this base model", also=["-m"],
        shown_default="none",
    )  # fmt: skip
    check: bool = _show(None, False, "read every weight and refuse a file with NaN or infinity")
    debug: bool = debug_option("Show")


def parse(argv: Sequence[str]) -> tuple[InspectOptions, str]:
    """Parse the options and the file.

    Raises `UsageError`. `--help` prints its text and raises `SystemExit(0)`.
    """
    words, rest = take_words(argv, table(InspectOptions))
    options = parse_into(
        InspectOptions, rest, prog=PROG, about=ABOUT, epilog=EPILOG,
        familiar=INSPECT, forms=["FILE"],
    )  # fmt: skip
    if len(words) != 1 or not words[0]:
        raise UsageError(f"pass one file, not {len(words)}; --help lists every option")
    return options, words[0]
