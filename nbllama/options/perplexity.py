"""The command line of `python -m nbllama.perplexity`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from nbllama.errors import UsageError
from nbllama.options.adapters import lora_option, lora_scaled_option, take_adapters
from nbllama.options.common import debug_option, model_option, threads_option
from nbllama.options.familiar.others import PERPLEXITY
from nbllama.options.file_names import File
from nbllama.options.parser import option, parse_into, table
from nbllama.options.values import Whole

_files = partial(option, "Files")
_run = partial(option, "Run")

PROG = "python -m nbllama.perplexity"
_ABOUT = """Measure how well a model predicts text. The perplexity is the exponential of the mean
loss per token, computed as in llama-perplexity. With --kl-divergence, also compare the model with a
second model."""
_EPILOG = """The text is read in chunks of --ctx-size tokens. Only the second half of each chunk is
scored.

exit codes: 0 success, 1 failure, 2 bad usage or bad file, 4 out of memory, 5 adapter does not fit,
130 interrupted by Ctrl-C"""


@dataclass(frozen=True)
class PerplexityOptions:
    """The options of `perplexity`, except for the adapters."""

    model: str = model_option("model", "-m", "--model-base")
    file: str = _files(
        File(), "", "UTF-8 text to score", also=["-f"], shown_default="none; required"
    )
    lora: str = lora_option()
    lora_scaled: str = lora_scaled_option()
    ctx_size: int = _run(Whole(8, 1 << 24), 512, "tokens per chunk", also=["-c", "--ctx"])
    chunks: int = _run(Whole(0), 0, "number of chunks to read; 0: all")
    kl_divergence: bool = _run(
        None,
        False,
        "also print the KL divergence between --base-model and the model, in nats per token",
    )
    base_model: str = _files(
        File(),
        "",
        "second model for --kl-divergence; no adapters are applied to it",
        shown_default="the same model without adapters",
    )
    threads: int | None = threads_option()
    debug: bool = debug_option()


@dataclass(frozen=True)
class Perplexity:
    """A parsed command line: the options, and the adapters as (file, scale) pairs in order."""

    options: PerplexityOptions
    adapters: list[tuple[str, float]] = field(default_factory=list)


def parse_perplexity(argv: Sequence[str]) -> Perplexity:
    """Parse the command line (without the program name).

    Raises `UsageError`. `--help` and `--version` print their text and raise `SystemExit(0)`.
    """
    adapters, rest = take_adapters(argv, table(PerplexityOptions))
    options = parse_into(
        PerplexityOptions,
        rest,
        prog=PROG,
        about=_ABOUT,
        epilog=_EPILOG,
        familiar=PERPLEXITY,
    )
    if not options.model:
        raise UsageError("the model is missing; pass -m FILE; --help lists every option")
    if not options.file:
        raise UsageError("the text is missing; pass -f FILE; --help lists every option")
    if options.base_model and not options.kl_divergence:
        raise UsageError(
            "--base-model is only used with --kl-divergence; pass both, or omit --base-model"
        )
    if options.kl_divergence and not (options.base_model or adapters):
        raise UsageError(
            "--kl-divergence: there is nothing to compare with; pass --base-model FILE or --lora "
            "FILE"
        )
    return Perplexity(options, adapters)
