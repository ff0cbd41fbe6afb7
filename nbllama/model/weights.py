"""The tensors of a model as stored in the GGUF file, and values derived from model constants."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from nbllama.arch import ROPE_FACTORS, Hparams, Rope, expected_tensors, unused_tensors
from nbllama.gguf_io import GGUFFile
from nbllama.lora.slots import LINEARS
from nbllama.model.watching import Watcher
from nbllama.ops.attention.attention import alibi_slopes
from nbllama.ops.linear.matmul import Weight
from nbllama.ops.rope import rope, rope_tables
from nbllama.ops.ungated import NO_NUMBERS, Xielu, xielu_numbers
from nbllama.quants import as_readonly, check_finite, decode
from nbllama.text import Tokenizer, tokenizer_from_gguf
from nbllama.text.chat_template import ChatTemplate, chat_template_for

Tables = tuple[np.ndarray, np.ndarray]  # cos and sin


# The linear layers that only some blocks have; ROUTED lists tensors instead.
CONV = ("conv_in", "conv_out")
DELTA = ("qkv", "z", "alpha", "beta", "ssm_out")
PER_LAYER = ("inp_gate", "proj")
ROUTED = ("ffn_gate_exps", "ffn_down_exps", "ffn_up_exps")
DENSE, SHARED = ("gate", "down", "up"), ("gate_shexp", "down_shexp", "up_shexp")
"""The linear layers of a dense feed-forward layer, and those of a shared expert."""


class Linear(NamedTuple):
    """The tensor that contains the matrix of a linear layer.

    The name of the tensor omits `blk.N.` and `.weight`. If the tensor contains several layers,
    `rows` selects the rows of this layer.
    """

    tensor: str
    rows: slice = slice(None)


def linears(hp: Hparams) -> dict[str, Linear]:
    """Return the subset of `LINEARS` that a model has; a tensor can contain several layers."""
    layers = {name: Linear(slot.tensor) for name, slot in LINEARS.items()}
    if hp.fused_qkv:
        n_q, n_kv = hp.n_head * hp.head_dim, hp.n_head_kv * hp.head_dim
        for name, first, n in (("q", 0, n_q), ("k", n_q, n_kv), ("v", n_q + n_kv, n_kv)):
            layers[name] = Linear("attn_qkv", slice(first, first + n))
    if hp.fused_gate_up:
        layers["gate"] = Linear("ffn_up", slice(0, hp.n_ff))
        layers["up"] = Linear("ffn_up", slice(hp.n_ff, 2 * hp.n_ff))
    if not hp.gated:
        del layers["gate"]
    others = {"conv": CONV, "delta": DELTA}
    unused = {name for kind, names in others.items() if kind not in hp.mixers for name in names}
    if not hp.n_per_layer:
        unused |= {*PER_LAYER}
    if hp.experts is not None and not hp.experts.first:
        unused |= {*DENSE}
    if hp.experts is None or not hp.experts.n_ff_shared:
        unused |= {*SHARED}
    return {name: of for name, of in layers.items() if name not in unused}


class Weights:
    """The tensors of a GGUF model, its constants and its tokenizer."""

    watch: Watcher | None = None  # receives intermediate results of the passes

    def __init__(self, gguf: GGUFFile, hp: Hparams, pre: str | None = None) -> None:
        self.gguf = gguf
        self.hp = hp
        self._pre = pre
        self.matrices: dict[str, Weight] = {}
        self.experts: dict[str, tuple[Weight, ...]] = {}  # by tensor: one matrix per expert
        self.vectors: dict[str, np.ndarray] = {}
        self._known = expected_tensors(hp).keys() - unused_tensors(hp)
        for name, info in gguf.tensors.items():
            if name not in self._known:
                continue  # not part of the text model
            if len(info.shape) == 3:
                self.experts[name] = _slices(name, info.type_id, gguf.data(name), info.shape)
            elif len(info.shape) == 2 and not name.endswith(".bias"):
                self.matrices[name] = Weight(
                    name, info.type_id, as_readonly(gguf.data(name)), info.shape
                )
            else:  # a vector, or a matrix with the biases of all experts
                n = int(np.prod(info.shape))
                check_finite(info.type_id, as_readonly(gguf.data(name)), n, name, path=gguf.path)
                self.vectors[name] = self.tensor(name)
        self.output = self.matrices.get("output.weight", self.matrices["token_embd.weight"])
        self.output_bias = self.vectors.get("output.bias")
        self.slopes = alibi_slopes(hp.n_head, hp.alibi_max_bias)
        self.linears = linears(hp)
        self._ropes: dict[Rope, Tables] = {}
        self._checked: set[str] = set()
        self._parts: dict[tuple[int, str], Weight] = {}
        self._taps: dict[str, np.ndarray] = {}

    def tensor(self, name: str) -> np.ndarray:
        """Decode a base tensor to float32; its numpy shape is the reverse of ggml's `ne`."""
        info = self.gguf.tensors[name]
        count = int(np.prod(info.shape))
        return decode(info.type_id, self.gguf.data(name), count).reshape(info.shape)

    def matrix(self, name: str) -> Weight:
        """Return the matrix `name`, where `name` omits `.weight`.

        On the first call, the matrix is checked for NaN and infinities.
        """
        w = self.matrices[name + ".weight"]
        if name not in self._checked:
            check_finite(w.type_id, w.raw, w.shape[0] * w.shape[1], w.name, path=self.gguf.path)
            self._checked.add(name)
        return w

    def linears_at(self, layer: int) -> list[str]:
        """Return the names of the linear layers of block `layer`."""
        names = ((name, f"blk.{layer}.{of.tensor}.weight") for name, of in self.linears.items())
        return [name for name, tensor in names if tensor in self.matrices]

    def taps(self, name: str) -> np.ndarray:
        """Return the weights of a convolution (`[C, K]` in the file) as float32 `[K, C]`."""
        if name not in self._taps:
            self.matrix(name.removesuffix(".weight"))  # checks the tensor
            self._taps[name] = np.ascontiguousarray(self.tensor(name).T)
        return self._taps[name]

    def linear(self, layer: int, name: str) -> Weight:
        """Return the matrix of a layer in `LINEARS`, which can be part of a fused tensor."""
        if (layer, name) not in self._parts:
            tensor, rows = self.linears[name]
            w = self.matrix(f"blk.{layer}.{tensor}")
            if rows != slice(None):
                lines = w.raw.reshape(w.shape[0], -1)[rows]
                # the part has its own name, so that the layers of a tensor can be distinguished
                part = f"{w.name}[{rows.start}:{rows.stop}]"
                w = Weight(part, w.type_id, lines.reshape(-1), (len(lines), w.shape[1]))
            self._parts[layer, name] = w
        return self._parts[layer, name]

    def expert(self, layer: int, tensor: str, expert: int) -> Weight:
        """Return the matrix of one expert.

        On the first call, the matrix is checked for NaN and infinities.
        """
        w = self.experts[f"blk.{layer}.{tensor}.weight"][expert]
        if w.name not in self._checked:
            check_finite(w.type_id, w.raw, w.shape[0] * w.shape[1], w.name, path=self.gguf.path)
            self._checked.add(w.name)
        return w

    def bias(self, layer: int, name: str) -> np.ndarray | None:
        """Return the bias of a layer in `LINEARS`, or None if the layer has no bias."""
        tensor, rows = self.linears[name]
        whole = self.vectors.get(f"blk.{layer}.{tensor}.bias")
        return None if whole is None else whole[rows]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer from the model file."""
        return tokenizer_from_gguf(self.gguf, self._pre)

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The chat template for the model (`chat_template_for`)."""
        return chat_template_for(self.tokenizer)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The numpy shapes of all base tensors, except key and value tensors that no block uses."""
        idle = unused_tensors(self.hp)
        return {name: t.shape for name, t in self.gguf.tensors.items() if name not in idle}

    def rope_tables(self, n_positions: int, layer: int = 0) -> Tables | None:
        """Return the cos and sin tables of a block, each `[n_positions or more, n_rot/2]`.

        The tables are extended when a longer context requires it. Returns None for a block without
        RoPE.
        """
        of = self.hp.rope_at(layer)
        if of is None:
            return None
        tables = self._ropes.get(of)
        if tables is None or len(tables[0]) < n_positions:
            scaling = self.hp.rope_scaling
            tables = self._ropes[of] = rope_tables(
                max(n_positions, 512),
                of.n_rot or self.hp.n_rot,
                of.freq_base,
                freq_scale=of.freq_scale,
                ext_factor=scaling.ext_factor if of.yarn else 0.0,
                attn_factor=scaling.attn_factor if of.yarn else 1.0,
                beta_fast=scaling.beta_fast,
                beta_slow=scaling.beta_slow,
                n_ctx_orig=scaling.n_ctx_orig,
                factors=self.vectors.get(ROPE_FACTORS) if of.factors else None,
            )
        return tables  # not the attribute, because a different thread could have replaced it

    def rotate(
        self, layer: int, y: np.ndarray, positions: np.ndarray, *, inverse: bool = False
    ) -> None:
        """Apply the block's RoPE to y `[N, heads, D]` in place, if the block has RoPE."""
        if tables := self.rope_tables(int(positions.max()) + 1, layer):
            halves = self.hp.rope_pairing == "halves"
            rope(y, positions, *tables, halves=halves, inverse=inverse)

    def temper(self, q: np.ndarray, positions: np.ndarray) -> None:
        """Multiply queries `[N, H, D]`, or their gradient, by the temperature at each position."""
        if self.hp.temperature is not None:
            q *= self.hp.temperature.at(positions)[:, None, None]

    def xielu(self, layer: int) -> Xielu:
        """Return the xielu constants of a block, or `NO_NUMBERS` for other activations."""
        return xielu_numbers(*self.hp.xielu[layer]) if self.hp.xielu else NO_NUMBERS

    def block_types(self, layer: int) -> tuple[int, ...]:
        """Return the weight types of a block's matrices.

        Blocks with equal tuples use the same kernels.
        """
        names = [f"blk.{layer}.{tensor}.weight" for tensor, _ in self.linears.values()]
        types = [self.matrices[name].type_id for name in names if name in self.matrices]
        routed = (self.experts.get(f"blk.{layer}.{tensor}.weight") for tensor in ROUTED)
        return (*types, *(weights[0].type_id for weights in routed if weights))


def _slices(name: str, type_id: int, raw: np.ndarray, shape: tuple[int, ...]) -> tuple[Weight, ...]:
    """Return the matrices of all experts in a tensor, as views of its bytes."""
    n, n_out, n_in = shape
    parts = as_readonly(raw).reshape(n, -1)
    return tuple(Weight(f"{name}[{e}]", type_id, parts[e], (n_out, n_in)) for e in range(n))
