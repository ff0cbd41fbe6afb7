"""Token ids of a rendered chat, and no special token out of a message's words.

`encode(text, parse_special=True)` turns "<|im_end|>" into the end-of-turn token wherever it
stands. In the template's own text that is meant; in a message it would let the message end its
turn and open another one. Tokenising the pieces apart would be safe but gives other ids, because
tokens reach across the border (a line feed of the template, a line feed of the message). So: find
the special tokens of the template with such messages blotted out, cut the text there and nowhere
else, and encode what lies between with parse_special=False.
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

Path = tuple[Any, ...]  # the way to a string in a chat: message, key, ...


class Placed(NamedTuple):
    """Tokens, int32 [n], and the characters of the text that each stands for.

    Those are `text[start:end]`, int64 [n].
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def encode_plain(tokenizer: Tokenizer, text: str) -> Placed:
    """Tokens of `text`, in which special tokens are only characters."""
    return _encode(tokenizer, text, parse_special=False)


def encode_parsed(tokenizer: Tokenizer, text: str) -> Placed:
    """Tokens of `text`, in which the texts of special tokens are these tokens."""
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
    """Tokens of `text`, which is what `template` makes of `messages`.

    Where no message holds a special token's text, the ids are those of
    `tokenizer.encode(text, parse_special=True)`. BOS is put in front if the tokenizer adds one and
    the text does not begin with it.

    Raises `MessageError` when a message holds a special token's text and the template changes the
    message in such a way that it cannot be found again; and what `template.render` raises.
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
    """`placed` with BOS in front, if the tokenizer adds one and it is not there."""
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
    """Return the tokens of a rendered text, special ones parsed except in the ranges `plain`.

    `continues`: as in `Tokenizer.encode_with_starts`.
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
    """Find the strings of a chat in the rendered `text` that hold the text of a special token.

    Mostly there are none. Raises as `encode_rendered`.
    """
    chat = [*messages, tools or []]
    suspects = [path for path, leaf in _leaves(chat, ()) if holds_special(tokenizer, leaf)]
    if not suspects:
        return []
    return _find(template, chat, suspects, text, add_generation_prompt, variables)


def any_special(tokenizer: Tokenizer, messages: Sequence[Any], tools: list[Any] | None) -> bool:
    """Whether a string of a chat, except for roles, would give a special token."""
    strings = [m["content"] for m in messages if len(m) == 2]  # role and content alone
    others = [m for m in messages if len(m) != 2]
    if others or tools:
        strings += [leaf for _, leaf in _leaves([*others, tools or []], ())]
    # A line break is part of no special token, so that one look at all of them will mostly do.
    if not tokenizer.may_hold_special("\n".join(strings)):
        return False
    return any(holds_special(tokenizer, leaf) for leaf in strings)


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the strings of a chat, except for roles, with the way to each."""
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
    """Tokens of `text`, with special tokens parsed outside of `plain` only.

    `plain`: ranges of characters (start, end) that do not overlap. Tokens may still reach across
    their borders, as they would in one text.
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
    """Where in the rendered `text` the contents of the messages numbered `which` (from 0) stand.

    The chat is rendered once more with marks for these contents. Between the marks both texts must
    be the same, and at a mark the content must follow, as it is or without white space at its
    ends (many templates trim). A content that the template leaves out has no range, one that it
    repeats has several.

    Raises `MessageError` when the texts do not agree, and what `template.render` raises.
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
    """`find_contents` of any strings of a chat, whose last item is its list of tools."""
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
            " holds the text of a special token, and the chat template changes messages so that "
            "it cannot be kept apart; take that text out",
        )
    return spans


def holds_special(tokenizer: Tokenizer, text: str) -> bool:
    """Whether `text` would give a special token if special tokens were parsed in it."""
    return tokenizer.may_hold_special(text) and any(
        is_special(tokenizer, token) for token in set(tokenizer.encode(text, parse_special=True))
    )


def _piece(tokenizer: Tokenizer, text: str, offset: int, continues: bool) -> Placed:
    return _encode(
        tokenizer, text, parse_special=False, offset=offset, continues=continues and offset == 0
    )


def _trimmings(content: str) -> list[str]:
    found = [content, content.strip(), content.lstrip(), content.rstrip(), content.strip("\n")]
    # In calls and lists of tools it may stand in JSON.
    return found + [json.dumps(content, ensure_ascii=e)[1:-1] for e in (False, True)]


def _after(text: str, at: int, piece: str) -> int:
    """Return the place after `piece` if `text` has it at `at`, else -1."""
    return at + len(piece) if at >= 0 and text.startswith(piece, at) else -1


def _encode(
    tokenizer: Tokenizer,
    text: str,
    *,
    parse_special: bool,
    offset: int = 0,
    continues: bool = False,
) -> Placed:
    """Tokens of `text`, which stands at character `offset` of the whole."""
    ids, starts = tokenizer.encode_arrays(text, parse_special=parse_special, continues=continues)
    # A token inside a character ends with it, not where it starts.
    ends = starts + 1
    if len(ids):
        np.maximum(ends[:-1], starts[1:], out=ends[:-1])
        ends[-1] = max(len(text), int(ends[-1]))
    return Placed(ids, starts + offset, ends + offset)


def is_special(tokenizer: Tokenizer, token: int) -> bool:
    """Whether it is a control token, which is parsed only on request, or the unknown token."""
    return not tokenizer.token_bytes(token, special=False) and bool(tokenizer.token_bytes(token))
