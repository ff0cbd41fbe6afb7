"""Read and check the vocabulary of a GGUF file, which is stored in its `tokenizer.*` keys.

This module checks all values that later code uses as indices. It checks that lengths match, that
ids are in range, that tokens are unique, and that merges contain only known tokens. Defaults are
the same as in llama.cpp (src/llama-vocab.cpp, `llama_vocab::impl::load`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nbllama.errors import GGUFError, UsageError, shown
from nbllama.gguf_io.limits import MAX_COUNT
from nbllama.text.pretokenizers import PreTokenizer, pre_tokenizer
from nbllama.text.special_tokens import (
    ATTR_OF_TYPE,
    BYTE,
    CONTROL,
    NORMAL,
    ROLES,
    RSTRIP,
    UNKNOWN,
    USER_DEFINED,
    end_of_generation,
    find_roles,
)

if TYPE_CHECKING:
    from nbllama.gguf_io import GGUFFile

_MAIN_IDS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
}
_BYTE_TEXT = re.compile("<0x[0-9A-Fa-f]{2}>")
_DEFAULT_IDS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "gpt2": {"bos": 11, "eos": 11},
    "gemma4": {},
}


@dataclass
class Vocab:
    """A checked vocabulary.

    `texts[i]` is the text of token i (with lone surrogates for bytes that are not UTF-8),
    `attrs[i]` contains its attribute bits (`special_tokens`), and `ids` is the inverse of `texts`.
    `scores` is float32 [V], for SPM only. `merges` contains pairs of token texts, best first, for
    BPE only. `roles` maps roles ("bos", "eot", ...) to ids.
    """

    model: str
    texts: list[str]
    ids: dict[str, int]
    attrs: list[int]
    scores: np.ndarray | None = None
    merges: list[tuple[str, str]] = field(default_factory=list)
    pre: PreTokenizer | None = None
    roles: dict[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    eog_ids: frozenset[int] = frozenset()
    chat_template: str | None = None
    path: str = ""


def read_vocab(f: GGUFFile, pre: str | None = None) -> Vocab:
    """Read the vocabulary of `f`; `pre` overrides the pre-tokenizer name in the file.

    Raises GGUFError if a key is missing, has the wrong type or length, contains an id outside the
    vocabulary, or names a tokenizer or pre-tokenizer that is not supported. Raises UsageError if
    `pre` is given for a vocabulary without a pre-tokenizer.
    """
    try:
        return _read(f, pre)
    except GGUFError as e:
        line = str(e)
        path = shown(f.path, 400)
        raise e if line.startswith(path) else GGUFError(f"{path}: {line}") from None


def _read(f: GGUFFile, pre: str | None) -> Vocab:
    model = f.get("tokenizer.ggml.model", "str")
    if model not in _DEFAULT_IDS:
        raise GGUFError(
            f"tokenizer.ggml.model: tokenizer '{shown(model)}' is not supported; supported: "
            "llama (SentencePiece), gpt2 (byte-level BPE), gemma4"
        )
    texts = _texts(f)
    ids = {text: i for i, text in enumerate(texts)}
    if len(ids) != len(texts):
        first, second = _first_duplicate(texts)
        raise GGUFError(
            f"tokenizer.ggml.tokens: '{shown(texts[first])}' is both token {first} and token "
            f"{second}"
        )
    v = Vocab(model, texts, ids, _attrs(f, texts), path=f.path)
    if pre is not None and model != "gpt2":
        kind = "SentencePiece" if model == "llama" else model
        raise UsageError(f"--pre {shown(pre)}: a {kind} vocabulary has no pre-tokenizer")
    if model == "llama":
        v.scores = _scores(f, len(texts))
        v.add_bos = v.add_space_prefix = True
    elif model == "gemma4":
        v.merges = _merges(f, ids)
        _check_bytes(ids)
    else:
        v.pre = pre_tokenizer(f.get("tokenizer.ggml.pre", "str", "default") if pre is None else pre)
        v.add_bos = v.pre.add_bos
        v.merges = _merges(f, ids)
    v.add_space_prefix = f.get("tokenizer.ggml.add_space_prefix", "bool", v.add_space_prefix)
    v.add_bos = f.get("tokenizer.ggml.add_bos_token", "bool", v.add_bos)
    v.add_bos = v.add_bos or model == "gemma4"  # regardless of the key, as in llama.cpp
    v.add_eos = f.get("tokenizer.ggml.add_eos_token", "bool", v.add_eos)
    v.roles = find_roles(_given_roles(f, v), ids, v.attrs)
    for role, on in (("bos", v.add_bos), ("eos", v.add_eos)):
        if on and role not in v.roles:
            raise GGUFError(
                f"tokenizer.ggml.add_{role}_token is true, but {_MAIN_IDS[role]} is missing"
            )
    v.eog_ids = end_of_generation(v.roles, v.roles.get("eos"), ids, v.attrs)
    _strip_rules(f, v)
    for i, attr in enumerate(v.attrs):
        if attr & (CONTROL | USER_DEFINED | UNKNOWN) and not _is_unicode(texts[i]):
            raise GGUFError(f"tokenizer.ggml.tokens: special token {i} is not UTF-8")
    v.chat_template = f.get("tokenizer.chat_template", "str", None)
    return v


def _texts(f: GGUFFile) -> list[str]:
    # Strings in llama.cpp end at a zero byte.
    texts = [t.partition("\0")[0] for t in f.get("tokenizer.ggml.tokens", "strings")]
    if not texts:
        raise GGUFError("tokenizer.ggml.tokens: the list is empty")
    return [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]


def _first_duplicate(texts: list[str]) -> tuple[int, int]:
    seen: dict[str, int] = {}
    for i, text in enumerate(texts):
        if seen.setdefault(text, i) != i:
            return seen[text], i
    raise AssertionError("no duplicate")


def _attrs(f: GGUFFile, texts: list[str]) -> list[int]:
    types = f.get("tokenizer.ggml.token_type", "ints", None)
    if types is None:
        return [NORMAL] * len(texts)
    if len(types) != len(texts):
        raise GGUFError(f"tokenizer.ggml.token_type: {len(types)} elements for {len(texts)} tokens")
    wrong = np.flatnonzero((types < 0) | (types >= len(ATTR_OF_TYPE)))
    if wrong.size:
        raise GGUFError(
            f"tokenizer.ggml.token_type[{wrong[0]}]: {types[wrong[0]]} is not a supported "
            f"type (0..{len(ATTR_OF_TYPE) - 1})"
        )
    attrs = [ATTR_OF_TYPE[t] for t in types.tolist()]
    for i, attr in enumerate(attrs):
        if attr == BYTE and byte_value(texts[i]) is None:
            raise GGUFError(
                f"tokenizer.ggml.tokens[{i}]: '{shown(texts[i])}' has type byte, but is not of "
                f"the form <0xHH>"
            )
    return attrs


def byte_value(text: str) -> int | None:
    """Return 0..255 for the text of a byte token, <0x00> to <0xFF>, or None for other text."""
    return int(text[3:5], 16) if _BYTE_TEXT.fullmatch(text) else None


def _scores(f: GGUFFile, n: int) -> np.ndarray:
    with np.errstate(over="ignore"):  # values that are infinite in float32 are rejected below
        scores = np.asarray(f.get("tokenizer.ggml.scores", "floats"), np.float32)
    if len(scores) != n:
        raise GGUFError(f"tokenizer.ggml.scores: {len(scores)} elements for {n} tokens")
    wrong = np.flatnonzero(~np.isfinite(scores))
    if wrong.size:
        score = scores[wrong[0]]
        raise GGUFError(f"tokenizer.ggml.scores[{wrong[0]}]: {score} is not finite")
    return scores


def _merges(f: GGUFFile, ids: dict[str, int]) -> list[tuple[str, str]]:
    merges: dict[tuple[str, str], None] = {}
    for i, merge in enumerate(f.get("tokenizer.ggml.merges", "strings")):
        left, _, right = merge.partition(" ")
        if not left or not right or " " in right:
            raise GGUFError(
                f"tokenizer.ggml.merges[{i}]: '{shown(merge)}' is not two tokens separated by one "
                "space"
            )
        for text in (left, right, left + right):
            if text not in ids:
                raise GGUFError(
                    f"tokenizer.ggml.merges[{i}]: '{shown(merge)}': '{shown(text)}' is not a token"
                )
        merges.setdefault((left, right))  # a repeated merge keeps its first rank
    return list(merges)


def _check_bytes(ids: dict[str, int]) -> None:
    """Check that each byte has a token, because characters without a token are encoded as bytes."""
    missing = [text for text in (f"<0x{b:02X}>" for b in range(256)) if text not in ids]
    if missing:
        raise GGUFError(f"tokenizer.ggml.tokens: '{missing[0]}' is missing, but gemma4 requires it")


def _given_roles(f: GGUFFile, v: Vocab) -> dict[str, int]:
    """Return the ids given by keys, and any default bos, eos and unk ids in the vocabulary."""
    n = len(v.texts)
    roles = {r: i for r, i in _DEFAULT_IDS[v.model].items() if i < n}
    if v.pre is not None and not v.pre.has_bos:
        roles.pop("bos", None)
    keys = [(role, key) for role, key in _MAIN_IDS.items()]
    keys += [(role, f"tokenizer.ggml.{k}") for role, (names, _) in ROLES.items() for k in names]
    for role, key in keys:
        i = f.count(key, MAX_COUNT, default=None)
        if i is None:
            continue
        if i >= n:
            raise GGUFError(f"{key}: {i}, but the vocabulary has {n} tokens")
        roles[role] = i
    return roles


def _strip_rules(f: GGUFFile, v: Vocab) -> None:
    """Mark the special tokens of Phi-3 that absorb the spaces after them.

    As in llama.cpp, this depends on the model name, because there is no key for it.
    """
    name = f.get("general.name", "str", "").lower()
    if "phi-3" not in name and "phi3" not in name:
        return
    special = CONTROL | USER_DEFINED | UNKNOWN
    for i, attr in enumerate(v.attrs):
        if attr & special or v.texts[i] == "</s>":
            v.attrs[i] = attr | RSTRIP
    for text in ("<unk>", "<s>", "<|endoftext|>"):
        if text in v.ids:
            v.attrs[v.ids[text]] &= ~RSTRIP


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
