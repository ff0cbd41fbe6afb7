"""A prompt and its continuation: {"prompt", "completion"}.

If both are strings, they are concatenated unchanged, without a template or a space in between. If
the prompt is a list of messages, it forms one chat with the completion (the text of an answer or a
list of messages), in which the answers in "completion" are trained on. The record of such a chat
can also contain "system".
"""

from __future__ import annotations

from nbllama.data.formats.checks import Record, filled, text_of
from nbllama.data.formats.masks import wanted_by
from nbllama.data.formats.messages import check_no_list, messages_of
from nbllama.data.formats.record import (
    ANSWERING_ROLE,
    Continuation,
    Format,
    Plain,
    Style,
    conversation,
)
from nbllama.data.formats.system import system_of
from nbllama.errors import DataError


def read(record: Record, style: Style) -> Plain:
    """Read the prompt and the completion. Raises `DataError`."""
    if isinstance(record.get("prompt"), list):
        asked, _, notices = messages_of(record, "prompt")
        check_no_list(record, "completion")
        answer = record.get("completion")
        if isinstance(answer, str):
            answer = [{"role": ANSWERING_ROLE, "content": answer}]
        answered, silent, more = messages_of(record | {"completion": answer}, "completion")
        for i, message in enumerate(record["prompt"], 1):
            for key, wanted in wanted_by(message, f"message {i}: ").items():
                if wanted:
                    raise DataError(
                        f'message {i} of "prompt": "{key}" marks it for training, but '
                        'only answers in "completion" are trained on'
                    )
        first = system_of(record, asked)
        asked = first + asked
        n = len(asked)
        given = {i for i, m in enumerate(asked) if m["role"] == ANSWERING_ROLE}
        silent = frozenset(given | {n + i for i in silent})
        return conversation(asked + answered, silent, record, notices or more, n_first=len(first))
    check_no_list(record, "prompt")
    prompt = text_of(record, "prompt")
    return Continuation(prompt, filled(text_of(record, "completion"), "the answer (completion)"))


FORMAT = Format("completion", ("prompt", "completion"), read)
