"""The `Dataset` for preferences, whose samples are pairs of answers, or answers with labels.

The rows of a batch are the answers with their prompts; for pairs, the order is chosen, rejected,
chosen, ... Both sides of a pair are always in the same micro-batch.

For KTO, every answer is also combined with the prompt of a different record, because the loss
requires an estimate of how far the model has moved from the reference model, and this estimate uses
answers to other prompts. In a separate data set (`others`), the answer of sample i follows the
prompt of sample i - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from nbllama.data.batch import Batch, RowPerSample
from nbllama.data.judged import Judged
from nbllama.data.samples import Samples
from nbllama.data.text_file import sha256_parts


@dataclass(frozen=True, kw_only=True)
class JudgedBatch(Batch):
    """A batch of judged answers.

    `rows`, int64 [S], contains the index of each sequence in `source.samples`.
    """

    source: Preferences
    rows: np.ndarray


class Preferences(RowPerSample):
    """A `Dataset` of judged `samples`, with `width` rows per sample: 2 for pairs, 1 for labels.

    `reference` and `others_reference` contain the log-probabilities of the answers under the
    reference model, float64 `[n]`, for the n rows of `samples` and of `others`. They are None until
    they are computed.
    """

    kind = "chat"
    reference: np.ndarray | None = None
    others_reference: np.ndarray | None = None

    def __init__(self, samples: Samples, width: int) -> None:
        if samples.judged is None or samples.n_samples % width:
            raise ValueError("these samples are not preferences")
        self.samples, self.width = samples, width
        self.judged: Judged = samples.judged
        self.format, self.n_ctx, self.notes = samples.format, samples.n_ctx, samples.notes
        self.fingerprint = samples.fingerprint
        self._lengths = samples.lengths()

    def of(self, samples: Samples) -> Preferences:
        """Return a data set of other samples with the same width."""
        return Preferences(samples, self.width)

    @property
    def n_samples(self) -> int:
        """Number of pairs or labelled answers."""
        return self.samples.n_samples // self.width

    def n_tokens(self, i: int) -> int:
        """Return the number of input tokens in all rows of a sample."""
        return int(self.lengths()[0][i])

    def n_trained(self, i: int) -> int:
        """Return the number of trained targets in all rows of a sample."""
        return int(self.lengths()[1][i])

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Return `n_tokens` and `n_trained` of all samples, int64 [n_samples] each."""
        tokens, trained = (part.reshape(-1, self.width).sum(axis=1) for part in self._lengths)
        return tokens, trained

    def place(self, i: int) -> str:
        """Return the line of sample i's record, with the file name if there are several files."""
        return self.samples.place(i * self.width)

    def rows(self, indices: Sequence[int]) -> np.ndarray:
        """Return the indices of the rows of these samples, int64."""
        first = np.asarray(indices, np.int64)[:, None] * self.width
        return (first + np.arange(self.width)).reshape(-1)

    def batch(self, indices: Sequence[int]) -> JudgedBatch:
        """Return a batch of the rows of these samples, in order.

        Raises `IndexError` if a sample index is out of range.
        """
        rows = self.rows(indices)
        return JudgedBatch(**vars(self.samples.batch(rows.tolist())), source=self, rows=rows)

    @cached_property
    def others(self) -> Samples:
        """Samples of row i - 1's prompt and row i's answer, with at most n_ctx input tokens."""
        s = self.samples
        begins, ends = s.offsets[:-1], s.offsets[1:]
        ids, trained, sizes = [], [], []
        for i in range(s.n_samples):
            answer = slice(int(begins[i]) + _prompt(s, i), int(ends[i]))
            before = (i - 1) % s.n_samples
            prompt = s.ids[begins[before] :][: _prompt(s, before)]
            # if the two are too long in total, the beginning of the prompt is removed
            room = s.n_ctx + 1 - (answer.stop - answer.start)
            prompt = prompt[max(0, len(prompt) - room) :]
            ids += [prompt, s.ids[answer]]
            trained += [np.zeros(len(prompt), bool), s.trained[answer]]
            sizes.append(len(prompt) + answer.stop - answer.start)
        return replace(
            s,
            ids=np.concatenate(ids),
            trained=np.concatenate(trained),
            offsets=np.cumsum([0, *sizes], dtype=np.int64),
            texts=(),
            fingerprint=sha256_parts(s.fingerprint, "others"),
        )


def _prompt(samples: Samples, i: int) -> int:
    """Return the number of ids in sample i before its first trained target."""
    begin, end = int(samples.offsets[i]), int(samples.offsets[i + 1])
    return 1 + int(np.argmax(samples.trained[begin + 1 : end]))
