"""The result of a run in plain words.

The result consists of the mean losses of the first and last epochs, answers before and after the
run, a verdict, and suggested commands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbllama.errors import shown
from nbllama.report.log import loss_text
from nbllama.train.run.asked import HELD_OUT, TRAINED, Asked, answer, find_questions
from nbllama.train.run.next_commands import BY_HEART, HARDLY, LEARNED, Rows, next_commands
from nbllama.train.run.plan import HELD_OUT_FROM
from nbllama.train.run.rewards import RunRewards

if TYPE_CHECKING:
    from nbllama.train.run.result import Run
    from nbllama.train.run.session import RunSession
    from nbllama.train.trainer import StepResult
    from nbllama.train.validation import Validation

KNOWN = 0.25  # nats per token; below this loss, the model reproduces the text almost without errors
FALLEN = 0.5  # a run has learned if the last mean loss is at most this fraction of the first one
RISEN = 1.1  # validation loss, relative to the lowest one, that indicates learning by heart


@dataclass(frozen=True)
class Means:
    """Mean losses at the start and at the end of a run, in nats per trained token.

    `over` names the interval of each mean, such as "epoch".
    """

    first: float
    last: float
    over: str

    def __str__(self) -> str:
        first, last = loss_text(self.first), loss_text(self.last)
        return f"{first} over the first {self.over}, {last} over the last"


def means(results: Sequence[StepResult], per_epoch: int) -> Means | None:
    """Return the mean losses of the first and last epochs, each of `per_epoch` iterations.

    In a run that is shorter than two epochs, each mean covers a tenth of the run. Returns None if
    all iterations were skipped.
    """
    counted = [r for r in results if not r.skipped]
    if not counted:
        return None
    n = per_epoch
    over = "epoch"
    if not 0 < n <= len(counted) // 2:
        n = max(1, len(counted) // 10)
        over = "iteration" if n == 1 else f"{n} iterations"
    return Means(_mean(counted[:n]), _mean(counted[-n:]), over)


def _mean(results: Sequence[StepResult]) -> float:
    return sum(r.loss * r.trained for r in results) / max(1, sum(r.trained for r in results))


@dataclass(frozen=True)
class Verdict:
    """A verdict: `word` is `LEARNED`, `HARDLY` or `BY_HEART`; `reason` also says what may help."""

    word: str
    reason: str

    def __str__(self) -> str:
        return f"{self.word}: {self.reason}"


def verdict_on(
    loss: Means, questions: Sequence[Asked], watch: Validation, *, steps: int, longer: str
) -> Verdict:
    """Return the verdict on a run that trained on records.

    `steps` is the total number of iterations, `longer` contains the options for training longer,
    and `watch` contains the evaluations.
    """
    trained = [q for q in questions if q.kind == TRAINED]
    right = sum(q.right for q in trained)
    fall = f"training loss {loss_text(loss.first, 2)} -> {loss_text(loss.last, 2)}"
    numbers = ", ".join(filter(None, (_right_of(questions), fall)))
    known = loss.last < KNOWN or (bool(trained) and 2 * right > len(trained))
    if not known and (loss.last > FALLEN * loss.first):
        return Verdict(HARDLY, f"{steps} iterations, {numbers}; try {longer}")
    if watch.best_at >= 0 and watch.previous > RISEN * watch.best and loss.last < watch.best:
        return Verdict(
            BY_HEART,
            f"{numbers}, but the validation loss rose from {loss_text(watch.best, 2)} (iteration "
            f"{watch.best_at}, the best adapter) to {loss_text(watch.previous, 2)}: answers to "
            "new questions are getting worse; use more varied data or fewer epochs",
        )
    if trained and not right:
        numbers += f"; compare the answers above, and try {longer} if they must match exactly"
    return Verdict(LEARNED, numbers)


def _right_of(questions: Sequence[Asked]) -> str:
    """Say how many questions of each kind are answered as in the data; "" if there are none."""
    counts = []
    for kind, name in ((TRAINED, "trained"), (HELD_OUT, "held-out")):
        if asked := [q for q in questions if q.kind == kind]:
            counts.append(f"{sum(q.right for q in asked)} of {len(asked)} {name}")
    return f"{' and '.join(counts)} questions are answered as in the data" if counts else ""


def nothing_new(questions: Sequence[Asked], n_records: int, n_held_out: int) -> str:
    """Return a remark if no held-out question was asked, or "".

    Without the remark, "learned" could be read as a statement about new questions.
    """
    if any(q.kind == HELD_OUT for q in questions):
        return ""
    if n_held_out:
        why = "none of the held-out records was used as a question"
    elif n_records < HELD_OUT_FROM:
        why = f"records are only held out if there are at least {HELD_OUT_FROM}"
    else:
        why = "nothing is held out; --val-split 0.1 holds out a tenth of the records"
    return f"no new questions were asked: {why}"


RIGHT = 0.75  # share of pairs or labelled answers that are judged correctly
MORE = 0.1  # minimum increase in the share


def verdict_on_preferences(
    first: Mapping[str, float], last: Mapping[str, float], longer: str
) -> Verdict:
    """Return the verdict on a run that trained on preferences.

    `first` and `last` contain the mean of each metric over the first and the last iterations.
    """
    names = ("accuracy", "margin")
    numbers = ", ".join(
        f"{name} {first[name]:.2f} -> {last[name]:.2f}"
        for name in names
        if name in first and name in last
    )
    right, before = last.get("accuracy", 0.0), first.get("accuracy", 0.0)
    if right < RIGHT and right < before + MORE:
        return Verdict(HARDLY, f"{numbers}; try {longer}")
    return Verdict(LEARNED, numbers)


RISEN_REWARD = 0.25  # in initial standard deviations; below this value, the mean has hardly changed


def verdict_on_rewards(
    first: Mapping[str, float], last: Mapping[str, float], longer: str
) -> Verdict:
    """Return the verdict on a run with rewards; for the arguments, see `verdict_on_preferences`."""
    if "reward" not in first or "reward" not in last:
        return Verdict(HARDLY, "hardly any answer earns a reward")
    before, after = first["reward"], last["reward"]
    numbers = f"reward {before:.3g} -> {after:.3g}"
    if "kl" in last:
        numbers += f", KL {last['kl']:.2g} nats per token"
    if after - before < RISEN_REWARD * first.get("reward_std", 0.0) or after <= before:
        same = f"in {100 * last.get('same', 0.0):.0f} % of the groups, all rewards are equal"
        return Verdict(HARDLY, f"{numbers}; {same}; try {longer}")
    return Verdict(LEARNED, numbers)


class Ending:
    """The answers before and after training, and the verdict on the run.

    After `judge`, `loss`, `verdict` and `commands` contain (name, value) lines for the summary.
    """

    def __init__(self, session: RunSession) -> None:
        self._session = session
        number = session.options.answers or 0
        tokenizer = session.model.tokenizer
        self.questions = find_questions(tokenizer, session.data, session.validation, number)
        self._first = session.trainer.iteration
        self.loss: Rows = []
        self.verdict: Rows = []
        self.commands: Rows = []

    def before(self) -> None:
        """Ask the questions with the current adapter. Raises `StopRequested`."""
        for q, text in zip(self.questions, self._answers(), strict=True):
            q.before = text

    def _answers(self) -> list[str]:
        s = self._session
        return answer(self.questions, s.model, s.trainer.adapter, s.stop.check)

    def judge(self, results: Sequence[StepResult], watch: Validation, run: Run) -> None:
        """Ask the questions again, and report the result.

        The result is stored for the summary, in the log and in `run`. The answers are shown on the
        screen. Raises `StopRequested`.
        """
        loss = means(results, self._per_epoch())
        if loss is None:
            return
        self.loss.append(("loss", str(loss)))
        s = self._session
        if s.data.kind == "raw" or s.options.compat:
            return
        for q, text in zip(self.questions, self._answers(), strict=True):
            q.after = text
        steps = s.trainer.iteration
        if isinstance(s.preferences, RunRewards):
            verdict = verdict_on_rewards(s.preferences.first, s.preferences.last, self._longer())
        elif s.preferences is not None:
            verdict = verdict_on_preferences(
                s.preferences.first, s.preferences.last, self._longer()
            )
        else:
            verdict = verdict_on(loss, self.questions, watch, steps=steps, longer=self._longer())
        if verdict.word == LEARNED and (remark := self._nothing_new()):
            verdict = Verdict(LEARNED, f"{verdict.reason} ({remark})")
        self._show()
        row: dict[str, Any] = {
            "event": "verdict", "iter": steps, "verdict": verdict.word, "reason": verdict.reason,
            "train_loss_first": loss.first, "train_loss_last": loss.last, "over": loss.over,
            "answers": [q.row() for q in self.questions],
        }  # fmt: skip
        s.ui.record(row)
        run.verdict, run.answers = str(verdict), row["answers"]
        self.verdict.append(("verdict", str(verdict)))
        trained = [q.right for q in self.questions if q.kind == TRAINED]
        all_wrong = s.preferences is None and bool(trained) and not any(trained)
        further = self._longer() if verdict.word == HARDLY or all_wrong else ""
        self.commands += next_commands(s, verdict.word, s.outputs.paths, further=further)

    def _nothing_new(self) -> str:
        s = self._session
        if s.validation is not None and isinstance(s.preferences, RunRewards):
            return ""  # evaluated with the reward, without questions
        n_held_out = s.validation.n_samples if s.validation is not None else 0
        return nothing_new(self.questions, s.data.n_samples, n_held_out)

    def _per_epoch(self) -> int:
        s = self._session
        return math.ceil(s.data.n_samples / (s.options.batch * s.options.grad_acc))

    def _longer(self) -> str:
        """Return options to train longer or, if the learning rate is low, at a higher rate."""
        s = self._session
        done = s.trainer.iteration - self._first
        if s.options.adam_iter is not None:
            text = f"--adam-iter {3 * max(1, done)}"
        else:
            text = f"--epochs {3 * max(1, math.ceil(done / self._per_epoch()))}"
        if s.settings.adam_alpha < 5e-4:
            text += f" or --lr {2.5 * s.settings.adam_alpha:.2g}"
        return text

    def _show(self) -> None:
        note = self._session.ui.note
        start = f"at iteration {self._first}" if self._first else "before"
        for q in self.questions:
            note(f"{q.kind}: {_short(q.question)}")
            note(f"   {start}: {_short(q.before)}")
            mark = "as in the data" if q.right else f"expected: {_short(q.wanted)}"
            note(f"   after:  {_short(q.after)}  ({mark})")


def _short(text: str, most: int = 100) -> str:
    return shown(" ".join(text.split()), most)
