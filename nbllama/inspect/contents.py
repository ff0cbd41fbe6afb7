"""Read models, adapters and checkpoints, and add their contents to a `Found`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from nbllama.adapter.file import format_of, read_stored, stored_notes
from nbllama.adapter.stored import Base
from nbllama.arch import (
    BlockSizes,
    Hparams,
    expected_tensors,
    hparams_from_gguf,
    unused_tensors,
)
from nbllama.checkpoint.file import load_checkpoint
from nbllama.checkpoint.state import FIRST, SECOND
from nbllama.errors import CheckpointError, NbllamaError
from nbllama.gguf_io import TENSOR_TYPES, GGUFFile, open_gguf
from nbllama.inspect.found import Found, Target, TensorRow, stated
from nbllama.lora.pairs import Pair
from nbllama.lora.slots import EVERY_SLOT, Slot, pair_shape, slot_of, without_tensor
from nbllama.options.finetune.table import Options
from nbllama.quants import QUANTS, as_readonly, check_finite
from nbllama.text import tokenizer_from_gguf
from nbllama.train.run.defaults import DEFAULTS
from nbllama.train.run.settings import resolve

_COLUMNS = {"raw": "plain text", "chat": "records"}
Shapes = Mapping[str, tuple[int, ...]]


# A model


def model(found: Found, f: GGUFFile, rank: int | None, check: bool) -> None:
    """Add a model's sizes, the use of each tensor, and the tensors that would be trained."""
    hp = None
    try:
        hp = hparams_from_gguf(f)
        tokenizer = tokenizer_from_gguf(f)
        found.facts["tokenizer"] = f"{type(tokenizer).__name__}, {hp.n_vocab} tokens"
        if check:
            for t in f.tensors.values():
                check_finite(t.type_id, as_readonly(f.data(t.name)), math.prod(t.shape), t.name)
            found.facts["weights"] = "all read and finite"
    except NbllamaError as e:
        found.refused = e
    found.facts = _sizes(f) | ({} if hp is None else _architecture(hp)) | found.facts
    idle = set() if hp is None else unused_tensors(hp)
    shapes = {name: t.shape for name, t in f.tensors.items() if name not in idle}
    if hp is None:
        found.tensors = [stated(f, name, _use_unknown(f, name)) for name in f.tensors]
        return
    found.notes += hp.warnings
    # files with unknown tensors are refused, so all tensors are known at this point
    known = expected_tensors(hp)
    found.tensors = [
        stated(f, n, "not used" if n in idle else _use(n)) for n in f.tensors if n in known
    ]
    found.targets = _would_train(hp, shapes, rank)


def _sizes(f: GGUFFile) -> dict[str, str | int | float]:
    n = sum(math.prod(t.shape) for t in f.tensors.values())
    nbytes = sum(t.nbytes for t in f.tensors.values())
    kinds = Counter(TENSOR_TYPES[t.type_id].name for t in f.tensors.values())
    facts: dict[str, str | int | float] = {"parameters": n, "bytes of tensors": nbytes}
    if n:
        facts["bits a weight"] = round(8 * nbytes / n, 2)
    facts["types"] = ", ".join(f"{count} {name}" for name, count in kinds.most_common())
    return facts


