"""Compute the private memory of a session before the session is created.

Weights are not included. They are in the memory-mapped file, whose pages the system can drop and
read again, so a model can be larger than memory.
"""

from __future__ import annotations

from typing import NamedTuple

from nbllama.generation.cache import cache_floats
from nbllama.generation.states import state_floats
from nbllama.lora.pairs import Adapter
from nbllama.model.activations import forward_bytes
from nbllama.model.passes import layout
from nbllama.model.weights import Weights
from nbllama.ops.attention.attention import forward_floats
from nbllama.ops.linear.matmul import scratch_bytes


class SessionMemory(NamedTuple):
    """The memory of a session, in bytes.

    `cache` is for keys, values and states. `activations` is for the activations of prompt tokens
    that are read in one step. `scratch` is for the tiles and the packed keys and values of all
    threads. `rest` is for the logits, the RoPE angles, and the scores of a single token.
    """

    cache: int
    activations: int
    scratch: int
    rest: int

    @property
    def arena(self) -> int:
        """All memory except the cache."""
        return self.activations + self.scratch + self.rest

    @property
    def private(self) -> int:
        """The part of the session's memory that the system cannot drop."""
        return self.cache + self.arena


def session_memory(
    model: Weights, adapter: Adapter | None, n_ctx: int, *, step: int, threads: int
) -> SessionMemory:
    """Compute the memory of a `generation.Session` with these arguments.

    `threads` is the number of threads that the session uses.
    """
    hp, step = model.hp, min(step, n_ctx)
    scratch = [
        forward_floats(n_ctx, n_ctx, 1, n_kv=of.n_head_kv, d=of.head_dim) for of in hp.each_size
    ]
    own, common = (max(floats) for floats in zip(*scratch, strict=True))
    layers = hp.attention_layers
    ropes = {hp.rope_at(layer) for layer in layers} - {None}
    rest = 2 * hp.n_vocab + len(ropes) * max(n_ctx, 512) * hp.n_rot + n_ctx * hp.n_head
    return SessionMemory(
        cache=4 * (2 * n_ctx * cache_floats(hp) + 2 * state_floats(hp)),
        activations=forward_bytes(layout(model, adapter, step)),
        scratch=4 * (threads * own + common) + threads * scratch_bytes(),
        rest=4 * rest,
    )
