"""Chat templates: messages to text, and where in the text the assistant's answers stand.

The template of a model file is code by a stranger: it runs in a sandbox in a child process with
limits of time and memory (`sandbox`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

from nbllama.errors import DataError, GGUFError, NbllamaError, UsageError, shown
from nbllama.text.sandbox import TemplateFailed, TemplateSandbox
from nbllama.text.templates import CHATML
from nbllama.text.tokenizer import Tokenizer

_PROBLEMS = {
    "syntax": "cannot be compiled",
    "security": "does what a template may not do",
    "memory": "needs more memory than its limit",
    "recursion": "recurses too deeply",
    "size": "is too large",
    "time": "is too slow",
    "died": "failed",
    "failed": "failed",
}


Messages = Sequence[dict[str, Any]]
Cuts = list[tuple[int, bool]]
Rendered = tuple[str, list[tuple[int, int]]]


def _answers(messages: Messages) -> list[int]:
    return [i for i, m in enumerate(messages) if m.get("role") == "assistant"]


def _cuts(messages: Messages) -> Cuts:
    """What to render to find the answers: up to each one, through each one, and all."""
    cuts = [cut for i in _answers(messages) for cut in ((i, True), (i + 1, False))]
    return [*cuts, (len(messages), False)]


class ChatTemplate:
    """A Jinja chat template. Use it as a context manager or call `close`.

    `bos_token`, `eos_token`: texts that the template may write. `end_tokens`: texts that end an
    answer (`render_spans`). `now`: what `strftime_now` tells instead of the clock, so that the same
    data gives the same text on another day. `where` and `error`: who is to blame in an error's
    line. `memory_bytes` is what the child may take beyond its start.
    Raises `error` when the template is over 256 KB or cannot be compiled in `compile_seconds`.
    """

    def __init__(
        self,
        source: str,
        bos_token: str = "",
        eos_token: str = "",
        *,
        end_tokens: Sequence[str] = (),
        now: datetime | None = None,
        where: str = "chat template",
        error: type[NbllamaError] = GGUFError,
        render_seconds: float = 5.0,
        compile_seconds: float = 2.0,
        memory_bytes: int = 512 << 20,
    ) -> None:
        self.source = source
        self._variables = {"bos_token": bos_token, "eos_token": eos_token}
        self._end_tokens = tuple(t for t in (*end_tokens, eos_token) if t)
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
            self._refuse(e)

    def render(self, messages: Messages, add_generation_prompt: bool) -> str:
        """Text of `messages`; with `add_generation_prompt` up to where the next answer begins.

        Raises DataError when the template refuses the messages (`raise_exception`), and the
        template's error when it fails or passes a limit.
        """
        return self._render([(messages, [(len(messages), add_generation_prompt)])])[0][0]

    def render_spans(self, messages: Messages) -> Rendered:
        """Text of `messages`, and for each assistant message the characters (start, end) that the
        model has to write: the answer with the token that ends the turn, without what follows it.

        An answer begins where the messages before it end with a generation prompt, and ends where
        the messages up to it end. Raises as `render`, and the template's error where this is not
        so because later messages change the text of earlier ones.
        """
        return self._spans(messages, self._render([(messages, _cuts(messages))])[0])

    def render_spans_of(self, chats: Sequence[Messages]) -> list[Rendered | NbllamaError]:
        """`render_spans` of each chat, or what it would raise; in one request to the child, which
        takes a fraction of the time.
        """
        try:
            texts = self._render([(chat, _cuts(chat)) for chat in chats])
        except NbllamaError as e:
            if len(chats) == 1:
                return [e]
            # The request as a whole failed; whose fault it was is seen one by one.
            return [found for chat in chats for found in self.render_spans_of([chat])]
        out: list[Rendered | NbllamaError] = []
        for chat, parts in zip(chats, texts, strict=True):
            try:
                out.append(self._spans(chat, parts))
            except NbllamaError as e:
                out.append(e)
        return out

    def _spans(self, messages: Messages, texts: list[str]) -> Rendered:
        *parts, text = texts
        spans = []
        for n, i in enumerate(_answers(messages)):
            before, through = parts[2 * n : 2 * n + 2]
            if not (through.startswith(before) and text.startswith(through)):
                raise self._error(
                    f"{self._where}: the text before or of answer {n + 1} (message {i + 1}) is "
                    "another without what follows, so it is not known which tokens to train; "
                    "train with one answer a conversation, or give another template"
                )
            spans.append((len(before), self._end(text, len(before), len(through))))
        return text, spans

    def close(self) -> None:
        """End the child process; twice is harmless."""
        self._sandbox.close()

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _end(self, text: str, start: int, end: int) -> int:
        answer = text[start:end].rstrip()
        return start + len(answer) if answer.endswith(self._end_tokens) else end

    def _render(self, chats: Sequence[tuple[Messages, Cuts]]) -> list[list[str]]:
        try:
            return self._sandbox.render(chats, self._variables, self._now)
        except TemplateFailed as e:
            self._refuse(e)

    def _refuse(self, e: TemplateFailed) -> NoReturn:
        message = shown(e, 300)
        if e.kind == "raised":
            raise DataError(f"{self._where} refuses the messages: {message}") from None
        line = f"{self._where}: {_PROBLEMS[e.kind]}"
        raise self._error(f"{line}: {message}" if message else line) from None


def chat_template_for(
    tokenizer: Tokenizer, source: str | None = None, *, now: datetime | None = None
) -> ChatTemplate:
    """The template to use with `tokenizer`: `source` if given, else the one of the model file, else
    ChatML if the vocabulary has its tokens.

    Raises UsageError when there is none or the given one is bad, GGUFError when the file's is bad.
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
                f"{shown(tokenizer.path, 400)}: no chat template, and no <|im_start|> and "
                "<|im_end|> tokens for ChatML; give a template"
            )
        source, where = CHATML, "ChatML"
    return ChatTemplate(
        source,
        text(tokenizer.bos_id),
        text(tokenizer.eos_id),
        end_tokens=[tokenizer.token_text(i) for i in sorted(tokenizer.eog_ids)],
        now=now,
        where=where,
        error=error,
    )
