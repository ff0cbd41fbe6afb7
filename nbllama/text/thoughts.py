"""Find thoughts (reasoning) in chats by the marks that templates put around them.

The marks differ between templates, but they have only a few forms: `<think>...</think>`,
`[THINK]...[/THINK]`, `<|START_THINKING|>...<|END_THINKING|>` and variants of these, and the
channels of gpt-oss and Gemma 4.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

KEYS = ("reasoning_content", "reasoning", "thinking")
"""The keys that can hold a message's thinking; templates receive it under all of these keys."""

_WORD = r"[\w:.-]*(?:think|thought|reason|reflect|scratchpad|rationale)[\w:.-]*"
_OPENERS = (
    rf"<({_WORD})>",  # <think>
    rf"\[({_WORD})\]",  # [THINK]
    rf"\u25c1({_WORD})\u25b7",
    rf"<\|START_({_WORD})\|>",
    rf"<\|begin_of_({_WORD})\|>",
    rf"<\|({_WORD})_start\|>",
    rf"<\|open\|>({_WORD})<\|sep\|>",
    r"<\|channel>(thought)\n?",
    r"<\|channel\|>(analysis)<\|message\|>",
    r"<\|(inner)_prefix\|>",
)
_CLOSERS = (
    "</{}>",
    "[/{}]",
    "\u25c1/{}\u25b7",
    "<|END_{}|>",
    "<|end_of_{}|>",
    "<|{}_end|>",
    "<|close|>{}<|sep|>",
    "<channel|>",
    "<|end|>",
    "<|inner_suffix|>",
)
_ANY_OPENER = re.compile("|".join(_OPENERS), re.IGNORECASE)
_CLOSER = (
    rf"</{_WORD}>|\[/{_WORD}\]|\u25c1/{_WORD}\u25b7|<\|END_{_WORD}\|>|<\|end_of_{_WORD}\|>"
    rf"|<\|{_WORD}_end\|>|<\|close\|>{_WORD}<\|sep\|>|<channel\|>|<\|inner_suffix\|>"
)
_ANY_CLOSER = re.compile(_CLOSER, re.IGNORECASE)
_CLOSER_AT_END = re.compile(rf"(?:{_CLOSER})\s*$", re.IGNORECASE)
_QUOTES = tuple("`'\"\u2018\u201c\u00ab\u300c\u300e(")  # these precede a quoted mark
_LONGEST_IN_PROMPT = 400  # characters in a thought at the end of a prompt


class Thought(NamedTuple):
    """A thought within a text; `text[start:end]` is the whole thought, including its marks.

    `closed` says whether the closing mark is present, and `inner` is the text between the marks, or
    the rest of the text if the closing mark is missing.
    """

    start: int
    end: int
    opener: str
    closer: str
    inner: str
    closed: bool


def _may_hold_marks(text: str) -> bool:
    return "<" in text or "[" in text or "\u25c1" in text


def opening(text: str, at: int = 0) -> Thought | None:
    """Return the thought at the start of `text[at:]`, ignoring leading white space, or None."""
    match = _ANY_OPENER.match(text, at + len(text[at:]) - len(text[at:].lstrip()))
    return None if match is None else _thought(text, match)


def leading_thought(content: str) -> Thought | None:
    """Return the thought at the start of the content of a message, or None.

    It can lack its opening mark (which the prompt of some models contains) or its closing mark.
    """
    if not _may_hold_marks(content):
        return None
    found = opening(content)
    if found is None and first_thought(content) is None:
        closer = _closer_of_bare_thought(content)
        if closer is not None:
            inner = content[: closer.start()]
            found = Thought(0, closer.end(), "", closer.group(), inner, True)
    return found


def is_cut_off(content: str | None) -> bool:
    """Return whether the content of a message is a thought that lacks its closing mark.

    An opening mark before a space is a part of a sentence.
    """
    if not content or not _may_hold_marks(content):
        return False
    found = opening(content)
    return found is not None and not found.closed and not found.inner.startswith(" ")


