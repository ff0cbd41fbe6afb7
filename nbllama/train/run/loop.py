"""The training loop of `nbllama.finetune`: iterations, saving, early stopping and the summary."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from nbllama import __version__
from nbllama.adapter.savable import Adapter
from nbllama.checkpoint.environment import environment
from nbllama.checkpoint.legacy_moments import place_moments
from nbllama.checkpoint.state import TrainState
from nbllama.errors import NbllamaError, OutputError, SaveFailed
from nbllama.options.config import config_text, taken_options
from nbllama.options.finetune.table import OPTIONS
from nbllama.report.log import EvaluationRecord, StepRecord
from nbllama.system.memory import resident
from nbllama.train.blocks.spread import NoWorkers
from nbllama.train.convergence import Convergence
from nbllama.train.forecast import Forecast
from nbllama.train.run.load import load_row
from nbllama.train.run.prompts import answers
from nbllama.train.run.result import Best, Run
from nbllama.train.run.session import RunSession
from nbllama.train.run.story import begun, ended
from nbllama.train.run.summary import summary
from nbllama.train.run.verdict import Ending
from nbllama.train.trainer import Evaluation, StepResult, StopRequested
from nbllama.train.validation import Validation, perplexity


class _Ended(Exception):
    """Raised to end a run early, before the update."""


class Loop:
    """The loop that runs a `RunSession` to its end.

    With `--compat`, a run ends in the same way as in the old tool, which evaluates once more after
    the last update. The position in the data therefore advances by one more iteration. If the run
    ends early, it ends right after an evaluation, without the update that would follow.
    """

    def __init__(self, session: RunSession) -> None:
        self.session = session
        self.trainer, self.settings = session.trainer, session.settings
        self.ui, self.outputs, self.stop = session.ui, session.outputs, session.stop
        self._saved = self._tried = self.trainer.iteration
        self._last = self.trainer.iteration + self.settings.n_iter
        self._convergence = self._tests()
        state = session.state
        self._watch = Validation.of(state.validation) if state is not None else Validation()
        self._config = ""
        self._begun: dict[str, Any] = {}
        model = session.model
        self.result = Run(Adapter.of(self.trainer.adapter, model.hp), model)
        self._ending = Ending(session)
        # why the run ends early, or ""
        self._reason = self._watch.ended(self.session.options.early_stop or 0)

    def run(self, expected: Forecast) -> Run:
        """Run all iterations, including saves and reports. Raises `Diverged` and `SaveFailed`."""
        options = taken_options(OPTIONS, self.session.options, self.settings)
        self._config = config_text(options, __version__)
        self._begun = begun(self.session, expected, options, self.session.words)
        self.ui.record(self._begun)
        run = self.result
        run.forecast, run.last = expected, self._last
        run.options = {name.replace("-", "_"): value for name, value in options.items()}
        try:
            self._iterate(expected)
        except NbllamaError as e:
            self._note_end(str(e))
            raise
        run.iteration, run.reason = self.trainer.iteration, self._reason
        self.session.finished = not run.interrupted
        run.paths = self.outputs.paths
        if self.outputs.log:
            run.paths["log"] = self.outputs.log
        if run.best is None and self._watch.best_at >= 0:
            run.best = Best(self._watch.best_at, self._watch.best, None)
        return run

    def _iterate(self, expected: Forecast) -> None:
        trainer, compat = self.trainer, self.session.options.compat
        results: list[StepResult] = []
        self.stop.at_once = False
        try:
            trainer.objective.start(trainer, self.stop.check, self.ui.note)
            self._ending.before()
            self._evaluate_if_due()
            while trainer.iteration < self._last and not self._reason:
                self.stop.check()
                with self.session.dumps.at(trainer.iteration + 1):
                    r = trainer.step(self.stop.check, self._seen)
                results.append(r)
                self._show(r)
                trainer.raise_if_diverged()
                self._evaluate_if_due()
                self._save_if_due(at_end_too=compat)
        except _Ended:
            pass
        except (StopRequested, NoWorkers) as e:
            if self._reason:
                self.result.last = trainer.iteration  # only the evaluation remained to be done
            self._save_at_end()
            self.result.interrupted = True
            self._reason = str(e) if isinstance(e, NoWorkers) else self.stop.reason
            self._note_end(self._reason)
            return
        if compat:
            trainer.pass_over_next(1 if self._epochs_done() else self.session.options.grad_acc)
        if self._reason:
            self.ui.note(f"ended after iteration {trainer.iteration}: {self._reason}")
        self._save_at_end()
        self._ending.judge(results, self._watch, self.result)
        self._note_end(self._reason)
        lines = summary(
            self.session, expected, results, ending=self._ending, watch=self._watch,
            begun=self._begun,
        )  # fmt: skip
        self.ui.close(lines)

    def _note_end(self, reason: str) -> None:
        self.ui.record(ended(self.trainer.iteration, self.ui.clock, reason))
        self.outputs.write_report(self.ui.note)

    def _evaluate_if_due(self) -> None:
        """Evaluate if due: at the start, every `eval_every` iterations, and at the end."""
        now, session = self.trainer.iteration, self.session
        if not self.settings.eval_every:
            return
        due = now % self.settings.eval_every == 0 or now >= self._last or bool(self._reason)
        if not due or self._watch.last == now:
            return
        watch, start, loss, best = self._watch, time.perf_counter(), None, False
        said = self.trainer.objective.samples() + answers(
            session.prompts, self.trainer, session.options.sample_tokens, self.stop.check
        )
        mean, overfits = watch.training_loss, False
        measures: Mapping[str, float] = {}
        if session.validation is not None:
            loss = self.trainer.validation_loss(self.stop.check)
            measures = self.trainer.objective.measures()
            best = watch.improves(loss) and self._save_best()
            overfits = watch.evaluated(now, loss, best)
            self._keep(now, loss, best)
        watch.restart(now)
        if self._saved == self._last:
            self._saved = -1  # save again, because the last save does not include this evaluation
        record = EvaluationRecord(
            iter=now, val_loss=loss, perplexity=None if loss is None else perplexity(loss),
            train_loss=None if math.isnan(mean) else mean, best=best,
            seconds=time.perf_counter() - start, samples=said, measures=measures,
        )  # fmt: skip
        self.ui.evaluation(record)
        if (on_eval := session.given.on_eval) is not None and on_eval(record) is True:
            self._reason = self._reason or "on_eval returned True"
        self.outputs.write_report(self.ui.note)
        if overfits:
            self.ui.note(
                f"warning: since iteration {watch.best_at}, the training loss has fallen but the "
                "validation loss has risen: the adapter is memorising the training data; "
                "use --early-stop to end a run when this happens; the best adapter is kept"
            )
        self._reason = self._reason or watch.ended(self.session.options.early_stop or 0)

    def _keep(self, iteration: int, loss: float, best: bool) -> None:
        """Add an evaluation to the run's result."""
        run, session = self.result, self.session
        run.val_losses.append((iteration, loss))
        if best:
            adapter = run.adapter.copy() if session.given.keep_best else None
            run.best = Best(iteration, loss, adapter)

    def _save_best(self) -> bool:
        try:
            self.session.model.gguf.recheck()
            self.outputs.save_best(self.trainer.adapter, self.session.model.hp)
        except OutputError as e:
            self.ui.note(f"the best adapter was not saved: {e}; the next evaluation will try again")
            return False
        return True

    def _seen(self, found: Evaluation) -> None:
        """Handle the evaluation of an iteration's training samples, before the update."""
        self._place_moments()
        self._reason = self._convergence.reached(found.loss, self.trainer.iteration)
        if self._reason and self.session.options.compat:
            raise _Ended

    def _tests(self) -> Convergence:
        o, state = self.session.options, self.session.state
        worse = max(0, o.opt_max_no_improvement)
        made = Convergence(o.opt_past, o.opt_delta, worse, o.adam_epsf)
        if state is None:
            return made
        if len(state.past_losses) == o.opt_past:
            made.past_losses = list(state.past_losses)
        # The old tool resets all values except the ring buffer in every run; 0 means no loss.
        if not o.compat and not state.old and state.previous_loss:
            made.best, made.previous = state.best_loss, state.previous_loss
            made.no_improvement = state.no_improvement
        return made

    def _place_moments(self) -> None:
        """Use the first gradient to determine the order of the moments in an old checkpoint."""
        state = self.session.state
        if state is None or state.moments is None or self.trainer.iteration > state.iteration:
            return
        trainer, order = self.trainer, self.session.options.checkpoint_order or ""
        grads, n_layer = trainer.gradients, trainer.model.hp.n_layer
        old = place_moments(state.moments, trainer.adapter, grads, n_layer, direction=order)
        trainer.opt.restore(old.m, old.v, state.iteration)
        self.ui.note(
            f"moments of the old checkpoint: order {old.order}, gradient cosine {old.cosine:.2f}"
        )

    def _epochs_done(self) -> bool:
        epochs = self.session.options.epochs or 0
        return 0 < epochs <= self.trainer.position.epoch - self.session.position.epoch

    def _show(self, r: StepResult) -> None:
        if not r.skipped:
            self._watch.trained(r.loss, r.trained)
        record = StepRecord(
            iter=r.iteration, n_iter=self._last, epoch=r.epoch, loss=r.loss, lr=r.lr,
            grad_norm=r.grad_norm, tokens=r.tokens, computed_tokens=r.computed,
            tokens_per_s=r.tokens / r.seconds, seconds=r.seconds, rss_bytes=resident(),
            skipped=r.skipped, measures=self.trainer.objective.measures(),
            workers=tuple(self.trainer.steps.report()),
        )  # fmt: skip
        self.result.losses.append(r.loss)
        self.ui.step(record)
        self.trainer.objective.done(self.ui.note)
        if (load := load_row(self.trainer)) is not None:
            self.ui.record(load)
        if (on_step := self.session.given.on_step) is not None and on_step(record) is True:
            self._reason = self._reason or "on_step returned True"

    def _state(self) -> TrainState:
        t, session, c = self.trainer, self.session, self._convergence
        known = not math.isnan(c.previous)
        return TrainState(
            session.identity,
            t.adapter,
            t.opt.m,
            t.opt.v,
            seed=self.settings.seed,
            n_samples=session.data.n_samples,
            iteration=t.iteration,
            sample_count=t.samples_seen,
            token_count=t.tokens_seen,
            epoch=t.position.epoch,
            next_sample=t.position.next_sample,
            no_improvement=c.no_improvement,
            best_loss=c.best if known else 0.0,
            previous_loss=c.previous if known else 0.0,
            environment=environment(),
            decay_begin=session.decay.begin,
            decay_last=session.decay.stored_last,
            rng_state=session.feed.rng_state(t.position),
            past_losses=tuple(c.past_losses),
            validation=self._watch.numbers() if self._watch.last >= 0 else {},
        )

    def _save(self) -> None:
        self.session.model.gguf.recheck()
        self.outputs.save(self._state(), self.session.model.hp)
        self._saved = self.trainer.iteration
        self._save_config()
        if problem := self.outputs.prune(self._saved):
            self.ui.note(f"{problem}; the file is kept despite --keep-last")

    def _save_config(self) -> None:
        """Save the run's options next to its adapter; a failure does not stop training."""
        try:
            self.outputs.save_config(self._config)
        except (OSError, OutputError) as e:
            self.ui.note(f"the options of this run were not saved: {e}")

    def _save_if_due(self, at_end_too: bool) -> None:
        now = self.trainer.iteration
        if not 0 < self.session.options.save_every <= now - self._tried:
            return
        if now < self._last or at_end_too:
            self._tried = now
            try:
                self._save()
            except OutputError as e:
                self.ui.note(f"not saved: {e}; training continues, and saving will be retried")

    def _save_at_end(self) -> None:
        if self.trainer.iteration == self._saved:
            return
        try:
            self._save()
        except OutputError as e:
            raise SaveFailed(f"the last save failed: {e}") from e
