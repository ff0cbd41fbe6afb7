"""Chats: each rendered by the model's chat template; the loss is taken on the answers only.

A target is trained if it is part of what the model has to write: an assistant message, from where
the generation prompt ends, with the token that ends its turn (`ChatTemplate.render_spans`). The
template's own words before it, the other roles, and what follows the end-of-turn token are not.
A token that reaches across the border of an answer belongs to it. The sequence ends with its last
trained target, since what comes after it changes neither loss nor gradient.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nbllama.data.batch import NOT_TRAINED, Batch, RowPerSample
from nbllama.data.chat_lines import Chat, parse_chats
from nbllama.data.spans import encode_rendered
from nbllama.data.text_file import read_bytes, sha256_parts
from nbllama.errors import DataError, NbllamaError, shown

if TYPE_CHECKING:
    from nbllama.text.chat_template import ChatTemplate
    from nbllama.text.tokenizer import Tokenizer

Message = dict[str, str]


class Encoded(NamedTuple):
    """One chat as token ids: ids int32 [n], trained bool [n] (part of an answer)."""

    ids: np.ndarray
    trained: np.ndarray


@dataclass(frozen=True)
class ChatData(RowPerSample):
    """The `Dataset` of a file of chats.

    ids and trained hold all chats end to end, chat i is `offsets[i] : offsets[i + 1]` of both, of
    which all but the last id are input; `lines[i]` is the line of the file that it stands in.
    n_cut chats were longer than n_ctx tokens, n_dropped left no trained target within n_ctx.
    """

    ids: np.ndarray
    trained: np.ndarray
    offsets: np.ndarray
    lines: np.ndarray
    fingerprint: str
    n_cut: int = 0
    n_dropped: int = 0
    notes: tuple[str, ...] = ()
    kind: str = "chat"

    @property
    def n_samples(self) -> int:
        return len(self.lines)

    def n_tokens(self, i: int) -> int:
        part = self._part(i)
        return part.stop - part.start - 1

    def n_trained(self, i: int) -> int:
        part = self._part(i)
        return int(np.count_nonzero(self.trained[part.start + 1 : part.stop]))

    def batch(self, indices: Sequence[int]) -> Batch:
        return Batch.from_rows(self._row(i) for i in indices)

    def _row(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        ids, trained = self.ids[self._part(i)], self.trained[self._part(i)]
        return ids[:-1], np.where(trained[1:], ids[1:], np.int32(NOT_TRAINED))

    def _part(self, i: int) -> slice:
        if not 0 <= i < self.n_samples:
            raise IndexError(f"sample {i} of {self.n_samples}")
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))


def encode_chat(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]
) -> Encoded:
    """Ids of a whole chat and which of them are answers.

    Special tokens are parsed in the template's own text, never in a message (`encode_rendered`).
    Raises what `template.render_spans` and `encode_rendered` raise.
    """
    text, answers = template.render_spans(messages)
    placed = encode_rendered(tokenizer, template, messages, text, False)
    starts = np.array([t.start for t in placed])
    ends = np.array([t.end for t in placed])
    trained = np.zeros(len(placed), dtype=bool)
    for start, end in answers:
        trained |= (starts < end) & (start < ends)
    return Encoded(np.array([t.token for t in placed], dtype=np.int32), trained)


def prompt_ids(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]
) -> list[int]:
    """Ids of a chat that the assistant is to go on with, encoded as in training.

    Raises what `template.render` and `encode_rendered` raise.
    """
    text = template.render(messages, True)
    return [t.token for t in encode_rendered(tokenizer, template, messages, text, True)]


def load_chat(
    path: str | os.PathLike[str],
    tokenizer: Tokenizer,
    n_ctx: int,
    template: ChatTemplate,
    *,
    content: bytes | None = None,
) -> ChatData:
    """The chats of a JSON-lines file, each at most `n_ctx` input tokens.

    A longer chat is cut behind its first `n_ctx` tokens. A chat without a trained target in them
    is left out. `n_cut`, `n_dropped` and `notes` of the result tell how many.

    `content`: the file's bytes, if they were read already.
    Raises `DataError` as `parse_chats` does, for a chat that the template refuses, and when no
    trained target is left in the whole file; and what the template raises, with file and line.
    """
    if n_ctx < 1:
        raise ValueError("n_ctx must be at least 1")
    content = read_bytes(path) if content is None else content
    chats = parse_chats(content, path)
    kept: list[tuple[int, Encoded]] = []
    n_cut = n_dropped = 0
    for chat in chats:
        whole = _up_to_last_trained(_encode(tokenizer, template, chat, path))
        encoded = _up_to_last_trained(Encoded(*(half[: n_ctx + 1] for half in whole)))
        if not encoded.trained.any():
            n_dropped += 1
            continue
        n_cut += len(whole.ids) > n_ctx + 1
        kept.append((chat.line, encoded))
    if not kept:
        raise DataError(
            f"no token of {shown(os.fspath(path))} can be trained: in none of its {len(chats)} "
            f"chats does an answer begin within {n_ctx} tokens; a longer --ctx may help"
        )
    ids = np.concatenate([e.ids for _, e in kept])
    trained = np.concatenate([e.trained for _, e in kept])
    offsets = np.cumsum([0] + [len(e.ids) for _, e in kept], dtype=np.int64)
    notes = []
    if n_cut:
        notes.append(f"{n_cut} of {len(chats)} chats are longer than {n_ctx} tokens and were cut")
    if n_dropped:
        notes.append(
            f"{n_dropped} of {len(chats)} chats were left out: no answer begins within "
            f"{n_ctx} tokens"
        )
    if n_cut < len(kept) and not np.isin(ids[trained], list(tokenizer.eog_ids)).any():
        notes.append(
            "the chat template puts no end-of-turn token after an answer: "
            "the model will not learn to stop"
        )
    return ChatData(
        ids,
        trained,
        offsets,
        np.array([line for line, _ in kept], dtype=np.int64),
        sha256_parts("chat", n_ctx, ids.tobytes(), trained.tobytes(), offsets.tobytes()),
        n_cut,
        n_dropped,
        tuple(notes),
    )


def _encode(
    tokenizer: Tokenizer, template: ChatTemplate, chat: Chat, path: str | os.PathLike[str]
) -> Encoded:
    try:
        return encode_chat(tokenizer, template, chat.messages)
    except NbllamaError as e:
        raise type(e)(f"{shown(os.fspath(path))}, line {chat.line}: {e}") from e


def _up_to_last_trained(e: Encoded) -> Encoded:
    """`e` without what follows its last trained target; empty if there is no trained target."""
    # The first id is no target: nothing comes before it.
    targets = np.flatnonzero(e.trained[1:]) + 1
    n = int(targets[-1]) + 1 if len(targets) else 0
    return Encoded(e.ids[:n], e.trained[:n])
