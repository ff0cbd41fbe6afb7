"""Memory for one training step: the activations that the backward pass reads.

The memory is allocated once, as one array. For each block, it contains the input x (`C` floats per
token), q, k and v after RoPE, the attention output and its log-sum-exp (lse), the residual stream
between attention and feed-forward, gate and up, the small LoRA products h, and the inputs of any
further norms. All other activations are recomputed elementwise from these arrays.

Without gradient checkpointing, every block has its own set of arrays. With checkpointing, all
blocks share one set; only the inputs of the blocks are stored, and the backward pass repeats the
forward pass of each block. As a compromise, the `kept` blocks before the last one can have their
own sets, so that their forward pass is not repeated. The last block does not need one, because its
backward pass directly follows its forward pass. The gradient is bit-identical in all cases.

If nothing is trained (`ForwardActivations`), a block's input is not read again once the block has
been computed. The stream therefore alternates between two arrays, and all blocks share one set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nbllama.arch import Hparams
from nbllama.model import per_layer_shapes as per_layer
from nbllama.model.mixer_shapes import (
    mixer_backward_shapes,
    mixer_forward_shapes,
    mixer_shapes,
    mixer_width,
)
from nbllama.model.mixture_shapes import kept_shapes, mixture_shapes
from nbllama.model.size_shapes import (
    head_shapes,
    lent_shapes,
    most_kv_heads,
    norm_shapes_of_values,
)
from nbllama.ops.linear.linear import hidden_floats
from nbllama.ops.linear.panels import panel_floats

Shapes = dict[str, tuple[int, ...]]  # the keys are the names of the arrays

ALIGN = 16  # floats; every array begins at a cache line boundary
STREAMS = 2  # arrays for the stream if nothing is trained: a block reads one and writes the other


class Layout(NamedTuple):
    """The parameters that determine the sizes of all arrays for a step."""

    hp: Hparams
    ranks: Mapping[str, int]  # LoRA rank by name in `lora.slots.LINEARS`; 0 means no pair
    tokens: int  # number of tokens in the largest micro-batch
    trained: int = 0  # largest number of positions with a target in a micro-batch
    dropout: bool = False
    expert_rank: int = 0  # rank of the experts' pairs

    @property
    def widest(self) -> int:
        """The largest size of a linear layer's input or output gradient, in floats per token."""
        hp = self.hp
        heads = map(math.prod, head_shapes(hp))
        return max(hp.n_embd, self.ff_input, *heads, mixer_width(hp), hp.n_per_layer)

    @property
    def ff_input(self) -> int:
        """The largest input size of a feed-forward layer's last matrix, in floats per token."""
        e = self.hp.experts
        if e is None:
            return self.hp.ff_width
        return max(e.n_ff, e.n_ff_shared, e.total, self.hp.n_ff if e.first else 0)


