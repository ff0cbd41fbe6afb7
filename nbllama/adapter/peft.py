"""Hugging Face PEFT adapters: folders with `adapter_model.safetensors` and `adapter_config.json`.

PEFT scales a pair by alpha / rank, or by alpha / √rank with `use_rslora`. Rank and alpha can be set
for individual modules (`rank_pattern`, `alpha_pattern`), so every scale can be written exactly.
PEFT does not support pairs for norm vectors. The pair for the embedding consists of A (rank, V) and
B (C, rank), which are nbllama's B and A, transposed. For names and the row order of q and k, see
`hf_names`.

Files written by nbllama store the head size and architecture in the metadata of the safetensors
file, which PEFT ignores. Reading other files requires the GGUF file of the base model.
"""

from __future__ import annotations

import json
import math
import os
import re
from typing import Any

import numpy as np

from nbllama.adapter.delta_heads import check_heads
from nbllama.adapter.hf_names import (
    EXPERT,
    adapter_of,
    half_of,
    hf_keys,
    hf_module,
    is_turned,
    rows_to_gguf,
    rows_to_hf,
)
from nbllama.adapter.peft_config import Config, read_config
from nbllama.adapter.safetensors import read_safetensors, write_safetensors
from nbllama.adapter.source import Path
from nbllama.adapter.stored import Base, MissingAdapter, Stored, joined, refuse
from nbllama.errors import UsageError, shown
from nbllama.lora.slots import SLOT_BY_NAME, slot_of, tensor_index
from nbllama.system.files import atomic_write, make_folder

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_EMBEDDING = SLOT_BY_NAME["tok_embd"].base_name()
_ANY_EXPERT = "[0-9]+"
_ARCH, _HEAD_DIM = "nbllama.arch", "nbllama.head_dim"


def write_peft(path: Path, stored: Stored) -> list[str]:
    """Write the two files, each atomically; the configuration is written last.

    Returns a line about norm pairs, which are omitted. Raises `OutputError` if a file cannot be
    written, and `UsageError` if too little is known about the base model or no pairs remain.
    """
    names, modules = sorted(stored.pairs, key=tensor_index), stored.base.hf_modules
    norms = [name for name in names if hf_module(name, modules) is None]
    kept = [name for name in norms if (of := slot_of(name)) and of[0].kind != "norm"]
    if kept:
        raise UsageError(
            f"a PEFT folder cannot store the pair for {kept[0]}: Hugging Face's models of "
            f"architecture {stored.base.arch} have no module for it; use .gguf"
        )
    names = [name for name in names if name not in norms]
    if not names:
        raise UsageError(
            "a PEFT folder cannot store LoRA on norm vectors, and this adapter contains nothing "
            "else; use .gguf"
        )
    head_dim = _head_dim(stored.base, names)
    check_heads(stored.base, names)
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        a, b = stored.pairs[name].a, stored.pairs[name].b
        if name == _EMBEDDING:
            a, b = b.T, a.T
        if head_dim and is_turned(name):
            b = rows_to_hf(b, head_dim)
        if a.ndim == 3:
            for e, halves in enumerate(zip(a, b, strict=True)):
                tensors |= dict(zip(hf_keys(name, modules, e), halves, strict=True))
            continue
        tensors |= dict(zip(hf_keys(name, modules), (a, b), strict=True))
    text = json.dumps(_config(stored, names), indent=2, sort_keys=True) + "\n"
    known = {_ARCH: stored.base.arch, _HEAD_DIM: stored.base.head_dim}
    metadata = {"format": "pt"} | {k: str(v) for k, v in known.items() if v is not None}
    make_folder(path)
    write_safetensors(os.path.join(path, WEIGHTS), tensors, metadata)
    with atomic_write(os.path.join(path, CONFIG)) as file:
        file.write(text.encode())
    return norms_line(norms)


