"""Memory of one training step: what the forward pass keeps for the backward pass, allocated once
as one piece.

Kept for a block, beside its input x (`C` floats a token): q, k, v after RoPE, the attention output
and its lse, the residual stream between attention and feed-forward, gate and up, and the small LoRA
products h; where a model has more norms, what they were given. Everything else is computed again
from these, element by element.

Without gradient checkpointing every block has its own set. With it the blocks share one, only the
blocks' inputs are kept, and the backward pass runs each block's forward pass again. In between,
`kept` of the blocks have sets of their own: each saves its second forward pass. The last block
needs none, as its backward pass follows its forward pass. Whichever way, the gradient has the same
bits.

Where nothing is trained (`ForwardActivations`), no block's input outlives it: the stream has two
places, which take turns, and there is one set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nbllama.arch import Hparams
from nbllama.ops.linear.linear import hidden_floats
from nbllama.ops.linear.panels import panel_floats

# Linear layers of a block: slot, GGUF name.
LINEARS = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


class Linear(NamedTuple):
    """Where the matrix of a slot lies: a tensor (without `blk.N.` and `.weight`), or some of its
    rows.
    """

    tensor: str
    rows: slice = slice(None)


def linears(hp: Hparams) -> dict[str, Linear]:
    """`LINEARS` of a model, whose file may have several of them in one tensor."""
    found = {slot: Linear(tensor) for slot, tensor in LINEARS.items()}
    if hp.fused_qkv:
        n_q, n_kv = hp.n_head * hp.head_dim, hp.n_head_kv * hp.head_dim
        for slot, first, n in (("q", 0, n_q), ("k", n_q, n_kv), ("v", n_q + n_kv, n_kv)):
            found[slot] = Linear("attn_qkv", slice(first, first + n))
    if hp.fused_gate_up:
        found["gate"] = Linear("ffn_up", slice(0, hp.n_ff))
        found["up"] = Linear("ffn_up", slice(hp.n_ff, 2 * hp.n_ff))
    return found


@dataclass
class BlockSet:
    """What one block's forward pass leaves behind; shapes in `block_shapes`."""

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
    norms: dict[str, np.ndarray]  # input and rstd of the norms that only some models have
    hidden: dict[str, np.ndarray]  # memory of h by slot
    hp: dict[str, np.ndarray]  # the packed h that the forward pass made there


