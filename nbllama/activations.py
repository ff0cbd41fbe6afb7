"""Memory of one training step: what the forward pass keeps for the backward pass, allocated once.

Kept for a block, beside its input x (`C` floats a token): q, k, v after RoPE, the attention output
and its lse, the residual stream between attention and feed-forward, gate and up, and the small LoRA
products h. Everything else is computed again from these, element by element.

Without gradient checkpointing every block has its own set; with it the blocks share one, only the
blocks' inputs are kept, and the backward pass runs each block's forward pass again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nbllama.arch import Hparams
from nbllama.ops.linear import hidden_floats
from nbllama.ops.panels import panel_floats

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


def shared_shapes(hp: Hparams, n: int, n_trained: int, top_rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that all blocks and the loss share."""
    h, g, d = hp.n_head, hp.n_head_kv, hp.head_dim
    widest = max(hp.n_embd, hp.n_ff, h * d)
    return {
        "norm": (n, hp.n_embd),
        "act": (n, hp.n_ff),
        "panels": (panel_floats(n, widest),),
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
    }


def _floats(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(int(np.prod(s)) for s in shapes.values())


def _hidden_floats(ranks: Mapping[str, int], n: int) -> int:
    return sum(hidden_floats(n, r) for r in ranks.values() if r)


def activation_bytes(
    hp: Hparams,
    ranks: Mapping[str, int],
    n: int,
    n_trained: int,
    top_rank: int,
    checkpointing: bool,
) -> int:
    """Bytes that `Activations` will allocate for micro-batches of at most `n` tokens.

    `ranks`: LoRA rank by slot of `LINEARS`; `top_rank`: the largest of them.
    """
    sets = 1 if checkpointing else hp.n_layer
    kept = sets * (_floats(block_shapes(hp, n)) + _hidden_floats(ranks, n))
    inputs = (hp.n_layer + 1) * n * hp.n_embd
    return 4 * (kept + inputs + _floats(shared_shapes(hp, n, n_trained, top_rank)))


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
    ) -> None:
        self.checkpointing = checkpointing
        self.most_tokens = n
        self._shapes = block_shapes(hp, n)
        self._inputs = np.empty((hp.n_layer + 1, n * hp.n_embd), np.float32)
        self._n_embd = hp.n_embd
        shared = shared_shapes(hp, n, n_trained, top_rank)
        self._shared = {k: np.empty(s, np.float32) for k, s in shared.items()}
        self._sets: list[tuple[dict[str, np.ndarray], ...]] = []
        for _ in range(1 if checkpointing else hp.n_layer):
            arrays = {k: np.empty(s, np.float32) for k, s in self._shapes.items()}
            hidden = {k: np.empty(hidden_floats(n, r), np.float32) for k, r in ranks.items() if r}
            self._sets.append((arrays, hidden, {}))

    @property
    def nbytes(self) -> int:
        """Bytes allocated, for comparison with `activation_bytes`."""
        total = self._inputs.nbytes + sum(a.nbytes for a in self._shared.values())
        for arrays, hidden, _ in self._sets:
            total += sum(a.nbytes for a in arrays.values())
            total += sum(a.nbytes for a in hidden.values())
        return total

    def x(self, layer: int, n: int) -> np.ndarray:
        """Input of block `layer` (`n_layer`: the last block's output), `[n, C]`."""
        return self._inputs[layer, : n * self._n_embd].reshape(n, self._n_embd)

    def shared(self, name: str, n: int) -> np.ndarray:
        """A shared array cut to `n` rows (memory pools come whole)."""
        array = self._shared[name]
        return array if array.ndim == 1 and name != "top_rstd" else array[:n]

    def block(self, layer: int, n: int) -> BlockSet:
        """The set of block `layer`, cut to `n` rows."""
        arrays, hidden, hp = self._sets[0 if self.checkpointing else layer]
        return BlockSet(**{k: a[:n] for k, a in arrays.items()}, hidden=hidden, hp=hp)