def _architecture(hp: Hparams) -> dict[str, str | int | float]:
    position = "RoPE" if hp.alibi_max_bias == 0 else "ALiBi"
    if hp.alibi_max_bias == 0:
        position += f", base {hp.rope_freq_base:g}, pairs {hp.rope_pairing}"
        if hp.rope_scaling.kind != "none":
            position += f", {hp.rope_scaling.kind} scaling by {hp.rope_scaling.factor:g}"
        if hp.rope_period:
            position += f", none in every {hp.rope_period}th block"
    facts: dict[str, str | int | float] = {
        "architecture": hp.arch,
        "blocks": hp.n_layer,
        "width": hp.n_embd,
        "heads": "; ".join(_each(hp, lambda of: _heads(hp, of))),
        "feed-forward": f"{' or '.join(_each(hp, lambda of: str(of.n_ff)))}, {hp.activation}"
        + ("" if hp.gated else " without a gate"),
        "positions": position,
        "trained context": hp.n_ctx_train,
        "output": "tied to token_embd" if hp.tied_output else "a separate matrix",
    }
    if e := hp.experts:
        facts["experts"] = (
            f"{e.used} of {e.total} per token, {e.n_ff} wide, weights by {e.gating}"
            + (f"; a shared expert, {e.n_ff_shared} wide" if e.n_ff_shared else "")
            + (f"; from block {e.first} on" if e.first else "")
        )
    if hp.window:
        facts["sliding window"] = hp.window
    if hp.lent:
        first = f"the first {len(hp.attention_layers)} blocks"
        facts["keys and values"] = f"computed in {first}; later blocks reuse some of them"
    if hp.n_per_layer:
        facts["embeddings for each block"] = f"{hp.n_per_layer} wide"
    if hp.mixers:
        kinds = sorted({*hp.mixers} - {"attention"})
        facts["blocks with attention"] = f"{len(hp.attention_layers)}; others: {', '.join(kinds)}"
    return facts


def _heads(hp: Hparams, of: BlockSizes) -> str:
    return f"{hp.n_head} of size {of.head_dim}, with {of.n_head_kv} for keys and values"


def _each(hp: Hparams, text: Callable[[BlockSizes], str]) -> list[str]:
    """Return the distinct descriptions of all blocks, in block order."""
    return list(dict.fromkeys(map(text, hp.each_size)))


def _use(name: str) -> str:
    found = slot_of(name)
    return f"frozen; LoRA with {_option(found[0])}" if found else "frozen; does not support LoRA"


def _use_unknown(f: GGUFFile, name: str) -> str:
    if f.tensors[name].type_id not in QUANTS:
        return "refused: its type is not a weight type"
    return _use(name)


def _option(slot: Slot) -> str:
    return f"--rank-{slot.name.replace('_', '-')}"


def _would_train(hp: Hparams, shapes: Shapes, rank: int | None) -> list[Target]:
    """Return the tensors that would get LoRA pairs, with the ranks for each kind of training data.

    If `rank` is None, the ranks are the defaults.
    """
    missing = without_tensor(shapes)
    ranks: dict[str, dict[str, int]] = {}
    for kind, column in _COLUMNS.items():
        r = DEFAULTS[kind].lora_r if rank is None else rank
        settings = resolve(
            Options(lora_r=r), kind, 1, missing=missing, cores=1, new_seed=0, n_layer=hp.n_layer
        )
        ranks[f"{column}, r {r}"] = settings.ranks
    targets = []
    for slot in EVERY_SLOT:
        of_slot = [s for n, s in shapes.items() if (of := slot_of(n)) and of[0] == slot]
        if of_slot:
            by_column = {column: chosen.get(slot.name, 0) for column, chosen in ranks.items()}
            per_tensor = {c: [r] * len(of_slot) for c, r in by_column.items()}
            targets.append(_target(slot, of_slot, per_tensor))
    return targets


def _target(slot: Slot, shapes: list[tuple[int, ...]], ranks: Mapping[str, list[int]]) -> Target:
    counts = {
        column: sum(r * _numbers(pair_shape(s)) for r, s in zip(of_column, shapes, strict=True))
        for column, of_column in ranks.items()
    }
    return Target(
        _option(slot), slot.tensor, len(shapes), tuple(sorted({*map(pair_shape, shapes)})),
        {column: tuple(sorted(set(of_column))) for column, of_column in ranks.items()}, counts,
    )  # fmt: skip


def _numbers(shape: tuple[int, ...]) -> int:
    """Return the number of parameters in a pair of rank 1: n_out + n_in for each expert."""
    return math.prod(shape[:-2]) * (shape[-2] + shape[-1])


