"""The features that distinguish records from each other: script, turns, tools and thoughts."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from nbllama.data.formats import Continuation, Labelled, Pair, Plain, Sample
from nbllama.text.thoughts import KEYS as THOUGHT_KEYS
from nbllama.text.thoughts import opening

_PER_MESSAGE = 300  # characters that are examined
_MESSAGES = 4
_DENSE = {"CJK": 3, "HIRAGANA": 3, "KATAKANA": 3, "HANGUL": 3}  # letters that a character counts as
_KANA = ("HIRAGANA", "KATAKANA")


class Kind(NamedTuple):
    """The features of a record, described in words; most are "" for a record without a chat."""

    script: str
    chat: str
    tools: str
    thought: str
    system: str
    turns: str


def kind_of_sample(sample: Sample) -> Kind:
    """Return the kind of a sample; for a pair, the kind of its chosen side."""
    plain: Plain
    if isinstance(sample, Pair):
        plain = sample.chosen
    else:
        plain = sample.answer if isinstance(sample, Labelled) else sample
    if isinstance(plain, Continuation):
        texts = [plain.prompt, plain.answer]
        return Kind(_in(texts), "without a chat", "", "", "", "")
    messages = plain.messages
    spoken = [m["content"] or "" for m in messages if m["role"] in ("user", "assistant")]
    answers = [m for m in messages if m["role"] == "assistant"]
    calls = plain.tools or any(m.get("tool_calls") for m in answers)
    thinks = any(m.get(KEY) for m in answers for KEY in THOUGHT_KEYS) or any(
        opening(m["content"] or "") is not None for m in answers
    )
    system = any(m["role"] == "system" for m in messages)
    return Kind(
        _in(spoken),
        "a chat",
        "with tools" if calls else "without tools",
        "with a thought" if thinks else "without a thought",
        "with a system message" if system else "without a system message",
        "with several answers" if len(answers) > 1 else "with one answer",
    )


def _in(texts: list[str]) -> str:
    script = script_of(" ".join(text[:_PER_MESSAGE] for text in texts[:_MESSAGES]))
    return f"in {script}" if script else "without letters"


def script_of(text: str) -> str:
    """Return the most frequent script in a text ("Latin letters"), or "" if it has no letters."""
    counts: Counter[str] = Counter()
    for character, n in Counter(text).items():
        if script := _script(character):
            counts[script] += n * _DENSE.get(script, 1)
    if not counts:
        return ""
    kana = sum(counts.pop(name, 0) for name in _KANA)
    if kana and kana * 10 >= counts["CJK"]:  # Japanese text always contains kana
        counts["Japanese"] = counts.pop("CJK", 0) + kana
    script = counts.most_common(1)[0][0]
    if script in ("CJK", "Japanese"):
        return "Chinese characters" if script == "CJK" else "Japanese characters"
    return f"{script.capitalize()} letters"


@lru_cache(8192)
def _script(character: str) -> str:
    """Return the first word of a letter's Unicode name, or "" for other characters."""
    if not character.isalpha():
        return ""
    if character.isascii():
        return "LATIN"
    return unicodedata.name(unicodedata.normalize("NFKC", character)[0], "").split(" ")[0]
