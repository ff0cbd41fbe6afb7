"""Determine the features of a chat template by rendering small test chats."""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nbllama.errors import NbllamaError
from nbllama.text.calls import Form, form_of_calls
from nbllama.text.thoughts import KEYS, at_end

if TYPE_CHECKING:
    from nbllama.text.chat_template import ChatTemplate

Message = dict[str, Any]

_SWITCHES = ("enable_thinking", "thinking", "enable_reasoning", "reasoning")
_QUESTION = {"role": "user", "content": "zqquestion"}


class Traits:
    """The traits of one template, each determined on first use."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template

    def prepare(
        self, messages: list[Message], system_as_user: bool
    ) -> tuple[list[Message], Counter[str]]:
        """Return `messages` with roles that the template supports, and counts of the changes.

        As in llama.cpp's server, `developer` becomes `system` if the template does not support it.
        With `system_as_user`, a system message is prepended to the first question if the template
        does not support the system role.
        """
        found: Counter[str] = Counter()
        developers = sum(m["role"] == "developer" for m in messages)
        if developers and "developer" not in self._template.source:
            found["developer"] += developers
            messages = [
                {**m, "role": "system"} if m["role"] == "developer" else m for m in messages
            ]
        if system_as_user and len(messages) > 1 and messages[0]["role"] == "system":
            system, question, *rest = messages
            if question["role"] == "user" and not self.knows_system:
                content = f"{system['content']}\n\n{question['content']}"
                messages = [{**question, "content": content}, *rest]
                found["folded"] += 1
        return messages, found

    @cached_property
    def names(self) -> frozenset[str]:
        """All words in the template source, including every variable that the template uses."""
        return frozenset(re.findall(r"\w+", self._template.source))

    @cached_property
    def knows_system(self) -> bool:
        """Whether the template renders a system message at the start."""
        text = self._render([{"role": "system", "content": "zqsystem"}, _QUESTION], prompt=True)
        return text is not None and "zqsystem" in text

    @cached_property
    def form_of_calls(self) -> Form:
        """The form in which the template accepts tool calls; see `nbllama.text.calls`."""
        return form_of_calls(lambda messages, tools: self._render(messages, tools=tools))

    @cached_property
    def closer(self) -> str:
        """The text between a thought and the content, or "" if the template omits thoughts."""
        answer = {"role": "assistant", "content": "zqwords"} | dict.fromkeys(KEYS, "zqthought")
        text = self._render([_QUESTION, answer]) or ""
        begin = text.rfind("zqthought")
        end = text.find("zqwords", begin)
        return text[begin + len("zqthought") : end] if 0 <= begin < end else ""

    @cached_property
    def switch(self) -> str:
        """The variable that, if set to false, makes the prompt end with a closed thought, or ""."""
        for name in _SWITCHES:
            if name in self._template.source:
                text = self._render([_QUESTION], prompt=True, variables={name: False})
                held = at_end(text or "")
                if held is not None and held.closed:
                    return name
        return ""

    @cached_property
    def asks_to_think(self) -> bool:
        """Whether `enable_thinking=true` changes the thought at the end of the prompt.

        llama.cpp's server sets the variable for these templates.
        """
        if "enable_thinking" not in self._template.source or (
            "enable_thinking" in self._template.variables
        ):
            return False
        texts = [
            self._render([_QUESTION], prompt=True, variables=v)
            for v in ({}, {"enable_thinking": True})
        ]
        plain, thinking = (at_end(text or "") for text in texts)
        return (plain and plain[2:]) != (thinking and thinking[2:])

    def _render(
        self,
        messages: list[Message],
        *,
        prompt: bool = False,
        tools: Any = None,
        variables: dict[str, Any] | None = None,
    ) -> str | None:
        """Return the text of a small chat, or None if the template fails on it."""
        try:
            return self._template.render(messages, prompt, tools=tools, variables=variables)
        except NbllamaError:
            return None
