"""Chat templates, which render messages as text in the same way as a server.

A template from a model file is untrusted code, so it runs in a sandbox in a child process with time
and memory limits (`sandbox`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from nbllama.errors import DataError, GGUFError, NbllamaError, UsageError, shown
from nbllama.text.sandbox import Chat, TemplateFailed, TemplateSandbox
from nbllama.text.templates import CHATML
from nbllama.text.tokenizer import Tokenizer

_PROBLEMS = {
    "syntax": "cannot be compiled",
    "security": "does something that templates are not allowed to do",
    "memory": "exceeds its memory limit",
    "recursion": "recurses too deeply",
    "size": "is too large",
    "time": "is too slow",
    "died": "failed",
    "failed": "failed",
}
_PROBE = "zqcontent"


Messages = Sequence[dict[str, Any]]
Cuts = Sequence[tuple[int, bool]]


class ChatTemplate:
    """A Jinja chat template; use it as a context manager or call `close`.

    `bos_token` and `eos_token` are the values of the template variables with these names, and
    `variables` contains additional ones, such as `enable_thinking`. `now` is the time that
    `strftime_now` returns, so that the same data give the same text on any day. Errors are
    raised as `error` and name `where` as the source of the template. `memory_bytes` is the memory
    that the child may use in addition to its initial memory. Raises `error` if the template is
    larger than 256 KB or cannot be compiled within `compile_seconds`.
    """

    def __init__(
        self,
        source: str,
        bos_token: str = "",
        eos_token: str = "",
        *,
        variables: Mapping[str, Any] | None = None,
        now: datetime | None = None,
        where: str = "chat template",
        error: type[NbllamaError] = GGUFError,
        render_seconds: float = 5.0,
        compile_seconds: float = 2.0,
        memory_bytes: int = 512 << 20,
    ) -> None:
        self.source = source
        self.variables = dict(variables or {})
        self._variables = self.variables | {"bos_token": bos_token, "eos_token": eos_token}
        self._now = now
        self._where = where
        self._error = error
        try:
            self._sandbox = TemplateSandbox(
                source,
                render_seconds=render_seconds,
                compile_seconds=compile_seconds,
                memory_bytes=memory_bytes,
            )
        except TemplateFailed as e:
            raise self._refusal(e) from None

    def render(
        self,
        messages: Messages,
        add_generation_prompt: bool,
        *,
        tools: list[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Render `messages` as a server would, and return the text.

        With `add_generation_prompt`, the text ends where the next answer begins. Without `tools`,
        the template variable of that name is undefined. `variables` apply to this chat only.

        Raises DataError if the template rejects the messages (`raise_exception`), and `error` if
        the template fails or exceeds a limit.
        """
        more = chat_variables(tools, variables)
        (texts,) = self.render_chats([(messages, [(len(messages), add_generation_prompt)], more)])
        if isinstance(texts, NbllamaError):
            raise texts
        return texts[0]

    def render_chats(self, chats: Sequence[Chat]) -> list[list[str] | NbllamaError]:
        """Render chats (messages, cuts, variables); return the texts or the error for each chat.

        For a cut (n, prompt), the first n messages are rendered, with or without a prompt for an
        answer. The errors are those that `render` raises. All chats are sent to the child in a
        single request, which is much faster than one request per chat.
        """
        if self._takes_parts:
            chats = [(_in_parts(messages), cuts, more) for messages, cuts, more in chats]
        try:
            results = self._sandbox.render(chats, self._variables, self._now)
        except TemplateFailed as e:
            if len(chats) == 1:
                return [self._refusal(e)]
            # The whole request failed, so render the chats one by one to find the cause.
            return [result for chat in chats for result in self.render_chats([chat])]
        return [self._refusal(r) if isinstance(r, TemplateFailed) else r for r in results]

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template writes contents only if they are lists of text parts.

        llama.cpp's server makes the same test, and passes each content to these templates as one
        part.
        """
        if "text" not in self.source:
            return False
        message = {"role": "user", "content": _PROBE}
        return not self._writes_probe([message]) and self._writes_probe(_in_parts([message]))

    def _writes_probe(self, messages: Messages) -> bool:
        try:
            chat: Chat = (messages, [(1, True)], {})
            (texts,) = self._sandbox.render([chat], self._variables, self._now)
        except TemplateFailed:
            return False
        return not isinstance(texts, TemplateFailed) and _PROBE in texts[0]

    def close(self) -> None:
        """End the child process; may be called more than once."""
        self._sandbox.close()

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _refusal(self, e: TemplateFailed) -> NbllamaError:
        message = shown(e, 300)
        if e.kind == "raised":
            return DataError(f"{self._where} rejects the messages: {message}")
        line = f"{self._where}: {_PROBLEMS[e.kind]}"
        return self._error(f"{line}: {message}" if message else line)


def _in_parts(messages: Messages) -> list[dict[str, Any]]:
    """Return messages whose contents are lists with one text part instead of strings."""
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}]}
        if isinstance(m["content"], str)
        else m
        for m in messages
    ]


def chat_variables(tools: list[Any] | None, variables: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the template variables for one chat, omitting "tools" if there are none."""
    return {**(variables or {}), **({"tools": tools} if tools else {})}


def chat_template_for(
    tokenizer: Tokenizer,
    source: str | None = None,
    *,
    now: datetime | None = None,
    variables: Mapping[str, Any] | None = None,
) -> ChatTemplate:
    """Return the template to use with `tokenizer`: `source` if given, or the one in the file.

    If neither exists, ChatML is used, provided that the vocabulary contains its tokens. For
    `variables`, see `ChatTemplate`.

    Raises UsageError if there is no template or the given template is invalid, and GGUFError if the
    template in the file is invalid. A template that does not use `messages` is invalid.
    """

    def text(token_id: int | None) -> str:
        return "" if token_id is None else tokenizer.token_text(token_id)

    error: type[NbllamaError] = UsageError
    where = "the given chat template"
    if source is None and tokenizer.chat_template:
        source, error = tokenizer.chat_template, GGUFError
        where = f"{shown(tokenizer.path, 400)}: tokenizer.chat_template"
    elif source is None:
        if None in (tokenizer.token_id("<|im_start|>"), tokenizer.token_id("<|im_end|>")):
            raise UsageError(
                f"{shown(tokenizer.path, 400)}: no chat template, and the <|im_start|> and "
                f"<|im_end|> tokens for ChatML are missing; pass a template"
            )
        source, where = CHATML, "ChatML"
    template = ChatTemplate(
        source,
        text(tokenizer.bos_id),
        text(tokenizer.eos_id),
        variables=variables,
        now=now,
        where=where,
        error=error,
    )
    if "messages" not in source:
        with template:
            template.render([{"role": "user", "content": _PROBE}], True)  # raises its own error
        raise error(
            f"{where}: does not use `messages`, so it cannot render a chat; pass another template"
        )
    return template
