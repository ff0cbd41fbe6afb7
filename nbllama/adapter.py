"""LoRA adapters as files: today's GGUF format, which llama.cpp loads at run time.

Format as in llama.cpp's `src/llama-adapter.cpp:llama_adapter_lora_init_impl` and
`convert_lora_to_gguf.py`. Its rank is each tensor's own, and so is its scale:

    y = x Wᵀ + (alpha / rank_t) (x aᵀ) bᵀ

We train with one scale, alpha / lora_r. So `b` is written times rank_t / lora_r, and the key
`nbllama.lora_r` lets it be read back. The pair of `token_embd` is stored swapped: a = B (V, rank),
b = Aᵀ (C, rank).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from nbllama.errors import CheckpointError, GGUFError, UsageError, shown
from nbllama.gguf_io import GGUFFile, ValueType, open_gguf, write_gguf
from nbllama.lora import Adapter, Pair
from nbllama.opt import check_finite
from nbllama.slots import pair_shape, slot_of

if TYPE_CHECKING:
    from nbllama.arch import Hparams

Path = str | os.PathLike[str]
_ALPHA, _LORA_R = "adapter.lora.alpha", "nbllama.lora_r"
_INVOCATION = "adapter.alora.invocation_tokens"


def check_format(path: Path) -> None:
    """Raise `UsageError` if the name asks for a format that is not read and written yet."""
    name = os.fspath(path)
    if name.lower().endswith(".bin"):
        raise UsageError(
            f"{shown(name, 400)}: '.bin' adapters of 2023 are not supported; use .gguf"
        )
    if name.endswith(("/", os.sep)) or os.path.isdir(name):
        raise UsageError(f"{shown(name, 400)}: PEFT folders are not supported; use a .gguf file")


def adapter_notes(adapter: Adapter, hp: Hparams) -> list[str]:
    """One line for each thing in `adapter` that llama.cpp will not do as it was trained."""
    notes = []
    norms = [n for n in adapter.pairs if (s := slot_of(n)) and s[0].kind == "norm"]
    if norms:
        notes.append(
            f"llama.cpp ignores LoRA on norm vectors ({len(norms)} here, such as {norms[0]}):"
            " merge the adapter into the model to get what was trained"
        )
    if hp.tied_output and "token_embd.weight" in adapter.pairs:
        notes.append(
            "llama.cpp aborts on LoRA of token_embd where the output is tied to it, as in this"
            " model: merge the adapter into the model instead of loading it"
        )
    return notes


def save_adapter(path: Path, adapter: Adapter, hp: Hparams) -> list[str]:
    """Write `adapter` to a GGUF file in one atomic step; returns `adapter_notes`.

    Raises `UsageError` for a format that is not supported, `OutputError` if the path cannot be
    written, `ValueError` for an adapter that llama.cpp would not load: no pair, alpha not above 0,
    or a value that is not finite.
    """
    check_format(path)
    alpha = float(np.float32(adapter.alpha))
    if not adapter.pairs or not 0 < alpha < math.inf or adapter.lora_r < 1:
        raise ValueError(f"{len(adapter.pairs)} pairs, alpha {alpha}, lora_r {adapter.lora_r}")
    tensors = []
    for name, pair in adapter.pairs.items():
        b = pair.b
        if pair.rank != adapter.lora_r:
            b = b * np.float32(pair.rank / adapter.lora_r)
        halves = (b, pair.a.T) if name == "token_embd.weight" else (pair.a, b)
        for half, x in zip(("lora_a", "lora_b"), halves, strict=True):
            tensors.append((f"{name}.{half}", np.ascontiguousarray(x)))
    if bad := check_finite(dict(tensors)):
        raise ValueError(f"{bad} is not finite")
    metadata = [
        ("general.type", "adapter", ValueType.STRING),
        ("general.architecture", adapter.arch, ValueType.STRING),
        ("adapter.type", "lora", ValueType.STRING),
        (_ALPHA, alpha, ValueType.FLOAT32),
        (_LORA_R, adapter.lora_r, ValueType.UINT32),
    ]
    write_gguf(path, metadata, tensors)
    return adapter_notes(adapter, hp)


def load_adapter(path: Path, arch: str, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """Read a GGUF adapter for a base model of architecture `arch` and tensor `shapes` (numpy).

    Our own files come back as they were trained: bit for bit where a tensor's rank is lora_r, else
    but for the rounding of the factor. Other files (such as `convert_lora_to_gguf.py` writes, in
    any tensor type) get lora_r = their largest rank, and B times lora_r / rank_t where needed.

    Raises `UsageError` for a format that is not supported, `FileNotFoundError` if there is no such
    file, `CheckpointError` for a file that is damaged or does not fit the base model.
    """
    check_format(path)
    if not os.path.lexists(path):
        raise FileNotFoundError(os.fspath(path))
    try:
        with open_gguf(path) as f:
            adapter = _read(f, arch, shapes)
            f.recheck()
            return adapter
    except GGUFError as e:
        raise CheckpointError(f"{e}; the adapter cannot be used") from e


def _read(f: GGUFFile, arch: str, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    if f.metadata.get("training.type") is not None:
        raise f.error("file", "a checkpoint, not an adapter")
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        if (found := f.get(key, "str", "missing")) != wanted:
            raise f.error(f"key '{key}'", f"{shown(found)}, must be {wanted}")
    if (found := f.get("general.architecture", "str")) != arch:
        raise f.error("key 'general.architecture'", f"{shown(found)}, the base model is {arch}")
    if _INVOCATION in f.metadata:
        raise f.error(f"key '{_INVOCATION}'", "an activated LoRA (aLoRA), which is not supported")
    alpha = f.get(_ALPHA, "float")
    if not 0 < alpha < math.inf:
        raise f.error(f"key '{_ALPHA}'", f"{alpha}, must be above 0")
    pairs = {}
    for base in dict.fromkeys(name.rpartition(".")[0] for name in f.tensors):
        pairs[base] = _pair(f, base, shapes)
    if not pairs:
        raise f.error("file", "holds no pair")
    lora_r = f.get(_LORA_R, "uint", max(pair.rank for pair in pairs.values()))
    if not 1 <= lora_r <= 1 << 20:
        raise f.error(f"key '{_LORA_R}'", f"{lora_r}, must be from 1 to 2^20")
    for base, pair in pairs.items():
        if pair.rank != lora_r:
            with np.errstate(over="ignore"):
                pairs[base] = Pair(pair.a, pair.b * np.float32(lora_r / pair.rank))
        if check_finite({base: pairs[base].b}):
            raise f.error(f"tensor '{base}.lora_b'", f"overflows at {_LORA_R} {lora_r}")
    return Adapter(arch, alpha, lora_r, pairs)


def _pair(f: GGUFFile, base: str, shapes: Mapping[str, tuple[int, ...]]) -> Pair:
    what = f"tensor '{shown(base)}'"
    names = f"{base}.lora_a", f"{base}.lora_b"
    present = [name in f.tensors for name in names]
    if not any(present):
        raise f.error(what, "not a half of a LoRA pair")
    if slot_of(base) is None or base not in shapes:
        raise f.error(what, "has a LoRA pair, but the base model has no such tensor to train")
    if not all(present):
        raise f.error(what, f"its pair has no {names[present.index(False)].rpartition('.')[2]}")
    a, b = (_matrix(f, name) for name in names)
    if base == "token_embd.weight":
        a, b = np.ascontiguousarray(b.T), a
    n_out, n_in = pair_shape(shapes[base])
    if a.shape[0] != b.shape[1]:
        raise f.error(what, f"ranks of lora_a {a.shape} and lora_b {b.shape} differ")
    if (b.shape[0], a.shape[1]) != (n_out, n_in):
        found = f"({b.shape[0]}, {a.shape[1]})"
        raise f.error(what, f"its pair is for a {found} matrix, the base model has {n_out, n_in}")
    return Pair(a, b)


def _matrix(f: GGUFFile, name: str) -> np.ndarray:
    """A tensor of two dimensions as a finite float32 copy; F16, BF16, Q8_0 and so on decoded."""
    info = f.tensors[name]
    shape = (1, *info.shape) if len(info.shape) == 1 else info.shape
    if len(shape) != 2:
        raise f.error(f"tensor '{shown(name)}'", f"{len(shape)} dimensions, must be 2")
    if info.type_id == 0:
        x = f.data(name).view("<f4").astype(np.float32)
    else:
        from nbllama.quants import QUANTS, decode

        if info.type_id not in QUANTS:
            raise f.error(f"tensor '{shown(name)}'", "its type is not a type of weights")
        x = decode(info.type_id, f.data(name), math.prod(shape))
    if check_finite({name: x}):
        raise f.error(f"tensor '{shown(name)}'", "holds a NaN or an infinity")
    return x.reshape(shape)
