"""Read the settings of a mixture of experts from the architecture's row and the file."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nbllama.arch.keys import any_number, per_layer, size
from nbllama.arch.tensors import DENSE_FEED_FORWARD, ROUTED, SHARED, TensorRow
from nbllama.gguf_io import GGUFFile
from nbllama.gguf_io.limits import MAX_COUNT

MOST = 1024  # largest number of experts; llama.cpp's LLAMA_MAX_EXPERTS is 512 or more
_GATINGS = {1: "softmax", 2: "sigmoid", 3: "chosen"}  # by the value of the key expert_gating_func


class ExpertsRow(NamedTuple):
    """The properties of the experts that the name of the architecture determines."""

    gating: str  # a key of `ops.experts.router.CODES`
    normed: bool = False  # whether the weights of the chosen experts sum to 1
    gating_keys: bool = False  # whether keys in the file can change `gating` and `normed`
    own_width: bool = True  # the width key is expert_feed_forward_length, not feed_forward_length
    shared: str = ""  # how the shared expert's width is given: "key", or "count" (times n_ff)
    lead_key: bool = False  # whether leading_dense_block_count can be above 0
    step_key: bool = False  # whether interleave_moe_layer_step is required, and must be 1
    optional: bool = False  # whether a model can be dense
    kind: str = "silu"  # a key of `ops.experts.gate.CODES`
    tensors: tuple[TensorRow, ...] = ROUTED  # replace the feed-forward tensors of a dense block


class Experts(NamedTuple):
    """The sizes and constants of the experts in a model."""

    total: int
    used: int  # experts per token
    n_ff: int  # width of one expert
    n_ff_shared: int  # width of the shared expert; 0: no shared expert
    first: int  # blocks before this one have no experts
    gating: str
    normed: bool
    scale: float
    kind: str

    def at(self, layer: int) -> bool:
        """Return whether a block has experts."""
        return layer >= self.first


def block_rows(
    rows: tuple[TensorRow, ...], row: ExpertsRow | None, experts: Experts | None, layer: int
) -> tuple[TensorRow, ...]:
    """Return the tensors of block `layer`; `rows` are the tensors of a dense block."""
    if row is None or experts is None or not experts.at(layer):
        return rows
    dense = tuple(r for r in rows if r.name.rpartition(".")[0] not in DENSE_FEED_FORWARD)
    return dense + row.tensors + (SHARED if experts.n_ff_shared else ())


def read_experts(
    f: GGUFFile, arch: str, row: ExpertsRow | None, n_layer: int, *, warnings: list[str]
) -> Experts | None:
    """Read the expert settings in a file, or return None for a dense model."""
    if row is None:
        return None
    count_key = f"{arch}.expert_count"
    if row.optional and f.count(count_key, MAX_COUNT, default=0) == 0:
        return None
    count = size(f, count_key, MOST)
    used = size(f, f"{arch}.expert_used_count", count)
    groups = f"{arch}.expert_group_count"
    if f.count(groups, MAX_COUNT, default=1) > 1:
        raise f.error(f"key '{groups}'", "grouped expert selection is not supported")
    width_key = f"{arch}.feed_forward_length"
    if row.own_width and (key := f"{arch}.expert_feed_forward_length") in f.metadata:
        width_key = key
    elif row.own_width:
        raise f.error(f"key '{key}'", "is missing")
    n_ff = per_layer(f, width_key, n_layer)
    first = f.count(f"{arch}.leading_dense_block_count", n_layer - 1, default=0)
    if first and not row.lead_key:
        raise f.error(f"key '{arch}.leading_dense_block_count'", f"not supported for {arch}")
    step = f"{arch}.interleave_moe_layer_step"
    if row.step_key and size(f, step) != 1:
        raise f.error(
            f"key '{step}'",
            "only models with experts in every block after the dense ones are supported",
        )
    gating, normed, scale = _weights(f, arch, row, warnings)
    return Experts(
        count, used, n_ff, _shared(f, arch, row, n_ff), int(first), gating, normed, scale, row.kind
    )


def _shared(f: GGUFFile, arch: str, row: ExpertsRow, n_ff: int) -> int:
    """Return the width of the shared expert, or 0 if there is none."""
    key = f"{arch}.expert_shared_feed_forward_length"
    count = f"{arch}.expert_shared_count"
    if row.shared == "count":
        return n_ff * int(f.count(count, MAX_COUNT))
    width = f.count(key, MAX_COUNT, default=0)
    if width and not row.shared:
        raise f.error(f"key '{key}'", f"shared experts are not supported for {arch}")
    return int(width)


def _weights(
    f: GGUFFile, arch: str, row: ExpertsRow, warnings: list[str]
) -> tuple[str, bool, float]:
    """Return the gating function, whether the weights are normalised, and their scale."""
    keys = {k: f"{arch}.{k}" for k in ("expert_gating_func", "expert_weights_norm")}
    scale_key = f"{arch}.expert_weights_scale"
    if not row.gating_keys:
        found = [key for key in (*keys.values(), scale_key) if key in f.metadata]
        warnings += [f"{key} is ignored for {arch}, as in llama.cpp" for key in found]
        return row.gating, row.normed, 1.0
    code = f.count(keys["expert_gating_func"], MAX_COUNT, default=0)
    if code and code not in _GATINGS:
        raise f.error(f"key '{keys['expert_gating_func']}'", f"{code} is not supported")
    normed = bool(f.get(keys["expert_weights_norm"], "bool", row.normed))
    scale = any_number(f, scale_key, 1.0)
    return _GATINGS.get(code, row.gating), normed, float(np.float32(scale)) or 1.0
