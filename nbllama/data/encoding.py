"""Encode records one by one as rows of token ids."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from nbllama.data.chat import ChatReader
from nbllama.data.data_file import DataFile
from nbllama.data.formats import (
    Continuation,
    Conversation,
    Labelled,
    Message,
    Pair,
    Plain,
    Sample,
    plain_ones,
)
from nbllama.data.prepared import Rendered
from nbllama.data.row import Encoded, Row
from nbllama.data.spans import encode_parsed, encode_plain
from nbllama.errors import DataError, NbllamaError, shown
from nbllama.text.chat_template import ChatTemplate
from nbllama.text.tokenizer import Tokenizer

_CHUNK = 64  # samples to render per request
_AHEAD = 3  # requests queued or being rendered while samples are created
_REPORT_SECONDS = 5.0

Progress = Callable[[str], None]
Found = list[Row] | NbllamaError


def encode_continuation(
    tokenizer: Tokenizer, sample: Continuation, *, parse_special: bool = False
) -> Row:
    """Encode a prompt and its continuation; only the continuation is trained on.

    BOS is prepended if the tokenizer adds it; EOS is appended and trained. Special tokens in the
    text are treated as plain characters unless `parse_special` is set. If it is set, a BOS or end
    token that is already in the text is not added again.
    """
    text = sample.prompt + sample.answer
    placed = (encode_parsed if parse_special else encode_plain)(tokenizer, text)
    trained = placed.ends > len(sample.prompt)
    ids, starts, ends = placed
    bos = tokenizer.bos_id
    begun = parse_special and ids[:1].tolist() == [bos]
    if tokenizer.add_bos and bos is not None and not begun:
        ids, trained = np.append(np.int32(bos), ids), np.append(False, trained)
        starts, ends = np.append(0, starts), np.append(0, ends)
    end = tokenizer.eos_id if tokenizer.eos_id is not None else tokenizer.eot_id
    if end is not None and not (parse_special and _ended(tokenizer, ids)):
        ids, trained = np.append(ids, np.int32(end)), np.append(trained, True)
        starts = np.append(starts, len(text))
        text += tokenizer.token_text(end)
        ends = np.append(ends, len(text))
    return Row(ids.astype(np.int32), trained, starts, ends, text)


def _ended(tokenizer: Tokenizer, ids: np.ndarray) -> bool:
    """Return whether the ids end with an end-of-generation token, ignoring trailing white space."""
    kept = ids.tolist()
    while kept and not tokenizer.token_bytes(kept[-1]).strip():
        kept.pop()
    return bool(kept) and kept[-1] in tokenizer.eog_ids


def encoded(
    data: DataFile,
    tokenizer: Tokenizer,
    reader: ChatReader | None,
    *,
    progress: Progress | None,
    parse_special: bool,
) -> Iterator[tuple[int, int, Found]]:
    """Yield the index, the line number, and the rows or error of each record, in file order.

    The template process renders the next chats while samples are created from the current ones.
    """
    if reader is None and data.has_chats:
        raise DataError(f"{shown(data.path)} contains chats, but the model has no chat template")
    start = reported = time.monotonic()
    firsts = range(0, len(data.samples), _CHUNK)

    def render(first: int) -> list[Rendered]:
        chunk = plain_ones(s for _, s in data.samples[first : first + _CHUNK])
        chats = [s for s in chunk if isinstance(s, Conversation)]
        return [] if reader is None or not chats else reader.render(chats)

    with ThreadPoolExecutor(1) as ahead:
        coming = deque(ahead.submit(render, first) for first in firsts[:_AHEAD])
        try:
            for first in firsts:
                chats = coming.popleft().result()
                if first + _AHEAD * _CHUNK < len(data.samples):
                    coming.append(ahead.submit(render, first + _AHEAD * _CHUNK))
                if reader is not None:
                    reader.warm(chats)
                rendered = iter(chats)
                chunk = data.samples[first : first + _CHUNK]
                for n, (line, sample) in enumerate(chunk, first):
                    yield n, line, _one(tokenizer, sample, reader, rendered, line, parse_special)
                now = time.monotonic()
                if progress is not None and now - reported >= _REPORT_SECONDS:
                    reported = now
                    progress(_bar(first + len(chunk), len(data.samples), now - start))
        finally:  # after an error, the remaining requests are no longer needed
            for future in coming:
                future.cancel()


def _bar(n: int, n_all: int, seconds: float) -> str:
    """Return the progress line."""
    left = seconds * (n_all - n) / n
    return f"[{'#' * (20 * n // n_all):.<20}] tokenised {n} of {n_all} records, {left:.0f} s left"


def _one(
    tokenizer: Tokenizer,
    sample: Sample,
    reader: ChatReader | None,
    chats: Iterator[Rendered],
    line: int,
    parse_special: bool,
) -> Found:
    if isinstance(sample, Pair):
        sides = [
            _plain(tokenizer, side, reader, chats, line, parse_special)
            for side in (sample.chosen, sample.rejected)
        ]
        return _pair(*sides)
    if isinstance(sample, Labelled):
        found = _plain(tokenizer, sample.answer, reader, chats, line, parse_special)
        return found if isinstance(found, NbllamaError) else _single(found)
    return _plain(tokenizer, sample, reader, chats, line, parse_special)


def _single(rows: list[Row]) -> Found:
    if len(rows) == 1:
        return rows
    return DataError(
        f"the chat template renders {len(rows)} different prompts for the {len(rows)} answers: put "
        "all answers except the last one into the prompt"
    )


def _pair(chosen: Found, rejected: Found) -> Found:
    """Return the rows for both sides, or an error if either side fails."""
    rows: list[Row] = []
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        found = side if isinstance(side, NbllamaError) else _single(side)
        if isinstance(found, NbllamaError):
            return type(found)(f"{name}: {found}")
        rows += found
    if np.array_equal(rows[0].ids, rows[1].ids):
        return DataError(
            "chosen and rejected have the same tokens: there is no preference to learn"
        )
    return rows


def _plain(
    tokenizer: Tokenizer,
    sample: Plain,
    reader: ChatReader | None,
    chats: Iterator[Rendered],
    line: int,
    parse_special: bool,
) -> Found:
    try:
        if isinstance(sample, Conversation):
            assert reader is not None
            return reader.rows(next(chats), line)
        return [encode_continuation(tokenizer, sample, parse_special=parse_special)]
    except NbllamaError as e:
        return e


def encode_chat(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]
) -> Encoded:
    """Return the last sample of a chat.

    The sample contains the last answer, its prompt, and any earlier answers that can be trained as
    part of the same sample. Raises the same errors as `ChatReader.rows`.
    """
    reader = ChatReader(tokenizer, template)
    (rendered,) = reader.render([Conversation(list(messages))])
    row = reader.rows(rendered)[-1]
    return Encoded(row.ids, row.trained)
