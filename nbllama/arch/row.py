"""The fields of a row in the architecture table.

Numbers are read from the keys of the file (`llama.embedding_length`, ...). Optional parts of a
model (biases, a separate output matrix, norms of queries and keys, RoPE factors, projections fused
into one matrix) are recognised by the tensors in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from nbllama.arch.experts import ExpertsRow
from nbllama.arch.tensors import TensorRow as TensorRow


class Window(NamedTuple):
    """Blocks with a sliding window, and the defaults for their keys in the file.

    In each group of `period` blocks, the last block attends to all tokens and the others only to
    the last `size` tokens. If `size` is 0, all blocks attend to all tokens; if it is None, the file
    must specify the size. `freq_base` is the RoPE base of the blocks with a window, or None for the
    same base as in the other blocks. `base_key` is True if the file can specify a different base,
    and `yarn` is True if YaRN also applies to these blocks. If `depths` is not empty, only models
    with these numbers of blocks have windows.
    """

    size: int | None
    period: int
    freq_base: float | None
    base_key: bool = True
    yarn: bool = True
    depths: tuple[int, ...] = ()


class Scales(NamedTuple):
    """A model's scale factors, used if the file does not contain their keys (`SCALE_KEYS`)."""

    embedding: float = 1.0  # factor for the embeddings
    residual: float = 1.0  # factor for the outputs of attention and feed-forward
    logit: float = 1.0  # divisor of the logits (a factor with `logit_factor`)
    attention: float | None = None  # factor for the scores; None: 1 / sqrt(head size)


SCALE_KEYS = {
    "embedding": "embedding_scale",
    "residual": "residual_scale",
    "logit": "logit_scale",
    "attention": "attention.scale",
}
"""Keys for `Scales` in a file, after "ARCH."."""


class Sizes(NamedTuple):
    """The sizes on which the defaults of `Scales` depend."""

    n_layer: int
    n_embd: int
    n_head: int


@dataclass(frozen=True)
class ArchRow:
    """The properties that follow from an architecture's name; others are read from the file."""

    name: str
    tensors: tuple[TensorRow, ...]
    block: tuple[TensorRow, ...]
    norm: str = "rms"  # or "layer": LayerNorm, with a bias if the file has one
    attn_norm: str = "attn_norm"  # the norm before attention; "": no norm
    ffn_norm: str = "ffn_norm"  # the norm before feed-forward; "attn_norm": both in parallel
    qk_norm_last: bool = False  # are queries and keys normalised after RoPE instead of before?
    rope_pairing: str = "interleaved"  # or "halves"
    partial_rope: bool = False  # can rope.dimension_count be smaller than the head size?
    rope_period: int = 0  # one in this many blocks (the last) has no RoPE; 0: all have RoPE
    rope_in_windows: bool = False  # if there are windows, do only their blocks have RoPE?
    yarn_keys: bool = False  # can keys set the parameters of YaRN?
    rope_alpha: bool = False  # can rope.scaling.alpha change the base?
    temperature: bool = False  # can the scale of queries grow with their position?
    gated: bool = True  # feed-forward: act(gate) * up if true, else act(up)
    activation: str = "silu"  # or "gelu"; without a gate, "gelu", "relu2" or "xielu"
    no_eps: bool = False  # llama.cpp does not read eps for the norms, so it is 0
    scales: Callable[[Sizes], Scales] = lambda sizes: Scales()
    logit_factor: bool = False  # is logit_scale a factor instead of a divisor?
    scale_keys: tuple[str, ...] = ()  # fields of `Scales` whose keys are read
    fixed_keys: Mapping[str, bool] = field(default_factory=dict)  # no other value is supported
    attn_softcap: float | None = None  # default for attn_logit_softcapping; None: no such key
    logit_softcap: float | None = None  # default for final_logit_softcapping; None: no such key
    window: Window | None = None
    alibi_by_depth: Mapping[int, float] | None = None  # n_layer -> max bias (0: RoPE)
    dense_lead_key: bool = False  # leading_dense_block_count: number of blocks without experts
    experts: ExpertsRow | None = None  # a mixture of experts instead of feed-forward
    next_blocks: bool = False  # can the file contain further blocks that predict later tokens?
    idle_experts: int = 0  # a model with at most this expert_count is dense
    mixer: str = ""  # used by some blocks instead of attention: "conv" or "delta"
    attn_gate: bool = False  # is there a gate for each number of the attention output?
    output_norm: str = "output_norm"  # the name of the last norm
    same_as: str = ""  # row of an equivalent architecture, if both use RoPE
    hf_modules: Mapping[str, str] = field(default_factory=dict)  # tensor -> module; none: no PEFT
    sections: bool = True  # can heads have RoPE sections (vision models)? text has one position
    hf_turned: bool = True  # is the row order of q and k different in Hugging Face (interleaved)?
    varied: bool = False  # do heads and feed-forward layers differ in size between blocks?
    values_normed: bool = False  # are values normalised (without a weight)?
    per_layer: bool = False  # can there be per-block token embeddings?
    checked: tuple[str, ...] = ()  # kinds of models that the tests check


def score_scale(width: int) -> float:
    """Compute 1 / sqrt(width), with each step in float32 as in llama.cpp."""
    return float(np.float32(1) / np.sqrt(np.float32(width)))