def norms_line(norms: list[str]) -> list[str]:
    """Return a line about pairs that a PEFT folder cannot contain."""
    if not norms:
        return []
    return [
        f"a PEFT folder cannot store LoRA on norm vectors: {len(norms)} pairs, such as {norms[0]}, "
        "are left out, so part of the training is lost; .gguf and .bin keep them"
    ]


def _head_dim(base: Base, names: list[str]) -> int:
    """Return the head size if rows must be reordered, otherwise 0."""
    if not any(map(is_turned, names)) or not base.interleaved:
        return 0
    if base.head_dim is None:
        raise UsageError(
            "Hugging Face's row order for attn_q and attn_k depends on the head size: "
            "pass --model-base FILE"
        )
    return base.head_dim


def _config(stored: Stored, names: list[str]) -> dict[str, Any]:
    """Return the keys and values of PEFT's `LoraConfig`."""
    alpha = _plain(stored.alpha)
    paths = {n: str(hf_module(n, stored.base.hf_modules)) for n in names}
    ranks = {n: stored.pairs[n].rank for n in names}
    alphas = {n: _plain(stored.alphas[n]) for n in names}
    return {
        "alpha_pattern": _pattern({n: x for n, x in alphas.items() if x != alpha}, paths),
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": stored.lora_r,
        "rank_pattern": _pattern({n: r for n, r in ranks.items() if r != stored.lora_r}, paths),
        "target_modules": _targets(stored, paths),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def _plain(x: float) -> float | int:
    return int(x) if x == int(x) else x


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _pattern(different: dict[str, Any], paths: dict[str, str]) -> dict[str, Any]:
    """Return PEFT's `rank_pattern` or `alpha_pattern` for values that differ from the default.

    A key is the last part of a module path if all modules with that part have the same value, and
    the full path otherwise.
    """
    out = {}
    for name, value in different.items():
        leaf = _leaf(paths[name])
        alike = all(different.get(n) == value for n, path in paths.items() if _leaf(path) == leaf)
        out[leaf if alike else paths[name].replace(EXPERT, _ANY_EXPERT)] = value
    return out


def _targets(stored: Stored, paths: dict[str, str]) -> list[str]:
    """Return PEFT's `target_modules`.

    A module is listed by the last part of its path. The full path is used if the module lacks
    a pair in at least one block, or if another module without a pair has the same last part.
    """
    n_layer, modules = stored.base.n_layer, stored.base.hf_modules
    of_pairs = {found[0].tensor for found in map(slot_of, paths) if found}
    shared = {_leaf(path) for tensor, path in modules.items() if tensor not in of_pairs}
    layers: dict[str, set[int]] = {}
    for name, path in paths.items():
        found = slot_of(name)
        layers.setdefault(_leaf(path), set()).add(found[1] if found else -1)
    blocks = {n for found in layers.values() for n in found if n >= 0}
    everywhere = set(range(max(blocks, default=-1) + 1 if n_layer is None else n_layer))
    whole = {leaf for leaf, found in layers.items() if found in ({-1}, everywhere)} - shared
    named: set[str] = set()
    for name, path in paths.items():
        if _leaf(path) in whole:
            named.add(_leaf(path))
        elif EXPERT in path:
            named |= {path.replace(EXPERT, str(e)) for e in range(len(stored.pairs[name].a))}
        else:
            named.add(path)
    return sorted(named)


def read_peft(path: Path, base: Base) -> Stored:
    """Read a PEFT folder.

    If nbllama wrote the folder, its metadata provides values that are missing in `base`. Raises
    `MissingAdapter` if the folder does not exist, `UsageError` if reading it requires the base
    model, and `CheckpointError` if it is damaged or contains more than LoRA pairs.
    """
    if not os.path.isdir(path):
        raise MissingAdapter(os.fspath(path))
    weights = os.path.join(path, WEIGHTS)
    config = read_config(os.path.join(path, CONFIG))
    try:
        tensors, metadata = read_safetensors(weights)
    except FileNotFoundError as e:
        raise refuse(path, "folder", f"has no {WEIGHTS}") from e
    digits = metadata.get(_HEAD_DIM, "")
    stated = int(digits) if re.fullmatch("[1-9][0-9]{0,5}", digits) else None
    base = base.or_else(Base(metadata.get(_ARCH), stated))
    read: dict[tuple[str, int | None], list[np.ndarray | None]] = {}
    modules, adapters = {}, set[str]()
    for key, x in tensors.items():
        half = half_of(key, base.hf_modules)
        if half is None:
            raise refuse(weights, f"tensor '{shown(key, 200)}'", _unknown(key))
        if x.ndim != 2:
            raise refuse(weights, f"tensor '{key}'", "one dimension, expected two")
        pair_halves = read.setdefault((half.name, half.expert), [None, None])
        if pair_halves[half.is_b] is not None:
            raise refuse(weights, f"tensor '{key}'", "appears twice")
        pair_halves[half.is_b] = x
        adapters.add(adapter_of(key))
        if len(adapters) > 1:
            listed = " and ".join(f"'{shown(a, 40)}'" for a in sorted(adapters))
            raise refuse(weights, "file", f"contains pairs of several adapters: {listed}")
        modules[half.name] = half.module
    if not read:
        raise refuse(weights, "file", "contains no pairs")
    halves = _of_all_experts(weights, read)
    head_dim = _head_dim(base, list(halves))
    check_heads(base, list(halves))
    pairs = {}
    for name, (a, b) in halves.items():
        if name == _EMBEDDING:
            a, b = (None if x is None else x.T for x in (b, a))
        if head_dim and b is not None and is_turned(name):
            if head_dim % 2 or len(b) % head_dim:
                raise refuse(
                    weights, f"tensor '{name}'", f"{len(b)} rows do not match head size {head_dim}"
                )
            b = rows_to_gguf(b, head_dim)
        pairs[name] = joined(weights, name, a, b)
    return _scaled(path, config, pairs, modules, base)


def _of_all_experts(
    path: str, read: dict[tuple[str, int | None], list[np.ndarray | None]]
) -> dict[str, list[np.ndarray | None]]:
    """Return the halves by tensor; for a tensor with experts, the experts' halves are stacked."""
    out: dict[str, list[np.ndarray | None]] = {}
    experts: dict[str, dict[int, list[np.ndarray | None]]] = {}
    for (name, expert), halves in read.items():
        if expert is None:
            out[name] = halves
        else:
            experts.setdefault(name, {})[expert] = halves
    for name, found in experts.items():
        where = f"tensor '{name}'"
        out[name] = []
        for half in (0, 1):
            parts = [found.get(e, [None, None])[half] for e in range(max(found) + 1)]
            if None in [None if x is None else 0 for x in parts]:
                raise refuse(path, where, "some of its experts lack a pair or half of a pair")
            if len({x.shape for x in parts if x is not None}) > 1:
                raise refuse(path, where, "its experts' pairs differ in shape")
            out[name].append(np.stack([x for x in parts if x is not None]))
    return out


def _unknown(key: str) -> str:
    if "lora_magnitude_vector" in key:
        return "DoRA, which no other format supports: merge the adapter with PEFT"
    if "lora_" not in key and key.endswith((".weight", ".bias")):
        return (
            "not half of a LoRA pair: a whole tensor (modules_to_save), "
            "which no other format supports"
        )
    return "not half of a LoRA pair of a supported tensor"


def _scaled(
    path: Path, config: Config, pairs: dict[str, Any], modules: dict[str, str], base: Base
) -> Stored:
    """Return the pairs, scaled as the configuration specifies.

    The ranks in the configuration must match the tensors.
    """
    alphas = {}
    for name, pair in pairs.items():
        r, alpha = config.of(modules[name])
        if r != pair.rank:
            raise refuse(path, f"tensor '{name}'", f"rank {pair.rank}, but {CONFIG} has {r}")
        alphas[name] = alpha * math.sqrt(r) if config.use_rslora else alpha
    whole = config.alpha * math.sqrt(config.r) if config.use_rslora else config.alpha
    return Stored(whole, config.r, pairs, alphas, base)
