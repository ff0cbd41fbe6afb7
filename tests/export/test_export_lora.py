"""Merged models against base and adapter, in nbllama and in llama.cpp; and every refusal."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from examples.toy_models import decode_to_f32, make_llama
from nbllama import export_lora
from nbllama.export import rewrite
from nbllama.gguf_io import open_gguf
from nbllama.gguf_io.types import TENSOR_TYPES
from tests import oracle
from tests.conftest import ROOT
from tests.differences import compare, relative
from tests.export.merge_models import adapter_for, export, refusal, toy

# float32 on both sides, the delta added before instead of after the product
BOUND = 1e-5
TOKENS = np.random.default_rng(3).integers(0, 320, 24).tolist()


def types_of(path: Path) -> dict[str, str]:
    with open_gguf(path) as f:
        return {name: TENSOR_TYPES[t.type_id].name for name, t in f.tensors.items()}


def llama(path: Path, lora: Any = ()) -> np.ndarray:
    with oracle.LlamaModel(path) as model:
        return model.logits(TOKENS, lora)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
def test_merged_f32_equals_base_with_adapter(kind: str, tied: bool, tmp_path: Path) -> None:
    base, lora = toy(tmp_path, types=kind, tied=tied)
    export("-m", base, "-o", tmp_path / "m.gguf", "-l", lora, "--outtype", "f32")
    model = nbllama.load_model(base)
    wanted = nbllama.logits(model, TOKENS, nbllama.load_adapter(lora, model))
    assert relative(nbllama.logits(model, TOKENS), wanted) > 0.05  # the adapter matters
    ours = nbllama.logits(nbllama.load_model(tmp_path / "m.gguf"), TOKENS)
    compare("merged, nbllama", ours, wanted, BOUND)
    merged = llama(tmp_path / "m.gguf")
    compare("merged, llama.cpp", merged, wanted, BOUND)
    decode_to_f32(base, tmp_path / "base32.gguf")
    compare("llama.cpp both", merged, llama(tmp_path / "base32.gguf", [(lora, 1.0)]), BOUND)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_embedding_output_and_norms_are_merged(tied: bool, tmp_path: Path) -> None:
    ranks = {"tok_embd": 2, "out_norm": 1, "att_norm": 1, "ffn_norm": 1}
    ranks |= {} if tied else {"out": 3}
    base, lora = toy(tmp_path, tied=tied, adapter={"rank": 2, "ranks": ranks})
    export("-m", base, "-o", tmp_path / "m.gguf", "-l", lora)
    model = nbllama.load_model(base)
    wanted = nbllama.logits(model, TOKENS, nbllama.load_adapter(lora, model))
    compare("ends", nbllama.logits(nbllama.load_model(tmp_path / "m.gguf"), TOKENS), wanted, BOUND)
    compare("ends, llama.cpp", llama(tmp_path / "m.gguf"), wanted, BOUND)


def test_several_adapters_with_scales(tmp_path: Path) -> None:
    base, first = toy(tmp_path)
    model = nbllama.load_model(base)
    second = tmp_path / "b.gguf"
    made = adapter_for(base, seed=2, rank=5, alpha=5.0, ranks={"wk": 2, "w1": 0})
    nbllama.save_adapter(second, made, model)
    ways: list[list[Any]] = [
        ["-s", first, "0.4", "--lora-scaled", second, "-0.8"],
        ["-s", f"{first}:0.4,{second}:-0.8"],
        [f"--lora_scaled={first}:0.4", "--lora-scaled", f"{second}:-8e-1"],
    ]
    decode_to_f32(base, tmp_path / "base32.gguf")
    wanted = llama(tmp_path / "base32.gguf", [(first, 0.4), (second, -0.8)])
    for i, words in enumerate(ways):
        out = tmp_path / f"m{i}.gguf"
        export("--model-base", base, "--model-out", out, *words, "-t", "2")
        compare("two adapters", llama(out), wanted, BOUND)
        assert out.read_bytes() == (tmp_path / "m0.gguf").read_bytes()
    export("-m", base, "-o", tmp_path / "c.gguf", "-l", f"{first},{second}")
    export("-m", base, "-o", tmp_path / "d.gguf", "-l", first, "-l", second, "-t", "1")
    assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "d.gguf").read_bytes()


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q6_K", "F16", "BF16"])
def test_same_keeps_types_and_loads_in_llama_cpp(kind: str, tmp_path: Path) -> None:
    base, lora = toy(tmp_path, n_layer=1, n_embd=256, n_ff=512, types=kind)
    out = tmp_path / "m.gguf"
    export("-m", base, "-o", out, "-l", lora)
    assert types_of(out) == types_of(base)
    assert kind in types_of(out).values()
    with open_gguf(base) as f, open_gguf(out) as g:
        assert list(map(str, f.entries())) == list(map(str, g.entries()))
        for name in ("token_embd.weight", "output.weight", "output_norm.weight"):
            np.testing.assert_array_equal(f.data(name), g.data(name))
        assert (f.data("blk.0.attn_q.weight") != g.data("blk.0.attn_q.weight")).any()
    model = nbllama.load_model(base)
    wanted = nbllama.logits(model, TOKENS, nbllama.load_adapter(lora, model))
    got = nbllama.logits(nbllama.load_model(out), TOKENS)
    # Q4_K rounds each weight by 7 %, which is 0.14 here; the other figure is a missing delta.
    assert relative(got, wanted) < {"Q4_K": 0.2, "Q6_K": 0.06}.get(kind, 0.03)
    assert relative(nbllama.logits(model, TOKENS), wanted) > 0.3
    assert relative(llama(out), got) < 0.05  # llama.cpp rounds activations too


def test_types_that_cannot_be_written_become_wider(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, lora = toy(tmp_path, n_layer=1, n_embd=256, n_ff=512, types="IQ3_XXS")
    export("-m", base, "-o", tmp_path / "m.gguf", "-l", lora)
    said = capsys.readouterr().out
    assert "IQ3_XXS cannot be written: 7 tensors become Q3_K\n" in said
    types = types_of(tmp_path / "m.gguf")
    assert types["token_embd.weight"] == "IQ3_XXS"  # not touched
    assert types["blk.0.ffn_down.weight"] == "Q3_K"
    llama(tmp_path / "m.gguf")


def test_the_next_wider_type() -> None:
    ids = rewrite.IDS
    for name, row, wanted in (
        *(("Q4_0", 256, "Q4_0"), ("IQ1_S", 256, "Q2_K"), ("IQ2_S", 256, "Q2_K")),
        *(("IQ3_S", 256, "Q4_K"), ("IQ4_XS", 256, "Q4_K"), ("IQ4_NL", 256, "Q5_K")),
        *(
            ("IQ4_NL", 96, "Q5_0"),
            ("MXFP4", 96, "Q4_0"),
            ("TQ2_0", 256, "Q2_K"),
            ("NVFP4", 64, "Q5_0"),
            ("Q1_0", 256, "Q2_K"),
        ),
    ):
        assert rewrite.writable_type(ids[name], row) == ids[wanted], name


def test_a_file_type_changes_metadata_and_types(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, lora = toy(tmp_path, n_layer=1, n_embd=256, n_ff=512, types="F16")
    out = tmp_path / "m.gguf"
    export("-m", base, "-o", out, "-l", lora, "--outtype", "Q4_K_M")
    types = types_of(out)
    assert types["output.weight"] == types["blk.0.attn_v.weight"] == "Q6_K"
    assert types["blk.0.attn_q.weight"] == types["token_embd.weight"] == "Q4_K"
    with open_gguf(base) as f, open_gguf(out) as g:
        changed = {"general.file_type", "general.quantization_version"}
        kept = [str(e) for e in f.entries() if e[0] not in changed]
        assert kept == [str(e) for e in g.entries() if e[0] not in changed]
        assert g.get("general.file_type", "uint") == 15
        assert g.get("general.quantization_version", "uint") == 2
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["from", "to", "tensors", "MiB", "RMSE", "RMSE/RMS"] in table
    row = next(line for line in table if line[:3] == ["F16", "Q4_K", "6"])
    assert 0.03 < float(row[5]) < 0.1  # 4.5 bits on normal weights
    llama(out)


def test_the_pieces_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, lora = toy(tmp_path, n_layer=1, n_embd=256, n_ff=512, types="Q4_K")
    out = tmp_path / "m.gguf", tmp_path / "n.gguf"
    export("-m", base, "-o", out[0], "-l", lora, "--outtype", "q5_k_s")
    monkeypatch.setattr(rewrite, "PIECE", 3000)
    export("-m", base, "-o", out[1], "-l", lora, "--outtype", "q5_k_s")
    # a product of fewer rows can differ in its last bit, which rarely changes a code
    a, b = (np.frombuffer(path.read_bytes(), np.uint8) for path in out)
    assert a.shape == b.shape and (a != b).mean() < 1e-3


def test_bad_inputs_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, lora = toy(tmp_path)
    out = tmp_path / "m.gguf"
    other = tmp_path / "other.gguf"
    make_llama(other, n_embd=96, n_ff=192)
    good = ["-m", base, "-o", out, "-l", lora]
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(base.read_bytes()[:5000])
    for words, code, said in (
        ([], 2, "--model-base FILE is missing"),
        (["-m", base, "-l", lora], 2, "--model-out FILE is missing"),
        (["-m", base, "-o", out], 2, "--lora FILE"),
        ([*good, "--outtype", "q7"], 2, "unknown type 'q7'"),
        ([*good, "--outtype", "iq2_xs"], 2, "cannot be written"),
        ([*good, "-s", lora, "much"], 2, "scale 'much' is not a number"),
        ([*good, "-s", f"{lora}:nan"], 2, "scale 'nan' is not a number"),
        ([*good, "-s", lora], 2, "the scale is missing"),
        ([*good, "-s"], 2, "-s requires a value"),
        ([*good, "-l", ","], 2, "the file name is empty"),
        ([*good, "--nonsense"], 2, "unknown option"),
        ([*good, "--sample", tmp_path / "no.txt"], 2, "no such file"),
        ([*good, "--sample", base, "--no-compare"], 2, "--no-compare disables"),
        ([*good, "-t", "0"], 2, "-t: '0' is not allowed"),
        (["-m", tmp_path / "no.gguf", "-o", out, "-l", lora], 2, "cannot be opened"),
        (["-m", broken, "-o", out, "-l", lora], 2, "truncated"),
        (["-m", lora, "-o", out, "-l", lora], 2, "adapter"),
        (["-m", base, "-o", out, "-l", tmp_path / "no.gguf"], 2, "no such adapter"),
        (["-m", base, "-o", out, "-l", base], 5, "cannot be used"),
        (["-m", other, "-o", out, "-l", lora], 5, "cannot be used"),
        (["-m", base, "-o", base, "-l", lora], 2, "is also an input"),
        (["-m", base, "-o", lora, "-l", lora], 2, "is also an input"),
        (["-m", base, "-o", tmp_path / "no" / "m.gguf", "-l", lora], 3, "cannot be written"),
        (["-m", base, "-o", tmp_path, "-l", lora], 3, "cannot be written"),
    ):
        got, line = refusal(export_lora.main, words, capsys)
        assert (got, said in line) == (code, True), (words, got, line)
    assert not out.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("base.gguf", "broken.gguf", "lora.gguf", "other.gguf")
    ]


def test_a_sum_that_overflows_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, lora = toy(tmp_path, types="Q8_0")
    out = tmp_path / "m.gguf"
    out.write_bytes(b"GGUF, old")
    for scale, said in (("3e38", "infinite or not a number"), ("1e9", "too large for Q8_0")):
        words = ["-m", base, "-o", out, "-s", lora, scale]
        code, line = refusal_with_progress(words, capsys)
        assert code == 2 and said in line and "blk.0.attn_q.weight" in line, line
        assert out.read_bytes() == b"GGUF, old"


def refusal_with_progress(words: list[Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = export_lora.main([str(w) for w in words])
    return code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["lora.bin", "lora/"])
def test_adapters_of_the_other_formats(name: str, tmp_path: Path) -> None:
    """The same merged file as from the same adapter in GGUF."""
    base, lora = toy(tmp_path)
    model = nbllama.load_model(base)
    nbllama.save_adapter(f"{tmp_path}/{name}", nbllama.load_adapter(lora, model), model)
    files = []
    for adapter in (lora, f"{tmp_path}/{name}"):
        export("-m", base, "-o", tmp_path / "m.gguf", "-l", adapter, "--outtype", "f32")
        files.append((tmp_path / "m.gguf").read_bytes())
    assert files[0] == files[1] != base.read_bytes()


def test_an_adapter_that_is_given_twice_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy(tmp_path)
    monkeypatch.chdir(tmp_path)
    for again, also in (("lora.gguf", ""), ("./lora.gguf", " (also as lora.gguf)")):
        export("-m", "base.gguf", "-o", "m.gguf", "-l", "lora.gguf", "-s", again, "-0.5")
        said = f"note: {again} is given more than once{also}; its effect is added each time\n"
        assert said in capsys.readouterr().out
    shutil.copy("lora.gguf", "copy.gguf")
    export("-m", "base.gguf", "-o", "m.gguf", "-l", "lora.gguf", "-l", "copy.gguf")
    assert "more than once" not in capsys.readouterr().out


def test_what_merging_changed_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From exact in F32 to visible in Q8_0, on its own text and on a given one."""
    base, lora = toy(tmp_path)
    (tmp_path / "t.txt").write_text("the hen and her rat", encoding="utf-8")
    found = []
    for kind, sample in (("f32", []), ("q8_0", ["--sample", str(tmp_path / "t.txt")])):
        words = ["-m", str(base), "-o", str(tmp_path / "m.gguf"), "-l", str(lora)]
        assert export_lora.main([*words, "--outtype", kind, *sample]) == 0
        line, effect = capsys.readouterr().out.splitlines()[-2:]
        assert line.startswith("merged against unmerged, on a short text: KL divergence "), line
        assert effect.startswith("effect of the adapters: KL divergence ")
        found.append(float(line.partition("KL divergence ")[2].split()[0]))
    assert found[0] < 1e-8 < 1e-6 < found[1] < 0.1


