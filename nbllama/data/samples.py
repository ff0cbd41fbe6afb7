"""The `Dataset` for records, which stores token ids and a mask of the trained ids.

A sequence is a sample up to its last trained target, because later tokens would change neither the
loss nor the gradient. A record gives one sample, or several if the prompt of an earlier answer in a
chat differs from the beginning of later prompts (`nbllama.data.chat`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nbllama.data.batch import NOT_TRAINED, Batch, RowPerSample
from nbllama.data.chat import ChatReader
from nbllama.data.data_file import Bad, DataFile, Part, place_in
from nbllama.data.encoding import Progress, encoded
from nbllama.data.formats import Conversation, plain_ones
from nbllama.data.judged import PAIRS, Judged, judgements
from nbllama.data.row import Row
from nbllama.data.text_checks import control_token_notes
from nbllama.data.text_file import sha256_parts
from nbllama.errors import DataError, NbllamaError, counted, shown

if TYPE_CHECKING:
    from nbllama.text.chat_template import ChatTemplate
    from nbllama.text.tokenizer import Tokenizer

ON_LONG = ("cut", "refuse", "skip")


class SampleText(NamedTuple):
    """The text of a sample, and the (start, end) ranges of its trained characters."""

    text: str
    trained: list[tuple[int, int]]


@dataclass(frozen=True)
class Samples(RowPerSample):
    """A `Dataset` for a file of records.

    `ids` and `trained` contain all samples, concatenated. Sample i is `offsets[i] : offsets[i + 1]`
    in both, and all its ids except the last are input. `lines[i]` is the line of the file where its
    record begins, and `records[i]` is the index of that record (`records` is None if each sample is
    one record). n_cut samples were longer than n_ctx tokens, n_dropped had no trained target within
    n_ctx, n_long were skipped for their length, and n_bad records could not be read. `format` is
    the format of the file, and `read` is a message that lists the keys that were read. `texts`
    contains the text of each sample, if texts are kept. `judged` contains the judgement of each
    answer, if the records are preferences.
    """

    ids: np.ndarray
    trained: np.ndarray
    offsets: np.ndarray
    lines: np.ndarray
    n_ctx: int
    fingerprint: str
    n_cut: int = 0
    n_dropped: int = 0
    n_long: int = 0
    n_bad: int = 0
    notes: tuple[str, ...] = ()
    format: str = "chat"
    kind: str = "chat"
    texts: tuple[SampleText, ...] = ()
    records: np.ndarray | None = None
    parts: tuple[Part, ...] = ()
    judged: Judged | None = None
    read: str = ""

    def place(self, i: int) -> str:
        """Return "line N" for sample i's record, with the file name if there are several files."""
        line = int(self.lines[i])
        if not self.parts:
            return f"line {line}"
        name, number = place_in(self.parts, line)
        return f"{shown(name, 400)}, line {number}"

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return len(self.lines)

    def n_tokens(self, i: int) -> int:
        """Return the number of input tokens in sample i."""
        part = self._part(i)
        return int(part.stop - part.start - 1)

    def n_trained(self, i: int) -> int:
        """Return the number of trained targets in sample i."""
        part = self._part(i)
        return int(np.count_nonzero(self.trained[part.start + 1 : part.stop]))

    def inputs(self, i: int) -> np.ndarray:
        """Return the input tokens of sample i, int32 `[n]`."""
        return self.ids[self._part(i)][:-1]

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Return `n_tokens` and `n_trained` of all samples, int64 [n_samples] each."""
        # The first id of a sample is not a target.
        targets = self.trained.copy()
        targets[self.offsets[:-1]] = False
        counts = np.add.reduceat(targets, self.offsets[:-1], dtype=np.int64)
        return np.diff(self.offsets) - 1, counts

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return a batch of the samples with these indices, in order."""
        return Batch.from_rows(self._row(i) for i in indices)

    def _row(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        ids, trained = self.ids[self._part(i)], self.trained[self._part(i)]
        return ids[:-1], np.where(trained[1:], ids[1:], np.int32(NOT_TRAINED))

    def _part(self, i: int) -> slice:
        if not 0 <= i < self.n_samples:
            raise IndexError(f"sample {i} of {self.n_samples}")
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))


