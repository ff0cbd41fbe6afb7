"""A prompt without an answer: {"prompt": text or messages}, or a question under another key.

"messages" is a chat; if it ends with an answer, that answer is left out of the prompt. A string
under "instruction" or "question" is passed to the chat template as in the `alpaca` format. Text
under "prompt" is used unchanged, without a template. All other keys of the record are passed to the
reward.

This format is not in `FORMATS`, because its records have no answer to train on.
"""

from __future__ import annotations

from nbllama.data.formats import alpaca
from nbllama.data.formats.checks import Record, filled, keys_of, text_of
from nbllama.data.formats.messages import messages_of
from nbllama.data.formats.record import ANSWERING_ROLE, Conversation, Message, Style, conversation
from nbllama.data.formats.system import system_of
from nbllama.errors import DataError

STAND_IN = "1"  # placeholder answer, required to render a chat
_QUESTIONS = ("instruction", "question")


def read(record: Record, style: Style) -> Conversation | str:
    """Read the prompt, which is either text or a chat that ends with a placeholder answer.

    Only the placeholder is treated as a training target. Raises `DataError`.
    """
    if record.get("messages") is not None:
        return _chat(record, "messages")
    prompt = record.get("prompt")
    if isinstance(prompt, list):
        return _chat(record, "prompt")
    if prompt is not None:
        return filled(text_of(record, "prompt"), '"prompt"')
    for key in _QUESTIONS:
        if record.get(key) is not None:
            named = {k: v for k, v in record.items() if k in ("input", "system", "history")}
            chat = alpaca.read(named | {"instruction": record[key], "output": STAND_IN}, style)
            return _ended(chat.messages[:-1], record, chat.notices)
    raise DataError(
        'no prompt was found under "prompt" (text or messages), "messages", "question" or '
        f'"instruction"; the keys are {keys_of(record)}'
    )


def _chat(record: Record, key: str) -> Conversation:
    messages, _, notices = messages_of(record, key)
    if key == "messages" and messages[-1]["role"] == ANSWERING_ROLE:
        messages = messages[:-1]
        if not messages:
            raise DataError('"messages" contains only an answer: there is no prompt')
    if messages[-1]["role"] == ANSWERING_ROLE:
        raise DataError(f'"{key}" ends with an answer: the last message must ask for one')
    first = system_of(record, messages) if key == "messages" else []
    return _ended(first + messages, record, notices, len(first))


def _ended(
    messages: list[Message], record: Record, notices: tuple[str, ...], n_first: int = 0
) -> Conversation:
    """Append the placeholder answer to a chat whose earlier answers are not trained."""
    silent = {i for i, m in enumerate(messages) if m["role"] == ANSWERING_ROLE}
    whole = [*messages, {"role": ANSWERING_ROLE, "content": STAND_IN}]
    return conversation(whole, frozenset(silent), record, notices, n_first=n_first)
