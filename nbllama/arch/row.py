"""The fields of a row in the architecture table.

A row does not contain the sizes of a model; they are read from the keys of the file
(`llama.embedding_length`, ...). Optional parts of a model (biases, a separate output matrix, norms
of queries and keys, RoPE factors, projections fused into one matrix) are recognised by the tensors
in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from nbllama.arch.experts import ExpertsRow
from nbllama.arch.tensors import TensorRow as TensorRow


class Window(NamedTuple):
    """The sliding windows of an architecture, and the defaults for their keys in the file.

    In each group of `period` blocks, the last block attends to all tokens, and the other blocks
    attend only to the last `size` tokens. If `size` is 0, all blocks attend to all tokens. If it is
    None, the file must specify the size.

    `freq_base` is the RoPE base of the blocks with a window, or None if it is the same as in the
    other blocks. `base_key` says whether the file can specify a different value. `yarn` says
    whether YaRN applies to the blocks with a window. If `depths` is not empty, only models with
    these numbers of blocks have windows.
    """

    size: int | None
    period: int
    freq_base: float | None
    base_key: bool = True
    yarn: bool = True
    depths: tuple[int, ...] = ()


class Scales(NamedTuple):
    """The scale factors of a model. A row contains the defaults for missing keys (`SCALE_KEYS`)."""

    embedding: float = 1.0  # factor for the embeddings
    residual: float = 1.0  # factor for the outputs of attention and feed-forward
    logit: float = 1.0  # divisor of the logits (or a factor, with `ArchRow.logit_factor`)
    attention: float | None = None  # factor for the scores; None: 1 / sqrt(head size)


SCALE_KEYS = {
    "embedding": "embedding_scale",
    "residual": "residual_scale",
    "logit": "logit_scale",
    "attention": "attention.scale",
}
"""The keys that a file uses for `Scales`, without the prefix "ARCH."."""


class Sizes(NamedTuple):
    """The sizes on which the defaults of `Scales` depend."""

    n_layer: int
    n_embd: int
    n_head: int


@dataclass(frozen=True)
class ArchRow:
    """The properties of a model that the name of its architecture determines."""

    name: str
    tensors: tuple[TensorRow, ...]
    block: tuple[TensorRow, ...]
    norm: str = "rms"  # or "layer": LayerNorm, with a bias if the file has one
    attn_norm: str = "attn_norm"  # the norm before attention; "": no norm
    ffn_norm: str = "ffn_norm"  # the norm before feed-forward; "attn_norm": both in parallel
    qk_norm_last: bool = False  # queries and keys are normalised after RoPE, not before
    rope_pairing: str = "interleaved"  # or "halves"
    partial_rope: bool = False  # rope.dimension_count can be smaller than the head size
    rope_period: int = 0  # the last of every `rope_period` blocks has no RoPE; 0: all have RoPE
    rope_in_windows: bool = False  # in models with windows, only blocks with a window have RoPE
    yarn_keys: bool = False  # keys in the file can set the parameters of YaRN
    rope_alpha: bool = False  # rope.scaling.alpha can change the base
    temperature: bool = False  # the scale of queries can grow with their position
    gated: bool = True  # feed-forward: act(gate) * up if true, else act(up)
    activation: str = "silu"  # or "gelu"; without a gate, "gelu", "relu2" or "xielu"
    no_eps: bool = False  # eps of the norms is 0, because llama.cpp does not read it
    scales: Callable[[Sizes], Scales] = lambda sizes: Scales()
    logit_factor: bool = False  # logit_scale is a factor, not a divisor
    scale_keys: tuple[str, ...] = ()  # fields of `Scales` that the file can specify
    fixed_keys: Mapping[str, bool] = field(default_factory=dict)  # keys with one supported value
    attn_softcap: float | None = None  # default for attn_logit_softcapping; None: no such key
    logit_softcap: float | None = None  # default for final_logit_softcapping; None: no such key
    window: Window | None = None
    alibi_by_depth: Mapping[int, float] | None = None  # n_layer -> max bias (0: RoPE)
    dense_lead_key: bool = False  # leading_dense_block_count must cover all blocks
    experts: ExpertsRow | None = None  # a mixture of experts instead of feed-forward
    next_blocks: bool = False  # the file can contain further blocks that predict later tokens
    idle_experts: int = 0  # a model is dense if its expert_count is at most this number
    mixer: str = ""  # what some blocks use instead of attention: "conv" or "delta"
    attn_gate: bool = False  # there is a gate for each element of the attention output
    output_norm: str = "output_norm"  # the name of the last norm
    same_as: str = ""  # a row whose models perform the same computation, if both have RoPE
    hf_modules: Mapping[str, str] = field(default_factory=dict)  # tensor -> module; empty: no PEFT
    sections: bool = True  # heads can have RoPE sections (vision models); text has one position
    hf_turned: bool = True  # with interleaved RoPE, Hugging Face orders rows of q and k differently
    varied: bool = False  # heads and feed-forward layers differ in size between blocks
    values_normed: bool = False  # values are normalised (without a weight)
    per_layer: bool = False  # there can be per-block token embeddings
    checked: tuple[str, ...] = ()  # kinds of models that the tests check


def score_scale(width: int) -> float:
    """Compute 1 / sqrt(width), with each step in float32 as in llama.cpp."""
    return float(np.float32(1) / np.sqrt(np.float32(width)))