@dataclass
class BlockSet:
    """The activations that the forward pass of a block saves; `block_shapes` returns the shapes."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    att: np.ndarray
    lse: np.ndarray
    x_mid: np.ndarray
    gate: np.ndarray
    up: np.ndarray
    rstd_att: np.ndarray
    rstd_ffn: np.ndarray
    norms: dict[str, np.ndarray]  # input and rstd of the norms that occur only in some models
    mixed: dict[str, np.ndarray]  # `mixer_shapes.mixer_shapes` and `per_layer_shapes.kept_shapes`
    h_memory: dict[str, np.ndarray]  # memory for h, by linear layer
    h: dict[str, np.ndarray]  # the packed h that the forward pass wrote to `h_memory`
    mixture: dict[str, np.ndarray]  # for a mixture of experts; see `mixture_shapes.kept_shapes`


def block_shapes(hp: Hparams, n: int) -> Shapes:
    """Return the shapes of the arrays in a `BlockSet` for `n` tokens."""
    queries, keys = head_shapes(hp)
    return {
        "q": (n, *queries),
        "k": (n, *keys),
        "v": (n, *keys),
        "att": (n, *queries),
        "lse": (n, hp.n_head),
        "x_mid": (n, hp.n_embd),
        "gate": (n, hp.ff_width if hp.gated else 0),
        "up": (n, hp.ff_width),
        "rstd_att": norm_numbers(hp, n),
        "rstd_ffn": norm_numbers(hp, n),
    }


def norm_numbers(hp: Hparams, n: int) -> tuple[int, ...]:
    """Return the shape of the array that a norm saves for `n` rows.

    The array contains rstd and, for LayerNorm, the mean.
    """
    return (n,) if hp.norm == "rms" else (n, 2)


def norm_shapes(hp: Hparams, n: int) -> Shapes:
    """Return the shapes of the arrays in `BlockSet.norms`.

    These are the norms of q, k and v, and the norms after attention and feed-forward.
    """
    queries, keys = head_shapes(hp)
    shapes: Shapes = norm_shapes_of_values(hp, n)
    if hp.has_qk_norm:
        shapes |= {"q": (n, *queries), "rstd_q": (n, hp.n_head)}
        shapes |= {"k": (n, *keys), "rstd_k": (n, most_kv_heads(hp))}
    if hp.has_post_norms:
        shapes |= {"o": (n, hp.n_embd), "down": (n, hp.n_embd), "rstd_o": (n,), "rstd_down": (n,)}
    return shapes


def forward_shapes(layout: Layout) -> Shapes:
    """Return the shapes of the arrays that all blocks share in the forward pass."""
    hp, n = layout.hp, layout.tokens
    plain = hp.residual_scale == 1 and not hp.has_post_norms and hp.experts is None
    branch: Shapes = {} if plain else {"branch": (n, hp.n_embd)}
    branch |= mixer_forward_shapes(hp, n) | mixture_shapes(hp, n, layout.expert_rank)
    branch |= per_layer.forward_shapes(hp, n) | lent_shapes(hp, n, "k", "v")
    return branch | {
        "norm": (n, hp.n_embd),
        "act": (n, layout.ff_input),
        "panels": (panel_floats(n, layout.widest),),
    }


def shared_shapes(layout: Layout) -> Shapes:
    """Return the shapes of the arrays that all blocks and the loss share."""
    hp, n, trained, widest = layout.hp, layout.tokens, layout.trained, layout.widest
    top_rank = max(layout.expert_rank, *layout.ranks.values())
    queries, keys = head_shapes(hp)
    shapes = forward_shapes(layout) | {
        "grad_panels": (panel_floats(n, widest),),
        "grad_hidden": (hidden_floats(n, top_rank),),
        "dx": (n, hp.n_embd),
        "dnorm": (n, hp.n_embd),
        "dact": (n, layout.ff_input),
        "datt": (n, *queries),
        "dq": (n, *queries),
        "dk": (n, *keys),
        "dv": (n, *keys),
        "top_x": (trained, hp.n_embd),
        "top_norm": (trained, hp.n_embd),
        "top_dnorm": (trained, hp.n_embd),
        "top_rstd": norm_numbers(hp, trained),
    }
    shapes |= mixer_backward_shapes(hp, n) | per_layer.backward_shapes(hp, n)
    shapes |= lent_shapes(hp, n, "dk", "dv")
    if hp.experts is not None:
        shapes |= {"routed_dx": (n, hp.n_embd)}
    if layout.dropout:
        shapes |= {"dropped": (n * widest,), "dropped_panels": (panel_floats(n, widest),)}
    return shapes


def stream_shapes(layout: Layout, count: int) -> Shapes:
    """Return the shapes of `count` arrays for the stream between blocks."""
    return {f"x{i}": (layout.tokens, layout.hp.n_embd) for i in range(count)}


def h_shapes(layout: Layout) -> Shapes:
    """Return the shapes of a block's LoRA products h, by linear layer."""
    return {name: (hidden_floats(layout.tokens, r),) for name, r in layout.ranks.items() if r}


