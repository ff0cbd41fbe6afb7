"""Two answers to one prompt: {"prompt", "chosen", "rejected"}.

"prompt" is text or a list of messages, and each side is text, a list of messages, or a single
message. Strings are concatenated unchanged, without a template. Messages form one chat, in which
the answers on that side are trained on, and "system" is read. Without "prompt", both sides contain
the whole chat or text, and the common beginning is the prompt. With "instruction" or "question"
instead of "prompt", the strings are passed to the chat template as in the `alpaca` format.
"""

from __future__ import annotations

from typing import Any

from nbllama.data.folding import canonical
from nbllama.data.formats import alpaca
from nbllama.data.formats.checks import Record, filled, kind_of, text_of
from nbllama.data.formats.masks import wanted_by
from nbllama.data.formats.messages import check_no_list, messages_of
from nbllama.data.formats.record import (
    ANSWERING_ROLE,
    Continuation,
    Conversation,
    Format,
    Message,
    Pair,
    Plain,
    Style,
    conversation,
    weight_of,
)
from nbllama.data.formats.system import system_of
from nbllama.errors import DataError

SIDES = ("chosen", "rejected")
_QUESTIONS = ("instruction", "question")
# A string under one of these keys is part of the prompt, but it is unclear how to join it.
_UNKNOWN = ("input", "inputs", "query", "human", "user", "q", "prompt", *_QUESTIONS)


def read(record: Record, style: Style) -> Pair:
    """Read the two sides. Raises `DataError`."""
    for side in SIDES:
        if side not in record:
            raise DataError(f'"{side}" is missing')
        _check(record[side], side)
    chosen: Plain
    rejected: Plain
    question = next((key for key in _QUESTIONS if record.get(key) is not None), None)
    if record.get("prompt") is None and question is not None:
        chosen, rejected = (_asked(record, question, side, style) for side in SIDES)
    elif isinstance(record.get("prompt"), list):
        chosen, rejected = (_after_messages(record, side) for side in SIDES)
    elif all(isinstance(record.get(side), str) for side in SIDES):
        chosen, rejected = _texts(record)
    elif all(isinstance(record.get(side), list) for side in SIDES):
        chosen, rejected = _chats(record)
    else:
        raise DataError(
            '"chosen" and "rejected" must both be text, or both be lists of messages, if "prompt" '
            "is not a list"
        )
    if chosen == rejected:
        raise DataError("chosen and rejected are equal: there is no preference to learn")
    return Pair(chosen, rejected, weight_of(record))


def _check(value: Any, side: str) -> None:
    if value is None or not isinstance(value, str | list | dict):
        raise DataError(f'"{side}" must be text or a list of messages, not {kind_of(value)}')
    if not value or (isinstance(value, str) and not value.strip()):
        raise DataError(f'"{side}" is empty')


def _asked(record: Record, question: str, side: str, style: Style) -> Conversation:
    value = filled(text_of(record, side), f'"{side}"')
    names = {"instruction": record[question], "output": value}
    return alpaca.read(record | names, style)


def _side(record: Record, side: str) -> tuple[list[Message], frozenset[int], tuple[str, ...]]:
    """Return the messages of a side, which must end with an answer; see `messages_of`."""
    value = record[side]
    if isinstance(value, str):
        value = [{"role": ANSWERING_ROLE, "content": value}]
    elif isinstance(value, dict):
        value = [value]
    try:
        messages, silent, notices = messages_of({side: value}, side)
    except DataError as e:
        raise DataError(f"{side}: {e}") from None
    if messages[-1]["role"] != ANSWERING_ROLE:
        raise DataError(
            f'{side}: the last message must have the role "{ANSWERING_ROLE}", not '
            f'"{messages[-1]["role"]}"'
        )
    return messages, silent, notices


def _chat(
    asked: list[Message],
    answered: list[Message],
    silent: frozenset[int],
    record: Record,
    notices: tuple[str, ...],
    side: str,
) -> Conversation:
    """Build a chat in which the answers in `answered` but not in `silent` are trained on."""
    first = system_of(record, asked)
    asked = first + asked
    n = len(asked)
    quiet = {i for i, m in enumerate(asked) if m["role"] == ANSWERING_ROLE}
    try:
        return conversation(
            asked + answered,
            frozenset(quiet | {n + i for i in silent}),
            record,
            notices,
            n_first=len(first),
        )
    except DataError as e:
        raise DataError(f"{side}: {e}") from None


