"""Encode a rendered chat without parsing special tokens in the text of messages.

`encode(text, parse_special=True)` turns every "<|im_end|>" into the end-of-turn token. In the text
of the template, this is correct, but inside a message, it would let the message end its own turn
and begin another. Tokenising the pieces separately would be safe but would give different ids,
because a token can cross the boundary: a line feed from the template and a line feed from the
message can form one token. The special tokens of the template are therefore located in a copy of
the text, in which strings that contain the text of a special token are replaced with neutral
characters. The text itself is split only at these tokens, and the parts in between are encoded with
parse_special=False.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nbllama.errors import MessageError

if TYPE_CHECKING:
    from nbllama.text.chat_template import ChatTemplate
    from nbllama.text.tokenizer import Tokenizer

Path = tuple[Any, ...]  # the path to a string in a chat: message, key, ...


class Placed(NamedTuple):
    """The token `ids`, int32 [n], and the part of the text that each token covers.

    Token i covers `text[starts[i]:ends[i]]`; `starts` and `ends` are int64 [n].
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def encode_plain(tokenizer: Tokenizer, text: str) -> Placed:
    """Return the tokens of `text`, treating special tokens as plain characters."""
    return _encode(tokenizer, text, parse_special=False)


def encode_parsed(tokenizer: Tokenizer, text: str) -> Placed:
    """Return the tokens of `text`, parsing special tokens."""
    return _encode(tokenizer, text, parse_special=True)