# Adapters and checkpoints


def adapter(found: Found, base: str) -> None:
    """Add an adapter's ranks, scales and pairs."""
    known, tied = (Base(), None) if not base else _base(base)
    try:
        stored = read_stored(found.path, known)
    except NbllamaError as e:
        found.refused = e
        return
    scales = sorted({stored.alphas[n] / p.rank for n, p in stored.pairs.items()})
    found.facts |= {
        "architecture": stored.base.arch or "not stated",
        "alpha": stored.alpha,
        "r": stored.lora_r,
        "scales of the pairs": ", ".join(f"{s:g}" for s in scales[:4])
        + (f", ... ({len(scales)})" if len(scales) > 4 else ""),
    }
    _pairs(found, stored.pairs)
    if base:
        found.notes.append("fits the base model")
        found.notes += stored_notes(stored, bool(tied), format_of(found.path))


def _base(path: str) -> tuple[Base, bool]:
    with open_gguf(path) as f:
        hp = hparams_from_gguf(f)
        return Base.of(hp, {name: t.shape for name, t in f.tensors.items()}), hp.tied_output


def checkpoint(found: Found, base: str) -> None:
    """Add a checkpoint's position in the run, its settings and its pairs."""
    shapes = _base(base)[0].shapes if base else None
    try:
        state = load_checkpoint(found.path)
        if shapes is not None and (problem := state.adapter.misfit(shapes)):
            raise CheckpointError(f"{found.path}: trained for a different base model: {problem}")
    except NbllamaError as e:
        found.refused = e
        return
    a, same = state.adapter, state.identity
    found.facts |= {
        "architecture": a.arch,
        "iteration": state.iteration,
        "samples seen": state.sample_count,
        "tokens seen": state.token_count,
        "epoch": f"{state.epoch}, next sample {state.next_sample} of {state.n_samples}",
        "alpha": a.alpha,
        "r": a.lora_r,
    }
    if not state.old:
        settings = ", ".join(f"{k} {v}" for k, v in same.settings.items())
        where = ", ".join(f"{k} {v}" for k, v in state.environment.items())
        found.facts |= {
            "seed": state.seed,
            "optimiser": "two moments" if state.v else "one moment",
            "base model": same.base,
            "data": same.data,
            "settings": settings,
            "written with": where,
        }
    _pairs(found, a.pairs)
    parts = state.moments
    for name, x, arrays in (
        (FIRST, parts.first if parts else None, state.m),
        (SECOND, parts.second if parts else None, state.v),
    ):
        n = x.size if x is not None else sum(m.size for m in arrays.values())
        if n:
            found.tensors.append(TensorRow(name, "F32", (n,), 4 * n, "moments of all pairs"))
    if base:
        found.notes.append("fits the base model")


def _pairs(found: Found, pairs: Mapping[str, Pair]) -> None:
    by_slot: dict[Slot, list[Pair]] = {}
    for name, pair in pairs.items():
        of = slot_of(name)
        assert of is not None  # readers refuse names of other tensors
        by_slot.setdefault(of[0], []).append(pair)
        for half, x in (("lora_a", pair.a), ("lora_b", pair.b)):
            found.tensors.append(TensorRow(f"{name}.{half}", "F32", x.shape, x.nbytes, "trained"))
    for slot in EVERY_SLOT:
        if of_slot := by_slot.get(slot):
            shapes: list[tuple[int, ...]] = [pair.shape for pair in of_slot]
            found.targets.append(_target(slot, shapes, {"here": [pair.rank for pair in of_slot]}))
    if not _any(pair.b for pair in pairs.values()):
        found.notes.append("every B is zero: the adapter has not been trained and has no effect")


def _any(arrays: Iterable[np.ndarray]) -> bool:
    return any(x.any() for x in arrays)
