"""Check whether a model's vocabulary suits the script of the data.

If a vocabulary has no tokens for the words of a language, it encodes them byte by byte. Texts then
become long and slow to process, and the model has probably seen little of that language.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nbllama.data.prompts import Prompts

if TYPE_CHECKING:
    from nbllama.text.tokenizer import Tokenizer

MOST_PER_BYTE = 0.5  # tokens; 1.5 per Chinese character, for which suitable vocabularies need 1
LEAST_SHARE, LEAST_CHARACTERS = 0.1, 30  # fewer characters of a script are ignored
STRETCHES, LENGTH = 40, 500  # the parts of the data that are measured, in tokens


class Script(NamedTuple):
    """A script: its name, the UTF-8 bytes per character, and code point ranges (first, last)."""

    name: str
    n_bytes: int
    ranges: tuple[tuple[int, int], ...]


SCRIPTS = (
    Script("Chinese", 3, ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))),
    Script("Japanese", 3, ((0x3041, 0x30FF),)),  # kana; Chinese characters may be added below
    Script("Korean", 3, ((0x1100, 0x11FF), (0xAC00, 0xD7A3))),
    Script("Cyrillic", 2, ((0x0400, 0x052F),)),
    Script("Greek", 2, ((0x0370, 0x03FF),)),
    Script("Hebrew", 2, ((0x0590, 0x05FF),)),
    Script("Arabic", 2, ((0x0600, 0x06FF),)),
    Script("Devanagari", 3, ((0x0900, 0x097F),)),
    Script("Bengali", 3, ((0x0980, 0x09FF),)),
    Script("Tamil", 3, ((0x0B80, 0x0BFF),)),
    Script("Thai", 3, ((0x0E00, 0x0E7F),)),
)


def script_notes(tokenizer: Tokenizer, data: Any) -> list[str]:
    """Return a warning if the tokenizer needs too many tokens for a script used in the data.

    `data` is a data set (`nbllama.data.batch.Dataset`). At most 20 000 of its tokens are examined.
    """
    tokens, characters, n_all = np.zeros(len(SCRIPTS)), np.zeros(len(SCRIPTS)), 0
    for ids in _stretches(_ids(data)):
        codes, ends = _characters(tokenizer, ids)
        n_all += len(codes)
        for i, script in enumerate(SCRIPTS):
            inside = np.zeros(len(codes), bool)
            for first, last in script.ranges:
                inside |= (codes >= first) & (codes <= last)
            characters[i] += inside.sum()
            tokens[i] += inside[ends].sum()
    if 10 * characters[1] > characters[0]:  # Japanese is written with both
        for counts in (tokens, characters):
            counts[1] += counts[0]
            counts[0] = 0
    for script, n, n_tokens in zip(SCRIPTS, characters, tokens, strict=True):
        enough = n >= LEAST_CHARACTERS and n >= LEAST_SHARE * n_all
        if enough and n_tokens > MOST_PER_BYTE * script.n_bytes * n:
            return [
                f"warning: the model needs {n_tokens / n:.1f} tokens per {script.name} character "
                "in this data; a model made for this script needs at most half as many. Training "
                "therefore takes longer, less text fits into the context, and the model is "
                "probably weak in the language; choose a model trained on that language"
            ]
    return []


def _ids(data: Any) -> np.ndarray:
    """Return all token ids of a data set in one array."""
    if isinstance(data, Prompts):
        return np.concatenate([q.ids for q in data.questions])
    samples = getattr(data, "samples", data)
    ids: np.ndarray = samples.tokens if samples.kind == "raw" else samples.ids
    return ids


def _stretches(ids: np.ndarray) -> list[np.ndarray]:
    """Return all ids if there are few, else stretches of ids at even intervals."""
    if len(ids) <= STRETCHES * LENGTH:
        return [ids]
    starts = np.linspace(0, len(ids) - LENGTH, STRETCHES).astype(np.int64)
    return [ids[start : start + LENGTH] for start in starts.tolist()]


def _characters(tokenizer: Tokenizer, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the code points of the text, and the index of the character in which each token ends.

    Control tokens are left out. A byte that is not part of a character becomes one code point.
    """
    pieces = [tokenizer.token_bytes(i, special=False) for i in ids.tolist()]
    sizes = np.array([len(piece) for piece in pieces if piece], np.int64)
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    lone = (codes >= 0xDC80) & (codes <= 0xDCFF)
    widths = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    owner = np.repeat(np.arange(len(codes)), np.where(lone, 1, widths))
    return codes, owner[np.cumsum(sizes) - 1]
