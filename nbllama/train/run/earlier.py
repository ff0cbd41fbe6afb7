"""What an earlier run left under the names of this one: it is continued, or this run is refused.

Nothing is replaced by accident. With `--compat` files are replaced without a word, as the old tool
did.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from nbllama.errors import CheckpointError, UsageError, shown
from nbllama.options.finetune.table import PROG, Options
from nbllama.system.program import called_as

if TYPE_CHECKING:
    from nbllama.train.run.outputs import Outputs

_OLD_INPUT = "checkpoint.gguf"  # default of the old tool


def with_input(options: Options, outputs: Outputs, words: Sequence[str]) -> Options:
    """Return options in which `checkpoint_in` says what is continued; "" is a fresh start.

    By default that is the newest checkpoint of the run's own outputs, so that the same command
    finishes a run that was stopped; `outputs.finishes` says that it is so. With `--force` alone it
    is a fresh start.

    Raises `UsageError` where files of another run would be replaced.
    """
    if options.checkpoint_in is None:
        newest = _OLD_INPUT if options.compat else outputs.latest_checkpoint
        anew = options.force and not options.only_write_lora
        if options.only_write_lora or options.compat:
            return replace(options, checkpoint_in=newest)
        outputs.finishes = bool(newest) and not anew and os.path.exists(newest)
        options = replace(options, checkpoint_in=newest if outputs.finishes else "")
    free = options.compat or options.force or options.dry_run or options.only_write_lora
    if free or _continues_its_own(options, outputs):
        return options
    found = next(outputs.existing(), "")
    if found:
        raise UsageError(_refusal(found, options, outputs, words))
    return options


def _continues_its_own(options: Options, outputs: Outputs) -> bool:
    """Whether the checkpoint that is continued bears a name of `--checkpoint-out`."""
    path = options.checkpoint_in or ""
    return os.path.exists(path) and outputs.is_own_checkpoint(path)


def _refusal(found: str, options: Options, outputs: Outputs, words: Sequence[str]) -> str:
    newest = outputs.latest_checkpoint
    if newest and os.path.exists(newest):
        again = [*_without(words, "--checkpoint-in"), "--checkpoint-in", newest]
        more = f"continue that run with: {_command(again)}"
    elif outputs.latest_adapter and os.path.exists(outputs.latest_adapter):
        again = [*_renamed(words, options), "--lora-in", outputs.latest_adapter]
        more = f"train its adapter further with: {_command(again)}"
        return f"{shown(found, 400)} exists already; {more}; or replace it with --force"
    else:
        more = "an earlier run wrote it"
    start = f"start another one with: {_command(_renamed(words, options))}"
    return f"{shown(found, 400)} exists already; {more}; {start}; or replace it with --force"


@contextmanager
def explained(options: Options, outputs: Outputs, words: Sequence[str]) -> Iterator[None]:
    """Refuse a checkpoint that was found under the run's own name and does not fit.

    The error has the two commands that do. Raises `CheckpointError`, and `UsageError` where the run
    of the checkpoint is complete.
    """
    try:
        yield
        if outputs.complete_at and not options.dry_run:
            raise complete(options.checkpoint_in or "", outputs.complete_at)
    except CheckpointError as e:
        if not outputs.finishes:
            raise
        newest = outputs.latest_checkpoint
        own = [*words, "--force"]  # with its own options where they are known, else with these
        if outputs.config and os.path.exists(outputs.config):
            own = ["--config", outputs.config]
        raise CheckpointError(
            f"{e}; continue that run with: {_command([*own, '--checkpoint-in', newest])}; start "
            f"another one with: {_command(_renamed(words, options))}; or replace its files with "
            "--force"
        ) from e


def complete(checkpoint: str, iteration: int) -> UsageError:
    """Make the error for a run that has nothing left to do."""
    return UsageError(
        f"the run in {shown(checkpoint, 400)} is complete: {iteration} iterations; --checkpoint-in "
        f"{shlex.quote(checkpoint)} with --epochs or --adam-iter trains it further, other names of "
        "--lora-out and --checkpoint-out start another run, --force replaces it"
    )


def _without(words: Sequence[str], name: str) -> list[str]:
    """Return the words without the option `name` and its value."""
    found: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word.replace("_", "-") == name:
            skip = True
        elif not word.replace("_", "-").startswith(f"{name}="):
            found.append(word)
    return found


def _renamed(words: Sequence[str], options: Options) -> list[str]:
    """Return the words with names of outputs that are free."""
    found = list(words)
    for option, name in (
        ("--checkpoint-out", options.checkpoint_out), ("--lora-out", options.lora_out),
    ):  # fmt: skip
        if name:
            found = [*_without(found, option), option, _free(name, options)]
    return found


def _free(name: str, options: Options) -> str:
    folder, base = os.path.split(name.rstrip("/" + os.sep))
    for number in range(2, 1000):
        other = os.path.join(folder, f"run{number}-{base}")
        stamped = other.replace(options.pattern_fn_it, options.fn_latest, 1)
        if not os.path.exists(stamped):
            return other + ("/" if name.endswith(("/", os.sep)) else "")
    return name


def _command(words: Sequence[str]) -> str:
    return f"{called_as(PROG)} {shlex.join(words)}"
