"""The training loop of `nbllama.finetune`: iterations, saves, early ends, and the summary."""

from __future__ import annotations

import math
import shlex
import time
from typing import Any

from nbllama import __version__
from nbllama.adapter import format_of
from nbllama.cli import card
from nbllama.cli.config import config_text, taken_options
from nbllama.cli.options import OPTIONS, PROG
from nbllama.cli.prompts import answers
from nbllama.cli.session import Session
from nbllama.cli.story import begun, ended
from nbllama.convergence import Convergence
from nbllama.data.text_checks import mostly_lost
from nbllama.errors import Interrupted, NbllamaError, OutputError, SaveFailed, shown
from nbllama.forecast import Forecast
from nbllama.identity import environment
from nbllama.moment_order import tell
from nbllama.progress import EvaluationRecord, StepRecord, duration, memory
from nbllama.report.write import write_report
from nbllama.system_memory import peak_resident, resident
from nbllama.train import Evaluation, StepResult, StopRequested
from nbllama.train_state import TrainState
from nbllama.validation import Watch, perplexity


class _Ended(Exception):
    """An early end before the update."""


class Loop:
    """Runs a `Session` to its end.

    With `--compat` the order of events at the end is the old tool's: it evaluates once more after
    the last update, so the samples of one more iteration are passed over, and what the tests of an
    early end find in an evaluation holds before its update, not after it.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.trainer, self.settings = session.trainer, session.settings
        self.ui, self.outputs, self.stop = session.ui, session.outputs, session.stop
        self._start = time.perf_counter()
        self._first = self._saved = self._tried = self.trainer.iteration
        self._last = self.trainer.iteration + self.settings.n_iter
        self._convergence = self._tests()
        state = session.state
        self._watch = Watch.of(state.watch) if state is not None else Watch()
        self._config = ""
        self._begun: dict[str, Any] = {}
        # of an early end
        self._reason = self._watch.ended(self.settings.early_stop)

    def run(self, told: Forecast) -> None:
        """All iterations, with what they save and show.

        Raises `Interrupted` when a signal stopped it, `Diverged`, and `SaveFailed`.
        """
        options = taken_options(OPTIONS, self.session.options, self.settings)
        self._config = config_text(options, __version__)
        self._begun = begun(self.session, told, options, self.session.words)
        self.ui.record(self._begun)
        try:
            self._iterate(told)
        except NbllamaError as e:
            reason = (
                f"stopped by signal {self.stop.signum}" if isinstance(e, Interrupted) else str(e)
            )
            self._tell_end(reason)
            raise

    def _iterate(self, told: Forecast) -> None:
        trainer, compat = self.trainer, self.settings.compat
        start, results = time.perf_counter(), []
        self.stop.at_once = False
        try:
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
        except StopRequested:
            self._save_at_end()
            raise Interrupted(self._how_to_resume(), self.stop.signum) from None
        if compat:
            trainer.pass_over_next(1 if self._epochs_done() else self.settings.grad_acc)
        if self._reason:
            self.ui.note(f"ended after iteration {trainer.iteration}: {self._reason}")
        self._save_at_end()
        self._tell_end(self._reason)
        self._summary(told, results, time.perf_counter() - start)

    def _tell_end(self, reason: str) -> None:
        self.ui.record(ended(self.trainer.iteration, time.perf_counter() - self._start, reason))
        self._report()

    def _report(self) -> None:
        """Make the page of `--report` again; a failure does not stop training."""
        if self.outputs.report:
            try:
                write_report(self.outputs.log, self.outputs.report)
            except NbllamaError as e:
                self.ui.note(f"--report is not written: {e}")

    def _evaluate_if_due(self) -> None:
        """Evaluate where the run's plan says so, once: at its very start, every so many iterations,
        and at its end.
        """
        now, session = self.trainer.iteration, self.session
        if not (session.validation or session.prompts):
            return
        due = now % self.settings.eval_every == 0 or now >= self._last or bool(self._reason)
        if not due or self._watch.last == now:
            return
        watch, start, loss, best = self._watch, time.perf_counter(), None, False
        asked, most = session.prompts, session.options.sample_tokens
        said = answers(asked, session.model, self.trainer.adapter, most, self.stop.check)
        mean, overfits = watch.training_loss, False
        if session.validation is not None:
            loss = self.trainer.validation_loss(self.stop.check)
            best = watch.improves(loss) and self._save_best()
            overfits = watch.evaluated(now, loss, best)
        watch.last = now
        self.ui.evaluation(
            EvaluationRecord(
                iter=now, val_loss=loss, perplexity=None if loss is None else perplexity(loss),
                train_loss=None if math.isnan(mean) else mean, best=best,
                seconds=time.perf_counter() - start, samples=said,
            )
        )  # fmt: skip
        self._report()
        if overfits:
            self.ui.note(
                f"warning: the training loss falls and the validation loss rises since iteration "
                f"{watch.best_at}: the adapter learns its data by heart; --early-stop ends such a "
                "run, and the best adapter is kept"
            )
        self._reason = self._reason or watch.ended(self.settings.early_stop)

    def _save_best(self) -> bool:
        try:
            self.session.model.gguf.recheck()
            self.outputs.save_best(self.trainer.adapter, self.session.model.hp)
        except OutputError as e:
            self.ui.note(f"the best adapter is not saved: {e}; the next evaluation tries again")
            return False
        return True

    def _seen(self, found: Evaluation) -> None:
        """Between an evaluation and its update."""
        self._place_moments()
        self._reason = self._convergence.reached(found.loss, self.trainer.iteration)
        if self._reason and self.settings.compat:
            raise _Ended

    def _tests(self) -> Convergence:
        s, state = self.settings, self.session.state
        made = Convergence(s.opt_past, s.opt_delta, s.opt_max_no_improvement, s.adam_epsf)
        if state is None:
            return made
        if len(state.past_losses) == s.opt_past:
            made.past_losses = list(state.past_losses)
        # The old tool begins anew with each run, but for the ring; 0 is a loss that was not kept.
        if not s.compat and not state.old and state.previous_loss:
            made.best, made.previous = state.best_loss, state.previous_loss
            made.no_improvement = state.no_improvement
        return made

    def _place_moments(self) -> None:
        """With the first gradient, put the moments of an old checkpoint where they belong."""
        state = self.session.state
        if state is None or state.moments is None or self.trainer.iteration > state.iteration:
            return
        trainer = self.trainer
        direction = self.session.options.checkpoint_order or ""
        told = tell(
            state.moments, trainer.adapter, trainer.gradients, trainer.model.hp.n_layer, direction
        )
        trainer.opt.restore(told.m, told.v, state.iteration)
        self.ui.note(f"moments of the old checkpoint: order {told.order}, cosine {told.cosine:.2f}")

    def _epochs_done(self) -> bool:
        epochs = self.session.options.epochs or 0
        return 0 < epochs <= self.trainer.position.epoch - self.session.position.epoch

    def _show(self, r: StepResult) -> None:
        if not r.skipped:
            self._watch.trained(r.loss, r.trained)
        self.ui.step(
            StepRecord(
                iter=r.iteration, n_iter=self._last, epoch=r.epoch, loss=r.loss, lr=r.lr,
                grad_norm=r.grad_norm, tokens=r.tokens, tokens_per_s=r.tokens / r.seconds,
                seconds=r.seconds, rss_bytes=resident(), skipped=r.skipped,
            )
        )  # fmt: skip

    def _summary(self, told: Forecast, results: list[StepResult], seconds: float) -> None:
        lines = [("time", f"{duration(seconds)} in all")]
        if results:
            mean = sum(r.seconds for r in results) / len(results)
            first, last = results[0].loss, results[-1].loss
            lines += [
                ("an iteration", f"{mean:.2f} s, forecast {told.seconds:.2f} s"),
                ("peak memory", f"{memory(peak_resident())}, forecast {memory(told.peak)}"),
                ("loss", f"{first:.4f} at first, {last:.4f} at last"),
            ]
        if lost := mostly_lost(self.session.data):
            lines.append(("data", lost))
        if self._watch.best_at >= 0:
            where = f"{self._watch.best:.4f} at iteration {self._watch.best_at}"
            lines.append(("best validation", where))
            if self.outputs.adapter:
                lines.append(("best adapter", shown(self.outputs.best_adapter, 400)))
        if self.session.options.card and self.outputs.adapter:
            lines += self._cards([row for row in lines if "loss" in row[0] or "best" in row[0]])
        self.ui.close([*lines, *self.outputs.written()])

    def _cards(self, results: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Card and Modelfile; a failure is told, the adapter is there."""
        session, adapter = self.session, self.outputs.latest_adapter
        gguf = format_of(self.outputs.adapter) == "gguf"
        files = card.Files(session.options.model_base, adapter, gguf)
        template = session.model.tokenizer.chat_template or ""
        results = [("iterations", f"{self.trainer.iteration} in all"), *results]
        texts = {
            "card.md": card.card(self._begun, files, session.identity.base, results),
            "Modelfile": card.modelfile(files, template),
        }
        return card.write_all(self.outputs.config.removesuffix(".config.yaml"), texts, self.ui.note)

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
            rng_state=session.feed.rng_state(t.position),
            past_losses=tuple(c.past_losses),
            watch=self._watch.numbers() if self._watch.last >= 0 else {},
        )

    def _save(self) -> None:
        self.session.model.gguf.recheck()
        self.outputs.save(self._state(), self.session.model.hp)
        self._saved = self.trainer.iteration
        self._save_config()
        if problem := self.outputs.prune(self._saved):
            self.ui.note(f"{problem}; --keep-last does not hold for it")

    def _save_config(self) -> None:
        """The run's options beside its adapter; a failure does not stop training."""
        try:
            self.outputs.save_config(self._config)
        except (OSError, OutputError) as e:
            self.ui.note(f"the options of this run are not saved: {e}")

    def _save_if_due(self, at_end_too: bool) -> None:
        now = self.trainer.iteration
        if not 0 < self.settings.save_every <= now - self._tried:
            return
        if now < self._last or at_end_too:
            self._tried = now
            try:
                self._save()
            except OutputError as e:
                self.ui.note(f"not saved: {e}; training goes on, the next save is tried again")

    def _save_at_end(self) -> None:
        if self.trainer.iteration == self._saved:
            return
        try:
            self._save()
        except OutputError as e:
            raise SaveFailed(f"the last save failed: {e}") from e

    def _how_to_resume(self) -> str:
        done, seed = self.trainer.iteration, ["--seed", str(self.settings.seed)]
        # the order that was asked for is now the checkpoint's own
        again = ("--force-reshuffle", "--force_reshuffle")
        words = [word for word in self.session.words if word not in again]
        text = f"stopped after iteration {done}"
        if done == self._first:
            # nothing new was saved: the newest file may be another run's
            return f"{text}; start again with: {PROG} {shlex.join([*words, *seed])}"
        if not self.outputs.checkpoint:
            return f"{text}; it cannot be continued, as --checkpoint-out is empty"
        left = ["--adam-iter", str(self._last - done), "--epochs", "0"]
        resume = ["--checkpoint-in", self.outputs.latest_checkpoint, *left, *seed]
        return f"{text}; continue with: {PROG} {shlex.join([*words, *resume])}"
