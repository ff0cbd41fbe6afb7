"""Determine the text that a model must write after a prompt to produce a given chat.

Let P be the chat before an answer, including the prompt for the answer, and F the chat including
the answer, both as rendered by a server. If F begins with P, the answer is the rest of F. With many
templates, F does not begin with P: the prompt opens a thought that the history does not show, the
prompt contains a closed thought, or the history contains a different system message. These
differences are accepted; all others are refused.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from nbllama.errors import MessageError, shown
from nbllama.text.thoughts import (
    Thought,
    at_end,
    closer_in,
    is_cut_off,
    opening,
    thought_of,
    visible,
)

_DEFAULT_CLOSER = "\n</think>\n\n"
_MARK = re.compile(r"<[^<>]*>|\[/?[A-Z_]+\]")
_MARKS = re.compile(rf"(?:\s|{_MARK.pattern})*")
_FEW = 2  # minimum length of a matching tail, in characters


class Part(NamedTuple):
    """An answer, whose text is `head + through[at:]`; `through` is F.

    If the prompt opens a thought that F does not show, `head` is the thought and its closer;
    otherwise, it is empty. The first `n_thought` characters of `head` come from the data.
    """

    head: str
    at: int
    n_thought: int = 0

    def text(self, through: str) -> str:
        """Return the text of the answer; `through` is the chat including the answer (F)."""
        return self.head + through[self.at :]


def split_answer(
    prompt: str, through: str, messages: list[dict[str, Any]], number: int, *, closer: str = ""
) -> Part:
    """Return the answer (`messages[number]`) and the text that the template adds after it.

    `prompt` is P, and `through` is F. `closer` is the text that the template writes between a
    thought and the following words, if known. Raises `MessageError` if it is unclear which part of
    F the model writes, or if the message contains a thought but the prompt already closes it.
    """
    cut_off = is_cut_off(messages[number].get("content"))
    if through.startswith(prompt) and not cut_off:
        return Part("", len(prompt))
    held = at_end(prompt)
    if cut_off and held is not None and held.closed:
        raise _closed_before(number)
    if through.startswith(prompt):
        return Part("", len(prompt))
    base = prompt if held is None else prompt[: held.start]
    at = _aligned(base, through, messages, number)
    if at is None and held is not None and held.closed:
        # The template continues the turn of an answer, so the header is also missing from F.
        common = len(os.path.commonprefix([base, through]))
        words = _words_at(through, messages[number])
        at = common if words is not None and not through[common:words].strip() else None
    if at is None:
        raise MessageError(
            [number],
            f": the prompt for this answer ends with '{shown(_rest(prompt, through), 60)}', which "
            f"the chat template does not write when the answer is included; it is therefore "
            f"unclear what the model has to generate",
        )
    if held is None:
        return Part("", at)
    thought = thought_of(messages[number])
    if held.closed:
        return _after_closed(held, through, at, thought, number)
    return _after_open(held, through, at, thought, messages, number, closer)


def _after_closed(held: Thought, through: str, at: int, thought: str, number: int) -> Part:
    """Return an answer whose prompt contains a closed thought."""
    if thought:
        raise _closed_before(number)
    shown_thought = opening(through, at)
    if shown_thought is not None and shown_thought.closed and not shown_thought.inner.strip():
        at = shown_thought.end
    elif (mark := closer_in(through[at:])) is not None and not through[at:][: mark.start()].strip():
        at += mark.end()
    else:
        return Part("", at)
    # The prompt already contains the white space after the closer.
    return Part("", at + held_tail(held, through, at))


def _closed_before(number: int) -> MessageError:
    return MessageError(
        [number],
        ": it contains a thought, but the chat template closes the thought before the answer "
        "begins; if a template variable enables thoughts, set it with --template-vars; "
        "otherwise, remove the thoughts",
    )


def held_tail(held: Thought, through: str, at: int) -> int:
    """Return how much of the white space at `through[at:]` is already at the end of the prompt."""
    n_space = len(through[at:]) - len(through[at:].lstrip())
    return min(n_space, held.end - held.start - len(held.opener + held.inner + held.closer))


def _after_open(
    held: Thought,
    through: str,
    at: int,
    thought: str,
    messages: list[dict[str, Any]],
    number: int,
    closer: str,
) -> Part:
    """Return an answer whose prompt opens a thought, which the answer must close."""
    shown_thought = opening(through, at)
    if shown_thought is not None and shown_thought.opener.strip() == held.opener.strip():
        opener = shown_thought.opener
        return Part("", through.index(opener, at) + len(opener))
    words = visible(messages[number])
    place = through.find(words, at) if words else -1
    mark = closer_in(through[at : place if place >= 0 else len(through)])
    if mark is not None and mark.group() == held.closer:  # only the closer
        return Part("", at)
    if mark is not None:
        raise MessageError(
            [number],
            f": its thought is marked with '{mark.group()}', but the chat template uses "
            f"'{held.opener.strip()}'; put the thought under \"reasoning_content\"",
        )
    if not closer:
        closer = _DEFAULT_CLOSER if held.closer == "</think>" else held.closer
    else:
        found = closer_in(closer)
        end = found.end() if found is not None else len(closer)
        end += len(closer[end:]) - len(closer[end:].lstrip())
        closer = closer[:end]
    return Part(thought + closer, at, len(thought))


def _aligned(base: str, through: str, messages: list[dict[str, Any]], number: int) -> int | None:
    """Return the position in F at which `base` ends, or None if unknown."""
    if through.startswith(base):
        return len(base)
    common = len(os.path.commonprefix([base, through]))
    if not base[common:].strip():
        return common
    words = _words_at(through, messages[number])
    if words is None:
        return None
    # Find the longest tail of `base` directly before the words.
    calls = bool(messages[number].get("tool_calls"))  # the template may write text before calls
    best, place = 0, -1
    for at in range(words, max(-1, words - 200), -1):
        if not calls and not _MARKS.fullmatch(through, at, words):
            continue
        n = len(os.path.commonprefix([base[::-1], through[:at][::-1]]))
        if n > best:
            best, place = n, at
    tail = base[len(base) - best :]
    return place if _MARK.search(tail) or len("".join(tail.split())) >= _FEW else None


def _words_at(through: str, message: dict[str, Any]) -> int | None:
    """Return where the thought, words or calls of the message begin in F, or None if unknown."""
    pieces = [visible(message)] + [
        str(call["function"]["name"]) for call in message.get("tool_calls") or []
    ]
    places = [through.rfind(piece) for piece in pieces if piece]
    if not places or max(places) < 0:
        return None
    at = min(place for place in places if place >= 0)
    thought = thought_of(message)
    before = through.rfind(thought, 0, at) if thought else -1
    return before if before >= 0 else at


def _rest(prompt: str, through: str) -> str:
    """Return the part of the prompt after the prefix that it shares with F, for error messages."""
    return prompt[len(os.path.commonprefix([prompt, through])) :]


def words_end(text: str, message: dict[str, Any]) -> int:
    """Return the position in `text`, the text of an answer, at which the message itself ends.

    The message consists of its thought, content and calls. The answer ends with the first
    end-of-generation token after them.
    """
    end = 0
    pieces = [thought_of(message), visible(message)]
    for call in message.get("tool_calls") or []:
        pieces += [str(call["function"]["name"])]
    for piece in filter(None, pieces):
        found = text.find(piece, end)
        if found < 0:
            found = text.find(piece)
        if found >= 0:
            end = max(end, found + len(piece))
    return end
