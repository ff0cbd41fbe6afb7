"""The command lines of `python -m nbllama.export_lora` and `python -m nbllama.quantize`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from nbllama.errors import UsageError, shown
from nbllama.export.file_types import ALIASES, FILE_TYPES
from nbllama.options.adapters import lora_option, lora_scaled_option, take_adapters
from nbllama.options.common import THREADS, debug_option, model_option, threads_option
from nbllama.options.familiar.others import EXPORT_LORA, QUANTIZE
from nbllama.options.file_names import File
from nbllama.options.parser import option, parse_into, table
from nbllama.options.values import Text, Whole
from nbllama.options.words import take_words

_TYPES = " ".join((*FILE_TYPES, *ALIASES)).lower()
_files = partial(option, "Files")
_run = partial(option, "Run")

EXPORT_PROG = "python -m nbllama.export_lora"
_EXPORT_ABOUT = """Merge LoRA adapters into a base model. Every tensor W that has a pair (linear
layers, token_embd, output and norms) becomes W + scale * alpha / r * B A. All metadata is kept."""
_EXPORT_EPILOG = f"""TYPE: same keeps each tensor's own type; auto gives each merged matrix the
smallest type that keeps 95 % of its pair's effect on the sample. TYPE can also be a file type as
in `nbllama quantize`, in upper or lower case: {_TYPES}

Quantised matrices are rounded to preserve their products with a sample of the training data.

-l and -s can be repeated; all adapters are merged.

exit codes: 0 success, 1 failure, or more than half of the adapters' effect is lost (0 with
--force), 2 bad usage or bad file, 3 output cannot be written, 4 out of memory, 5 adapter does not
fit, 130 interrupted by Ctrl-C"""


@dataclass(frozen=True)
class ExportOptions:
    """The options of `export_lora`, except for the adapters."""

    model_base: str = model_option("base model", "-m", "--model")
    model_out: str = _files(
        File(),
        "",
        "merged model to write",
        also=["-o", "--output", "--output-file"],
        shown_default="none; required",
    )
    lora: str = lora_option("-l")
    lora_scaled: str = lora_scaled_option("-s")
    outtype: str = _run(Text("TYPE"), "same", "weight types of the merged model")
    calibrate: str = _run(
        Text("DATA"), "", "training data; the rounding is fitted to a sample of this data",
        shown_default="the adapter's training data, if NAME.config.yaml is next to the adapter",
        file="reads",
    )  # fmt: skip
    calibrate_tokens: int = _run(Whole(1), 8192, "maximum number of tokens in the sample")
    nearest: bool = _run(None, False, "round every weight to the nearest value, without a sample")
    compare: bool = _run(
        None, True, "compare the merged and the unmerged model on a short text",
        off=["--no-compare"], shown_default="on",
    )  # fmt: skip
    sample: str = _run(
        File(), "", "UTF-8 text for the comparison; only its first 256 tokens are used",
        shown_default="the model's own completions of four short prompts",
    )  # fmt: skip
    force: bool = _run(
        None, False, "exit with 0 even if more than half of the adapters' effect is lost"
    )
    threads: int | None = threads_option()
    debug: bool = debug_option()


@dataclass(frozen=True)
class Export:
    """A parsed command line: the options, and the adapters as (file, scale) pairs in order."""

    options: ExportOptions
    adapters: list[tuple[str, float]] = field(default_factory=list)

    @property
    def inputs(self) -> list[str]:
        """Return all input files and folders."""
        options = self.options
        names = [options.model_base, options.sample, options.calibrate]
        names += [adapter for adapter, _ in self.adapters]
        return [name for name in names if name]


def parse_export(argv: Sequence[str]) -> Export:
    """Parse the command line (without the program name).

    Raises `UsageError`. `--help` and `--version` print their text and raise `SystemExit(0)`.
    """
    adapters, rest = take_adapters(argv, table(ExportOptions))
    options = parse_into(
        ExportOptions,
        rest,
        prog=EXPORT_PROG,
        about=_EXPORT_ABOUT,
        epilog=_EXPORT_EPILOG,
        familiar=EXPORT_LORA,
    )
    for given, name in (
        (options.model_base, "--model-base FILE"),
        (options.model_out, "--model-out FILE"),
        (adapters, "--lora FILE or --lora-scaled FILE SCALE"),
    ):
        if not given:
            raise UsageError(f"{name} is missing; --help lists every option")
    if options.sample and not options.compare:
        raise UsageError(
            "--sample is for the comparison, which --no-compare disables; leave out one of them"
        )
    if options.calibrate and options.nearest:
        raise UsageError("--calibrate uses a sample and --nearest does not; pass only one of them")
    return Export(options, adapters)


QUANTIZE_PROG = "python -m nbllama.quantize"
_QUANTIZE_ABOUT = "Convert a GGUF model to a different weight type."
_QUANTIZE_EPILOG = f"""TYPE, in upper or lower case: {_TYPES}
(q3_k, q4_k and q5_k mean q3_k_m, q4_k_m and q5_k_m). Each tensor gets the type that llama.cpp
would choose; --pure uses one type for all matrices.

exit codes: 0 success, 1 failure, 2 bad usage or bad file, 3 output cannot be written, 4 out of
memory, 130 interrupted by Ctrl-C"""


@dataclass(frozen=True)
class QuantizeOptions:
    """The options of `quantize`, except for IN, OUT and TYPE."""

    pure: bool = _run(None, False, "use one type for all matrices instead of a mix")
    allow_requantize: bool = _run(
        None, False, "allow a model that is already quantised; the rounding errors add up"
    )
    threads: int | None = threads_option()
    debug: bool = debug_option()


@dataclass(frozen=True)
class Quantize:
    """A parsed command line: the options and the positional arguments."""

    options: QuantizeOptions
    source: str
    target: str
    type: str
    threads: int | None


def parse_quantize(argv: Sequence[str]) -> Quantize:
    """Parse the command line (without the program name).

    Raises the same errors as `parse_export`.
    """
    words, rest = take_words(argv, table(QuantizeOptions))
    options = parse_into(
        QuantizeOptions, rest, prog=QUANTIZE_PROG, about=_QUANTIZE_ABOUT, epilog=_QUANTIZE_EPILOG,
        familiar=QUANTIZE, forms=["IN OUT TYPE [THREADS]"],
    )  # fmt: skip
    if len(words) not in (3, 4) or not all(words):
        raise UsageError("expected three arguments: pass IN OUT TYPE; see --help")
    threads = options.threads
    if len(words) == 4:
        try:
            last = THREADS.parse(words[3])
        except ValueError:
            raise UsageError(
                f"THREADS: '{shown(words[3])}' is not allowed; use {THREADS.allowed()}"
            ) from None
        threads = threads or last
    return Quantize(options, words[0], words[1], words[2], threads)
