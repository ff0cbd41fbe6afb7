"""A real model merged into K-quants: is the result as close to the unmerged one as with llama.cpp's
own quantiser?

The model is the 768-wide SmolLM2 of scripts/tools/widen_smollm2, whose rows are whole blocks of
K-quants.
The wheel does not export `llama_model_quantize`, so llama.cpp's `ggml_quantize_chunk` is given the
tensors one by one, with the types of `nbllama.export.file_types`, which
tests/export/test_file_types.py compares with llama.cpp's.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import nbllama
from nbllama.evaluate.sample_text import compare, reader
from nbllama.evaluate.scores import compare_logits
from nbllama.gguf_io import open_gguf
from nbllama.gguf_io.types import TENSOR_TYPES
from nbllama.model.passes import load_model
from tests import oracle
from tests.conftest import ROOT
from tests.export.merge_models import adapter_for, export, quantized
from tests.scripts.test_widen import script

pytestmark = [pytest.mark.slow, pytest.mark.long]
TEXT, ROW, ROWS = "docs/from-llama-cpp-finetune.md", 128, 8


class Merge(NamedTuple):
    """The wide model and an adapter for it, and both as one file in float32."""

    base: Path
    lora: Path
    merged: Path
    rows: list[np.ndarray]  # of a text, token ids int32


@pytest.fixture(scope="module")
def merge(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Merge:
    folder = tmp_path_factory.mktemp("kquants")
    base, lora, merged = (folder / f"{name}.gguf" for name in ("wide", "lora", "f32"))
    assert script().main([str(base), "f16", str(demo_model)]) == 0
    model = load_model(base)
    made = adapter_for(base, rank=8, alpha=8.0, strength=0.12)
    nbllama.save_adapter(lora, made, model)
    export("-m", base, "-o", merged, "-l", lora, "--outtype", "f32")
    ids = model.tokenizer.encode((ROOT / TEXT).read_text(encoding="utf-8"))
    rows = [np.array(ids[i * ROW : (i + 1) * ROW], np.int32) for i in range(ROWS)]
    return Merge(base, lora, merged, rows)


def divergence(path: Path, merge: Merge) -> float:
    """KL(file ‖ base with adapter), nats a token."""
    base = load_model(merge.base)
    unmerged = reader(base, nbllama.load_adapter(merge.lora, base), merge.rows)
    found = compare(reader(load_model(path), None, merge.rows), unmerged, merge.rows)
    return float(found.kl.mean())


def types_of(path: Path) -> dict[str, str]:
    with open_gguf(path) as f:
        return {name: TENSOR_TYPES[t.type_id].name for name, t in f.tensors.items()}


def by_llama_cpp(type_id: int, x: np.ndarray) -> np.ndarray:
    """`nbllama.quants.encode.quantise` by ggml."""
    return np.frombuffer(oracle.quantize(type_id, x), np.uint8)


@pytest.mark.parametrize("kind", ["q4_k_m", "q2_k"])
def test_as_near_as_llama_cpp_s_quantiser(
    kind: str, merge: Merge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    export("-m", merge.base, "-o", ours, "-l", merge.lora, "--outtype", kind)
    with monkeypatch.context() as patch:
        patch.setattr("nbllama.export.rewrite.quantise", by_llama_cpp)
        quantized(merge.merged, theirs, kind)
    types = types_of(ours)
    assert types == types_of(theirs)
    assert types["blk.0.attn_q.weight"] == kind.upper().removesuffix("_M")
    assert types["token_embd.weight"] == "Q6_K"

    base = load_model(merge.base)
    plain = reader(base, None, merge.rows)
    adapted = reader(base, nbllama.load_adapter(merge.lora, base), merge.rows)
    effect = float(compare(plain, adapted, merge.rows).kl.mean())
    found = {name: divergence(path, merge) for name, path in (("ours", ours), ("theirs", theirs))}
    print(f"{kind}: KL(merged || unmerged) {found}, of the adapter itself {effect:.4f}")
    assert 1e-3 < found["ours"] <= 1.1 * found["theirs"]
    assert effect > 0.05  # there is something to keep

    row = merge.rows[0]
    with oracle.LlamaModel(ours, n_threads=2) as model:
        there = model.logits(row.tolist())
    here = nbllama.logits(load_model(ours), row)
    read = float(compare_logits(there, here, np.roll(row, -1)).kl.mean())
    print(f"{kind}: KL(llama.cpp || nbllama), the same file {read:.4f}")
    assert read < found["ours"]  # llama.cpp rounds activations to 8 bits; weights have fewer