def first_thought(text: str) -> Thought | None:
    """Return the first closed thought in a text, or None."""
    if not _may_hold_marks(text):
        return None
    match = _ANY_OPENER.search(text)
    while match is not None:
        found = _thought(text, match)
        if found.closed:
            return found
        match = _ANY_OPENER.search(text, match.end())
    return None


def at_end(prompt: str) -> Thought | None:
    """Return the open or closed thought at the end of a prompt, including trailing white space.

    Returns None if the prompt does not end with a thought. A closing mark without an opening mark
    counts as a closed thought.
    """
    closer = _CLOSER_AT_END.search(prompt, max(0, len(prompt) - _LONGEST_IN_PROMPT))
    openers = list(_ANY_OPENER.finditer(prompt, max(0, len(prompt) - _LONGEST_IN_PROMPT)))
    if openers:
        last = openers[-1]
        found = _thought(prompt, last)
        if not found.closed and not prompt[last.end() :].strip():
            return found._replace(end=len(prompt))
        if found.closed and not prompt[found.end :].strip():
            return found._replace(end=len(prompt))
    if closer is not None:
        mark = closer.group().strip()
        return Thought(closer.start(), len(prompt), "", mark, "", True)
    return None


def closer_in(text: str) -> re.Match[str] | None:
    """Return the regex match for the first closing mark in a text, or None."""
    if not _may_hold_marks(text):
        return None
    return _ANY_CLOSER.search(text)


def _thought(text: str, match: re.Match[str]) -> Thought:
    kind = next(n for n, name in enumerate(match.groups()) if name is not None)
    closer = _CLOSERS[kind].format(match.groups()[kind])
    end = text.find(closer, match.end())
    if end < 0:
        return Thought(match.start(), len(text), match.group(), closer, text[match.end() :], False)
    inner = text[match.end() : end]
    return Thought(match.start(), end + len(closer), match.group(), closer, inner, True)


def _closer_of_bare_thought(content: str) -> re.Match[str] | None:
    """Return the match for the mark that ends a thought whose opening mark is in the prompt.

    If the prompt opens the thought, the model generates a closing mark but no opening mark. Returns
    None if the content has no closing mark, or if the first one appears to be quoted or part of a
    sentence.
    """
    closer = closer_in(content)
    if closer is None:
        return None
    before, after = content[: closer.start()][-1:], content[closer.end() :][:1]
    in_sentence = before in (" ", "\t") and after not in ("", "\n", "\r")
    return None if in_sentence or before in _QUOTES else closer


def thought_in(content: str | None) -> str:
    """Return the thought in the content of a message, or "" if there is none."""
    if not content:
        return ""
    if (found := first_thought(content)) is not None:
        return found.inner.strip()
    closer = _closer_of_bare_thought(content)
    return content[: closer.start()].strip() if closer is not None else ""


def thought_of(message: dict[str, Any]) -> str:
    """Return the thought in a message, from `KEYS` or from the content, or "" if there is none."""
    for key in KEYS:
        if message.get(key):
            return str(message[key]).strip()
    return thought_in(message.get("content"))


def visible(message: dict[str, Any]) -> str:
    """Return the content of a message without the thought and surrounding white space."""
    content = str(message.get("content") or "")
    if (found := first_thought(content)) is not None:
        content = content[: found.start] + content[found.end :]
    elif (closer := _closer_of_bare_thought(content)) is not None:
        content = content[closer.end() :]
    return content.strip()


def mark_in_words(content: str) -> str:
    """Return the closing mark of a thought that is not at the start of the content, or "".

    A template that removes everything up to the mark would also remove part of the answer.
    """
    if (found := first_thought(content)) is not None:
        if content[: found.start].strip():
            return found.closer
        end = found.end
    else:
        closer = _closer_of_bare_thought(content)
        end = 0 if closer is None else closer.end()
    mark = closer_in(content[end:])
    return "" if mark is None else mark.group()
