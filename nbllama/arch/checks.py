"""Check that a file contains the tensors that its keys require."""

from __future__ import annotations

import numpy as np

from nbllama.arch.expected import expected_tensors, unused_tensors
from nbllama.arch.hparams import Hparams
from nbllama.arch.rows import ROPE_FACTORS
from nbllama.errors import shown
from nbllama.gguf_io import TENSOR_TYPES, GGUFFile
from nbllama.gguf_io.limits import MAX_COUNT

_NOT_WEIGHTS = {"I8", "I16", "I32", "I64", "F64", "Q8_K"}
_VECTORS = {"F32", "F16", "BF16"}
_WHOLE_SCALES = ("scale", "input_scale")  # llama.cpp's names for the scales of NVFP4 tensors

# Files that contain a whole multimodal model have tensors with these prefixes, which turn images
# and sound into embeddings.
_OTHER_SENSES = ("v.", "a.", "mm.")


def check_tensors(f: GGUFFile, hp: Hparams) -> list[str]:
    """Check that all required tensors exist, and that all tensors are known and valid.

    Returns messages about tensors that nbllama does not use.
    """
    expected = expected_tensors(hp)
    for name, want in expected.items():
        info = f.tensors.get(name)
        if info is None:
            if want.required:
                raise f.error(f"tensor '{name}'", "is missing")
            continue
        if info.shape != want.shape:
            hint = " (transposed?)" if info.shape == want.shape[::-1] else ""
            raise f.error(f"tensor '{name}'", f"shape {info.shape}, expected {want.shape}{hint}")
        kind = TENSOR_TYPES[info.type_id].name
        if kind in _NOT_WEIGHTS or (
            (len(want.shape) == 1 or name.endswith(".bias")) and kind not in _VECTORS
        ):
            raise f.error(f"tensor '{name}'", f"type {kind} is not supported for this tensor")
    later = tuple(f"blk.{hp.n_layer + i}." for i in range(hp.next_blocks))
    unused = [name for name in f.tensors if later and name.startswith(later)]
    others = [name for name in f.tensors if name not in expected and name not in unused]
    unknown = next((name for name in others if not name.startswith(_OTHER_SENSES)), None)
    if unknown is not None:
        weight, _, rest = unknown.rpartition(".")
        if rest in _WHOLE_SCALES and f"{weight}.weight" in expected:
            raise f.error(
                f"tensor '{shown(unknown)}'",
                "is a per-tensor scale (as in some NVFP4 files), which is not supported; "
                "convert the model to a different type, such as Q8_0",
            )
        raise f.error(f"tensor '{shown(unknown)}'", f"is unknown for architecture {hp.arch}")
    if ROPE_FACTORS in f.tensors:
        _check_rope_factors(f)
    lines = []
    if idle := unused_tensors(hp) & f.tensors.keys():
        lines.append(
            f"{len(idle)} key and value tensors are not used: their blocks reuse the keys and "
            "values of earlier blocks"
        )
    if unused:
        n = hp.next_blocks
        what = (
            "block that predicts a later token is"
            if n == 1
            else "blocks that predict later tokens are"
        )
        lines.append(f"{n} {what} not used")
    if not others:
        return lines
    lines.append(f"{len(others)} image or audio tensors are not used: nbllama trains only on text")
    return lines


def _check_rope_factors(f: GGUFFile) -> None:
    """Check that the RoPE factors are F32 (as in llama.cpp), finite and positive.

    The angles are divided by these factors.
    """
    if TENSOR_TYPES[f.tensors[ROPE_FACTORS].type_id].name != "F32":
        raise f.error(f"tensor '{ROPE_FACTORS}'", "must be F32")
    values = np.frombuffer(f.data(ROPE_FACTORS).tobytes(), "<f4")
    if not (np.isfinite(values) & (values > 0)).all():
        raise f.error(f"tensor '{ROPE_FACTORS}'", "must be positive and finite")


def check_token_ids(f: GGUFFile, hp: Hparams) -> None:
    """Check that bos, eos, pad, unk and the other special ids are in the vocabulary."""
    for key in f.metadata:
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            value = f.count(key, MAX_COUNT)
            if value >= hp.n_vocab:
                raise f.error(
                    f"key '{key}'", f"{value}, but the vocabulary has {hp.n_vocab} tokens"
                )
