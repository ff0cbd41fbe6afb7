"""Shapes of the arrays that blocks without attention save, share, and carry between tokens.

They include the arrays for the gates of the attention output (`Hparams.attn_gate`).
"""

from __future__ import annotations

from nbllama.arch import DeltaNet, Hparams

Shapes = dict[str, tuple[int, ...]]


def _gate(hp: Hparams, n: int) -> tuple[int, ...]:
    return n, hp.n_head, 2, hp.head_dim


def mixer_shapes(hp: Hparams, n: int) -> Shapes:
    """Return the shapes of the arrays in `BlockSet.mixed` for `n` tokens."""
    shapes: Shapes = {}
    if "conv" in hp.mixers:
        shapes["bcx"] = (n, 3 * hp.n_embd)
    if of := hp.delta:
        shapes |= {"qkv": (n, of.n_qkv), "z": (n, of.n_values), "o": _values(of, n)}
        shapes |= dict.fromkeys(("alpha", "beta", "rstd"), (n, of.heads))
    if hp.attn_gate:
        shapes["q_gate"] = _gate(hp, n)
    return shapes


def _values(of: DeltaNet, n: int) -> tuple[int, ...]:
    return n, of.heads, of.size


def _keys(of: DeltaNet, n: int) -> tuple[int, ...]:
    return n, of.key_heads, of.size


def mixer_forward_shapes(hp: Hparams, n: int) -> Shapes:
    """Return the shapes of the arrays that these blocks share in the forward pass."""
    shapes: Shapes = {}
    if "conv" in hp.mixers:
        shapes["mixed"] = (n, hp.n_embd)
    if of := hp.delta:
        names = ("delta_q", "delta_k", "delta_q_normed", "delta_k_normed")
        shapes |= dict.fromkeys(names, _keys(of, n)) | {"delta_v": _values(of, n)}
        shapes |= dict.fromkeys(("delta_rstd_q", "delta_rstd_k"), (n, of.key_heads))
        shapes |= dict.fromkeys(("delta_g", "delta_beta"), (n, of.heads))
        shapes |= dict.fromkeys(("delta_out", "delta_normed"), (n, of.n_values))
    if hp.attn_gate:
        shapes["att_gated"] = (n, hp.n_head, hp.head_dim)
    return shapes


def mixer_backward_shapes(hp: Hparams, n: int) -> Shapes:
    """Return the shapes of the arrays that these blocks share in the backward pass."""
    shapes: Shapes = {}
    if "conv" in hp.mixers:
        shapes |= {"dmixed": (n, hp.n_embd), "dbcx": (n, 3 * hp.n_embd)}
    if of := hp.delta:
        shapes |= dict.fromkeys(("delta_dq", "delta_dk"), _keys(of, n))
        shapes |= dict.fromkeys(("delta_dv", "delta_do"), _values(of, n))
        shapes |= dict.fromkeys(("delta_dout", "delta_dz"), (n, of.n_values))
        names = ("delta_dg", "delta_dbeta", "delta_dalpha", "delta_db")
        shapes |= dict.fromkeys(names, (n, of.heads)) | {"delta_dqkv": (n, of.n_qkv)}
    if hp.attn_gate:
        shapes["dq_gate"] = _gate(hp, n)
    return shapes


def mixer_width(hp: Hparams) -> int:
    """Return the largest input or output size of the mixers' linear layers, in floats per token.

    The layers include the projection to queries and gates (`Hparams.attn_gate`). Returns 0 if the
    model has neither mixers nor these gates.
    """
    widths = [3 * hp.n_embd if "conv" in hp.mixers else 0]
    if of := hp.delta:
        widths += [of.n_qkv, of.n_values]
    if hp.attn_gate:
        widths.append(2 * hp.n_head * hp.head_dim)
    return max(widths)


def state_shapes(hp: Hparams, layer: int) -> Shapes:
    """Return the shapes of a sequence's states in a block, by name.

    The result is empty for an attention block.
    """
    kind, of = hp.mixer_at(layer), hp.delta
    if kind == "conv":
        return {"conv": (hp.conv_taps - 1, hp.n_embd)}
    if kind == "delta" and of is not None:
        return {"conv": (of.taps - 1, of.n_qkv), "delta": (of.heads, of.size, of.size)}
    return {}
