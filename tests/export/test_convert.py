"""`python -m nbllama.convert`: the same bytes, the same logits, here and in llama.cpp; refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nbllama
from examples.toy_archs import MODELS
from examples.toy_models import make_llama
from nbllama.arch import expected_tensors, hparams_from_gguf
from nbllama.cli.convert import main, pair_of
from nbllama.gguf_io import ValueType, open_gguf, write_gguf
from tests import oracle
from tests.export.merge_models import refusal

SEVEN, THIRTEEN = MODELS["baichuan, 7B (RoPE)"], MODELS["baichuan, 13B (ALiBi)"]
TOKENS = np.random.default_rng(4).integers(0, 320, 33).tolist()


def convert(*words: str | Path) -> int:
    return main(["baichuan-to-llama", *map(str, words)])


@pytest.mark.parametrize("types", ["F32", "Q4_K"])
def test_the_same_bytes_and_logits(types: str, tmp_path: Path) -> None:
    source, target = tmp_path / "baichuan.gguf", tmp_path / "llama.gguf"
    if types == "F32":
        SEVEN.make(source, rope_scaling=("linear", 2.0))
    else:
        SEVEN.make_wide(source, types)
    assert convert(source, target) == 0
    with open_gguf(source) as f, open_gguf(target) as g:
        assert list(g.tensors) == list(f.tensors)
        for name, info in f.tensors.items():
            assert (g.tensors[name].type_id, g.tensors[name].shape) == (info.type_id, info.shape)
            assert g.data(name).tobytes() == f.data(name).tobytes(), name
        assert g.metadata["general.architecture"] == "llama"
        ours = {key.replace("baichuan.", "llama.") for key in f.metadata}
        assert set(g.metadata) == ours and "llama.rope.dimension_count" in ours
        assert set(expected_tensors(hparams_from_gguf(f))) <= set(
            expected_tensors(hparams_from_gguf(g))
        )
    before, after = (nbllama.logits(nbllama.load_model(p), TOKENS) for p in (source, target))
    np.testing.assert_array_equal(after, before)
    with oracle.LlamaModel(source) as old, oracle.LlamaModel(target) as new:
        np.testing.assert_array_equal(new.logits(TOKENS), old.logits(TOKENS))


def test_what_cannot_be_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seven, deep, other, out = (tmp_path / f"{n}.gguf" for n in ("seven", "deep", "other", "out"))
    SEVEN.make(seven)
    THIRTEEN.make(deep)
    make_llama(other)
    before = {path.name for path in tmp_path.iterdir()}
    mixed = tmp_path / "mixed.gguf"
    with open_gguf(seven) as f:
        extra = [("llama.block_count", 32, ValueType.UINT32)]
        tensors = [(name, f.data(name).view(np.float32)) for name in list(f.tensors)]
        shaped = [(n, x.reshape(f.tensors[n].shape)) for n, x in tensors]
        write_gguf(mixed, [*f.entries(), *extra], shaped)
    name = "baichuan-to-llama"
    for words, code, said in (
        ([], 2, "pass CONVERSION IN OUT"),
        ([name, seven], 2, "pass CONVERSION IN OUT"),
        (["llama-to-baichuan", seven, out], 2, "unknown conversion 'llama-to-baichuan'; use b"),
        ([name, seven, out, "--threads"], 2, "unknown option '--threads'"),
        ([name, tmp_path / "no.gguf", out], 2, "cannot be opened"),
        ([name, other, out], 2, "architecture is 'llama', but this conversion is for baichuan"),
        ([name, deep, out], 2, "40 layers: this variant of baichuan uses ALiBi"),
        ([name, mixed, out], 2, "key 'llama.block_count': is a key of llama"),
        ([name, seven, seven], 2, "is also an input"),
        ([name, seven, tmp_path / "no" / "out.gguf"], 3, "cannot be written"),
    ):
        got, line = refusal(main, words, capsys)
        assert got == code and said in line, (words, line)
    assert "use the model without conversion" in refusal(main, [name, deep, out], capsys)[1]
    assert {path.name for path in tmp_path.iterdir()} == before | {"mixed.gguf"}


def test_the_conversions_are_rows_of_the_registry() -> None:
    assert pair_of("baichuan-to-llama") == ("baichuan", "llama")
