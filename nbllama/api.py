"""The public functions for teaching and scripts: tokens in, numpy arrays out.

All of them use the same forward and backward pass as the trainer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from nbllama.adapter import file as adapter_file
from nbllama.data.batch import NOT_TRAINED, Batch
from nbllama.lora.pairs import Adapter
from nbllama.lora.pairs import init_adapter as new_adapter
from nbllama.lora.slots import EVERY_SLOT, without_tensor
from nbllama.model import gradients
from nbllama.model.bound import Bound
from nbllama.model.passes import Model

Tokens = Sequence[int] | np.ndarray


def _batch(model: Model, tokens: Tokens, targets: Tokens | None = None) -> Batch:
    """One sequence; without targets every token's target is the token after it."""
    ids = _ids(model, tokens, "token", 0)
    if targets is None:
        after = np.append(ids[1:], np.int32(NOT_TRAINED))
    else:
        after = _ids(model, targets, "target", NOT_TRAINED)
    return Batch.from_rows([(ids, after)])


def _ids(model: Model, ids: Tokens, what: str, lowest: int) -> np.ndarray:
    """int32 `[N]`; `ValueError` for what is not in the vocabulary."""
    wide = np.array(ids, np.int64)
    last = model.hp.n_vocab - 1
    if wide.min(initial=0) < lowest or wide.max(initial=0) > last:
        raise ValueError(f"a {what} is outside {lowest}..{last}")
    return wide.astype(np.int32)


def logits(model: Model, tokens: Tokens, adapter: Adapter | None = None) -> np.ndarray:
    """Logits float32 `[N, V]` after each token, with an adapter or without.

    Raises `ValueError` for a token that is not in the vocabulary.
    """
    batch, bound = _batch(model, tokens), Bound(model, adapter)
    acts = model.forward_activations(adapter, len(tokens))
    model.forward(bound, acts, batch)
    return model.logits(bound, acts.x(model.hp.n_layer, len(tokens)))


def loss_and_gradients(
    model: Model,
    adapter: Adapter,
    tokens: Tokens,
    targets: Tokens | None = None,
    *,
    checkpointing: bool = False,
) -> tuple[float, dict[str, np.ndarray]]:
    """Mean loss (nats per trained token) of one sequence, and its gradient by parameter name.

    `targets[i]` is the id wanted after token i, -1 for none; by default the next token. The
    gradients have the shapes of `adapter.parameters()`. Raises `ValueError` if nothing is trained.
    """
    batch = _batch(model, tokens, targets)
    if not batch.n_trained:
        raise ValueError("no position has a target")
    return gradients.loss_and_gradients(model, adapter, batch, checkpointing)


def trace(model: Model, tokens: Tokens, adapter: Adapter | None = None) -> dict[str, np.ndarray]:
    """Activations of a forward pass by name, float32 copies.

    `x` (block input) `[N, C]`, `q` `[N, H, D]`, `k`, `v` `[N, G, D]` after RoPE, `att` `[N, H, D]`,
    `x_mid` `[N, C]`, `gate`, `up` `[N, F]`, each as `blk.I.NAME`; `x_out` `[N, C]` after the last
    block, `logits` `[N, V]`.
    """
    n = len(tokens)
    batch, bound = _batch(model, tokens), Bound(model, adapter, trained=adapter is not None)
    acts = model.activations(adapter, n, max(1, batch.n_trained), checkpointing=False)
    model.forward(bound, acts, batch)
    out = {}
    for layer in range(model.hp.n_layer):
        kept = acts.block(layer, n)
        out[f"blk.{layer}.x"] = acts.x(layer, n).copy()
        for name in ("q", "k", "v", "att", "x_mid", "gate", "up"):
            out[f"blk.{layer}.{name}"] = getattr(kept, name).copy()
    out["x_out"] = acts.x(model.hp.n_layer, n).copy()
    out["logits"] = model.logits(bound, out["x_out"])
    return out


def init_adapter(
    model: Model,
    rank: int = 4,
    alpha: float | None = None,
    *,
    ranks: dict[str, int] | None = None,
    seed: int = 0,
) -> Adapter:
    """A new adapter on the linears of every block (B = 0: it changes nothing yet).

    `ranks` by slot (`nbllama.lora.slots.EVERY_SLOT`) overrides; 0 switches a slot off. `alpha`:
    `rank`.
    """
    missing = without_tensor(model.shapes)
    wanted = dict.fromkeys((slot.name for slot in EVERY_SLOT), 0)
    for slot in EVERY_SLOT:
        if slot.kind == "linear" and slot.in_block and slot.name not in missing:
            wanted[slot.name] = rank
    wanted |= ranks or {}
    scale = float(rank if alpha is None else alpha)
    return new_adapter(model.hp, wanted, alpha=scale, lora_r=rank, seed=seed, shapes=model.shapes)


def load_adapter(path: str | os.PathLike[str], model: Model) -> Adapter:
    """Read an adapter of any format. Raises `CheckpointError` if it is damaged or does not fit."""
    return adapter_file.load_adapter(path, model.hp, model.shapes)


def save_adapter(path: str | os.PathLike[str], adapter: Adapter, model: Model) -> list[str]:
    """Write an adapter in the format of its name (`.gguf` for llama.cpp, `.bin`, `FOLDER/`).

    Returns lines about what the format's readers will not do as it was trained.
    """
    return adapter_file.save_adapter(path, adapter, model.hp)
