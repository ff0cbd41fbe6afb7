"""Shapes of the arrays that only mixture-of-experts models use."""

from __future__ import annotations

from nbllama.arch import Hparams
from nbllama.ops.linear.linear import hidden_floats

Shapes = dict[str, tuple[int, ...]]  # the keys are the names of the arrays


def kept_shapes(hp: Hparams, n: int) -> Shapes:
    """Return the shapes of the arrays in `BlockSet.mixture`.

    The arrays contain the scores of the experts, the chosen experts (`chosen`, int32) and their
    weights, gate and up of the shared expert, and the factor for its output (`shared_weight`).
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
    """Return the shapes of the arrays that all blocks share.

    The arrays contain the input, output and LoRA products of one expert. `rank` is the largest rank
    of the experts' pairs.
    """
    if hp.experts is None:
        return {}
    h = 2 * hidden_floats(n, rank) if rank else 0
    return {"routed_x": (n, hp.n_embd), "routed_y": (n, hp.n_embd), "routed_h": (h,)}
