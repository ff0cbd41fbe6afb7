"""Find the parts of a chat that the template omits from all prompts and answers."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from nbllama.data.formats import Message
from nbllama.data.formats.record import ANSWERING_ROLE
from nbllama.errors import MessageError, NbllamaError, shown
from nbllama.text.calls import missing_in
from nbllama.text.chat_template import chat_variables
from nbllama.text.thoughts import is_cut_off, mark_in_words, thought_in, thought_of, visible

if TYPE_CHECKING:
    from nbllama.data.prepared import Prepared
    from nbllama.text.chat_template import ChatTemplate, Cuts

LEFT_OUT = ": the chat template leaves this answer out"

_TAG = "zqmark"
_MARK = re.compile(r"<[^<>]*>")
_PART = re.compile(r"\w+")


def lost_of_answer(text: str, message: Message, number: int, found: Counter[str]) -> None:
    """Update the counts in `found` with the parts of an answer message that `text` lacks.

    The keys come from `nbllama.data.notices.READ`.

    Raises `MessageError` if a tool call or all the text is missing, because the model would learn
    to give an empty answer, and if the template removes the text before a mark that ends thoughts.
    """
    name = missing_in(text, message)
    if name:
        raise MessageError(
            [number],
            f": the call to '{shown(name, 40)}' is not in the rendered text: "
            "the chat template leaves it out or changes it",
        )
    content, words = _words(message), visible(message)
    place = _place(text, words, text.rfind(words)) if words else None
    if words and place is None and _place(text, content) is None:
        if not message.get("tool_calls"):
            _refuse_lost_words(text, content, words, number)
        if not is_cut_off(content):  # the prompt may contain the opening mark
            found["changed"] += 1
    thoughts = {thought_of(message), thought_in(content)} - {""}
    start, end = place or (len(text), len(text))
    if any(not _place(text[:start], t) and not _place(text[end:], t) for t in thoughts):
        found["thought"] += 1


def _refuse_lost_words(text: str, content: str, words: str, number: int) -> None:
    """Raise `MessageError` if the answer is cut at a mark, or if none of its words is in `text`."""
    mark = mark_in_words(content)
    if mark:
        raise MessageError(
            [number],
            f": it contains '{shown(mark, 40)}', at which the chat template cuts the text; put a "
            'thought under "reasoning_content", and spell the mark differently in other text',
        )
    plain = _MARK.sub("", text).casefold()
    parts = _PART.findall(words.casefold())
    if not plain.strip():
        raise MessageError([number], LEFT_OUT)
    if parts and not any(part in plain for part in parts):
        raise MessageError(
            [number],
            ": no word of this answer is in the rendered text: the chat template leaves it out or "
            "changes it",
        )


class LostPieces:
    """A checker that finds the messages and tools that a template leaves out.

    For each chat structure (the roles and parts of the messages), one chat with placeholders
    instead of text is rendered to determine which messages the template omits. The rendered texts
    of each chat are then searched for the text of the other messages.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._shapes: dict[Any, tuple[frozenset[int], bool]] = {}

    def of_chat(self, chat: Prepared, texts: list[str], found: Counter[str]) -> None:
        """Update the counts in `found` with the messages that no prompt contains.

        Only messages before the last answer are counted. The keys are "role:NAME", and "tools" and
        "changed" from `nbllama.data.notices.READ`. For `texts`, see `Rendered`.
        """
        lost, lost_tools = self._of_shape(chat)
        if lost_tools:
            found["tools"] += 1
        last, at = texts[-2], 0
        trained = set(chat.numbers)
        for i, message in enumerate(chat.messages[: chat.numbers[-1]]):
            if i in trained:
                continue
            words = visible(message) if message["role"] == ANSWERING_ROLE else _words(message)
            if not words:
                continue
            if i in lost:
                found[f"role:{message['role']}"] += 1
                continue
            place = _place(last, words, at) or _place(last, words)
            if place is not None:
                at = place[1]
            elif not any(_place(t, words) or _place(t, _words(message)) for t in texts):
                found["changed"] += 1

    def _of_shape(self, chat: Prepared) -> tuple[frozenset[int], bool]:
        end = chat.numbers[-1]
        key = (
            tuple(
                (m["role"], bool(_words(m)), len(m.get("tool_calls") or ()), len(m))
                for m in chat.messages[:end]
            ),
            tuple(chat.numbers),
            bool(chat.tools),
            json.dumps(chat.variables, sort_keys=True) if chat.variables else "",
        )
        if key not in self._shapes:
            self._shapes[key] = self._try(chat)
        return self._shapes[key]

    def _try(self, chat: Prepared) -> tuple[frozenset[int], bool]:
        """Return the indices of messages that no prompt contains, and whether tools are missing."""
        marked = [
            {**m, "content": f"{_TAG}{i}z"} if _words(m) else m
            for i, m in enumerate(chat.messages[: chat.numbers[-1]])
        ]
        cuts = [(i, True) for i in chat.numbers]
        full = chat_variables(chat.tools, chat.variables)
        bare = chat_variables(None, chat.variables)
        with_tools, without = self._template.render_chats(
            [(marked, cuts, full), (marked, cuts[:1], bare if chat.tools else full)]
        )
        if isinstance(with_tools, NbllamaError):
            return frozenset(), False  # the template rejects the marks
        everything = "".join(with_tools)
        lost = frozenset(
            i for i, m in enumerate(marked)
            if _words(m).startswith(_TAG) and m["content"] not in everything
            and self._same_with(marked, i, cuts, full, with_tools)
        )  # fmt: skip
        same = not isinstance(without, NbllamaError) and without[0] == with_tools[0]
        return lost, bool(chat.tools) and same

    def _same_with(
        self, messages: list[Message], i: int, cuts: Cuts, variables: Any, texts: list[str]
    ) -> bool:
        """Return whether the texts stay the same if message i has different content.

        If they change, the template does not omit the content, but changes it or cuts it.
        """
        other = {**messages[i], "content": f"7{_TAG}7"}
        chat = [*messages[:i], other, *messages[i + 1 :]]
        (found,) = self._template.render_chats([(chat, cuts, variables)])
        return found == texts


def _words(message: Message) -> str:
    return str(message["content"] or "").strip()


def _place(text: str, words: str, at: int = 0) -> tuple[int, int] | None:
    """Return the range of `words` (verbatim or escaped as in JSON) in the text, or None."""
    at = max(at, 0)
    begin = text.find(words, at)
    if begin >= 0:
        return begin, begin + len(words)
    for form in (json.dumps(words, ensure_ascii=e)[1:-1] for e in (False, True)):
        begin = text.find(form, at)
        if begin >= 0:
            return begin, begin + len(form)
    return None
