"""Per-block embeddings (Gemma 3n and 4), and how a block uses them.

For each of the L blocks, a token has a row e_i of P numbers. The row is computed from a separate
table and from the token's usual embedding x (after scaling):

    e_i = (norm(p_i) + sqrt(P) T_i[token]) / sqrt(2)        p_i = x M_iᵀ / sqrt(C)

After feed-forward, a block adds the following term to its stream x:

    norm(proj(gelu(inp_gate(x)) * e_i))

If the file contains a factor for the block, the sum is multiplied by it. `inp_gate` and `proj` can
have LoRA pairs. The table T and the matrix M cannot, because llama.cpp would not apply their pairs.

The rows are stored in one shared array, block by block. The backward pass of a block overwrites its
rows with their gradient, which is used only for the token embedding's pair (`embed_grad`). The
operation gelu(g) * e and its gradient are in `nbllama.ops.activation`.

In llama.cpp, see `llama_model_gemma4::graph::build_inp_per_layer` and `project_per_layer_inputs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from nbllama.arch import Hparams
from nbllama.ops.activation import gated, gated_grad
from nbllama.ops.embed import embed
from nbllama.ops.linear.linear import Input, linear, linear_grad
from nbllama.ops.linear.matmul import Weight
from nbllama.ops.linear.panels import NO_PANELS

if TYPE_CHECKING:
    from nbllama.data.batch import Batch
    from nbllama.model.activations import Activations
    from nbllama.model.bound import Bound
    from nbllama.model.parts import BlockParts
    from nbllama.model.weights import Weights

TABLE, MODEL_PROJ = "per_layer_token_embd", "per_layer_model_proj"
NORM, POST_NORM = "per_layer_proj_norm.weight", "post_norm.weight"
OUT_SCALE = "layer_output_scale.weight"
_AT_ONCE = 64  # number of tokens whose rows are decoded at a time
_HALF = np.float32(1 / np.sqrt(np.float32(2)))


def _rows(acts: Activations, hp: Hparams, n: int) -> np.ndarray:
    """Return the rows of all blocks, `[L, n, P]`."""
    size = n * hp.n_layer * hp.n_per_layer
    return acts.pool("per_layer").reshape(-1)[:size].reshape(hp.n_layer, n, hp.n_per_layer)


def rows_of_token(acts: Activations, hp: Hparams) -> np.ndarray | None:
    """Return the rows `[L, P]` of a single token, or None if there are no per-block embeddings."""
    return _rows(acts, hp, 1)[:, 0] if hp.n_per_layer else None


def _projections(model: Weights) -> Iterator[Weight]:
    """Yield the projection M_i `[P, C]` for each block."""
    hp, w = model.hp, model.matrix(MODEL_PROJ)
    lines = w.raw.reshape(w.shape[0] // hp.n_per_layer, -1)
    for i in range(hp.n_layer):
        row = hp.sizes_at(i).row
        yield Weight(f"{w.name}[{row}]", w.type_id, lines[row], (hp.n_per_layer, hp.n_embd))


def _from_embedding(model: Weights) -> np.float32:
    return np.float32(np.float32(1) / np.sqrt(np.float32(model.hp.n_embd)))


def embed_rows(model: Weights, bound: Bound, acts: Activations, batch: Batch) -> None:
    """Compute the rows of all blocks from the tokens and their embeddings in acts.x(0)."""
    hp, n = model.hp, batch.n_tokens
    x, rows = Input(acts.x(0, n), acts.pool("panels")), _rows(acts, hp, n)
    raw, rstd = acts.shared("per_layer_raw", n), acts.shared("per_layer_rstd", n)
    for w, e in zip(_projections(model), rows, strict=True):
        linear(w, None, x, raw, hidden=None)
        raw *= _from_embedding(model)
        bound.normed(NORM, raw, e, rstd)
    table, factor = model.matrix(TABLE), np.sqrt(np.float32(hp.n_per_layer))
    chosen = np.empty((min(n, _AT_ONCE), table.shape[1]), np.float32)
    for first in range(0, n, _AT_ONCE):
        tokens = batch.tokens[first : first + _AT_ONCE]
        some = chosen[: len(tokens)]
        embed(table, tokens, some)
        some *= factor
        per_block = some.reshape(len(tokens), -1, hp.n_per_layer)
        for i in range(hp.n_layer):
            rows[i, first : first + len(tokens)] += per_block[:, hp.sizes_at(i).row]
    rows *= _HALF


def embed_grad(model: Weights, bound: Bound, acts: Activations, batch: Batch) -> None:
    """Add to acts.dx the gradient that flows through the rows of all blocks."""
    hp, n = model.hp, batch.n_tokens
    x, drows, dx = acts.x(0, n), _rows(acts, hp, n), acts.shared("dx", n)
    packed = Input(x, acts.pool("panels"))
    raw, rstd = acts.shared("per_layer_raw", n), acts.shared("per_layer_rstd", n)
    normed = acts.shared("per_layer_act", n)
    buffers = (acts.pool("grad_panels"), acts.pool("grad_hidden"))
    for w, de in zip(_projections(model), drows, strict=True):
        linear(w, None, packed, raw, hidden=None)
        raw *= _from_embedding(model)
        bound.normed(NORM, raw, normed, rstd)
        de *= _HALF
        bound.normed_grad(NORM, de, raw, rstd, dx=de)
        de *= _from_embedding(model)
        linear_grad(w, None, de, x, hp=NO_PANELS, dx=dx, buffers=buffers, add=True, masked=None)


def _own_rows(block: BlockParts) -> np.ndarray:
    return np.asarray(_rows(block.acts, block.hp, block.n)[block.layer])


def _scale(block: BlockParts) -> np.float32 | None:
    of = block.model.vectors.get(block.name(OUT_SCALE))
    return None if of is None else np.float32(of[0])


def forward(block: BlockParts, x: np.ndarray) -> None:
    """Replace x `[N, C]`, the stream after feed-forward, with the block's output."""
    kept = block.kept.mixed
    if block.hp.n_per_layer:
        kept["per_layer_x"][:] = x
        block.see("pe_in", x)
        block.project(
            "inp_gate", block.input(kept["per_layer_x"], "inp_gate"), kept["per_layer_gate"]
        )
        block.see("per_layer_gate", kept["per_layer_gate"])
        act, y = block.shared("per_layer_act"), block.shared("branch")
        gated(kept["per_layer_gate"], _own_rows(block), act, gelu=True)
        block.see("per_layer_act", act)
        block.project("proj", block.input(act, "proj"), kept["per_layer_out"])
        block.see("per_layer_out", kept["per_layer_out"])
        norm = block.name(POST_NORM)
        block.bound.normed(norm, kept["per_layer_out"], y, kept["rstd_per_layer"])
        x += y
    if (scale := _scale(block)) is not None:
        x *= scale


def backward(block: BlockParts, dx: np.ndarray) -> None:
    """Replace dx, the gradient of the block's output, with the gradient of `forward`'s input."""
    if (scale := _scale(block)) is not None:
        dx *= scale
    if not block.hp.n_per_layer:
        return
    kept, rows = block.kept.mixed, _own_rows(block)
    act, dact = block.shared("per_layer_act"), block.shared("per_layer_dact")
    dy = block.shared("branch")
    norm = block.name(POST_NORM)
    block.bound.normed_grad(norm, dx, kept["per_layer_out"], kept["rstd_per_layer"], dx=dy)
    gated(kept["per_layer_gate"], rows, act, gelu=True)
    block.project_grad("proj", dy, act, dact)
    block.see_grad("per_layer_act", dact)
    gated_grad(dact, kept["per_layer_gate"], rows, gelu=True)
    block.see_grad("per_layer_gate", kept["per_layer_gate"])
    block.project_grad("inp_gate", kept["per_layer_gate"], kept["per_layer_x"], dx, add=True)
    block.see_grad("pe_in", dx)