def _after_messages(record: Record, side: str) -> Conversation:
    asked, _, notices = messages_of(record, "prompt")
    for i, message in enumerate(record["prompt"], 1):
        if any(wanted_by(message, f"message {i}: ").values()):
            raise DataError(
                f'message {i} of "prompt" is marked for training; only chosen and rejected are '
                "trained on"
            )
    answered, silent, more = _side(record, side)
    n = len(asked)
    if len(answered) > n and answered[:n] == asked:  # the side repeats the prompt
        answered, silent = answered[n:], frozenset(i - n for i in silent if i >= n)
    if answered[0]["role"] not in (ANSWERING_ROLE, "tool"):
        raise DataError(f'{side}: the first message must have the role "{ANSWERING_ROLE}"')
    return _chat(asked, answered, silent, record, notices or more, side)


def _chats(record: Record) -> tuple[Plain, Plain]:
    """Return both chats; their common beginning is the prompt."""
    parts = [_side(record, side) for side in SIDES]
    chosen, rejected = parts[0][0], parts[1][0]
    n = 0
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    if n == len(chosen) == len(rejected):
        raise DataError("chosen and rejected are equal: there is no preference to learn")
    for side, messages in zip(SIDES, (chosen, rejected), strict=True):
        if n == len(messages):
            raise DataError(f"chosen and rejected are identical up to the end of {side}")
        if messages[n]["role"] != ANSWERING_ROLE:
            raise DataError(
                f"chosen and rejected first differ in message {n + 1}, which is not an answer: "
                "they must have the same prompt"
            )
    if not n:
        raise DataError(
            "chosen and rejected begin with different answers, so they have no common prompt"
        )
    prompt = record.get("prompt")
    if prompt is not None and not any(
        m["content"] == text_of(record, "prompt") for m in chosen[:n]
    ):
        raise DataError('no message that the two chats share has the text of "prompt"')
    first, second = (
        _chat(m[:n], m[n:], frozenset(i - n for i in quiet if i >= n), record, notices, side)
        for side, (m, quiet, notices) in zip(SIDES, parts, strict=True)
    )
    return first, second


def _texts(record: Record) -> tuple[Plain, Plain]:
    for key in ("prompt", *SIDES):
        check_no_list(record, key)
    chosen, rejected = (filled(text_of(record, side), f'"{side}"') for side in SIDES)
    if record.get("prompt") is not None:
        prompt = text_of(record, "prompt")
        return Continuation(prompt, chosen), Continuation(prompt, rejected)
    if chosen == rejected:
        raise DataError("chosen and rejected are equal: there is no preference to learn")
    if others := [k for k, v in record.items() if v is not None and canonical(k) in _UNKNOWN]:
        raise DataError(
            f'is "{others[0]}" the prompt? Pass --data-columns instruction={others[0]} (with '
            f"the chat template) or --data-columns prompt={others[0]} (concatenated as is)"
        )
    n = 0
    while n < min(len(chosen), len(rejected)) and chosen[n] == rejected[n]:
        n += 1
    prompt = chosen[:n]
    words = prompt.split()
    # The prompt ends after a whole word. The answer begins with the space, as tokens do.
    whole = len(prompt.rstrip())
    if prompt == prompt.rstrip() and words:
        whole = len(prompt) - len(words[-1])
        whole = len(prompt[:whole].rstrip())
    prompt = prompt[:whole]
    if not prompt:
        raise DataError('chosen and rejected begin differently; put their prompt under "prompt"')
    answers = (chosen[whole:], rejected[whole:])
    for side, answer in zip(SIDES, answers, strict=True):
        filled(answer, f'the part of "{side}" after the common prefix')
    return Continuation(prompt, answers[0]), Continuation(prompt, answers[1])


FORMAT = Format("preference", SIDES, read)
