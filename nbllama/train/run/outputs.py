"""The files that a run writes: their names, their locks, and how they are saved.

In the names of checkpoints and adapters, ITERATION (`--pattern-fn-it`) is replaced by the iteration
number. Each save also writes an identical file with LATEST (`--fn-latest`) in its name. An adapter
for PEFT is a folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from nbllama.adapter.file import FOLDER_FILES, check_format, is_folder, save_adapter
from nbllama.checkpoint.file import save_checkpoint
from nbllama.checkpoint.names import PLACEHOLDER, output_name, prune, prune_adapters
from nbllama.checkpoint.state import TrainState
from nbllama.errors import Diverged, OutputError, UsageError, shown
from nbllama.opt.arrays import check_finite
from nbllama.options.finetune.table import Options
from nbllama.report.write import write_report
from nbllama.system.files import atomic_write
from nbllama.train.run.claim import (
    LOG_OF_REPORT,
    OPTIONS_OF_THE_RUN,
    check_contents,
    check_kinds,
    claim,
)
from nbllama.train.run.names import BEST, Names, bare, check_outputs

if TYPE_CHECKING:
    from nbllama.arch import Hparams
    from nbllama.lora.pairs import Adapter

CARD_FILES = ("card.md", "Modelfile")


class Outputs:
    """The output files of a run; `checkpoint` and `adapter` are names with ITERATION, or ""."""

    def __init__(self, options: Options) -> None:
        """Set the names. Raises `UsageError` if a name is not allowed."""
        self.checkpoint, self.adapter = options.checkpoint_out, options.lora_out
        self.report = "" if options.only_write_lora else options.report
        self.log = options.log
        if self.report and not self.log:
            self.log = os.path.splitext(self.report)[0] + ".jsonl"
        self.keep_last, self._kept_before = options.keep_last or 0, -1
        self._keep_is_given = options.keep_last is not None
        self.unlimited = options.epochs is None and options.adam_iter is None
        self.finishes = False  # whether the run resumes from its own newest checkpoint
        self.complete_at = 0  # the iteration at which the earlier run was complete
        self._mark, self._newest = options.pattern_fn_it, options.fn_latest
        if options.only_write_lora:
            self.checkpoint = ""
        self._old_layout = options.compat
        self.paths: dict[str, str] = {}  # the newest file of each kind that was written
        self._folder = bool(self.adapter) and is_folder(self.adapter)
        adapter = bare(self.adapter) if self._folder else self.adapter
        named = {"--checkpoint-out": self.checkpoint, "--lora-out": adapter}
        self._named = {option: pattern for option, pattern in named.items() if pattern}
        if self.adapter:
            check_format(self.adapter)
        for option, pattern in self._named.items():
            if self._mark in os.path.dirname(pattern):
                raise UsageError(
                    f"{option} {shown(pattern, 400)}: {self._mark} must be in the file name, not "
                    "in a folder name"
                )
        if self._newest == BEST:
            raise UsageError(
                f"--fn-latest {BEST}: this word marks the best adapter; use a different word"
            )
        self._every = self._all(options)
        check_outputs(options, self._every)

    def _all(self, options: Options) -> dict[str, list[Names]]:
        """Return all files that the run writes, keyed by option."""
        found = {option: [self._names(pattern)] for option, pattern in self._named.items()}
        if self.adapter:
            found["--lora-out"] = [
                Names(bare(name), self._mark, self._newest, folder=self._folder)
                for name in (self.adapter, self.best_adapter)
            ]
            found[OPTIONS_OF_THE_RUN] = [Names(self.config)]
        if self.adapter and options.card:
            stem = self.config.removesuffix(".config.yaml")
            found["--card"] = [Names(f"{stem}.{ending}") for ending in CARD_FILES]
        if self.log:
            found["--log" if options.log else LOG_OF_REPORT] = [Names(self.log)]
        if self.report:
            found["--report"] = [Names(self.report)]
        if options.dump:
            found["--dump-out"] = [Names(options.dump_out, PLACEHOLDER, PLACEHOLDER)]
        return found

    def claim(self, stack: ExitStack) -> None:
        """Check that the outputs can be written, and lock them until `stack` ends.

        Also removes incomplete files from runs that were killed. Raises `OutputError` if an output
        cannot be written or locked.
        """
        claim(self._every, stack)

    def save(self, state: TrainState, hp: Hparams) -> None:
        """Save the adapter and the checkpoint, each under the iteration number and as LATEST.

        The adapter is saved first. If the run is killed between the two saves, it can resume from
        the older checkpoint and will write the same adapter again. In the opposite order, the last
        checkpoint could exist without its adapter: the run would be complete but have no result.

        Raises `OutputError` if a file cannot be written. If a file would replace a file of a
        different kind, the other files are still written before `OutputError` is raised. Raises
        `Diverged` if the state is not finite.
        """
        for arrays in (state.adapter.parameters(), state.m, state.v):
            if bad := check_finite(arrays):
                what = f"{bad} or its moments are not finite"
                raise Diverged(f"iteration {state.iteration} was not saved: {what}")
        kept = self._save_adapter(state, hp)
        for name in self._stamped(self.checkpoint, state.iteration):
            if not (problem := _other("--checkpoint-out", name)):
                save_checkpoint(name, state)
                self.paths["checkpoint"] = name
            kept = kept or problem
        if kept:
            raise kept

    def save_adapter(self, state: TrainState, hp: Hparams) -> None:
        """Save only the adapter, under the iteration number and as LATEST.

        Raises `OutputError` if the adapter cannot be written.
        """
        if kept := self._save_adapter(state, hp):
            raise kept

    def _save_adapter(self, state: TrainState, hp: Hparams) -> OutputError | None:
        """Save the adapter, or return an error if it would replace a file of a different kind."""
        kept = None
        for name in self._stamped(self.adapter, state.iteration):
            if not (problem := _other("--lora-out", name)):
                save_adapter(name, state.adapter, hp, july_2024=self._old_layout)
                self.paths["adapter"] = name
            kept = kept or problem
        return kept

    def _stamped(self, pattern: str, iteration: int) -> list[str]:
        """Return the two names for a save: with the iteration number and with LATEST."""
        stamps = (iteration, self._newest)
        names = (output_name(pattern, stamp, self._mark) for stamp in stamps)
        return [name for name in dict.fromkeys(names) if name]

    def save_best(self, adapter: Adapter, hp: Hparams) -> None:
        """Save the adapter with the lowest validation loss so far.

        Raises `OutputError` if the adapter cannot be written.
        """
        if self.adapter:
            if problem := _other("--lora-out", self.best_adapter):
                raise problem
            save_adapter(self.best_adapter, adapter, hp, july_2024=self._old_layout)
            self.paths["best"] = self.best_adapter

    @property
    def best_adapter(self) -> str:
        """The name of the best adapter, or "" if the run writes no adapter.

        In the name, BEST replaces ITERATION or is added at the end.
        """
        if not self.adapter:
            return ""
        if self._mark in self.adapter:
            return output_name(self.adapter, BEST, self._mark)
        if self._folder:
            return f"{bare(self.adapter)}-{BEST}/"
        stem, ending = os.path.splitext(self.adapter)
        return f"{stem}-{BEST}{ending}"

    @property
    def config(self) -> str:
        """The name of the options file next to the newest adapter, or "" if there is none."""
        latest = self._latest(bare(self.adapter) if self._folder else self.adapter)
        return os.path.splitext(latest)[0] + ".config.yaml" if latest else ""

    def save_config(self, text: str) -> None:
        """Save the options of the run. Raises `OutputError` if they cannot be written."""
        if self.config:
            with atomic_write(self.config) as file:
                file.write(text.encode())
            self.paths["config"] = self.config

    def keep(self, options: Options, state: TrainState | None) -> Options:
        """Set how many numbered files to keep, and return `options` unchanged.

        If the number was not given explicitly, files from before this run (up to the iteration
        of the checkpoint `state`) are not removed.
        """
        self.keep_last = options.keep_last or 0
        if state is not None and not self._keep_is_given:
            self._kept_before = state.iteration
        return options

    def write_report(self, say: Callable[[str], None]) -> None:
        """Rewrite the `--report` page; a failure does not stop training."""
        if self.report:
            try:
                write_report(self.log, self.report)
                self.paths["report"] = self.report
            except Exception as e:  # a failure must not stop the run
                say(f"--report was not written: {shown(e or type(e).__name__, 400)}")

    def prune(self, iteration: int) -> str:
        """Remove old files (`--keep-last`), and return an error message, or "" on success."""
        try:
            if self.checkpoint:
                prune(
                    self.checkpoint, self.keep_last, iteration, mark=self._mark,
                    after=self._kept_before,
                )  # fmt: skip
            if self.adapter:
                prune_adapters(
                    bare(self.adapter), self.keep_last, iteration, mark=self._mark,
                    after=self._kept_before, inside=FOLDER_FILES,
                )  # fmt: skip
        except OutputError as e:
            return str(e)
        return ""

    def existing(self) -> Iterator[str]:
        """Yield the checkpoints and adapters that already exist under these names."""
        patterns = dict.fromkeys((*self._named.values(), bare(self.best_adapter or "")))
        for pattern in filter(None, patterns):
            folder = self._folder and pattern != self.checkpoint
            names = Names(pattern, self._mark, self._newest, folder=folder)
            yield from sorted(names.files())

    def check_existing(self, name: str) -> None:
        """Raise `OutputError` if the existing file `name`, or a newest file, is of another kind."""
        check_kinds(self._every)
        checkpoint = bool(self.checkpoint) and self._names(self.checkpoint).may_be(name)
        check_contents("--checkpoint-out" if checkpoint else "--lora-out", name)

    def is_own_checkpoint(self, path: str) -> bool:
        """Return whether `path` matches `--checkpoint-out` or is its parent folder."""
        if os.path.isdir(path):
            folder = os.path.dirname(self.checkpoint) or os.curdir
            return bool(self.checkpoint) and os.path.realpath(path) == os.path.realpath(folder)
        return bool(self.checkpoint) and self._names(self.checkpoint).may_be(path)

    @property
    def latest_checkpoint(self) -> str:
        """The name of the checkpoint with LATEST."""
        return self._latest(self.checkpoint)

    @property
    def latest_adapter(self) -> str:
        """The name of the adapter with LATEST."""
        return self._latest(self.adapter)

    def written(self) -> list[tuple[str, str]]:
        """Return a (kind, newest file) pair for each kind of file, to show in the summary."""
        files = (("checkpoint", self.checkpoint), ("adapter", self.adapter))
        return [(what, shown(self._latest(p), 400)) for what, p in files if p]

    def _latest(self, pattern: str) -> str:
        return output_name(pattern, self._newest, self._mark)

    def _names(self, pattern: str) -> Names:
        return Names(pattern, self._mark, self._newest)


def _other(option: str, name: str) -> OutputError | None:
    """Return an error if an output would replace a file of a different kind, or None."""
    try:
        check_contents(option, name)
    except OutputError as e:
        return e
    return None