def block_shapes(hp: Hparams, n: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a `BlockSet`'s arrays for `n` tokens."""
    h, g, d = hp.n_head, hp.n_head_kv, hp.head_dim
    return {
        "q": (n, h, d),
        "k": (n, g, d),
        "v": (n, g, d),
        "att": (n, h, d),
        "lse": (n, h),
        "x_mid": (n, hp.n_embd),
        "gate": (n, hp.n_ff),
        "up": (n, hp.n_ff),
        "rstd_att": (n,),
        "rstd_ffn": (n,),
    }


def norm_shapes(hp: Hparams, n: int) -> dict[str, tuple[int, ...]]:
    """Shapes of `BlockSet.norms`: of q and k, and after attention and feed-forward."""
    h, g, d = hp.n_head, hp.n_head_kv, hp.head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    if hp.has_qk_norm:
        shapes |= {"q": (n, h, d), "k": (n, g, d), "rstd_q": (n, h), "rstd_k": (n, g)}
    if hp.has_post_norms:
        shapes |= {"o": (n, hp.n_embd), "down": (n, hp.n_embd), "rstd_o": (n,), "rstd_down": (n,)}
    return shapes


def _widest(hp: Hparams) -> int:
    """Floats a token of the widest input of a linear layer."""
    return max(hp.n_embd, hp.n_ff, hp.n_head * hp.head_dim)


def forward_shapes(hp: Hparams, n: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that all blocks share in the forward pass."""
    plain = hp.residual_scale == 1 and not hp.has_post_norms
    branch = {} if plain else {"branch": (n, hp.n_embd)}
    return branch | {
        "norm": (n, hp.n_embd),
        "act": (n, hp.n_ff),
        "panels": (panel_floats(n, _widest(hp)),),
    }


def shared_shapes(
    hp: Hparams, n: int, n_trained: int, top_rank: int, dropout: bool = False
) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that all blocks and the loss share."""
    h, g, d = hp.n_head, hp.n_head_kv, hp.head_dim
    widest = _widest(hp)
    masked = {"dropped": (n * widest,), "dropped_panels": (panel_floats(n, widest),)}
    return forward_shapes(hp, n) | {
        "grad_panels": (panel_floats(n, widest),),
        "grad_hidden": (hidden_floats(n, top_rank),),
        "dx": (n, hp.n_embd),
        "dnorm": (n, hp.n_embd),
        "dact": (n, hp.n_ff),
        "datt": (n, h, d),
        "dq": (n, h, d),
        "dk": (n, g, d),
        "dv": (n, g, d),
        "top_x": (n_trained, hp.n_embd),
        "top_norm": (n_trained, hp.n_embd),
        "top_dnorm": (n_trained, hp.n_embd),
        "top_rstd": (n_trained,),
        **(masked if dropout else {}),
    }


def input_shapes(hp: Hparams, n: int, count: int) -> dict[str, tuple[int, ...]]:
    """Shapes of `count` places for the stream between blocks."""
    return {f"x{i}": (n, hp.n_embd) for i in range(count)}


ALIGN = 16  # floats: every array begins at a cache line
_PLACES = 2  # for the stream where nothing is trained: a block reads one and writes the other


def _floats(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(-(-math.prod(s) // ALIGN) * ALIGN for s in shapes.values())


def hidden_shapes(ranks: Mapping[str, int], n: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a block's LoRA products h, by slot."""
    return {slot: (hidden_floats(n, r),) for slot, r in ranks.items() if r}


def set_bytes(hp: Hparams, ranks: Mapping[str, int], n: int) -> int:
    """Bytes of one block's own set."""
    shapes = (block_shapes(hp, n), norm_shapes(hp, n), hidden_shapes(ranks, n))
    return 4 * sum(map(_floats, shapes))


def activation_bytes(
    hp: Hparams,
    ranks: Mapping[str, int],
    n: int,
    n_trained: int,
    top_rank: int,
    checkpointing: bool,
    kept: int = 0,
    dropout: bool = False,
) -> int:
    """Bytes that `Activations` will allocate for micro-batches of at most `n` tokens.

    `ranks`: LoRA rank by slot of `LINEARS`; `top_rank`: the largest of them. `kept`: blocks that
    have their own set though `checkpointing` is on.
    """
    sets = 1 + kept if checkpointing else hp.n_layer
    shapes = input_shapes(hp, n, hp.n_layer + 1)
    shapes |= shared_shapes(hp, n, n_trained, top_rank, dropout)
    return 4 * (_floats(shapes) + ALIGN) + sets * set_bytes(hp, ranks, n)


def forward_bytes(hp: Hparams, ranks: Mapping[str, int], n: int) -> int:
    """Bytes that `ForwardActivations` will allocate; arguments as for `activation_bytes`."""
    shapes = input_shapes(hp, n, _PLACES) | forward_shapes(hp, n)
    return 4 * (_floats(shapes) + ALIGN) + set_bytes(hp, ranks, n)


class Arena:
    """One piece of memory from which arrays are cut, one after the other."""

    def __init__(self, nbytes: int) -> None:
        self.memory = np.empty(nbytes // 4, np.float32)
        self._used = -(self.memory.ctypes.data // 4) % ALIGN

    def arrays(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """New float32 arrays by name; what is in them is undefined."""
        made = {}
        for name, shape in shapes.items():
            end = self._used + math.prod(shape)
            made[name] = self.memory[self._used : end].reshape(shape)
            self._used += _floats({name: shape})
        return made


class Activations:
    """All arrays of a step, for at most `n` tokens; `view(m)` gives the same memory for `m <=
    n` tokens.
    """

    def __init__(
        self,
        hp: Hparams,
        ranks: Mapping[str, int],
        n: int,
        n_trained: int,
        top_rank: int,
        checkpointing: bool,
        kept: int = 0,
        dropout: bool = False,
    ) -> None:
        """Arguments as for `activation_bytes`."""
        if not 0 <= kept < hp.n_layer:
            raise ValueError(f"kept is {kept}, with {hp.n_layer} blocks")
        self.kept = kept if checkpointing else hp.n_layer - 1
        nbytes = activation_bytes(hp, ranks, n, n_trained, top_rank, checkpointing, kept, dropout)
        shared = shared_shapes(hp, n, n_trained, top_rank, dropout)
        self._allocate(hp, ranks, n, nbytes, input_shapes(hp, n, hp.n_layer + 1), shared)

    def _allocate(
        self,
        hp: Hparams,
        ranks: Mapping[str, int],
        n: int,
        nbytes: int,
        inputs: Mapping[str, tuple[int, ...]],
        shared: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.most_tokens = n
        self._top = hp.n_layer - 1
        self._shapes = block_shapes(hp, n)
        self._arena = Arena(nbytes)
        self._inputs = list(self._arena.arrays(inputs).values())
        self._shared = self._arena.arrays(shared)
        self._sets: list[tuple[dict[str, np.ndarray], ...]] = []
        for _ in range(1 + self.kept):
            groups = (self._shapes, norm_shapes(hp, n), hidden_shapes(ranks, n))
            self._sets.append((*map(self._arena.arrays, groups), {}))

    @property
    def nbytes(self) -> int:
        """Bytes allocated, for comparison with `activation_bytes` or `forward_bytes`."""
        return int(self._arena.memory.nbytes)

    def recomputes(self, layer: int) -> bool:
        """Whether block `layer` must run forwards again before its backward pass."""
        return layer < self._top - self.kept

    def x(self, layer: int, n: int) -> np.ndarray:
        """Input of block `layer` (`n_layer`: the last block's output), `[n, C]`; where nothing is
        trained, that of the block two below is overwritten.
        """
        return self._inputs[layer % len(self._inputs)][:n]

    def shared(self, name: str, n: int) -> np.ndarray:
        """A shared array cut to `n` rows (memory pools come whole)."""
        array = self._shared[name]
        return array if array.ndim == 1 and name != "top_rstd" else array[:n]

    def block(self, layer: int, n: int) -> BlockSet:
        """The set of block `layer`, cut to `n` rows."""
        own = 1 + layer - (self._top - self.kept)  # the last block and all below share set 0
        arrays, norms, hidden, hp = self._sets[own if own > 0 and layer < self._top else 0]
        cut = ({k: a[:n] for k, a in group.items()} for group in (arrays, norms))
        return BlockSet(**next(cut), norms=next(cut), hidden=hidden, hp=hp)


class ForwardActivations(Activations):
    """The arrays of a forward pass that no backward pass follows, for at most `n` tokens."""

    def __init__(self, hp: Hparams, ranks: Mapping[str, int], n: int) -> None:
        """Arguments as for `activation_bytes`."""
        self.kept = 0
        inputs = input_shapes(hp, n, _PLACES)
        self._allocate(hp, ranks, n, forward_bytes(hp, ranks, n), inputs, forward_shapes(hp, n))
