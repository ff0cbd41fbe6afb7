"""Chat templates: messages to text, as a server renders them.

The template of a model file is untrusted code: it runs in a sandbox in a child process with time
and memory limits (`sandbox`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
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


Messages = Sequence[dict[str, Any]]
Cuts = Sequence[tuple[int, bool]]


class ChatTemplate:
    """A Jinja chat template. Use it as a context manager or call `close`.

    `bos_token`, `eos_token`: texts for the template's variables of these names. `variables`:
    additional variables, such as `enable_thinking`. `now`: the time that `strftime_now` returns, so
    that the same data give the same text on another day. `where` and `error`: the source and the
    class of errors. `memory_bytes`: memory that the child can use in addition to its memory at the
    start. Raises `error` if the template is larger than 256 KB or cannot be compiled in
    `compile_seconds`.
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
        """Return the text of `messages`, as a server renders it.

        With `add_generation_prompt` it ends where the next answer begins. Without `tools` the
        template's variable of that name is undefined. `variables` are for this chat only.

        Raises DataError if the template refuses the messages (`raise_exception`), and the
        template's error if it fails or exceeds a limit.
        """
        more = chat_variables(tools, variables)
        (texts,) = self.render_chats([(messages, [(len(messages), add_generation_prompt)], more)])
        if isinstance(texts, NbllamaError):
            raise texts
        return texts[0]

    def render_chats(self, chats: Sequence[Chat]) -> list[list[str] | NbllamaError]:
        """Return, for each (messages, cuts, variables), the texts of its cuts, or a `render` error.

        All chats are one request to the child, which is much faster. A cut (n, prompt) is the first
        n messages, with or without a prompt for an answer.
        """
        try:
            results = self._sandbox.render(chats, self._variables, self._now)
        except TemplateFailed as e:
            if len(chats) == 1:
                return [self._refusal(e)]
            # The whole request failed; render the chats one by one to find the cause.
            return [result for chat in chats for result in self.render_chats([chat])]
        return [self._refusal(r) if isinstance(r, TemplateFailed) else r for r in results]

    def close(self) -> None:
        """End the child process; it can be called twice."""
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


def chat_variables(tools: list[Any] | None, variables: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the template's variables for one chat; without tools, "tools" is not among them."""
    return {**(variables or {}), **({"tools": tools} if tools else {})}


def chat_template_for(
    tokenizer: Tokenizer,
    source: str | None = None,
    *,
    now: datetime | None = None,
    variables: Mapping[str, Any] | None = None,
) -> ChatTemplate:
    """Return the template to use with `tokenizer`: `source` if given, else that of the model file.

    Without both, it is ChatML if the vocabulary has its tokens. `variables`: see
    `ChatTemplate`.

    Raises UsageError if there is no template or the given one is bad, GGUFError if the file's is
    bad.
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
    return ChatTemplate(
        source,
        text(tokenizer.bos_id),
        text(tokenizer.eos_id),
        variables=variables,
        now=now,
        where=where,
        error=error,
    )
