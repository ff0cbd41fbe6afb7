"""Shapes of the arrays that mixtures of experts need beyond those of dense blocks."""

from __future__ import annotations

from nbllama.arch import Hparams
from nbllama.ops.linear.linear import hidden_floats

Shapes = dict[str, tuple[int, ...]]  # by the name of the array


def kept_shapes(hp: Hparams, n: int) -> Shapes:
    """Shapes of `BlockSet.mixture`: scores, choice and weights; of the shared expert gate and up.

    `chosen` holds int32. `shared_weight` is what the shared expert's output is multiplied by.
    """
    if hp.experts is None:
        return {}
    e = hp.experts
    shapes: Shapes = {"scores": (n, e.total), "chosen": (n, e.used), "weights": (n, e.used)}
    if e.n_ff_shared:
        shapes |= {"gate_shexp": (n, e.n_ff_shared), "up_shexp": (n, e.n_ff_shared)}
        shapes["shared_weight"] = (n,)
    return shapes


def mixture_shapes(hp: Hparams, n: int, rank: int) -> Shapes:
    """Shapes of what the mixtures share: input, output and LoRA products of one expert's tokens.

    `rank`: the largest of the experts' pairs.
    """
    if hp.experts is None:
        return {}
    h = 2 * hidden_floats(n, rank) if rank else 0
    return {"routed_x": (n, hp.n_embd), "routed_y": (n, hp.n_embd), "routed_h": (h,)}
