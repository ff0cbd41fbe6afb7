"""Calibrated merges: the kept effect, the data that are used, and exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType

import nbllama
from examples.toy_archs import MODELS
from nbllama import export_lora
from nbllama.cli.calibration import run_of
from nbllama.data.batch import Batch
from nbllama.export.calibrated import nearest_line
from nbllama.export.inputs import BlockInputs, input_of
from nbllama.gguf_io import open_gguf
from nbllama.model.passes import load_model
from nbllama.peek import watch
from tests.export.merge_models import refusal, toy

WORDS = "the cat sat on a mat and saw the dog run to the old red barn by the sea".split()


def text_file(folder: Path) -> Path:
    rng = np.random.default_rng(4)
    path = folder / "train.txt"
    path.write_text(" ".join(rng.choice(WORDS, 1500)), encoding="utf-8")
    return path


def base_and_adapter(folder: Path, kind: str, strength: float = 0.02) -> tuple[Path, Path]:
    """A toy of whole blocks of 256, and an adapter whose changes are below a step of the grid."""
    base, lora = toy(folder, n_layer=1, n_embd=256, n_ff=512, types=kind)
    model = nbllama.load_model(base)
    made = nbllama.load_adapter(lora, model)
    for pair in made.pairs.values():
        pair.b[:] *= strength / 0.2
    nbllama.save_adapter(lora, made, model)
    return base, lora


def divergence(said: str) -> float:
    line = next(line for line in said.splitlines() if line.startswith("merged against unmerged"))
    return float(line.partition("KL divergence ")[2].split()[0])


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K"])
def test_more_is_kept_than_by_nearest_at_the_same_size(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, lora = base_and_adapter(tmp_path, kind)
    data = text_file(tmp_path)
    found: dict[str, Any] = {}
    runs: dict[str, list[Any]] = {
        "nearest": ["--nearest"],
        "ours": ["--calibrate", data, "--calibrate-tokens", "800"],
        "again": ["--calibrate", data, "--calibrate-tokens", "800", "-t", "1"],
    }
    for name, words in runs.items():
        out = tmp_path / f"{name}.gguf"
        # all are compared on the same text
        argv = ["-m", base, "-l", lora, "-o", out, "--sample", data, "--force", *words]
        assert export_lora.main([str(w) for w in argv]) == 0
        found[name] = divergence(capsys.readouterr().out)
        assert out.stat().st_size == base.stat().st_size
    assert found["ours"] < 0.5 * found["nearest"]
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()
    with open_gguf(base) as f, open_gguf(tmp_path / "ours.gguf") as g:
        assert [t.type_id for t in f.tensors.values()] == [t.type_id for t in g.tensors.values()]
        for name in ("token_embd.weight", "output.weight"):
            np.testing.assert_array_equal(f.data(name), g.data(name))


def test_the_data_of_the_run_are_found_next_to_the_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, lora = base_and_adapter(tmp_path, "Q8_0")
    assert run_of(str(lora)) is None
    argv = [str(w) for w in ("-m", base, "-l", lora, "-o", tmp_path / "m.gguf", "--no-compare")]
    assert export_lora.main(argv) == 0
    assert "no training data to calibrate on" in capsys.readouterr().out
    data = text_file(tmp_path)
    run = tmp_path / "lora.config.yaml"
    run.write_text(f"model-base: {base}\ntrain-data: {data}\nlora-out: {lora}\nctx: 64\n")
    assert export_lora.main(argv) == 0
    said = capsys.readouterr().out
    assert f"calibrated on {data} ({run})" in said and "held out: " in said
    data.unlink()
    assert export_lora.main(argv) == 0
    assert "names training data that do not exist" in capsys.readouterr().out


def test_calibration_data_that_are_missing_or_unused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, lora = base_and_adapter(tmp_path, "F32")
    words = ["-m", base, "-l", lora, "-o", tmp_path / "m.gguf", "--no-compare", "--calibrate"]
    code, line = refusal(export_lora.main, [*words, "no.txt"], capsys)
    assert code == 2 and "--calibrate no.txt: no such file or folder" in line
    assert not (tmp_path / "m.gguf").exists()
    assert export_lora.main([*map(str, words), str(text_file(tmp_path))]) == 0
    assert "note: --calibrate is not used: " in capsys.readouterr().out


def test_numbered_adapters_belong_to_their_run(tmp_path: Path) -> None:
    run = tmp_path / "lora-LATEST.config.yaml"
    run.write_text("model-base: base.gguf\nlora-out: out/lora-ITERATION.gguf\n")
    for name, wanted in (
        ("lora-20.gguf", str(run)),
        ("lora-LATEST.gguf", str(run)),
        ("x.gguf", ""),
    ):
        found = run_of(str(tmp_path / name))
        assert (found.path if found else "") == wanted


def test_a_merge_that_loses_too_much_fails_and_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, lora = base_and_adapter(tmp_path, "Q4_0", 0.004)
    out = tmp_path / "m.gguf"
    words = ["-m", base, "-l", lora, "-o", out, "--nearest", "--sample", text_file(tmp_path)]
    assert export_lora.main([str(w) for w in words]) == 1
    line = capsys.readouterr().err.splitlines()[-1]  # after the progress
    assert line.startswith(f"error: {out} was written, but ") and "--force" in line
    assert out.stat().st_size == base.stat().st_size
    assert export_lora.main([*map(str, words), "--force"]) == 0


def test_auto_takes_few_bits_where_they_are_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, lora = base_and_adapter(tmp_path, "F32", 0.2)
    data = text_file(tmp_path)
    words = ["-m", base, "-l", lora, "--outtype", "auto", "--calibrate", data, "--force"]
    for name in ("a", "b"):
        assert export_lora.main([*map(str, words), "-o", str(tmp_path / name)]) == 0
    said = capsys.readouterr().out
    plan = next(line for line in said.splitlines() if line.startswith("auto: "))
    assert said.index(plan) < said.index("from     to")
    kept = float(plan.split("MiB in total; ")[1].partition("%")[0])
    assert 95 <= kept < 100
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size < 0.6 * base.stat().st_size
    code, line = refusal(export_lora.main, [*words[:6], "-o", tmp_path / "c"], capsys)
    assert code == 2 and "pass --calibrate DATA" in line


def test_second_moments_are_those_of_what_goes_into_each_layer(tmp_path: Path) -> None:
    base, lora = base_and_adapter(tmp_path, "Q8_0")
    model = load_model(base)
    adapter = nbllama.load_adapter(lora, model)
    tokens = np.random.default_rng(1).integers(0, 300, 40).tolist()
    batch = Batch.from_rows(
        [(np.array(t, np.int32), np.full(len(t), -1, np.int32)) for t in (tokens[:25], tokens[25:])]
    )
    inputs = BlockInputs(model, adapter, [batch])
    inputs.advance()
    nodes = ("attn_norm", "kqv_out", "ffn_norm", "ffn_swiglu")
    found: dict[int, np.ndarray] = {}
    for part in (tokens[:25], tokens[25:]):
        with watch(model, *(f"{n}-0" for n in nodes), adapter=adapter) as seen:
            nbllama.logits(model, part, adapter)
        for i, name in enumerate(nodes):
            x = seen[f"{name}-0"].reshape(len(part), -1).astype(np.float64)
            found[i] = found.get(i, 0) + x.T @ x
    for number, wanted in found.items():
        got = np.tril(inputs.moments[number])
        np.testing.assert_allclose(got, np.tril(wanted), atol=1e-4 * np.abs(wanted).max())
    assert input_of("blk.0.ffn_down.weight") == (0, 3)
    assert input_of("output.weight") is None


@pytest.mark.parametrize(
    "name", ["olmo2, OLMo 2", "phi2, 1, 1.5 and 2", "nemotron, Minitron 4B and 8B"]
)
def test_second_moments_where_blocks_are_built_otherwise(name: str, tmp_path: Path) -> None:
    """Without a norm in front of attention, side by side, and without a gate."""
    MODELS[name].make(tmp_path / "toy.gguf")
    model = load_model(tmp_path / "toy.gguf")
    tokens = np.random.default_rng(1).integers(3, 300, 20).astype(np.int32)
    inputs = BlockInputs(model, None, [Batch.from_rows([(tokens, np.full(20, -1, np.int32))])])
    seen = nbllama.trace(model, tokens.tolist())
    for layer in range(model.hp.n_layer):
        inputs.advance()
        assert sorted(inputs.moments) == [0, 1, 2, 3]
        moments = {i: np.tril(h) for i, h in inputs.moments.items()}
        att = seen[f"blk.{layer}.att"].reshape(20, -1).astype(np.float64)
        expected = {1: att}
        if name.startswith("olmo2"):
            expected |= {0: seen[f"blk.{layer}.x"], 2: seen[f"blk.{layer}.x_mid"]}
        if name.startswith("nemotron"):
            expected[3] = np.maximum(seen[f"blk.{layer}.up"], 0) ** 2
        for number, x in expected.items():
            wanted = np.tril(x.T.astype(np.float64) @ x)
            np.testing.assert_allclose(
                moments[number], wanted, atol=1e-4 * np.abs(wanted).max(), err_msg=str(number)
            )
        if name.startswith("phi2"):
            np.testing.assert_array_equal(moments[0], moments[2])


def test_experts_that_are_rounded_to_nearest_are_named() -> None:
    q4_k, f16 = (int(GGMLQuantizationType[t]) for t in ("Q4_K", "F16"))
    types = {
        "blk.0.attn_q.weight": q4_k,
        "blk.0.ffn_gate_exps.weight": q4_k,
        "blk.1.ffn_gate_exps.weight": q4_k,
        "blk.1.ffn_up_exps.weight": f16,
        "blk.1.ffn_down_shexp.weight": q4_k,
        "blk.2.ffn_down_exps.weight": q4_k,
    }
    merged = list(types)[:-1]  # the last one has no pair
    line = nearest_line(merged, types)
    assert line.startswith("rounded to nearest without calibration: ffn_down_shexp, ffn_gate_exps;")
    assert nearest_line(merged[:1], types) == ""
