"""The whole model in plain float64 numpy: forward pass, loss and backward pass.

Start with `_Pass.forward` and `_Pass.backward`, in which each line is one operation. The operations
and their gradients (`nbllama.model.reference_ops`) use plain-numpy functions from `nbllama.ops`;
the modules there document the formulas and the derivatives. This module is exact but slow, and is
not used in training. The passes that use kernels (`nbllama.model.block`, `nbllama.model.passes`)
are tested against this module. Its own gradients are tested against finite differences of its loss
(tests/model/test_reference.py).

All sequences are concatenated. In shapes, N is the number of tokens, C is n_embd, H is n_head, G is
n_head_kv, D is head_dim, F is n_ff, and V is n_vocab. `dx` is the gradient of the mean loss with
respect to x.
"""

from __future__ import annotations

import numpy as np

from nbllama.data.batch import Batch
from nbllama.lora.pairs import Adapter
from nbllama.lora.slots import LINEARS
from nbllama.model.reference_blocks import Blocks
from nbllama.model.reference_experts import ReferenceMixture
from nbllama.model.reference_ops import Parameters, ReferenceTensors, Seen
from nbllama.ops.activation import gated_grad_ref, gated_ref
from nbllama.ops.cross_entropy import cross_entropy_grad_ref, cross_entropy_ref
from nbllama.ops.softcap import soft_cap_grad_ref, soft_cap_ref


class ReferenceModel(ReferenceTensors):
    """A model in plain numpy.

    The `scale` argument of its methods is alpha / lora_r.
    """

    def logits(
        self,
        batch: Batch,
        params: Parameters,
        scale: float,
        *,
        seen: Seen | None = None,
        change: Parameters | None = None,
    ) -> np.ndarray:
        """Compute the logits `[N, V]`.

        `seen` is called with the name and the value of every activation; the names are llama.cpp's
        (see `nbllama.peek.names`). `change` maps names to values that are added to activations.
        """
        return _Pass(self, batch, params, scale, seen=seen, change=change).forward()

    def loss(
        self, batch: Batch, params: Parameters, scale: float, change: Parameters | None = None
    ) -> float:
        """Return the mean loss over the trained positions of a batch.

        `change` has the same meaning as in `logits`.
        """
        z = self.logits(batch, params, scale, change=change)
        return _mean_loss(z, batch)

    def loss_and_gradients(
        self, batch: Batch, params: Parameters, scale: float
    ) -> tuple[float, dict[str, np.ndarray]]:
        """Return the mean loss and its gradients with respect to the arrays in `params`."""
        run = _Pass(self, batch, params, scale)
        loss = _mean_loss(run.forward(), batch)
        run.backward()
        return loss, run.grads


def _mean_loss(z: np.ndarray, batch: Batch) -> float:
    rows = batch.targets >= 0
    return float(cross_entropy_ref(z[rows], batch.targets[rows]).mean())


