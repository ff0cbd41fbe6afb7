"""The command line of `python -m nbllama.gradcheck`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from nbllama.errors import UsageError
from nbllama.options.common import debug_option, model_option, threads_option
from nbllama.options.familiar.others import GRADCHECK
from nbllama.options.file_names import File
from nbllama.options.parser import option, parse_into
from nbllama.options.values import Real, Text, Whole

PROG = "python -m nbllama.gradcheck"
ABOUT = """Check the gradients that training uses: compare the gradients of every LoRA pair in a few
blocks with finite differences of the same model in plain numpy and float64."""
EPILOG = """exit codes: 0 all gradients are correct, 1 a gradient is wrong, 2 bad usage or bad file,
4 out of memory, 5 adapter does not fit"""

_files = partial(option, "Files")
_run = partial(option, "Run")


@dataclass(frozen=True)
class GradcheckOptions:
    """A parsed command line."""

    model_base: str = model_option("model", "-m", "--model")
    lora: str = _files(
        File(), "", "check the gradients of this adapter",
        shown_default="random A and B for every tensor that can have a pair",
    )  # fmt: skip
    data: str = _files(
        File(),
        "",
        "text file; only its first tokens are used",
        shown_default="a built-in sentence",
    )
    layers: str = _run(
        Text("BLOCKS"), "", "blocks to check: first:N, last:N, all, or a list such as 0,4-6",
        shown_default="one block per combination of weight types, plus the last block",
    )  # fmt: skip
    tokens: int = _run(
        Whole(3, 4096), 12, "number of tokens, split into two sequences", also=["-n"]
    )
    rank: int = _run(Whole(1, 1024), 4, "rank of the random pairs", also=["--lora-r"])
    seed: int = _run(
        Whole(),
        0,
        "seed for the random pairs and for the directions of the finite differences",
        also=["-s"],
    )
    tolerance: float = _run(
        Real(above=True),
        1e-3,
        "largest accepted error of a gradient, relative to the norm of the gradient",
    )
    threads: int | None = threads_option()
    all: bool = _run(None, False, "list every tensor instead of summarising by kind")
    json: bool = _run(None, False, "print a JSON document instead of a table")
    debug: bool = debug_option()


def parse(argv: Sequence[str]) -> GradcheckOptions:
    """Parse a command line.

    Raises `UsageError`. `--help` prints its text and raises `SystemExit(0)`.
    """
    options = parse_into(
        GradcheckOptions, argv, prog=PROG, about=ABOUT, epilog=EPILOG, familiar=GRADCHECK
    )
    if not options.model_base:
        raise UsageError("the model is missing; pass -m FILE; --help lists every option")
    return options