def _floats(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(-(-math.prod(s) // ALIGN) * ALIGN for s in shapes.values())


def set_shapes(layout: Layout) -> tuple[Shapes, ...]:
    """Return the shapes of a block's set, by group; the last group contains the LoRA products h."""
    hp, n = layout.hp, layout.tokens
    mixed = mixer_shapes(hp, n) | per_layer.kept_shapes(hp, n)
    return block_shapes(hp, n), norm_shapes(hp, n), mixed, kept_shapes(hp, n), h_shapes(layout)


def set_bytes(layout: Layout) -> int:
    """Return the size of a block's set in bytes."""
    return 4 * sum(map(_floats, set_shapes(layout)))


def activation_bytes(layout: Layout, *, checkpointing: bool, kept: int = 0) -> int:
    """Return how many bytes `Activations` will allocate.

    `kept` is the number of blocks that have their own set even with `checkpointing`.
    """
    n_layer = layout.hp.n_layer
    shapes = stream_shapes(layout, n_layer + 1) | shared_shapes(layout)
    sets = 1 + kept if checkpointing else n_layer
    return 4 * (_floats(shapes) + ALIGN) + sets * set_bytes(layout)


def forward_bytes(layout: Layout) -> int:
    """Return how many bytes `ForwardActivations` will allocate."""
    shapes = stream_shapes(layout, STREAMS) | forward_shapes(layout)
    return 4 * (_floats(shapes) + ALIGN) + set_bytes(layout)


class Arena:
    """A block of memory from which arrays are allocated consecutively."""

    def __init__(self, nbytes: int) -> None:
        self.memory = np.empty(nbytes // 4, np.float32)
        self._used = -(self.memory.ctypes.data // 4) % ALIGN

    def arrays(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Return new float32 arrays with these shapes, by name; their contents are undefined."""
        arrays = {}
        for name, shape in shapes.items():
            end = self._used + math.prod(shape)
            arrays[name] = self.memory[self._used : end].reshape(shape)
            self._used += _floats({name: shape})
        return arrays


class Activations:
    """All arrays for a step with at most `layout.tokens` tokens.

    The methods `x`, `shared`, `pool` and `block` return the arrays.
    """

    def __init__(self, layout: Layout, *, checkpointing: bool, kept: int = 0) -> None:
        """Allocate the arrays; the arguments are the same as for `activation_bytes`."""
        n_layer = layout.hp.n_layer
        if not 0 <= kept < n_layer:
            raise ValueError(f"kept is {kept}, but must be 0..{n_layer - 1}")
        self.kept = kept if checkpointing else n_layer - 1
        nbytes = activation_bytes(layout, checkpointing=checkpointing, kept=kept)
        self._allocate(layout, nbytes, stream_shapes(layout, n_layer + 1), shared_shapes(layout))

    def _allocate(self, layout: Layout, nbytes: int, stream: Shapes, shared: Shapes) -> None:
        self.most_tokens = layout.tokens
        self._top = layout.hp.n_layer - 1
        self._arena = Arena(nbytes)
        self._stream = list(self._arena.arrays(stream).values())
        self._shared = self._arena.arrays(shared)
        groups = set_shapes(layout)
        self._sets: list[tuple[dict[str, np.ndarray], ...]] = [
            (*map(self._arena.arrays, groups), {}) for _ in range(1 + self.kept)
        ]

    @property
    def nbytes(self) -> int:
        """The number of bytes allocated, as predicted by `activation_bytes` or `forward_bytes`."""
        return int(self._arena.memory.nbytes)

    def recomputes(self, layer: int) -> bool:
        """Return whether block `layer` must repeat its forward pass before its backward pass."""
        return layer < self._top - self.kept

    def x(self, layer: int, n: int) -> np.ndarray:
        """Return the input `[n, C]` of block `layer`; for `n_layer`, the last block's output.

        If nothing is trained, the array is the same as for block `layer - 2`.
        """
        return self._stream[layer % len(self._stream)][:n]

    def shared(self, name: str, n: int) -> np.ndarray:
        """Return the first `n` rows of an array in `shared_shapes`."""
        return self._shared[name][:n]

    def pool(self, name: str) -> np.ndarray:
        """Return a whole array in `shared_shapes`, such as "panels" or "dropped"."""
        return self._shared[name]

    def block(self, layer: int, n: int) -> BlockSet:
        """Return the `BlockSet` of block `layer`, with only the first `n` rows of each array."""
        index = 1 + layer - (self._top - self.kept)  # blocks without their own set use set 0
        *groups, h_memory, h = self._sets[index if index > 0 and layer < self._top else 0]
        arrays, norms, mixed, mixture = ({k: a[:n] for k, a in g.items()} for g in groups)
        return BlockSet(**arrays, norms=norms, mixed=mixed, mixture=mixture, h_memory=h_memory, h=h)


class ForwardActivations(Activations):
    """The arrays for a forward pass that is not followed by a backward pass."""

    def __init__(self, layout: Layout) -> None:
        self.kept = 0
        stream = stream_shapes(layout, STREAMS)
        self._allocate(layout, forward_bytes(layout), stream, forward_shapes(layout))