class _Pass(Blocks):
    """One forward pass, which stores all results in `kept`, and one backward pass."""

    def forward(self) -> np.ndarray:
        """Compute the logits `[N, V]`."""
        hp, keep, kept = self.hp, self.keep, self.kept
        x = keep("inp_embd", hp.embed_scale * self.embed())
        self.embed_rows(x)
        for i in range(hp.n_layer):
            # attention, which reads a normalised copy of the stream x [N, C]
            h = read = keep(f"attn_norm-{i}", self.reads(x, i, hp.attn_norm))
            y = self.attend(h, i) if hp.mixer_at(i) == "attention" else self.mixed(h, i)
            if hp.has_post_norms:
                y = keep(f"attn_post_norm-{i}", self.norm(y, f"blk.{i}.post_attention_norm"))
            x = keep(f"ffn_inp-{i}", x + hp.residual_scale * y)
            # feed-forward
            h = keep(f"ffn_norm-{i}", read if hp.side_by_side else self.reads(x, i, hp.ffn_norm))
            if experts := hp.experts_at(i):
                y = keep(f"ffn_out-{i}", ReferenceMixture(self, i, experts).forward(h))
            else:
                if hp.gated:
                    gate = keep(f"ffn_gate-{i}", self.linear(h, i, "gate"))
                up = keep(f"ffn_up-{i}", self.linear(h, i, "up"))
                act = gated_ref(gate, up, self.gelu) if hp.gated else self.ungated(up, i)
                act = keep(f"{self.act}-{i}", act)
                y = keep(f"ffn_out-{i}", self.linear(act, i, "down"))
            if hp.has_post_norms:
                y = keep(f"ffn_post_norm-{i}", self.norm(y, f"blk.{i}.post_ffw_norm"))
            x = keep(f"l_out-{i}", self.per_layer(x + hp.residual_scale * y, i))
        h = keep("result_norm", hp.logit_scale * self.norm(x, hp.output_norm))
        z = kept["raw logits"] = self.product(h, self.head)
        if hp.logit_softcap:
            z = soft_cap_ref(z, hp.logit_softcap)
        return keep("result_output", z)

    def attend(self, h: np.ndarray, i: int) -> np.ndarray:
        """Compute the attention output of block `i` for the input h `[N, C]`."""
        hp, keep, kept, n = self.hp, self.keep, self.kept, len(self.batch.tokens)
        of = hp.sizes_at(i).kv_from  # the block whose keys and values are used
        q = self.heads(keep(f"Qcur_raw-{i}", self.queries(h, i)), "q", i)
        q = kept[f"q-{i}"] = self.temper(q)
        if of == i:
            raw = keep(f"Kcur_raw-{i}", self.keys(h, i))
            keep(f"Vcur-{i}", self.values(h, raw, i))
            kept[f"k-{i}"] = self.heads(raw, "k", i)
        att = keep(f"kqv_out-{i}", self.attention(q, kept[f"k-{of}"], kept[f"Vcur-{of}"], i))
        att = self.gated_att(att, i).reshape(n, -1)
        return keep(f"attn_out-{i}", self.linear(att, i, "o"))

    def heads(self, x: np.ndarray, name: str, i: int) -> np.ndarray:
        """Normalise and rotate queries or keys x `[N, heads, D]` as the model requires."""
        node = LINEARS[name].node
        if self.hp.qk_norm_last:
            x = self.keep(f"{node}-{i}", self.rotate(x, i))
        if self.hp.has_qk_norm:
            norm = f"blk.{i}.attn_{name}_norm"
            x = self.keep(f"{node}_normed-{i}", self.norm_of_heads(x, norm))
        return x if self.hp.qk_norm_last else self.keep(f"{node}-{i}", self.rotate(x, i))

    def backward(self) -> None:
        """Add the gradients of the mean loss to `grads`.

        The steps are those of `forward` in reverse order.
        """
        hp, kept = self.hp, self.kept
        rows = self.batch.targets >= 0
        z, dz = kept["result_output"], np.zeros_like(kept["result_output"])
        dz[rows] = cross_entropy_grad_ref(1 / rows.sum(), z[rows], self.batch.targets[rows])
        if hp.logit_softcap:
            dz = soft_cap_grad_ref(dz, kept["raw logits"], hp.logit_softcap)
        dh = self.product_grad(dz, kept["result_norm"], self.head)
        dx = self.norm_grad(hp.logit_scale * dh, kept[f"l_out-{hp.n_layer - 1}"], hp.output_norm)
        for i in reversed(range(hp.n_layer)):
            dx = self.per_layer_grad(dx, i)
            # feed-forward; dx flows both to the earlier part of the stream and through the branch
            dy = hp.residual_scale * dx
            if hp.has_post_norms:
                dy = self.norm_grad(dy, kept[f"ffn_out-{i}"], f"blk.{i}.post_ffw_norm")
            if experts := hp.experts_at(i):
                dread = ReferenceMixture(self, i, experts).backward(dy, kept[f"ffn_norm-{i}"])
            else:
                dact = self.linear_grad(dy, kept[f"{self.act}-{i}"], i, "down")
                up = kept[f"ffn_up-{i}"]
                if hp.gated:
                    dgate, dup = gated_grad_ref(dact, kept[f"ffn_gate-{i}"], up, self.gelu)
                else:
                    dup = self.ungated_grad(dact, up, i)
                dread = self.linear_grad(dup, kept[f"ffn_norm-{i}"], i, "up")
                if hp.gated:
                    dread += self.linear_grad(dgate, kept[f"ffn_norm-{i}"], i, "gate")
            if not hp.side_by_side:
                dx = dx + self.reads_grad(dread, kept[f"ffn_inp-{i}"], i, hp.ffn_norm)
                dread = np.zeros_like(dread)
            # attention
            dy = hp.residual_scale * dx
            if hp.has_post_norms:
                dy = self.norm_grad(dy, kept[f"attn_out-{i}"], f"blk.{i}.post_attention_norm")
            if hp.mixer_at(i) == "attention":
                dh = dread + self.attend_grad(dy, i)
            else:
                dh = dread + self.mixed_grad(dy, i)
            x = kept[f"l_out-{i - 1}" if i else "inp_embd"]
            dx = dx + self.reads_grad(dh, x, i, hp.attn_norm)
        self.embed_grad(hp.embed_scale * (dx + self.embed_rows_grad()))

    def attend_grad(self, dy: np.ndarray, i: int) -> np.ndarray:
        """Return the gradient of `attend` with respect to h, given the gradient of its output."""
        hp, kept, n = self.hp, self.kept, len(self.batch.tokens)
        att = kept[f"attn_gated-{i}" if hp.attn_gate else f"kqv_out-{i}"].reshape(n, -1)
        datt, dgate = self.gated_att_grad(self.linear_grad(dy, att, i, "o"), i)
        dq, dk, dv = self.attention_grad(datt, i)
        dk, dv = self.lend(dk, dv, i)
        dq = self.with_gates(self.heads_grad(self.temper(dq), "q", i), dgate)
        dh = self.linear_grad(dq, kept[f"attn_norm-{i}"], i, "q")
        if hp.sizes_at(i).kv_from == i:
            dvalues, dkeys = self.values_grad(dv, i)
            dk = self.heads_grad(dk, "k", i)
            dk = dk if dkeys is None else dk + dkeys
            dh += self.linear_grad(dk.reshape(n, -1), kept[f"attn_norm-{i}"], i, "k") + dvalues
        return dh

    def heads_grad(self, dy: np.ndarray, name: str, i: int) -> np.ndarray:
        """Return the gradient of `heads` with respect to x, given the gradient of its result."""
        node, last = LINEARS[name].node, self.hp.qk_norm_last
        if not last:
            dy = self.rotate(dy, i, inverse=True)
        if self.hp.has_qk_norm:
            x = self.kept[f"{node}-{i}" if last else f"{node}_raw-{i}"]
            dy = self.norm_grad_of_heads(dy, x, f"blk.{i}.attn_{name}_norm")
        return self.rotate(dy, i, inverse=True) if last else dy


def parameters64(adapter: Adapter) -> dict[str, np.ndarray]:
    """Return float64 copies of an adapter's arrays. The caller may modify the copies."""
    return {name: p.astype(np.float64) for name, p in adapter.parameters().items()}
