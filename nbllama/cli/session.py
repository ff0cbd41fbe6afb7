"""One run of `nbllama.finetune`: everything loaded, the forecast told, the loop, the saves, the
summary.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numba

from nbllama.adapter import adapter_notes, check_format, save_adapter
from nbllama.checkpoint import (
    LATEST,
    TrainState,
    load_checkpoint,
    output_name,
    prune,
    save_checkpoint,
)
from nbllama.cli.options import PROG, Options
from nbllama.cli.settings import Settings, context, fresh_seed, resolve
from nbllama.cli.ui import Display
from nbllama.data import Position, data_kind, load_dataset
from nbllama.errors import Interrupted, OutputError, SaveFailed, shown
from nbllama.forecast import Forecast, forecast, peak_resident, resident
from nbllama.identity import (
    Identity,
    check_fits,
    differences,
    environment,
    environment_notes,
    model_fingerprint,
    model_numbers,
)
from nbllama.lora import init_adapter
from nbllama.model import load_model
from nbllama.opt import AdamW
from nbllama.progress import StepRecord, duration, memory
from nbllama.train import Schedule, StopRequested, Trainer

if TYPE_CHECKING:
    from nbllama.finetune import StopFlag


# Settings whose change would make a continued run another run. Those in STORED are taken from the
# checkpoint where the command line does not give them.
SETTINGS = (
    "batch",
    "grad_acc",
    "ctx",
    "adam_alpha",
    "adam_min_alpha",
    "adam_beta1",
    "adam_beta2",
    "adam_decay",
    "adam_decay_min_ndim",
    "adam_gclip",
    "warmup",
    "cos_decay_steps",
    "cos_decay_min",
    "cos_decay_restart",
    "enable_restart",
)
STORED = ("ctx", "adam_alpha", "warmup", "cos_decay_steps", "cos_decay_min")


def _completed(options: Options, state: TrainState | None) -> Options:
    """Options with what the command line left open taken from the checkpoint that is continued."""
    if state is None:
        return options
    same = state.identity
    stored = {name: same.settings[name] for name in STORED if name in same.settings}
    if options.lora_r is None:
        stored |= {f"rank_{slot}": rank for slot, rank in same.ranks.items()}
    stored |= {"lora_r": same.lora_r, "lora_alpha": same.lora_alpha}
    left = {name: value for name, value in stored.items() if getattr(options, name) is None}
    if options.seed < 0:
        left["seed"] = state.seed
    return replace(options, **left)  # type: ignore[arg-type]


class Session:
    """One run of the program: everything loaded, then the loop."""

    def __init__(
        self, options: Options, words: list[str], threads: int, ui: Display, stop: StopFlag
    ) -> None:
        self.words, self.ui, self.stop = words, ui, stop
        if options.lora_out:
            check_format(options.lora_out)
        self.threads = threads
        numba.set_num_threads(threads)
        self.state = self._resume(options)
        self.options = options = _completed(options, self.state)
        self.model = load_model(options.model_base)
        for warning in self.model.hp.warnings:
            ui.note(warning)
        kind = data_kind(options.train_data)
        template = self.model.chat_template if kind == "chat" else None
        self.data = load_dataset(
            options.train_data, self.model.tokenizer, context(options, kind), template=template
        )
        for note in self.data.notes:
            ui.note(note)
        self.settings = self._settings()
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

    def _trainer(self) -> Trainer:
        s, state = self.settings, self.state
        if state is None:
            adapter = init_adapter(
                self.model.hp, s.ranks, s.lora_alpha, s.lora_r, s.seed, self.model.shapes
            )
        else:
            self._check_fits(state)
            adapter = state.adapter
        for line in adapter_notes(adapter, self.model.hp):
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
            iteration=state.iteration if state else 0,
            position=Position(state.epoch, state.next_sample) if state else None,
        )
        if state is not None:
            trainer.samples_seen, trainer.tokens_seen = state.sample_count, state.token_count
        return trainer

    def _check_fits(self, state: TrainState) -> None:
        wanted = self.identity()
        if self.options.force:
            for line in differences(state.identity, wanted):
                self.ui.note(f"continued by --force: {line}")
        else:
            check_fits(self.options.checkpoint_in, state.identity, wanted)
        for line in environment_notes(state.environment):
            self.ui.note(line)

    def identity(self) -> Identity:
        """What a checkpoint of this run must share with it."""
        s = self.settings
        return Identity(
            self.model.hp.arch,
            s.lora_r,
            s.lora_alpha,
            s.ranks,
            model_fingerprint(self.model.gguf),
            self.data.fingerprint,
            model_numbers(self.model.hp),
            {name: getattr(s, name) for name in SETTINGS},
        )

    def forecast(self) -> Forecast:
        """Print what the run is and what it will take."""
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
        ui.compiling()
        ui.compiling(self.trainer.compile())
        told = forecast(self.trainer, self.threads, s.use_checkpointing)
        on, off = (
            (told.activations, told.other_mode)
            if s.use_checkpointing
            else (told.other_mode, told.activations)
        )
        ui.header(
            [
                (
                    "forecast",
                    f"{told.seconds:.2f} s an iteration, "
                    f"{duration(told.seconds * s.n_iter)} in all",
                ),
                ("memory", f"{memory(told.peak)}, {memory(told.weights)} of it the mapped model"),
                ("activations", f"{memory(on)} with checkpointing, {memory(off)} without"),
            ]
        )
        return told

    def train(self, told: Forecast) -> None:
        """The loop, the saves, and the summary."""
        trainer, ui, s = self.trainer, self.ui, self.settings
        last = self._last = trainer.iteration + s.n_iter
        saved, start, spent, losses = trainer.iteration, time.perf_counter(), 0.0, []
        while trainer.iteration < last:
            try:
                self.stop.check()
                r = trainer.step(self.stop.check)
            except StopRequested:
                self._save_at_end(saved)
                raise Interrupted(
                    f"stopped after iteration {trainer.iteration}; {self._how_to_resume()}",
                    self.stop.signum,
                ) from None
            spent += r.seconds
            losses.append(r.loss)
            ui.step(
                StepRecord(
                    iter=r.iteration, n_iter=last, epoch=r.epoch, loss=r.loss, lr=r.lr,
                    grad_norm=r.grad_norm, tokens=r.tokens, tokens_per_s=r.tokens / r.seconds,
                    seconds=r.seconds, rss_bytes=resident(), skipped=r.skipped,
                )
            )  # fmt: skip
            trainer.raise_if_diverged()
            if s.save_every > 0 and r.iteration - saved >= s.save_every and r.iteration < last:
                try:
                    self._save()
                    saved = r.iteration
                except OutputError as e:
                    ui.note(f"not saved: {e}; training goes on, the next save is tried again")
        self._save_at_end(saved)
        done = max(1, len(losses))
        ui.close(
            [
                ("time", f"{duration(time.perf_counter() - start)} in all"),
                ("an iteration", f"{spent / done:.2f} s, forecast {told.seconds:.2f} s"),
                ("peak memory", f"{memory(peak_resident())}, forecast {memory(told.peak)}"),
                ("loss", f"{losses[0]:.4f} at first, {losses[-1]:.4f} at last" if losses else "-"),
                *self._written(),
            ]
        )  # fmt: skip

    def _state(self) -> TrainState:
        t = self.trainer
        return TrainState(
            self.identity(),
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
        """Checkpoint and adapter, each under its number and as LATEST."""
        options, iteration = self.options, self.trainer.iteration
        self.model.gguf.recheck()
        if options.checkpoint_out:
            state = self._state()
            for stamp in (iteration, LATEST):
                save_checkpoint(output_name(options.checkpoint_out, stamp), state)
            prune(options.checkpoint_out, self.settings.keep_last, iteration)
        if options.lora_out:
            for stamp in (iteration, LATEST):
                name = output_name(options.lora_out, stamp)
                save_adapter(name, self.trainer.adapter, self.model.hp)

    def _save_at_end(self, saved: int) -> None:
        if self.trainer.iteration == saved:
            return
        try:
            self._save()
        except OutputError as e:
            raise SaveFailed(f"the last save failed: {e}") from e

    def _written(self) -> list[tuple[str, str]]:
        files = (("checkpoint", self.options.checkpoint_out), ("adapter", self.options.lora_out))
        return [(what, shown(output_name(p, LATEST))) for what, p in files if p]

    def _how_to_resume(self) -> str:
        if not self.options.checkpoint_out:
            return "nothing was saved, as --checkpoint-out is empty"
        s, left = self.settings, self._last - self.trainer.iteration
        latest = output_name(self.options.checkpoint_out, LATEST)
        more = ["--checkpoint-in", latest, "--adam-iter", str(left), "--epochs", "0"]
        more += ["--seed", str(s.seed)]
        command = shlex.join([*self.words, *more])
        return f"continue with: {PROG} {command}"
