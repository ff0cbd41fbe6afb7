"""One run of `nbllama.finetune`: everything loaded, the forecast told, the loop, the saves, the
summary.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import replace

import numba

from nbllama.adapter import adapter_notes
from nbllama.checkpoint import TrainState, load_checkpoint
from nbllama.cli.lora_in import started_from
from nbllama.cli.options import PROG, Options
from nbllama.cli.outputs import Outputs
from nbllama.cli.resume import completed, identity
from nbllama.cli.settings import Settings, context, fresh_seed, resolve
from nbllama.cli.stop import StopFlag
from nbllama.cli.ui import Display
from nbllama.data import Dataset, Position, data_kind, load_dataset
from nbllama.errors import Interrupted, OutputError, SaveFailed, shown
from nbllama.forecast import Forecast, check_memory, forecast, peak_resident, resident
from nbllama.identity import check_fits, environment, environment_notes
from nbllama.lora import Adapter, init_adapter
from nbllama.model import load_model
from nbllama.opt import AdamW
from nbllama.progress import StepRecord, duration, memory
from nbllama.train import Schedule, StepResult, StopRequested, Trainer


class Session:
    """One run of the program: everything loaded, then the loop."""

    def __init__(
        self,
        options: Options,
        words: list[str],
        threads: int,
        outputs: Outputs,
        ui: Display,
        stop: StopFlag,
    ) -> None:
        self.words, self.outputs, self.ui, self.stop = words, outputs, ui, stop
        self.threads = threads
        numba.set_num_threads(threads)
        self.state = self._resume(options)
        self.options = completed(options, self.state)
        self.model = load_model(options.model_base)
        for warning in self.model.hp.warnings:
            ui.note(warning)
        self.start = self._start()
        self.data = self._load_data()
        self.settings = self._settings()
        self.identity = identity(self.settings, self.model, self.data)
        self.trainer = self._trainer()

    def _resume(self, options: Options) -> TrainState | None:
        path = options.checkpoint_in
        if not path:
            return None
        try:
            state = load_checkpoint(path)
        except FileNotFoundError:
            self.ui.note(f"no checkpoint {shown(path)}: a fresh start")
            return None
        self.ui.note(f"continuing {shown(path)} after iteration {state.iteration}")
        return state

    def _start(self) -> Adapter | None:
        """The adapter of `--lora-in`, if the run starts from it; its ranks become options."""
        path = self.options.lora_in
        if not path:
            return None
        if self.state is not None:
            self.ui.note(f"--lora-in {shown(path)} is not read: the checkpoint is continued")
            return None
        self.options, start = started_from(self.options, self.model)
        self.ui.note(f"starting from the adapter {shown(path)}")
        return start

    def _load_data(self) -> Dataset:
        path, model = self.options.train_data, self.model
        kind = data_kind(path)
        template = model.chat_template if kind == "chat" else None
        n_ctx = context(self.options, kind)
        data = load_dataset(path, model.tokenizer, n_ctx, template=template, kind=kind)
        if template is not None:
            template.close()  # it is a process with memory of its own
        for note in data.notes:
            self.ui.note(note)
        return data

    def _settings(self) -> Settings:
        state = self.state
        settings = resolve(
            self.options,
            self.data.kind,
            self.data.n_samples,
            tied_output=self.model.hp.tied_output,
            cores=self.threads,
            new_seed=fresh_seed(),
            done=state.iteration if state is not None else 0,
        )
        for note in settings.notes:
            self.ui.note(note)
        return settings

    def _adapter(self) -> Adapter:
        s = self.settings
        if self.start is not None:
            return self.start
        if self.state is None:
            return init_adapter(
                self.model.hp, s.ranks, s.lora_alpha, s.lora_r, s.seed, self.model.shapes
            )
        path = self.options.checkpoint_in
        force = self.options.force
        for line in check_fits(path, self.state.identity, self.identity, force=force):
            self.ui.note(f"continued by --force: {line}")
        for line in environment_notes(self.state.environment):
            self.ui.note(line)
        return replace(self.state.adapter, alpha=s.lora_alpha, lora_r=s.lora_r)

    def _position(self) -> Position:
        """Where in the data to begin; data that --force let pass may end before that place."""
        if self.state is None:
            return Position()
        epoch, next_sample = self.state.epoch, self.state.next_sample
        return Position(epoch, next_sample if next_sample < self.data.n_samples else 0)

    def _trainer(self) -> Trainer:
        s, state, adapter = self.settings, self.state, self._adapter()
        for line in adapter_notes(adapter, self.model.hp, self.outputs.adapter):
            self.ui.note(line)
        opt = AdamW(
            adapter.parameters(),
            s.adam_alpha,
            s.adam_beta1,
            s.adam_beta2,
            decay=s.adam_decay,
            decay_min_ndim=s.adam_decay_min_ndim,
            gclip=s.adam_gclip,
        )
        if state is not None:
            opt.restore(state.m, state.v, state.iteration)
        trainer = Trainer(
            self.model,
            adapter,
            opt,
            self.data,
            Schedule(
                s.warmup,
                s.cos_decay_steps,
                s.cos_decay_min,
                s.cos_decay_restart,
                s.enable_restart,
                s.adam_min_alpha / s.adam_alpha,
            ),
            batch=s.batch,
            grad_acc=s.grad_acc,
            seed=s.seed,
            checkpointing=s.use_checkpointing,
            iteration=state.iteration if state is not None else 0,
            position=self._position(),
        )
        if state is not None:
            trainer.samples_seen, trainer.tokens_seen = state.sample_count, state.token_count
        return trainer

    def forecast(self) -> Forecast:
        """Print what the run is and what it will take.

        Raises `NotEnoughMemory` before anything slow is done.
        """
        s, ui, hp = self.settings, self.ui, self.model.hp
        n_parameters = self.trainer.adapter.n_parameters
        ui.header(
            [
                ("model", f"{shown(self.options.model_base)}: {hp.arch}, {hp.n_layer} layers"),
                *s.pairs(),
                ("samples", f"{self.data.n_samples}"),
                ("trained", f"{n_parameters:,} parameters".replace(",", " ")),
            ]
        )
        check_memory(self.trainer, self.threads)
        ui.compiling()
        ui.compiling(self.trainer.compile())
        told = forecast(self.trainer, self.threads)
        in_all = duration(told.seconds * s.n_iter)
        mapped = memory(told.weights)
        on, off = memory(told.activations[True]), memory(told.activations[False])
        ui.header(
            [
                ("forecast", f"{told.seconds:.2f} s an iteration, {in_all} in all"),
                ("memory", f"{memory(told.peak)}, {mapped} of it the mapped model"),
                ("activations", f"{on} with checkpointing, {off} without"),
            ]
        )
        return told

    def train(self, told: Forecast) -> None:
        """The loop, the saves, and the summary."""
        trainer, s = self.trainer, self.settings
        self._first = self._saved = tried = trainer.iteration
        self._last = last = trainer.iteration + s.n_iter
        start, results = time.perf_counter(), []
        self.stop.at_once = False
        while trainer.iteration < last:
            try:
                self.stop.check()
                r = trainer.step(self.stop.check)
            except StopRequested:
                self._save_at_end()
                raise Interrupted(self._how_to_resume(), self.stop.signum) from None
            results.append(r)
            self._show(r)
            trainer.raise_if_diverged()
            if 0 < s.save_every <= r.iteration - tried and r.iteration < last:
                tried = r.iteration
                try:
                    self._save()
                except OutputError as e:
                    self.ui.note(f"not saved: {e}; training goes on, the next save is tried again")
        self._save_at_end()
        self._summary(told, results, time.perf_counter() - start)

    def _show(self, r: StepResult) -> None:
        self.ui.step(
            StepRecord(
                iter=r.iteration, n_iter=self._last, epoch=r.epoch, loss=r.loss, lr=r.lr,
                grad_norm=r.grad_norm, tokens=r.tokens, tokens_per_s=r.tokens / r.seconds,
                seconds=r.seconds, rss_bytes=resident(), skipped=r.skipped,
            )
        )  # fmt: skip

    def _summary(self, told: Forecast, results: list[StepResult], seconds: float) -> None:
        mean = sum(r.seconds for r in results) / len(results)
        first, last = results[0].loss, results[-1].loss
        self.ui.close(
            [
                ("time", f"{duration(seconds)} in all"),
                ("an iteration", f"{mean:.2f} s, forecast {told.seconds:.2f} s"),
                ("peak memory", f"{memory(peak_resident())}, forecast {memory(told.peak)}"),
                ("loss", f"{first:.4f} at first, {last:.4f} at last"),
                *self.outputs.written(),
            ]
        )

    def _state(self) -> TrainState:
        t = self.trainer
        return TrainState(
            self.identity,
            t.adapter,
            t.opt.m,
            t.opt.v,
            seed=self.settings.seed,
            n_samples=self.data.n_samples,
            iteration=t.iteration,
            sample_count=t.samples_seen,
            token_count=t.tokens_seen,
            epoch=t.position.epoch,
            next_sample=t.position.next_sample,
            environment=environment(),
        )

    def _save(self) -> None:
        self.model.gguf.recheck()
        self.outputs.save(self._state(), self.model.hp)
        self._saved = self.trainer.iteration
        if problem := self.outputs.prune(self._saved):
            self.ui.note(f"{problem}; --keep-last does not hold for it")

    def _save_at_end(self) -> None:
        if self.trainer.iteration == self._saved:
            return
        try:
            self._save()
        except OutputError as e:
            raise SaveFailed(f"the last save failed: {e}") from e

    def _how_to_resume(self) -> str:
        done, seed = self.trainer.iteration, ["--seed", str(self.settings.seed)]
        text = f"stopped after iteration {done}"
        if done == self._first:
            # nothing new was saved: the newest file may be another run's
            return f"{text}; start again with: {PROG} {shlex.join([*self.words, *seed])}"
        if not self.outputs.checkpoint:
            return f"{text}; it cannot be continued, as --checkpoint-out is empty"
        left = ["--adam-iter", str(self._last - done), "--epochs", "0"]
        resume = ["--checkpoint-in", self.outputs.latest_checkpoint, *left, *seed]
        return f"{text}; continue with: {PROG} {shlex.join([*self.words, *resume])}"
