"""Choose the weight type of each tensor for the file types of llama.cpp's `llama-quantize`.

The rules and fallbacks are taken from `src/llama-quant.cpp` (`tensor_allows_quantization`,
`llama_tensor_get_type_impl`, `tensor_type_fallback`), for models that use Llama's tensor names,
without an importance matrix:

- Only matrices that are named `*.weight` change type, except for norms, routers (`ffn_gate_inp`)
  and a few others (`_KEPT`).
- `output`, or `token_embd` if the model has no `output`, becomes Q6_K (Q8_0 in a Q8_0 file, or if a
  row is not a whole number of blocks of the file's main type).
- In mixtures of K types (such as Q4_K_M), `attn_v`, `attn_qkv`, `attn_output` and `ffn_down` use
  more bits in some or all transformer blocks.
- A K type is replaced with a similar type with blocks of 32 if the row length is not a multiple of
  256.

The ids of file types are the values of `enum llama_ftype`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from nbllama.errors import UsageError, shown

BLOCK_OF_256 = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
_PLAIN = ("F32", "F16", "BF16")
_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_KEPT = (
    "ffn_gate_inp.weight",
    "ssm_conv1d.weight",
    "shortconv.conv.weight",
    "_norm.weight",
    "per_layer_model_proj.weight",
)
_TABLES = ("token_embd.weight", "per_layer_token_embd.weight")
_NAME = re.compile(
    r"blk\.([0-9]{1,7})\.(attn_v|attn_k|attn_qkv|attn_output|ffn_down)(?:_exps|_shexp)?\.weight"
)


class FileType(NamedTuple):
    """A file type: its name, its value in `general.file_type`, and its main tensor type."""

    name: str
    id: int
    main: str


FILE_TYPES: dict[str, FileType] = {
    t.name: t
    for t in (
        FileType("F32", 0, "F32"),
        FileType("F16", 1, "F16"),
        FileType("BF16", 32, "BF16"),
        FileType("Q4_0", 2, "Q4_0"),
        FileType("Q4_1", 3, "Q4_1"),
        FileType("Q5_0", 8, "Q5_0"),
        FileType("Q5_1", 9, "Q5_1"),
        FileType("Q8_0", 7, "Q8_0"),
        FileType("Q2_K", 10, "Q2_K"),
        FileType("Q3_K_S", 11, "Q3_K"),
        FileType("Q3_K_M", 12, "Q3_K"),
        FileType("Q3_K_L", 13, "Q3_K"),
        FileType("Q4_K_S", 14, "Q4_K"),
        FileType("Q4_K_M", 15, "Q4_K"),
        FileType("Q5_K_S", 16, "Q5_K"),
        FileType("Q5_K_M", 17, "Q5_K"),
        FileType("Q6_K", 18, "Q6_K"),
    )
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""Short names, with the same meaning as in llama.cpp."""


def file_type(name: str) -> FileType:
    """Return the file type with this name, ignoring case.

    Raises `UsageError` with a list of all names if the name is unknown.
    """
    upper = name.upper()
    found = FILE_TYPES.get(ALIASES.get(upper, upper))
    if found is None:
        names = " ".join((*FILE_TYPES, *ALIASES))
        reason = f"unknown type '{shown(name)}'"
        if upper.startswith(("IQ", "TQ", "MXFP")) or upper == "Q2_K_S":
            reason = f"type '{shown(name)}' cannot be written"
        raise UsageError(f"{reason}; supported: {names}")
    return found


def may_change(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor with this numpy shape may be converted to the file's type."""
    return len(shape) >= 2 and name.endswith("weight") and not name.endswith(_KEPT)


def fitting(kind: str, row: int) -> str:
    """Return `kind`, or llama.cpp's replacement if a row is not a whole number of blocks."""
    if kind in BLOCK_OF_256 and row % 256:
        kind = _FALLBACK[kind]
    return "F16" if kind not in (*_PLAIN, *BLOCK_OF_256) and row % 32 else kind


def tensor_types(
    kind: FileType,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    n_layer: int,
    n_head: int,
    n_head_kv: int,
    pure: bool = False,
) -> dict[str, str]:
    """Return the weight types of all tensors that may change (see `may_change`), by name.

    Shapes are in numpy order. With `pure`, the main type is used for all tensors. Quantised types
    are replaced with F16 for tensors with a row length that is not a multiple of 32.
    """
    mixed = not pure and kind.main not in _PLAIN
    tied = "output.weight" not in shapes
    out = {}
    n_expert = next((shape[0] for shape in shapes.values() if len(shape) == 3), 0)
    for name, shape in shapes.items():
        if not may_change(name, shape):
            continue
        wanted = kind.main
        if mixed and name in (_TABLES if tied else ("output.weight",)):
            wanted = _of_output(kind, shape[-1])
        elif mixed and (found := _NAME.fullmatch(name)):
            layer = int(found[1])
            better = _in_block(kind.name, found[2], layer, n_layer, n_head, n_head_kv)
            if n_expert == 8:
                better = _with_eight(kind.name, found[2], better)
            wanted = better or kind.main
        out[name] = fitting(wanted, shape[-1])
    return out


def _of_output(kind: FileType, row: int) -> str:
    block = 256 if kind.main in BLOCK_OF_256 else 32
    return "Q8_0" if kind.main == "Q8_0" or row % block else "Q6_K"


def _more_bits(layer: int, n_layer: int) -> bool:
    """Return True for blocks in the first or last eighth, and for every third block in between."""
    eighth = n_layer // 8
    return layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2


def _with_eight(mix: str, tensor: str, usual: str | None) -> str | None:
    """Return a tensor's type in a model with eight experts, where few weights are in attention."""
    if tensor in ("attn_v", "attn_k", "attn_qkv"):
        return "Q8_0" if tensor != "attn_qkv" else usual
    if tensor == "attn_output":
        return "Q5_K" if mix in ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M") else None
    return usual


def _in_block(
    mix: str, tensor: str, layer: int, n_layer: int, n_head: int, n_head_kv: int
) -> str | None:
    """Return the type of a tensor in a mixture of types, or None for the main type."""
    more = _more_bits(layer, n_layer)
    if tensor == "attn_k":
        return None
    if tensor == "attn_output":
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix)
    if tensor == "attn_qkv":
        return {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}.get(mix)
    if tensor == "ffn_down":
        return {
            "Q2_K": "Q3_K",
            "Q3_K_M": "Q5_K" if layer < n_layer // 16 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if layer < n_layer // 8 else None,
            "Q4_K_M": "Q6_K" if more else None,
            "Q5_K_M": "Q6_K" if more else None,
        }.get(mix)
    found = {
        "Q2_K": "Q4_K" if n_head // n_head_kv >= 4 else "Q3_K",
        "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K",
        "Q3_K_L": "Q5_K",
        "Q4_K_S": "Q5_K" if layer < 4 else None,
        "Q4_K_M": "Q6_K" if more else None,
        "Q5_K_M": "Q6_K" if more else None,
    }.get(mix)
    # in the 70B model, attn_v is an eighth as large as attn_q, so more bits cost little
    if n_layer == 80 and n_head != n_head_kv:
        main = FILE_TYPES[mix].main
        if (found or main) in ("Q3_K", "Q4_K"):
            return "Q5_K"
    return found
