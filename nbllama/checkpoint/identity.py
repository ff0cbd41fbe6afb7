"""The identity of a run: base model, data, ranks and options.

A checkpoint stores an `Identity`. A run that resumes from the checkpoint compares the stored
identity with its own. If the two differ, the run stops and lists the differences instead of
silently training something else.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nbllama.checkpoint.stored import stored_group, stored_key
from nbllama.errors import CheckpointError, shown
from nbllama.gguf_io import GGUFFile, StringArray, ValueType
from nbllama.gguf_io.types import SCALARS

if TYPE_CHECKING:
    from nbllama.arch import Hparams

Setting = bool | int | float | str
_SAMPLE_BYTES = 4096

MODEL_KEYS = {
    "vocab_size": ValueType.UINT32,
    "embedding_length": ValueType.UINT32,
    "feed_forward_length": ValueType.UINT32,
    "attention.head_count": ValueType.UINT32,
    "attention.head_count_kv": ValueType.UINT32,
    "attention.key_length": ValueType.UINT32,
    "block_count": ValueType.UINT32,
    "rope.dimension_count": ValueType.UINT32,
    "attention.layer_norm_rms_epsilon": ValueType.FLOAT32,
    "rope.freq_base": ValueType.FLOAT32,
    "rope.scale_linear": ValueType.FLOAT32,
}
"""The base model's hyperparameters in a checkpoint, with their value types.

The names are those of the old tool, without the prefix "ARCH.".
"""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Values that must match for one run to resume another; empty values are not compared."""

    arch: str = stored_key("general.architecture", ValueType.STRING)
    lora_r: int = stored_key("nbllama.lora_r", ValueType.UINT32, at_most=1 << 20)
    lora_alpha: float = stored_key("nbllama.lora_alpha", ValueType.FLOAT64)
    ranks: Mapping[str, int]  # by slot name; 0 = no pair
    base: str = stored_key("nbllama.base", ValueType.STRING, "")  # `model_fingerprint`
    data: str = stored_key("nbllama.data", ValueType.STRING, "")  # `Dataset.fingerprint`
    model: Mapping[str, float] = field(default_factory=dict)  # `model_numbers`
    settings: Mapping[str, Setting] = stored_group("nbllama.settings.")  # by option name, with `_`


def model_numbers(hp: Hparams) -> dict[str, float]:
    """Return the values of `MODEL_KEYS` for the base model, with floats rounded as in the file."""
    counts = (hp.n_vocab, hp.n_embd, hp.n_ff, hp.n_head, hp.n_head_kv, hp.head_dim)
    floats = (float(np.float32(x)) for x in (hp.rms_eps, hp.rope_freq_base, hp.rope_freq_scale))
    return dict(zip(MODEL_KEYS, (*counts, hp.n_layer, hp.n_rot, *floats), strict=True))


def digest(
    entries: Iterable[tuple[str, Any, int]], tensors: Iterable[tuple[str, tuple[int, ...], Any]]
) -> str:
    """Return the hex sha256 of keys, types, values and tensors (name, shape, bytes), in order."""
    h = hashlib.sha256()
    for key, value, kind in entries:
        if kind == ValueType.STRING:
            raw = value.encode()
        elif kind != ValueType.ARRAY:
            raw = np.array(value, SCALARS[kind]).tobytes()
        elif isinstance(value, np.ndarray):
            raw = value.dtype.str.encode() + value.tobytes()
        else:
            raw = StringArray.of(value).wire
        h.update(f"{key!r} {int(kind)} {len(raw)}\n".encode() + raw)
    for name, shape, data in tensors:
        h.update(f"{name!r} {shape}\n".encode())
        h.update(data)
    return h.hexdigest()


def model_fingerprint(f: GGUFFile) -> str:
    """Return a digest that identifies a base model without reading the whole file.

    The digest covers the keys of the architecture, the name, shape and type of every tensor, and 4
    KiB at the start, middle and end of each tensor. It omits the model's name and licence, and also
    the tokenizer, because the fingerprint of the data covers the tokens.
    """
    keys = [e for e in f.entries() if not e[0].startswith(("general.", "tokenizer."))]
    keys.append(("general.architecture", f.get("general.architecture", "str"), ValueType.STRING))
    sampled = []
    for t in f.tensors.values():
        last = max(0, t.nbytes - _SAMPLE_BYTES)
        raw = f.data(t.name)
        parts = (raw[i : i + _SAMPLE_BYTES].tobytes() for i in sorted({0, last // 2, last}))
        sampled.append((f"{t.name} {t.type_id}", t.shape, b"".join(parts)))
    return digest(keys, sampled)


_DIGESTS = {"base": "the base model is different", "data": "the training data are different"}


def _values(x: Identity) -> dict[str, Any]:
    """Return all values to compare, keyed by the names that appear in messages."""
    own = {n: getattr(x, n) for n in ("arch", "lora_r", "lora_alpha", *_DIGESTS)}
    return own | {**x.model, **{f"rank of {s}": r for s, r in x.ranks.items()}, **x.settings}


def _compare(found: Identity, wanted: Identity) -> Iterator[tuple[str, bool]]:
    """Yield each difference, together with whether it makes resuming impossible."""
    old = _values(found)
    for name, now in _values(wanted).items():
        was = old.get(name, now)
        if was != now and "" not in (was, now):
            line = _DIGESTS.get(name, f"{name} was {shown(was)}, now {shown(now)}")
            size = MODEL_KEYS.get(name) == ValueType.UINT32
            yield line, size or name == "arch" or name.startswith("rank of ")


def differences(found: Identity, wanted: Identity) -> list[str]:
    """List the differences between a checkpoint's run and this run, each as "NAME was X, now Y".

    Only the settings in `wanted` are compared.
    """
    return [line for line, _ in _compare(found, wanted)]


def check_fits(
    path: str | os.PathLike[str], found: Identity, wanted: Identity, *, force: bool = False
) -> list[str]:
    """Raise `CheckpointError` listing all differences between the checkpoint's run and this run.

    With `force`, return the differences instead of raising an error. Even then, the architecture,
    the model sizes and the ranks must match, because otherwise the checkpoint's tensors would not
    fit this model.
    """
    different = list(_compare(found, wanted))
    firm = any(f for _, f in different)
    lines = [line for line, _ in different]
    if firm or (lines and not force):
        hint = "" if firm else ", or --force to continue anyway"
        raise CheckpointError(
            f"{shown(path, 400)}: from a different run: {'; '.join(lines)}; use the same model, "
            "data "
            f"and options{hint}"
        )
    return lines