def load_samples(
    data: DataFile,
    tokenizer: Tokenizer,
    n_ctx: int,
    template: ChatTemplate | None,
    *,
    train_on_prompt: bool = False,
    parse_special: bool = False,
    skip_bad: bool = False,
    on_long: str = "cut",
    system_as_user: bool = False,
    keep_texts: bool = False,
    progress: Progress | None = None,
) -> Samples:
    """Load the samples of a file of records, each with at most `n_ctx` input tokens.

    `template` is required only for chats. `train_on_prompt` trains on every token. `parse_special`
    parses control tokens that are spelled out in samples without a template. `on_long` says whether
    longer samples are truncated to the first `n_ctx` tokens (and left out if no trained target
    remains), refused, or skipped. For `system_as_user`, see `ChatReader`. `keep_texts` keeps the
    texts of the samples for display. `progress` is called with a status line every few seconds.

    Raises `DataError` if there are chats but no template, if the template rejects a chat (unless
    `skip_bad` is set), if a sample is too long and `on_long` is "refuse", and if no trained target
    is left in the whole file. Also raises template errors. Errors name the sample's file and line.
    """
    if n_ctx < 1:
        raise ValueError("n_ctx must be at least 1")
    if on_long not in ON_LONG:
        raise ValueError(f"on_long {on_long!r} is not one of {', '.join(ON_LONG)}")
    bad = list(data.bad)
    kept: list[tuple[int, int, Row]] = []
    paired, n_half = data.format == PAIRS, 0
    n_cut = n_dropped = n_long = n_good = n_rows = 0
    reader = None if template is None else ChatReader(
        tokenizer, template, system_as_user=system_as_user, places=keep_texts
    )  # fmt: skip
    for number, line, found in encoded(
        data, tokenizer, reader, progress=progress, parse_special=parse_special
    ):
        if train_on_prompt:
            found = _mask_error(data, number) or found
        if isinstance(found, NbllamaError):
            if not (skip_bad and isinstance(found, DataError)):
                raise type(found)(f"{data.where(line)}: {found}") from found.__cause__
            bad.append(Bad(line, str(found)))
            continue
        n_good += 1
        n_rows += len(found)
        first = len(kept)
        for row in found:
            if train_on_prompt:
                row = row._replace(trained=np.ones_like(row.trained))
            whole = row.first(row.n_useful())
            n_tokens = len(whole.ids) - 1
            if n_tokens > n_ctx and on_long == "refuse":
                raise DataError(
                    f"{data.where(line)}: {n_tokens} tokens exceed the context of {n_ctx}; "
                    "pass a larger --ctx, --on-long cut or --on-long skip"
                )
            if n_tokens > n_ctx and on_long == "skip":
                n_long += 1
                continue
            cut = whole
            if n_tokens > n_ctx:
                cut = whole.first(n_ctx + 1)
                cut = cut.first(cut.n_useful())
            if not len(cut.ids):
                n_dropped += 1
                continue
            n_cut += n_tokens > n_ctx
            if not keep_texts:  # positions and texts are large
                cut = Row(cut.ids, cut.trained)
            kept.append((line, number, cut))
        if paired and not _both_sides([row for _, _, row in kept[first:]]):
            n_half += len(kept) > first
            del kept[first:]
    bad.sort()
    n_all = n_rows + len(bad)
    if not kept:
        raise DataError(_nothing(data, n_all, n_ctx, bad))
    rows = [row for _, _, row in kept]
    ids = np.concatenate([row.ids for row in rows])
    trained = np.concatenate([row.trained for row in rows])
    offsets = np.cumsum([0] + [len(row.ids) for row in rows], dtype=np.int64)
    notes = [*data.notes, *_notes(data, n_all, n_good, n_ctx, n_cut, n_dropped, n_long, bad)]
    plain = plain_ones(s for _, s in data.samples)
    notes += control_token_notes(tokenizer, plain, parse_special)
    if n_half:
        notes.append(
            f"{counted(n_half, 'pair was', 'pairs were')} skipped because the two sides do not "
            f"differ within {n_ctx} tokens"
        )
    if n_cut < len(kept) and not np.isin(ids[trained], list(tokenizer.eog_ids)).any():
        notes.append("no answer ends with an end-of-turn token: the model will not learn to stop")
    if reader is not None:
        notes += reader.notes(n_good, n_rows)
    judged = judgements(data, [number for _, number, _ in kept])
    more = () if judged is None else judged.content()
    return Samples(
        ids,
        trained,
        offsets,
        np.array([line for line, _, _ in kept], dtype=np.int64),
        n_ctx,
        sha256_parts("chat", n_ctx, ids.tobytes(), trained.tobytes(), offsets.tobytes(), *more),
        n_cut,
        n_dropped,
        n_long,
        len(bad),
        tuple(notes),
        data.format,
        texts=tuple(SampleText(row.text, row.characters()) for row in rows) if keep_texts else (),
        records=np.array([number for _, number, _ in kept], dtype=np.int64),
        parts=data.parts,
        judged=judged,
        read=data.read,
    )


def _mask_error(data: DataFile, number: int) -> DataError | None:
    """Return an error if a key in a record excludes an answer from training."""
    sample = data.samples[number][1]
    by_key = data.format in ("chat", "sharegpt")  # other formats exclude answers without keys
    if not (by_key and isinstance(sample, Conversation) and sample.silent):
        return None
    return DataError(
        f"message {min(sample.silent) + 1 - sample.n_first}: it is excluded from training, but "
        '--train-on-prompt trains on every token; leave out this option or the key ("loss", ...)'
    )


def _both_sides(rows: Sequence[Row]) -> bool:
    """Return whether both sides of a pair were kept and differ."""
    return len(rows) == 2 and not np.array_equal(rows[0].ids, rows[1].ids)


def _nothing(data: DataFile, n_all: int, n_ctx: int, bad: list[Bad]) -> str:
    where = shown(data.path)
    if len(bad) == n_all:
        place = data.short_place(bad[0].line)
        return f"{where} contains nothing to train on; {place}: {bad[0].reason}"
    return (
        f"{where} contains no token to train on: none of its {n_all} samples has an answer that "
        f"begins within {n_ctx} tokens; a larger --ctx may help"
    )


def _notes(
    data: DataFile,
    n_all: int,
    n_good: int,
    n_ctx: int,
    n_cut: int,
    n_dropped: int,
    n_long: int,
    bad: list[Bad],
) -> list[str]:
    notes = []
    if bad:
        notes.append(
            f"{len(bad)} of {n_good + len(bad)} records are bad and were skipped; "
            f"first: {data.short_place(bad[0].line)}: {bad[0].reason}"
        )
    if n_long:
        notes.append(
            f"{n_long} of {n_all} samples were skipped because they are longer than {n_ctx} tokens"
        )
    if n_cut:
        notes.append(
            f"{n_cut} of {n_all} samples are longer than {n_ctx} tokens and were truncated"
        )
    if n_dropped:
        notes.append(
            f"{n_dropped} of {n_all} samples were skipped because no answer begins within {n_ctx} "
            "tokens"
        )
    return notes
