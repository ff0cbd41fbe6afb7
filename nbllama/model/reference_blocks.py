"""The parts of the reference model for blocks of different sizes, in plain float64 numpy.

They handle keys and values that several blocks use, the norm of the values, and per-block
embeddings (see `nbllama.model.varied` and `nbllama.model.per_layer`).
"""

from __future__ import annotations

import numpy as np

from nbllama.model.per_layer import MODEL_PROJ, TABLE
from nbllama.model.reference_mixers import Mixers
from nbllama.ops.activation import gated_grad_ref, gated_ref
from nbllama.ops.rms_norm import rms_norm_grad_ref, rms_norm_ref

_NORM = "per_layer_proj_norm"


class Blocks(Mixers):
    """The operations and mixers, with additional methods for blocks of different sizes."""

    # Keys and values

    def keys(self, h: np.ndarray, i: int) -> np.ndarray:
        """Return the projected keys `[N, G, D]` of block `i`."""
        return self.linear(h, i, "k").reshape(len(h), -1, self.hp.sizes_at(i).head_dim)

    def has_values(self, i: int) -> bool:
        """Return whether block `i` projects its values instead of using its keys as values."""
        return f"blk.{i}.{self.model.linears['v'].tensor}.weight" in self.tensors

    def values(self, h: np.ndarray, k: np.ndarray, i: int) -> np.ndarray:
        """Return the values `[N, G, D]`; `k` contains the projected keys."""
        v = k
        if self.has_values(i):
            v = self.linear(h, i, "v").reshape(k.shape)
        if not self.hp.values_normed:
            return v
        self.kept[f"raw values-{i}"] = v
        one = np.ones(v.shape[-1], v.dtype)
        return rms_norm_ref(v.reshape(-1, v.shape[-1]), one, self.hp.rms_eps).reshape(v.shape)

    def values_grad(self, dv: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the gradients of `values` with respect to h and with respect to the keys.

        The second gradient is None if the block projects its values.
        """
        if self.hp.values_normed:
            raw = self.kept[f"raw values-{i}"]
            rows, one = raw.reshape(-1, raw.shape[-1]), np.ones(raw.shape[-1], raw.dtype)
            dx, _ = rms_norm_grad_ref(dv.reshape(rows.shape), rows, one, self.hp.rms_eps)
            dv = dx.reshape(raw.shape)
        h = self.kept[f"attn_norm-{i}"]
        if not self.has_values(i):
            return np.zeros_like(h), dv
        return self.linear_grad(dv.reshape(len(h), -1), h, i, "v"), None

    def lend(self, dk: np.ndarray, dv: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradients of the keys and values that block `i` uses.

        They are summed over block `i` and all later blocks that use the same keys and values.
        """
        of = self.hp.sizes_at(i).kv_from
        before = self.lent.get(of, (0, 0))
        total = self.lent[of] = dk + before[0], dv + before[1]
        return total

    # Per-block embeddings

    def embed_rows(self, x: np.ndarray) -> None:
        """Compute and store the rows `[N, P]` of all blocks, given the embeddings x."""
        if not self.hp.n_per_layer:
            return
        p = x @ self.model_proj().T / np.sqrt(self.hp.n_embd)
        table = self.tensors[f"{TABLE}.weight"][self.batch.tokens]
        for i, own in enumerate(self.own_rows()):
            self.kept[f"per_layer-{i}"] = p[:, own]
            e = self.norm(p[:, own], _NORM) + np.sqrt(self.hp.n_per_layer) * table[:, own]
            self.kept[f"per_layer_row-{i}"] = e / np.sqrt(2)

    def own_rows(self) -> list[slice]:
        """Return, for each block, the slice of the table's columns that belongs to the block."""
        size, rows = self.hp.n_per_layer, [self.hp.sizes_at(i).row for i in range(self.hp.n_layer)]
        return [slice(row * size, (row + 1) * size) for row in rows]

    def model_proj(self) -> np.ndarray:
        """Return the matrix M `[L P, C]`."""
        return self.tensors[f"{MODEL_PROJ}.weight"]

    def embed_rows_grad(self) -> np.ndarray | float:
        """Return the gradient that flows through the rows of all blocks to the embeddings."""
        if not self.hp.n_per_layer:
            return 0.0
        dx: np.ndarray | float = 0.0
        for i, own in enumerate(self.own_rows()):
            dp = self.norm_grad(self.drows[i] / np.sqrt(2), self.kept[f"per_layer-{i}"], _NORM)
            dx = dx + dp @ self.model_proj()[own] / np.sqrt(self.hp.n_embd)
        return dx

    def per_layer(self, x: np.ndarray, i: int) -> np.ndarray:
        """Compute the block's output from the stream after the feed-forward layer."""
        if self.hp.n_per_layer:
            x = self.keep(f"pe_in-{i}", x)
            gate = self.keep(f"per_layer_gate-{i}", self.linear(x, i, "inp_gate"))
            y = gated_ref(gate, self.kept[f"per_layer_row-{i}"], True)
            y = self.keep(f"per_layer_act-{i}", y)
            y = self.keep(f"per_layer_out-{i}", self.linear(y, i, "proj"))
            x = x + self.norm(y, f"blk.{i}.post_norm")
        return x * self.out_scale(i)

    def per_layer_grad(self, dx: np.ndarray, i: int) -> np.ndarray:
        """Return the gradient with respect to the stream after feed-forward."""
        dx = dx * self.out_scale(i)
        if not self.hp.n_per_layer:
            return dx
        kept = self.kept
        dy = self.norm_grad(dx, kept[f"per_layer_out-{i}"], f"blk.{i}.post_norm")
        dact = self.linear_grad(dy, kept[f"per_layer_act-{i}"], i, "proj")
        gate, row = kept[f"per_layer_gate-{i}"], kept[f"per_layer_row-{i}"]
        dgate, self.drows[i] = gated_grad_ref(dact, gate, row, True)
        return np.asarray(dx + self.linear_grad(dgate, kept[f"pe_in-{i}"], i, "inp_gate"))

    def out_scale(self, i: int) -> float:
        """Return the factor for a block's output, or 1 if there is none."""
        scale = self.tensors.get(f"blk.{i}.layer_output_scale.weight")
        return 1.0 if scale is None else float(scale[0])
