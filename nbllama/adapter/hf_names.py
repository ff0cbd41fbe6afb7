"""Convert names and row order between Hugging Face models and GGUF files.

The row of an architecture maps GGUF tensors to the modules of a block, such as `self_attn.q_proj`
(`ArchRow.hf_modules`). If RoPE rotates neighbouring elements (`rope_pairing` is "interleaved"),
llama.cpp's converter has reordered the rows of attn_q and attn_k, because Hugging Face rotates the
two halves of a head instead. Row `2 i + j` of a head is row `j D / 2 + i` in Hugging Face's order,
where D is the head size (`convert_hf_to_gguf.py:LlamaModel.permute`). In the pair for such a
matrix, the rows of B are reordered in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nbllama.arch import HF_MODULES
from nbllama.lora.slots import slot_of

_ENDS = {"token_embd": "model.embed_tokens", "output": "lm_head"}
_GGUF_END = {module.removeprefix("model."): tensor for tensor, module in _ENDS.items()}
# Prefixes that PEFT, torch.compile and vision models add to a module's name, in any order.
_WRAPPERS = r"(?:(?:base_model|model|language_model|_orig_mod|module)\.)*"
_KEY = re.compile(
    _WRAPPERS + r"(?:layers\.(0|[1-9][0-9]{0,5})\.)?(?:_orig_mod\.)?([a-z0-9_.]+)"
    r"\.lora_(embedding_)?([AB])(?:\.(?!weight$)([A-Za-z0-9_-]+))?(?(3)|\.weight)"
)
EXPERT = "{e}"  # placeholder for an expert's index in a module name
TURNED = ("attn_q", "attn_k")


class Half(NamedTuple):
    """The half of a pair to which a key in an adapter's safetensors file refers."""

    name: str  # GGUF name of the base tensor
    module: str  # path of the Hugging Face module
    is_b: bool
    expert: int | None = None  # index in a tensor with all experts


def hf_module(name: str, modules: Mapping[str, str] = HF_MODULES) -> str | None:
    """Return the Hugging Face module of a GGUF tensor, or None if there is no module for it.

    Raises `KeyError` if the tensor cannot have a pair.
    """
    found = slot_of(name)
    if found is None:
        raise KeyError(name)
    slot, layer = found
    if not slot.in_block:
        return _ENDS.get(slot.tensor)
    module = modules.get(slot.tensor)
    return None if module is None else f"model.layers.{layer}.{module}"


def hf_keys(
    name: str, modules: Mapping[str, str] = HF_MODULES, expert: int | None = None
) -> tuple[str, str]:
    """Return PEFT's names for the two halves of a pair, or of one expert's pair."""
    module = f"base_model.model.{hf_module(name, modules)}"
    if expert is not None:
        module = module.replace(EXPERT, str(expert))
    if name == "token_embd.weight":
        return f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def half_of(key: str, modules: Mapping[str, str] = HF_MODULES) -> Half | None:
    """Parse PEFT's name for one half of a pair; return None for any other name."""
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    layer, module, embedding, half, _ = found.groups(default="")
    module = module.replace("._orig_mod", "")
    in_block = {path: tensor for tensor, path in modules.items()}
    expert = None
    if layer and (of := re.search(r"\.experts\.(0|[1-9][0-9]{0,3})\.", module)):
        expert, module = int(of[1]), module[: of.start(1)] + EXPERT + module[of.end(1) :]
    tensor = (in_block if layer else _GGUF_END).get(module)
    if tensor is None or (tensor == "token_embd") != bool(embedding):
        return None
    if not layer:
        return Half(f"{tensor}.weight", _ENDS[tensor], half == "B")
    path = f"model.layers.{layer}.{module}"
    return Half(f"blk.{layer}.{tensor}.weight", path, half == "B", expert)


def adapter_of(key: str) -> str:
    """Return the adapter name (such as "default") in a PEFT key, or "" if there is no name."""
    found = _KEY.fullmatch(key)
    return (found[5] or "") if found is not None else ""


def bare_module(name: str) -> str:
    """Return `name`, a module path or the end of one, without the prefixes added by wrappers."""
    return re.sub("^" + _WRAPPERS, "", name).replace("._orig_mod", "")


def is_turned(name: str) -> bool:
    """Return whether the rows of this tensor are reordered when RoPE rotates neighbours."""
    found = slot_of(name)
    return found is not None and found[0].tensor in TURNED


def rows_to_hf(b: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorder rows (n_out, rank) from GGUF's order to Hugging Face's; `head_dim` divides n_out."""
    heads = b.reshape(-1, head_dim // 2, 2, b.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(b.shape)


def rows_to_gguf(b: np.ndarray, head_dim: int) -> np.ndarray:
    """Undo `rows_to_hf`."""
    heads = b.reshape(-1, 2, head_dim // 2, b.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(b.shape)
