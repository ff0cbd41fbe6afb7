"""Questions asked on the page, answered with the current adapter between iterations."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from nbllama.errors import NbllamaError, UsageError
from nbllama.generation.cache import cache_floats
from nbllama.generation.model import Model
from nbllama.generation.session import stream
from nbllama.generation.states import state_floats
from nbllama.lora.pairs import Adapter
from nbllama.report.live.state import LiveState, Question
from nbllama.system.memory import available_memory
from nbllama.text import beginning, whole_characters
from nbllama.train.run.prompts import Prompt

MOST_TOKENS = 200  # per answer
MOST_SECONDS = 60.0
_SHOWN_EVERY = 0.5  # seconds between updates of an answer on the page

Row = dict[str, Any]


class Questions:
    """Answer the questions in a `LiveState` by greedy decoding.

    The trainer's buffers are not used. `encode` converts a question to token ids, as for
    `--sample-prompts`. `stopped` returns whether the run should stop; if it should, the current
    answer ends early. `keep` is called with the `question` row of each finished answer.
    """

    def __init__(
        self,
        state: LiveState,
        model: Model,
        adapter: Adapter,
        *,
        encode: Callable[[str], Prompt],
        stopped: Callable[[], bool],
        keep: Callable[[Row], None],
    ) -> None:
        self._state, self._model, self._adapter = state, model, adapter
        self._encode, self._stopped, self._keep = encode, stopped, keep

    def answer(self, iteration: int) -> None:
        """Answer all waiting questions; if one cannot be answered, the answer says why."""
        while not self._stopped() and (question := self._state.next_question()) is not None:
            row: Row = {"event": "question", "iter": iteration, "id": question.id}
            row["prompt"] = question.prompt
            try:
                text = self._write(question, row)
            except (NbllamaError, MemoryError) as e:
                text = f"(not answered: {e or 'not enough memory'})"
            self._keep(row | {"answer": text})

    def _write(self, question: Question, row: Row) -> str:
        ids = self._encode(question.prompt).ids
        hp = self._model.hp
        per_token = 8 * cache_floats(hp)
        needed = (len(ids) + MOST_TOKENS + 1) * per_token + 4 * state_floats(hp)
        if needed > available_memory() / 2:
            raise UsageError("there is not enough free memory for a question of this length")
        said: list[int] = []
        tokenizer = self._model.tokenizer
        start = shown = time.monotonic()
        for token in stream(self._model, ids, MOST_TOKENS + 1, self._adapter):
            said.append(token)
            now = time.monotonic()
            if now - shown > _SHOWN_EVERY:
                shown = now
                text = whole_characters(tokenizer, said)
                self._state.add(row | {"answer": text, "done": False})
            if self._stopped() or now - start > MOST_SECONDS:
                return whole_characters(tokenizer, said) + "\N{HORIZONTAL ELLIPSIS}"
        return beginning(tokenizer, said, MOST_TOKENS)
