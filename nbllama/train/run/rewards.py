"""The prompts, the reward function and the reference model of a run that trains on rewards."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from nbllama.data import Style, parse_columns
from nbllama.data.asking import PromptReader, Records
from nbllama.data.formats import Conversation
from nbllama.data.prompts import Prompts
from nbllama.errors import DataError, shown
from nbllama.objectives.names import BASE, NONE, OBJECTIVES, PROMPTS
from nbllama.options.values import parse_variables
from nbllama.text import chat_template_for, find_layout
from nbllama.train.preference.reference import adapter_digest
from nbllama.train.reward.loss import RewardLoss, RewardNumbers
from nbllama.train.reward.scorer import SECONDS, Scorer, find_reward
from nbllama.train.run.defaults import context
from nbllama.train.run.history import FirstAndLast
from nbllama.train.run.plan import with_objective
from nbllama.train.run.preferences import reference_adapter

if TYPE_CHECKING:
    from nbllama.model.passes import Model
    from nbllama.options.finetune.table import Options
    from nbllama.text import Tokenizer


def draws(options: Options) -> bool:
    """Return whether the run draws answers to its prompts."""
    return OBJECTIVES[options.objective].data == PROMPTS


def load_prompts(
    path: str, options: Options, tokenizer: Tokenizer, records: Records | None = None
) -> Prompts:
    """Load prompts from the file `path`, or from `records` if given.

    Messages refer to the records as `path`. Raises `DataError` if the prompts cannot be used.
    """
    o = with_objective(options)
    layout = find_layout(o.chat_template) if o.chat_template else None
    reader = PromptReader(
        tokenizer,
        columns=parse_columns(o.data_columns),
        style=Style(layout.joint, layout.with_input) if layout is not None else Style(),
        skip_bad=o.skip_bad,
        parse_special=o.parse_special,
        system_as_user=o.system_as_user,
    )
    data, good = reader.open(path, records)
    template = None
    if any(isinstance(prompt, Conversation) for _, _, prompt in good):
        day = o.template_date
        template = chat_template_for(
            tokenizer,
            layout.source if layout else None,
            now=datetime.fromisoformat(day) if day else None,
            variables=parse_variables(o.template_vars),
        )
    try:
        return reader.load(
            data, good, template, n_ctx=context(o, "chat"), group=o.group_size or 0,
            most=o.max_answer or 0, refuse_long=o.on_long == "refuse",
        )  # fmt: skip
    finally:
        if template is not None:
            template.close()  # the template runs in its own process


class RunRewards(FirstAndLast):
    """The objective of a run that trains on rewards."""

    def __init__(
        self, options: Options, model: Model, data: Prompts, *, say: Callable[[str], None]
    ) -> None:
        """Load the reward function and the reference adapter, if any.

        Raises `UsageError` if the function cannot be loaded, and `DataError` if a built-in reward
        cannot score a record. Also raises the same errors as `reference_adapter`.
        """
        self._options, self._data = options, data
        self._source = find_reward(options.reward)
        self._scorer = Scorer(self._source, seconds=options.reward_seconds or SECONDS)
        self._check_records()
        reference = None
        self._reference = NONE
        if options.beta:
            reference = reference_adapter(options, model, say)
            self._reference = "base"
            if reference is not None:
                self._reference = f"adapter {adapter_digest(reference)[:16]}"
        numbers = RewardNumbers(options.beta or 0.0, options.temperature or 1.0)
        self.objective: RewardLoss = RewardLoss(numbers, self._scorer, reference)

    def _check_records(self) -> None:
        if not self._source.builtin:
            return
        for question in self._data.questions:
            if problem := self._scorer.problem(question.record):
                name = shown(self._options.train_data, 400)
                raise DataError(f"{name}, {question.place}: {problem}")

    def identity(self) -> dict[str, str]:
        """Return the values that must match between a checkpoint and a run that resumes from it."""
        return {"reference": self._reference, "reward": self._source.identity}

    def header(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs to display."""
        o = self._options
        line = f"{o.objective}, beta {o.beta:g}"
        line += f"; reference: {shown(o.reference or BASE, 400)}" if o.beta else ", no reference"
        drawn = f"{o.group_size} per prompt, at most {o.max_answer} tokens"
        drawn += f", temperature {o.temperature:g}" if o.temperature != 1 else ""
        drawn += "; the forecast assumes this length for all answers"
        return [("objective", line), ("reward", shown(o.reward, 400)), ("answers", drawn)]
