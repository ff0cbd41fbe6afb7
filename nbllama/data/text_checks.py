"""Check the training texts, and report what the user should know before training."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from nbllama.data.formats import Continuation, Conversation, Plain
from nbllama.errors import shown

if TYPE_CHECKING:
    from nbllama.text.tokenizer import Tokenizer


def _texts_of(found: Plain | str) -> list[str]:
    if isinstance(found, str):
        return [found]
    if isinstance(found, Conversation):
        return [m["content"] for m in found.messages if isinstance(m.get("content"), str)]
    return [found.prompt, found.answer]


def not_nfc_notes(found: Iterable[Plain | str], what: str) -> list[str]:
    """Return a line that says how many texts are not NFC-normalised, if there are any."""
    n = n_all = 0
    for each in found:
        n_all += 1
        n += any(
            not t.isascii() and not unicodedata.is_normalized("NFC", t) for t in _texts_of(each)
        )
    if not n:
        return []
    return [
        f"{n} of {n_all} {what} are not NFC-normalised (for example, e + combining accent instead "
        "of é): both nbllama and llama.cpp tokenise them differently from precomposed characters; "
        "normalise the file unless this is intended"
    ]


def control_token_notes(
    tokenizer: Tokenizer, samples: Iterable[Plain], parse_special: bool
) -> list[str]:
    """Return a line that says how many texts without a template contain control tokens, if any.

    In chats, such tokens are always plain text, because a message must not end its own turn.
    """
    n = n_all = 0
    first = ""
    for sample in samples:
        if isinstance(sample, Continuation):
            n_all += 1
            if (found := tokenizer.special_text_in(sample.prompt + sample.answer)) is not None:
                n += 1
                first = first or found
    if not n:
        return []
    read = (
        "they are read as tokens (--parse-special)"
        if parse_special
        else "they are read as plain characters; --parse-special reads them as tokens"
    )
    return [f"{n} of {n_all} texts contain control tokens such as {shown(first, 40)}: {read}"]


def control_tokens_in(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[str, ...]:
    """Return a line about the first control token spelled out in plain text, if there is one."""
    for text in texts:
        if (found := tokenizer.special_text_in(text)) is not None:
            return (
                f"the text contains control tokens such as {shown(found, 40)}: they are read as "
                'plain characters; in records ({"text": ...}), --parse-special reads them as '
                "tokens",
            )
    return ()


def mostly_lost(data: Any) -> str:
    """Return a warning if more than half of the record samples were truncated or left out, else "".

    `data` is a data set (`nbllama.data.batch.Dataset`).
    """
    samples = getattr(data, "samples", data)
    counts = {
        "truncated at --ctx": getattr(samples, "n_cut", 0),
        "skipped because no answer begins within --ctx": getattr(samples, "n_dropped", 0),
        "skipped as too long": getattr(samples, "n_long", 0),
        "skipped as bad": getattr(samples, "n_bad", 0),
    }
    lost = sum(counts.values())
    n_all = samples.n_samples + lost - counts["truncated at --ctx"]
    if 2 * lost <= n_all:
        return ""
    reasons = ", ".join(f"{n} {why}" for why, n in counts.items() if n)
    return f"less than half of the data are used unchanged ({n_all} samples: {reasons})"
