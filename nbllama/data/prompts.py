"""The `Dataset` for prompts without answers; the answers are drawn during training.

A sample is a prompt with `group` answers of at most `most` tokens. Until the answers are drawn, a
batch contains placeholders of the maximum length, so the token counts of the data set are upper
bounds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nbllama.data.batch import NOT_TRAINED, Batch, RowPerSample
from nbllama.data.text_file import sha256_parts

_SMALL = 32  # token ids below this are valid in every vocabulary


class Question(NamedTuple):
    """A prompt, as ids and as text or messages, and its record.

    `place` is the line of the record. `chat` says whether the prompt uses a chat template.
    """

    ids: np.ndarray
    prompt: Any
    record: dict[str, Any]
    place: str
    chat: bool


@dataclass(frozen=True, kw_only=True)
class PromptBatch(Batch):
    """A batch of placeholders; `numbers` contains the indices of its prompts in `source`."""

    source: Prompts
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Prompts(RowPerSample):
    """A `Dataset` of prompts; see the module docstring."""

    questions: tuple[Question, ...]
    group: int
    most: int
    n_ctx: int
    notes: tuple[str, ...] = ()
    kind: str = "chat"

    @property
    def format(self) -> str:
        """Return "chat" if the prompts use a chat template, else "prompt"."""
        return "chat" if self.questions[0].chat else "prompt"

    @property
    def fingerprint(self) -> str:
        """Return the hex sha256 of all prompts and records."""
        parts: list[bytes | str | int] = ["prompts", self.n_ctx]
        for q in self.questions:
            parts += [q.ids.tobytes(), json.dumps(q.record, sort_keys=True, default=str)]
        return sha256_parts(*parts)

    @property
    def n_samples(self) -> int:
        """Number of prompts."""
        return len(self.questions)

    def n_tokens(self, i: int) -> int:
        """Return the maximum number of input tokens for prompt i and all its answers."""
        return self.group * (len(self.questions[i].ids) + self.most - 1)

    def n_trained(self, i: int) -> int:
        """Return the maximum number of targets in the answers to prompt i."""
        if not 0 <= i < self.n_samples:
            raise IndexError(f"sample {i} of {self.n_samples}")
        return self.group * self.most

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Return `n_tokens` and `n_trained` of all prompts, int64 [n_samples] each."""
        sizes = np.array([len(q.ids) for q in self.questions], np.int64)
        tokens = self.group * (sizes + self.most - 1)
        return tokens, np.full(len(sizes), self.group * self.most, np.int64)

    def place(self, i: int) -> str:
        """Return the line of prompt i's record, with the file name if there are several files."""
        return self.questions[i].place

    def batch(self, indices: Sequence[int]) -> PromptBatch:
        """Return placeholders for the answers to these prompts, with `group` rows per prompt."""
        made = Batch.from_rows(row for i in indices for row in self._placeholders(i))
        return PromptBatch(**vars(made), source=self, numbers=tuple(indices))

    def _placeholders(self, i: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for copy in range(self.group):
            # the first tokens differ, so that only the prompt is shared
            answer = np.zeros(self.most, np.int32)
            answer[:2] = (copy % _SMALL, copy // _SMALL)[: self.most]
            yield row_of(self.questions[i].ids, answer)

    @property
    def width(self) -> int:
        """Return the number of rows per sample."""
        return self.group

    def longest_prompt(self) -> int:
        """Return the number of tokens in the longest prompt."""
        return max(len(q.ids) for q in self.questions)

    def shared_tokens(self, n_rows: int) -> int:
        """Return the maximum number of tokens in `n_rows` samples, counting each prompt once."""
        sizes = sorted((len(q.ids) for q in self.questions), reverse=True)[:n_rows]
        return sum(sizes) + len(sizes) * self.group * self.most

    def line(self) -> str:
        """Return a line of text with the sizes of the data set."""
        sizes = [len(q.ids) for q in self.questions]
        return (
            f"{sum(sizes) / len(sizes):.0f} per prompt on average, at most {max(sizes)}; at most "
            f"{self.most} per answer"
        )

    def numbers(self) -> dict[str, int | str]:
        """Return the sizes of the data set, for the page that describes a run."""
        sizes = [len(q.ids) for q in self.questions]
        return {
            "prompts": self.n_samples,
            "tokens of a prompt": f"{sum(sizes) / len(sizes):.0f} on average, {max(sizes)} at most",
            "answers to each": self.group,
            "tokens of an answer": f"{self.most} at most",
        }


def row_of(prompt: np.ndarray, answer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens and targets of a prompt and an answer; only the answer is trained on."""
    ids = np.concatenate([prompt, answer]).astype(np.int32)
    targets = ids[1:].copy()
    targets[: len(prompt) - 1] = NOT_TRAINED
    return ids[:-1], targets
