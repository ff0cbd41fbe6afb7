"""The options of `python -m nbllama.finetune`: one table for parser, help and docs.

Names and meanings are those of the old llama.cpp `finetune`. A default of None means "not given":
`nbllama.train.run.settings.resolve` fills it in from the kind of training data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nbllama.errors import UsageError
from nbllama.options.config import config_words
from nbllama.options.data import RecordOptions
from nbllama.options.escapes import unescape
from nbllama.options.familiar.finetune import FINETUNE
from nbllama.options.finetune.data import SampleOptions
from nbllama.options.finetune.ending import EndOptions
from nbllama.options.finetune.files import FileOptions
from nbllama.options.finetune.fits import check_objective
from nbllama.options.finetune.lora import LoraOptions
from nbllama.options.finetune.many import ManyOptions, check_many
from nbllama.options.finetune.model import ModelOptions
from nbllama.options.finetune.objective import ObjectiveOptions
from nbllama.options.finetune.rewards import RewardOptions
from nbllama.options.finetune.run import RunOptions
from nbllama.options.finetune.step import StepOptions
from nbllama.options.parser import markdown, parse_into, read, table

PROG = "python -m nbllama.finetune"
ABOUT = """Train a LoRA adapter on a quantised GGUF model, on the CPU.

Defaults depend on the training data: plain text, or records such as chats ("chat" below). The
values in use are printed before training starts."""
EPILOG = """In --lora-out and --checkpoint-out, ITERATION is replaced by the iteration number; each
save is also written under the same name with LATEST (--pattern-fn-it and --fn-latest change these
words). Training continues from --checkpoint-in if that file exists.

exit codes: 0 done, 1 failure, 2 bad usage or bad file, 3 path that cannot be written, 4 not
enough memory, 5 checkpoint that does not fit, 6 last save failed, 7 the run diverged, 130, 143
and 129 stopped by SIGINT, SIGTERM and SIGHUP"""

# Names from other trainers.
FAMILIAR = FINETUNE


@dataclass(frozen=True)
class Options(
    FileOptions,
    RunOptions,
    RecordOptions,
    SampleOptions,
    ModelOptions,
    LoraOptions,
    ObjectiveOptions,
    RewardOptions,
    StepOptions,
    EndOptions,
    ManyOptions,
):
    """A parsed command line; None if an option was not given and has no fixed default."""


OPTIONS = table(Options)


def parse(argv: Sequence[str]) -> Options:
    """Return the options of a command line, without the program's name.

    Raises `UsageError`; `--help` and `--version` print and raise `SystemExit(0)`.
    """
    given = read(OPTIONS, argv, FAMILIAR)
    if path := given.get("config"):
        # the last occurrence of an option wins, so these come first
        argv = [*config_words(path, OPTIONS, FAMILIAR), *argv]
    options = parse_into(Options, argv, prog=PROG, about=ABOUT, epilog=EPILOG, familiar=FAMILIAR)
    if not options.model_base:
        raise UsageError("which model? Give --model-base FILE; --help lists every option")
    if options.val_data and options.val_split:
        raise UsageError("--val-data and --val-split: give one of them")
    if options.share_prompts and options.lora_dropout:
        raise UsageError(
            "--share-prompts and --lora-dropout: every sample has its own masks; leave one of "
            "the two out"
        )
    if options.n_gpu_layers:
        raise UsageError(
            f"--n-gpu-layers {options.n_gpu_layers}: this trainer computes on the CPU only; "
            "leave it out or give 0"
        )
    check_many(options, bool(options.dump))
    check_objective(options)
    for name in ("pattern_fn_it", "fn_latest"):
        text = getattr(options, name)
        if not text or "/" in text or "\\" in text:
            raise UsageError(
                f"--{name.replace('_', '-')} must be a part of a file's name: not empty, without /"
            )
    if options.escape:
        return replace(options, sample_start=unescape(options.sample_start))
    return options


def page() -> str:
    """Write docs/options.md."""
    head = (
        "# Options of `python -m nbllama.finetune`\n\n"
        "Made by `python -m nbllama.options.finetune.table > docs/options.md`; a test compares the"
        " two.\n\n"
        "`--option VALUE` and `--option=VALUE` are the same, and `_` in a name counts as `-`. If\n"
        "an option is given twice, the last value is used. `--help` and `--version` print and\n"
        "stop.\n\n"
    )
    return head + markdown(OPTIONS)


if __name__ == "__main__":
    print(page(), end="")
