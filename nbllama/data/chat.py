"""Chats: each rendered by the model's chat template; the loss is taken on the answers only.

A target is trained if it is part of what the model has to write: an assistant message, from where
the generation prompt ends, with the token that ends its turn (`ChatTemplate.render_spans`). The
template's own words before it, the other roles, and what follows the end-of-turn token are not.
A token that reaches across the border of an answer belongs to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nbllama.data.formats import Conversation, Message
from nbllama.data.formats.record import ANSWERING_ROLE
from nbllama.data.spans import encode_rendered
from nbllama.errors import NbllamaError

if TYPE_CHECKING:
    from nbllama.text.chat_template import ChatTemplate, Rendered
    from nbllama.text.tokenizer import Tokenizer


class Encoded(NamedTuple):
    """One sample as token ids: ids int32 [n], trained bool [n] (part of an answer)."""

    ids: np.ndarray
    trained: np.ndarray


def encode_chats(
    tokenizer: Tokenizer, template: ChatTemplate, chats: Sequence[Conversation]
) -> list[Encoded | NbllamaError]:
    """Ids of whole chats and which of them are answers; for a chat that the template or
    `encode_rendered` refuses, their error.

    Special tokens are parsed in the template's own text, never in a message.
    """
    out: list[Encoded | NbllamaError] = []
    for chat, rendered in zip(
        chats, template.render_spans_of([c.messages for c in chats]), strict=True
    ):
        if isinstance(rendered, NbllamaError):
            out.append(rendered)
            continue
        try:
            out.append(_encode(tokenizer, template, chat, rendered))
        except NbllamaError as e:
            out.append(e)
    return out


def encode_chat(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]
) -> Encoded:
    """`encode_chats` of one chat. Raises what `template.render_spans` and `encode_rendered` do."""
    (found,) = encode_chats(tokenizer, template, [Conversation(list(messages))])
    if isinstance(found, NbllamaError):
        raise found
    return found


def _encode(
    tokenizer: Tokenizer, template: ChatTemplate, chat: Conversation, rendered: Rendered
) -> Encoded:
    text, answers = rendered
    numbers = [i for i, m in enumerate(chat.messages) if m["role"] == ANSWERING_ROLE]
    ids, starts, ends = encode_rendered(tokenizer, template, chat.messages, text, False)
    trained = np.zeros(len(ids), dtype=bool)
    for number, (start, end) in zip(numbers, answers, strict=True):
        if number not in chat.silent:
            trained |= (starts < end) & (start < ends)
    return Encoded(ids, trained)


def prompt_ids(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message]
) -> list[int]:
    """Ids of a chat that the assistant is to go on with, encoded as in training.

    Raises what `template.render` and `encode_rendered` raise.
    """
    text = template.render(messages, True)
    return encode_rendered(tokenizer, template, messages, text, True).ids.tolist()
