"""The command line of `python -m nbllama.verify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from nbllama.errors import UsageError
from nbllama.options.adapters import lora_option, lora_scaled_option, take_adapters
from nbllama.options.common import debug_option, model_option, threads_option
from nbllama.options.familiar.others import VERIFY
from nbllama.options.parser import option, parse_into, table
from nbllama.options.values import Text

_files = partial(option, "Files")
_checks = partial(option, "Checks")
_run = partial(option, "Run")

PROG = "python -m nbllama.verify"
_ABOUT = (
    "Check that an adapter has an effect, that merging preserves it, and that llama.cpp agrees."
)
_EPILOG = """Runs three checks on a short text. The first compares the model with and without the
adapter. The second compares the merged and the unmerged model. The third, which requires the
xllamacpp package, compares llama.cpp with nbllama on the same files.

exit codes: 0 all checks passed, 1 a check failed, 2 bad usage or bad file, 3 output cannot be
written, 4 out of memory, 5 adapter does not fit, 130 interrupted by Ctrl-C"""


@dataclass(frozen=True)
class VerifyOptions:
    """The options of `verify`, except for the adapters."""

    model: str = model_option("base model", "-m", "--model-base")
    lora: str = lora_option()
    lora_scaled: str = lora_scaled_option()
    file: str = _files(
        Text(), "", "UTF-8 sample text; only its first 256 tokens are used", also=["-f"],
        shown_default="the model's own completions of four short prompts",
    )  # fmt: skip
    merge: bool = _checks(
        None, True, "merge into a temporary file and compare", off=["--no-merge"],
        shown_default="on",
    )  # fmt: skip
    outtype: str = _checks(
        Text("TYPE"), "", "weight types of the merged file, as for export-lora",
        shown_default="f32 for merged tensors, unchanged for others",
    )  # fmt: skip
    llama: bool = _checks(
        None, True, "compare with llama.cpp", off=["--no-llama"],
        shown_default="on if xllamacpp is installed",
    )  # fmt: skip
    threads: int | None = threads_option()
    debug: bool = debug_option()


@dataclass(frozen=True)
class Verify:
    """A parsed command line: the options, and the adapters as (file, scale) pairs in order."""

    options: VerifyOptions
    adapters: list[tuple[str, float]] = field(default_factory=list)


def parse_verify(argv: Sequence[str]) -> Verify:
    """Parse the command line (without the program name).

    Raises `UsageError`. `--help` and `--version` print their text and raise `SystemExit(0)`.
    """
    adapters, rest = take_adapters(argv, table(VerifyOptions))
    options = parse_into(
        VerifyOptions, rest, prog=PROG, about=_ABOUT, epilog=_EPILOG, familiar=VERIFY
    )
    if not options.model:
        raise UsageError("the model is missing; pass -m FILE; --help lists every option")
    if not adapters:
        raise UsageError("the adapter is missing; pass --lora FILE; --help lists every option")
    if options.outtype and not options.merge:
        raise UsageError(
            "--outtype is for the merge check, which --no-merge disables; leave out one of them"
        )
    return Verify(options, adapters)
