"""Handle existing files with this run's names: resume the earlier run, or refuse to start.

The files of a different run are replaced only on request, except with `--compat`, which replaces
files silently, like the old tool.
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

_OLD_INPUT = "checkpoint.gguf"  # default in the old tool


def with_input(
    options: Options, outputs: Outputs, words: Sequence[str], *, from_python: bool = False
) -> Options:
    """Set `checkpoint_in` to the checkpoint to resume from, or to "" to start from the beginning.

    The default is the newest checkpoint among the run's own outputs, so that repeating the command
    finishes a stopped run. In this case, `outputs.finishes` is set. With `--force` alone, the run
    starts from the beginning.

    Raises `UsageError` if files of a different run would be replaced; with `from_python`, the error
    suggests keywords instead of commands. Raises `OutputError` if they are no files of a run.
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
        outputs.check_existing(found)
        advice = _keywords(outputs) if from_python else _commands(options, outputs, words)
        raise UsageError(f"{shown(found, 400)} already exists; {advice}")
    return options


def _continues_its_own(options: Options, outputs: Outputs) -> bool:
    """Return whether the checkpoint to resume from is one of the run's own outputs."""
    path = options.checkpoint_in or ""
    return os.path.exists(path) and outputs.is_own_checkpoint(path)


def _keywords(outputs: Outputs) -> str:
    """Return the keywords that continue the earlier run, start a new run, or replace the files."""
    checkpoint, adapter = outputs.latest_checkpoint, outputs.latest_adapter
    names = [n for n, out in (("lora_out", adapter), ("checkpoint_out", checkpoint)) if out]
    other = f"a different {' and '.join(names)}"
    if checkpoint and os.path.exists(checkpoint):
        more = f"pass checkpoint_in={checkpoint!r} to continue that run, {other} to start a new run"
    elif adapter and os.path.exists(adapter):
        more = f"pass lora_in={adapter!r} and {other} to train the existing adapter further"
    else:
        more = f"an earlier run wrote it; pass {other} to start a new run"
    return f"{more}, or force=True to replace it"


def _commands(options: Options, outputs: Outputs, words: Sequence[str]) -> str:
    """Return the commands that continue the earlier run or start a new run."""
    newest = outputs.latest_checkpoint
    if newest and os.path.exists(newest):
        again = [*_without(words, "--checkpoint-in"), "--checkpoint-in", newest]
        more = f"continue that run with: {_command(again)}"
    elif outputs.latest_adapter and os.path.exists(outputs.latest_adapter):
        again = [*_renamed(words, options), "--lora-in", outputs.latest_adapter]
        more = f"train the existing adapter further with: {_command(again)}"
        return f"{more}; or replace it with --force"
    else:
        more = "an earlier run wrote it"
    start = f"start a new run with: {_command(_renamed(words, options))}"
    return f"{more}; {start}; or replace it with --force"


@contextmanager
def explained(options: Options, outputs: Outputs, words: Sequence[str]) -> Iterator[None]:
    """Suggest commands if the checkpoint found under the run's own name is unsuitable.

    The commands resume the earlier run or start a new one. They are added to the message of a
    `CheckpointError` raised inside the context. Raises `UsageError` if the earlier run is complete.
    """
    try:
        yield
        if outputs.complete_at and not options.dry_run:
            raise complete(options.checkpoint_in or "", outputs.complete_at)
    except CheckpointError as e:
        if not outputs.finishes:
            raise
        newest = outputs.latest_checkpoint
        own = [*words, "--force"]  # used if the earlier run's options were not saved
        if outputs.config and os.path.exists(outputs.config):
            own = ["--config", outputs.config]
        raise CheckpointError(
            f"{e}; continue that run with: {_command([*own, '--checkpoint-in', newest])}; start "
            f"a new run with: {_command(_renamed(words, options))}; or replace its files with "
            "--force"
        ) from e


def complete(checkpoint: str, iteration: int) -> UsageError:
    """Return the error for a run that is already complete."""
    return UsageError(
        f"the run in {shown(checkpoint, 400)} is complete ({iteration} iterations); train it "
        f"further with --checkpoint-in {shlex.quote(checkpoint)} and --epochs or --adam-iter, "
        "start a new run with different names for --lora-out and --checkpoint-out, or replace it "
        "with --force"
    )


def _without(words: Sequence[str], name: str) -> list[str]:
    """Return the command-line arguments without the option `name` and its value."""
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
    """Return the command-line arguments with output names that are not yet in use."""
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