def encode_rendered(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[dict[str, Any]],
    text: str,
    *,
    add_generation_prompt: bool,
    tools: list[Any] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Placed:
    """Return the tokens of `text`, which `template` rendered from `messages`.

    If no message contains the text of a special token, the ids are the same as those from
    `tokenizer.encode(text, parse_special=True)`. BOS is prepended if the tokenizer adds BOS and the
    text does not begin with it.

    Raises the same errors as `template.render`, and `MessageError` if a message contains the text
    of a special token and the template changes the message so that it cannot be located.
    """
    spans = special_spans(
        tokenizer,
        template,
        messages,
        text,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        variables=variables,
    )
    placed = encode_around(tokenizer, text, spans) if spans else encode_marked(tokenizer, text)
    return with_bos(tokenizer, placed)


def with_bos(tokenizer: Tokenizer, placed: Placed) -> Placed:
    """Prepend BOS to `placed` if the tokenizer adds BOS and it is missing."""
    bos = tokenizer.bos_id
    if tokenizer.add_bos and bos is not None and placed.ids[:1].tolist() != [bos]:
        return Placed(*(np.insert(half, 0, x) for half, x in zip(placed, (bos, 0, 0), strict=True)))
    return placed


def encode_marked(
    tokenizer: Tokenizer,
    text: str,
    plain: Sequence[tuple[int, int]] = (),
    *,
    continues: bool = False,
) -> Placed:
    """Return the tokens of rendered text, parsing special tokens except in the ranges `plain`.

    For `continues`, see `Tokenizer.encode_with_starts`.
    """
    if plain:
        return encode_around(tokenizer, text, plain, continues=continues)
    return _encode(tokenizer, text, parse_special=True, continues=continues)


def special_spans(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[dict[str, Any]],
    text: str,
    *,
    add_generation_prompt: bool,
    tools: list[Any] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[tuple[int, int]]:
    """Locate the strings of a chat that contain the text of a special token.

    The ranges (start, end) refer to the rendered `text`. Usually, there are no such strings.

    Raises the same errors as `encode_rendered`.
    """
    chat = [*messages, tools or []]
    suspects = [path for path, leaf in _leaves(chat, ()) if holds_special(tokenizer, leaf)]
    if not suspects:
        return []
    return _find(template, chat, suspects, text, add_generation_prompt, variables)


def any_special(tokenizer: Tokenizer, messages: Sequence[Any], tools: list[Any] | None) -> bool:
    """Return whether any string of a chat, except for roles, would be parsed as a special token."""
    strings = [m["content"] for m in messages if len(m) == 2]  # only role and content
    others = [m for m in messages if len(m) != 2]
    if others or tools:
        strings += [leaf for _, leaf in _leaves([*others, tools or []], ())]
    # No special token contains a line break, so a single check of all strings usually suffices.
    if not tokenizer.may_hold_special("\n".join(strings)):
        return False
    return any(holds_special(tokenizer, leaf) for leaf in strings)


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the strings of a chat, except for roles, with their paths."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, part in value.items():
            if key not in ("role", "type"):
                yield from _leaves(part, (*path, key))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from _leaves(part, (*path, i))


def encode_around(
    tokenizer: Tokenizer,
    text: str,
    plain: Sequence[tuple[int, int]],
    *,
    continues: bool = False,
) -> Placed:
    """Return the tokens of `text`, parsing special tokens only outside `plain`.

    `plain` contains non-overlapping character ranges (start, end). Ordinary tokens can still cross
    the boundaries of these ranges.
    """
    blotted = list(text)
    for start, end in plain:
        blotted[start:end] = "x" * (end - start)
    parts = []
    at = 0
    whole = _encode(tokenizer, "".join(blotted), parse_special=True, continues=continues)
    for n, token in enumerate(whole.ids.tolist()):
        if is_special(tokenizer, token):
            before = text[at : whole.starts[n]]
            parts.append(_piece(tokenizer, before, at, continues))
            parts.append(Placed(*(half[n : n + 1] for half in whole)))
            at = int(whole.ends[n])
    parts.append(_piece(tokenizer, text[at:], at, continues))
    return Placed(*(np.concatenate(halves) for halves in zip(*parts, strict=True)))


def find_contents(
    template: ChatTemplate,
    messages: Sequence[dict[str, Any]],
    which: Sequence[int],
    text: str,
    *,
    add_generation_prompt: bool,
) -> list[tuple[int, int]]:
    """Locate the contents of the messages with the indices `which` in the rendered `text`.

    The chat is rendered again with marks in place of these contents. Between the marks, both texts
    must be the same. At each mark, `text` must contain the content, either unchanged or without
    leading or trailing white space, which many templates trim. Content that the template omits has
    no range, and repeated content has several ranges.

    Raises the same errors as `template.render`, and `MessageError` if the texts do not match.
    """
    paths: list[Path] = [(i, "content") for i in which]
    return _find(template, [*messages, []], paths, text, add_generation_prompt, None)


def _find(
    template: ChatTemplate,
    chat: list[Any],
    which: Sequence[Path],
    text: str,
    add_generation_prompt: bool,
    variables: Mapping[str, Any] | None,
) -> list[tuple[int, int]]:
    """Locate strings as `find_contents` does, in a chat whose last item is the list of tools."""
    tag = "zq"
    while tag in text or tag in template.source:
        tag += "q"
    marked = copy.deepcopy(chat)
    originals = []
    for n, path in enumerate(which):
        place = marked
        for step in path[:-1]:
            place = place[step]
        originals.append(place[path[-1]])
        place[path[-1]] = f"{tag}{n}z"
    *messages, tools = marked
    rendered = template.render(messages, add_generation_prompt, tools=tools, variables=variables)
    pieces = re.split(f"{tag}([0-9]+)z", rendered)
    at = _after(text, 0, pieces[0])
    spans = []
    for number, literal in zip(pieces[1::2], pieces[2::2], strict=True):
        start = at
        for content in _trimmings(originals[int(number)]):
            at = _after(text, start, content + literal)
            if at >= 0:
                spans.append((start, start + len(content)))
                break
        if at < 0:
            break
    if at != len(text):
        raise MessageError(
            [path[0] if path[0] < len(messages) else None for path in which],
            " contains the text of a special token, which cannot be located in the rendered chat "
            "because the chat template changes messages; remove that text",
        )
    return spans


def holds_special(tokenizer: Tokenizer, text: str) -> bool:
    """Return whether parsing special tokens in `text` would find one."""
    return tokenizer.may_hold_special(text) and any(
        is_special(tokenizer, token) for token in set(tokenizer.encode(text, parse_special=True))
    )


def _piece(tokenizer: Tokenizer, text: str, offset: int, continues: bool) -> Placed:
    return _encode(
        tokenizer, text, parse_special=False, offset=offset, continues=continues and offset == 0
    )


def _trimmings(content: str) -> list[str]:
    found = [content, content.strip(), content.lstrip(), content.rstrip(), content.strip("\n")]
    # In calls and lists of tools, the text can be escaped as in JSON.
    return found + [json.dumps(content, ensure_ascii=e)[1:-1] for e in (False, True)]


def _after(text: str, at: int, piece: str) -> int:
    """Return the position after `piece` if `text` contains `piece` at `at`, else -1."""
    return at + len(piece) if at >= 0 and text.startswith(piece, at) else -1


def _encode(
    tokenizer: Tokenizer,
    text: str,
    *,
    parse_special: bool,
    offset: int = 0,
    continues: bool = False,
) -> Placed:
    """Return the tokens of `text`, which begins at character `offset` of the whole text."""
    ids, starts = tokenizer.encode_arrays(text, parse_special=parse_special, continues=continues)
    # A token inside a character ends where the character ends.
    ends = starts + 1
    if len(ids):
        np.maximum(ends[:-1], starts[1:], out=ends[:-1])
        ends[-1] = max(len(text), int(ends[-1]))
    return Placed(ids, starts + offset, ends + offset)


def is_special(tokenizer: Tokenizer, token: int) -> bool:
    """Return whether `token` is a control token (parsed only on request) or the unknown token."""
    return not tokenizer.token_bytes(token, special=False) and bool(tokenizer.token_bytes(token))
