"""Prepare a run: load its inputs, and print its settings and the forecast."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from nbllama.adapter.file import adapter_notes
from nbllama.checkpoint.environment import environment_notes
from nbllama.data.prompts import Prompts
from nbllama.data.statistics import described, utilisation
from nbllama.data.suited import script_notes
from nbllama.errors import UsageError, shown
from nbllama.generation.model import Model, load_model
from nbllama.lora.pairs import Adapter, init_adapter
from nbllama.lora.slots import without_tensor
from nbllama.opt.names import OPTIMISERS
from nbllama.options.finetune.table import Options
from nbllama.report.log import duration, memory
from nbllama.train.blocks.address import check_address
from nbllama.train.forecast import Forecast, check_memory, forecast
from nbllama.train.probe import compile_kernels
from nbllama.train.run.continued import continued
from nbllama.train.run.data import load_data, make_feed, rest_of, walk_epochs
from nbllama.train.run.decay import check_rates, plan, schedule
from nbllama.train.run.defaults import iterations
from nbllama.train.run.dumps import Dumps
from nbllama.train.run.given import Given
from nbllama.train.run.judging import run_judging
from nbllama.train.run.layers import blocks
from nbllama.train.run.lora_in import started_from
from nbllama.train.run.outputs import Outputs
from nbllama.train.run.prompts import load_prompts
from nbllama.train.run.recorder import Recorder
from nbllama.train.run.resume import check_resume, completed, identity
from nbllama.train.run.settings import Settings, fresh_seed, resolve
from nbllama.train.run.stop import StopFlag
from nbllama.train.run.trunk import plan_trunk
from nbllama.train.saved_rows import saved_line
from nbllama.train.trainer import Trainer

OLD_FLOOR = 1e-9  # lower bound for probabilities in ggml in 2023 and 2024


def base_model(options: Options, given: Model | None) -> Model:
    """Load the model that `--model-base` names, or return the already loaded model.

    Raises `GGUFError` if the file cannot be loaded, and `UsageError` for options that cannot be
    applied to a model that is already loaded.
    """
    constants = options.constants()
    if given is None:
        return load_model(options.model_base, **constants)
    if constants:
        names = ", ".join(constants)
        raise UsageError(f"the model is already loaded: pass {names} to load_model")
    return given


class RunSession:
    """Everything that a run requires; `nbllama.train.run.loop` performs the run."""

    def __init__(
        self,
        options: Options,
        words: Sequence[str],
        threads: int,
        *,
        outputs: Outputs,
        ui: Recorder,
        stop: StopFlag,
        given: Given,
    ) -> None:
        self.words, self.outputs, self.ui, self.stop = list(words), outputs, ui, stop
        self.threads, self.given = threads, given
        if (options.threads or 0) > threads:
            ui.note(f"--threads {options.threads}: using {threads}, the number of processors")
        self.continued = continued(options, ui.note)
        self.state = self.continued.state if self.continued is not None else None
        self._decay_steps = options.cos_decay_steps  # as given
        self.options = options = completed(options, self.state)
        check_address(options.ray)
        self.model = base_model(options, given.model)
        self.start = self._start()
        date = self.options.template_date or datetime.now().date().isoformat()
        options = replace(self.options, template_date=date)
        self.seed = fresh_seed() if options.seed < 0 else options.seed
        self.options, self.data, self.validation = load_data(
            options, self.model, self.state, seed=self.seed, say=ui.note, given=given
        )
        options = outputs.keep(self.options, self.state)
        suited = script_notes(self.model.tokenizer, self.data)
        for note in (*self.model.hp.warnings, *self.data.notes, *suited):
            ui.note(note)
        self.feed, self.position = make_feed(options, self.data, self.seed, self.state)
        self.settings = self._settings()
        self.prompts = load_prompts(options, self.model, self.data, given.sample_prompts)
        if not (self.validation or self.prompts or isinstance(self.data, Prompts)):
            self.settings = replace(self.settings, eval_every=0)  # does not affect the result
        self.preferences = run_judging(
            self.options, self.model, self.data, self.validation, outputs=outputs, say=ui.note
        )
        self.identity = identity(
            self.settings, self.model, self.data, self.validation, preferences=self.preferences
        )
        self.trainer = self._trainer()
        self.trunk = plan_trunk(
            self.trainer, self.validation, size=options.trunk_cache, n_iter=self.settings.n_iter,
            outputs=outputs, say=ui.note,
        )  # fmt: skip
        self.finished = False  # whether the run is complete
        rates = self.decay, self.settings, self.trainer.iteration, self.trainer.factor
        for note in check_rates(*rates):
            ui.note(note)
        self.dumps = Dumps(options.dump, options.dump_out, self.trainer, ui.note)

    def _start(self) -> Adapter | None:
        """If the run starts from `--lora-in`, read that adapter and set the ranks accordingly."""
        path = self.options.lora_in
        if not path:
            return None
        if self.state is not None:
            self.ui.note(f"--lora-in {shown(path)} is ignored: the run resumes from the checkpoint")
            return None
        self.options, start = started_from(self.options, self.model, self.ui.note)
        self.ui.note(f"starting from the adapter {shown(path)}")
        return start

    def _settings(self) -> Settings:
        state, o, kind, n_samples = self.state, self.options, self.data.kind, self.data.n_samples
        walked = walk_epochs(o, self.data, self.feed, self.position)
        o = self.options = rest_of(o, self.data, self.feed, self.state, outputs=self.outputs)
        n_iter = iterations(o, kind, n_samples, walked)
        self.decay = plan(o, self._decay_steps, state, data_kind=kind, n_iter=n_iter)
        settings = resolve(
            replace(o, cos_decay_steps=self.decay.end),
            kind,
            n_samples,
            missing=without_tensor(self.model.shapes),
            cores=self.threads,
            new_seed=self.seed,
            done=state.iteration if state is not None else 0,
            unscaled=state is not None and state.old,
            n_layer=self.model.hp.n_layer,
            walk=walked,
            begin=self.decay.begin,
        )
        for note in (*self.decay.notes, *settings.notes):
            self.ui.note(note)
        return settings

    def _adapter(self) -> Adapter:
        s = self.settings
        if self.start is not None:
            return self.start
        if self.state is None:
            return init_adapter(
                self.model.hp, s.ranks, alpha=s.lora_alpha, lora_r=s.lora_r, seed=s.seed,
                shapes=self.model.shapes, layers=blocks(s.lora_layers, self.model.hp.n_layer),
            )  # fmt: skip
        n_samples = self.data.n_samples
        for line in check_resume(
            self.options, self.state, self.identity, n_samples, new_decay=self.decay.new
        ):
            self.ui.note(f"resumed because of --force: {line}")
        for line in environment_notes(self.state.environment):
            self.ui.note(line)
        return replace(self.state.adapter, alpha=s.lora_alpha, lora_r=s.lora_r)

    def _trainer(self) -> Trainer:
        s, o, state = self.settings, self.options, self.state
        adapter = self._adapter()
        for line in adapter_notes(adapter, self.model.hp, self.outputs.adapter):
            self.ui.note(line)
        opt = OPTIMISERS[o.optimizer].load()(
            adapter.parameters(),
            s.adam_alpha,
            beta1=o.adam_beta1,
            beta2=s.adam_beta2,
            decay=o.adam_decay,
            decay_min_ndim=o.adam_decay_min_ndim,
            gclip=o.adam_gclip,
            b_ratio=o.loraplus_lr_ratio,
        )
        if state is not None and not state.old:
            opt.restore(state.m, state.v, state.iteration)
        trainer = Trainer(
            self.model,
            adapter,
            opt,
            self.data,
            rates=schedule(s, self.decay),
            feed=self.feed,
            batch=o.batch,
            grad_acc=o.grad_acc,
            checkpointing=o.use_checkpointing,
            activation_memory=o.activation_memory or 0,
            iteration=state.iteration if state is not None else 0,
            position=self.position,
            old_schedule=o.compat,
            probability_floor=OLD_FLOOR if o.compat else 0.0,
            dropout=o.lora_dropout,
            seed=s.seed,
            validation=self.validation,
            objective=self.preferences.objective if self.preferences is not None else None,
            share_prompts=bool(o.share_prompts),
            block=o.block or 0,
        )
        if state is not None:
            trainer.samples_seen, trainer.tokens_seen = state.sample_count, state.token_count
        return trainer

    def _held_out(self) -> str:
        if self.validation is None:
            return ""
        every = f"every {self.settings.eval_every} iterations"
        return f", {self.validation.n_samples} for validation {every}"

    def _tokens(self) -> str:
        """Describe how many tokens an epoch has, and how many of them are trained and computed."""
        if isinstance(self.data, Prompts):
            return self.data.line()
        tokens, trained = (int(counts.sum()) for counts in self.data.lengths())
        line = f"{tokens} per epoch, {100 * trained / tokens:.1f} % trained"
        if self.trainer.shares or self.model.hp.mixers:
            line += f", {saved_line(self.trainer)}"
        if not self.options.packing or self.options.share_prompts:
            return line
        use = utilisation(self.data, self.settings.ctx, self.options.batch, self.seed)
        return f"{line}; batches {100 * use.packed:.1f} % full"

    def mean_seconds(self, expected: Forecast) -> float:
        """Return the expected mean seconds per iteration of this run."""
        if self.trunk is None:
            return expected.seconds
        trainer, n_iter = self.trainer, self.settings.n_iter
        per_step = trainer.dataset.per_batch(trainer.batch) * trainer.grad_acc
        first = min(n_iter, math.ceil(trainer.dataset.n_samples / per_step))
        if os.path.exists(self.trunk.path):
            first = 0
        return (first * expected.seconds + (n_iter - first) * expected.stored_seconds) / max(
            1, n_iter
        )

    def _later(self, expected: Forecast) -> str:
        if self.trunk is None:
            return ""
        return f", {expected.stored_seconds:.2f} s once the output of the frozen blocks is stored"

    def forecast(self) -> Forecast:
        """Print the settings and the forecast.

        Raises `NotEnoughMemory` before doing any slow work.
        """
        s, ui, hp = self.settings, self.ui, self.model.hp
        n_parameters = self.trainer.adapter.n_parameters
        ui.header(
            [
                ("model", f"{shown(self.options.model_base)}: {hp.arch}, {hp.n_layer} layers"),
                *s.pairs(self.decay.begin, described(self.data)),
                *(self.preferences.header() if self.preferences is not None else ()),
                ("samples", f"{self.data.n_samples}{self._held_out()}"),
                ("tokens", self._tokens()),
                ("trained", f"{n_parameters:,} parameters".replace(",", " ")),
                *([("frozen", self.trunk.line())] if self.trunk is not None else ()),
            ]
        )
        check_memory(self.trainer, self.threads)
        ui.compiling()
        ui.compiling(compile_kernels(self.trainer))
        expected = forecast(self.trainer, self.threads)
        in_all = duration(self.mean_seconds(expected) * s.n_iter)
        mapped = memory(expected.weights)
        on, off = memory(expected.activations[True]), memory(expected.activations[False])
        ui.header(
            [
                (
                    "forecast",
                    f"{expected.seconds:.2f} s per iteration{self._later(expected)}, "
                    f"{in_all} in total",
                ),
                ("memory", f"{memory(expected.peak)}, including {mapped} for the mapped model"),
                (
                    "activations",
                    f"{memory(expected.chosen)} ({on} with checkpointing, {off} without)",
                ),
            ]
        )
        return expected
