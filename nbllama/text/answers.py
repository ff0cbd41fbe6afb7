"""What a model has to write in answer to a prompt, so that both together are a given chat.

P is the chat up to an answer with the prompt for it, as a server renders it; F is the chat through
the answer. Where F begins with P, the answer is what F has behind it. Many templates are not like
that: the prompt opens a thought that the history does not show, or holds a closed one; the history
has another system message. What may differ is listed here; all else is refused.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from nbllama.errors import MessageError, shown
from nbllama.text.thoughts import Thought, at_end, closer_in, opening, thought_of, visible

_DEFAULT_CLOSER = "\n</think>\n\n"
_MARK = re.compile(r"<[^<>]*>|\[/?[A-Z_]+\]")
_MARKS = re.compile(rf"(?:\s|{_MARK.pattern})*")
_FEW = 2  # characters of a tail that say something


class Part(NamedTuple):
    """An answer as `head + through[at:]`.

    head: a thought and its closer, where the prompt opens a thought that F does not show; its first
    `n_thought` characters are the data's own.
    """

    head: str
    at: int
    n_thought: int = 0

    def text(self, through: str) -> str:
        """Return the answer's text; `through`: F."""
        return self.head + through[self.at :]


def split_answer(
    prompt: str, through: str, messages: list[dict[str, Any]], number: int, *, closer: str = ""
) -> Part:
    """Return the answer, message `number` (from 0), with what the template writes after it.

    prompt: P. through: F. closer: what the template writes between a thought and the words behind
    it, if that is known. Raises `MessageError` where it cannot be told which part of F the model
    writes, or where the prompt closes the thought and the data have one.
    """
    if through.startswith(prompt):
        return Part("", len(prompt))
    held = at_end(prompt)
    base = prompt if held is None else prompt[: held.start]
    at = _aligned(base, through, messages, number)
    if at is None and held is not None and held.closed:
        # A template that goes on with an answer's turn: F lacks the header too.
        common = len(os.path.commonprefix([base, through]))
        words = _words_at(through, messages[number])
        at = common if words is not None and not through[common:words].strip() else None
    if at is None:
        raise MessageError(
            [number],
            f": what the chat template writes before this answer when it asks "
            f"for it, '{shown(_rest(prompt, through), 60)}', is not there once it is given, so it "
            "is not known what the model has to write",
        )
    if held is None:
        return Part("", at)
    thought = thought_of(messages[number])
    if held.closed:
        return _behind_closed(held, through, at, thought, number)
    return _behind_open(held, through, at, thought, messages, number, closer)


def _behind_closed(held: Thought, through: str, at: int, thought: str, number: int) -> Part:
    """Return an answer whose prompt says that there is no thought."""
    if thought:
        raise MessageError(
            [number],
            ": it has a thought, but the prompt of the chat template closes "
            "the thought before the answer begins; give --template-vars that ask for thoughts, if "
            "the template has them, or take the thoughts out",
        )
    own = opening(through, at)
    if own is not None and own.closed and not own.inner.strip():
        at = own.end
    elif (mark := closer_in(through[at:])) is not None and not through[at:][: mark.start()].strip():
        at += mark.end()
    else:
        return Part("", at)
    # White space that the prompt has behind the closer already.
    behind = held_tail(held, through, at)
    return Part("", at + behind)


def held_tail(held: Thought, through: str, at: int) -> int:
    """Return how much white space at `through[at:]` the prompt's end has already."""
    n_space = len(through[at:]) - len(through[at:].lstrip())
    return min(n_space, held.end - held.start - len(held.opener + held.inner + held.closer))


def _behind_open(
    held: Thought,
    through: str,
    at: int,
    thought: str,
    messages: list[dict[str, Any]],
    number: int,
    closer: str,
) -> Part:
    """Return an answer whose prompt opens a thought, which the answer then has to close."""
    own = opening(through, at)
    if own is not None and own.opener.strip() == held.opener.strip():
        begin = through.index(own.opener, at) + len(own.opener)
        return Part("", begin)
    words = visible(messages[number])
    place = through.find(words, at) if words else -1
    mark = closer_in(through[at : place if place >= 0 else len(through)])
    if mark is not None and mark.group() == held.closer:  # the closer alone
        return Part("", at)
    if mark is not None:
        raise MessageError(
            [number],
            f": its thought is in other marks ('{mark.group()}') than those of "
            f"the chat template ('{held.opener.strip()}'); put it under \"reasoning_content\"",
        )
    if not closer:
        own_mark = held.closer
        closer = _DEFAULT_CLOSER if own_mark == "</think>" else own_mark
    else:
        found = closer_in(closer)
        end = found.end() if found is not None else len(closer)
        end += len(closer[end:]) - len(closer[end:].lstrip())
        closer = closer[:end]
    return Part(thought + closer, at, len(thought))


def _aligned(base: str, through: str, messages: list[dict[str, Any]], number: int) -> int | None:
    """Where in F the place is at which `base` ends; None where it is not known."""
    if through.startswith(base):
        return len(base)
    common = len(os.path.commonprefix([base, through]))
    if not base[common:].strip():
        return common
    words = _words_at(through, messages[number])
    if words is None:
        return None
    # From the end: the longest tail of `base` that stands right before the words.
    calls = bool(messages[number].get("tool_calls"))  # text of the template's own may lead to them
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
    """Where the message's own words (or its thought, or its first call) begin in F."""
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
    """Return the prompt from where it is no longer F, for an error's line."""
    return prompt[len(os.path.commonprefix([prompt, through])) :]


def words_end(text: str, message: dict[str, Any]) -> int:
    """Return the place in an answer's text after the message's own words.

    Those are its thought, content and calls. After them the first token that ends a generation ends
    the answer.
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