def test_a_merge_that_rounds_the_adapter_away_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, lora = toy(tmp_path, adapter=dict(strength=0.002))
    for kind, warned in (("f32", False), ("q8_0", True)):
        words = ["-m", base, "-o", tmp_path / "m.gguf", "-l", lora, "--outtype", kind, "--force"]
        assert export_lora.main([str(w) for w in words]) == 0
        said = capsys.readouterr().out.splitlines()[-1]
        assert said.startswith("warning: rounding to these types loses ") == warned, said


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_no_partial_file(name: str, tmp_path: Path) -> None:
    signum = getattr(signal, name)
    base, lora = toy(tmp_path, n_layer=40, n_ff=1024)
    out = tmp_path / "m.gguf"
    out.write_bytes(b"GGUF, old")
    words = ["-m", base, "-o", out, "-l", lora, "--outtype", "q8_0"]
    # at the first tensor, where a temporary file is open
    code = (
        "import os, sys; from nbllama import export_lora; from nbllama.cli import merge\n"
        "def told(self, done, total, name):\n"
        f"    assert any(f.endswith('tmp') for f in os.listdir({str(tmp_path)!r}))\n"
        f"    os.kill(os.getpid(), {int(signum)})\n"
        "merge.Progress.__call__ = told\n"
        "sys.exit(export_lora.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    assert (done.returncode, done.stderr) == (128 + signum, f"stopped by {name}\n"), done
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.gguf", "lora.gguf", "m.gguf"]
    assert out.read_bytes() == b"GGUF, old"
