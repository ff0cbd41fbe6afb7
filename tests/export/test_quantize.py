"""`python -m nbllama.quantize`: types, bytes against llama.cpp's quantiser, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nbllama
from examples.toy_models import make_llama
from nbllama import quantize
from nbllama.export.file_types import FILE_TYPES, tensor_types
from nbllama.gguf_io import open_gguf
from nbllama.gguf_io.types import TENSOR_TYPES
from tests import oracle
from tests.differences import relative
from tests.export.merge_models import quantized, refusal

TOKENS = np.random.default_rng(4).integers(0, 320, 24).tolist()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantize") / "f32.gguf"
    make_llama(path, n_layer=2, n_embd=256, n_ff=512)
    return path


@pytest.mark.parametrize("name", FILE_TYPES)
def test_file_types(name: str, base: Path, tmp_path: Path) -> None:
    """Every type loads in llama.cpp, and its logits are those of the original within rounding."""
    out = tmp_path / "q.gguf"
    quantized(base, out, name.lower(), "2")
    with open_gguf(base) as f, open_gguf(out) as g:
        shapes = {n: t.shape for n, t in f.tensors.items()}
        wanted = tensor_types(FILE_TYPES[name], shapes, n_layer=2, n_head=4, n_head_kv=2)
        for n, t in g.tensors.items():
            assert TENSOR_TYPES[t.type_id].name == wanted.get(n, "F32"), n
            if "_K" not in TENSOR_TYPES[t.type_id].name:
                rows = f.data(n).view(np.float32).reshape(-1, t.shape[-1])
                assert g.data(n).tobytes() == oracle.quantize(t.type_id, rows), n
        assert g.get("general.file_type", "uint") == FILE_TYPES[name].id
    with oracle.LlamaModel(out) as model:
        got = model.logits(TOKENS)
    original = nbllama.logits(nbllama.load_model(base), TOKENS)
    # random weights suffer most: 2.6 bits change them by a third
    bits = {"Q2": 1.0, "Q3": 0.5, "Q4": 0.25, "Q5": 0.12}.get(name[:2], 0.06)
    assert relative(got, original) < (1e-5 if name == "F32" else bits)


def test_pure_and_requantising(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    quantized("--pure", base, first, "q4_k")
    with open_gguf(first) as f:
        assert {t.type_id for t in f.tensors.values() if len(t.shape) == 2} == {12}
    code, line = refusal(quantize.main, [first, second, "q8_0"], capsys)
    assert code == 2 and "--allow-requantize" in line
    quantized(first, second, "q8_0", "--allow-requantize", "-t", "1")
    quantized(first, tmp_path / "c.gguf", "q4_k_m", "--pure")  # all of that type already
    with open_gguf(first) as f, open_gguf(tmp_path / "c.gguf") as g:
        assert all(f.data(n).tobytes() == g.data(n).tobytes() for n in f.tensors)


def test_bad_inputs_end_in_one_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "q.gguf"
    for words, code, said in (
        ([], 2, "pass IN OUT TYPE"),
        ([base, out], 2, "pass IN OUT TYPE"),
        ([base, out, "q4_k", "2", "3"], 2, "pass IN OUT TYPE"),
        ([base, out, "q4_k", "two"], 2, "THREADS"),
        ([base, out, "q4_9"], 2, "unknown type"),
        ([base, out, "q2_k_s"], 2, "cannot be written"),
        ([tmp_path / "no.gguf", out, "q4_k"], 2, "cannot be opened"),
        ([base, base, "q4_k"], 2, "is also an input"),
        ([base, tmp_path / "no" / "q.gguf", "q4_k"], 3, "cannot be written"),
        ([base, out, "q4_k", "--fast"], 2, "unknown option"),
    ):
        got, line = refusal(quantize.main, words, capsys)
        assert (got, said in line) == (code, True), (words, got, line)
    assert not out.exists()
