"""`python -m nbllama.peek`, and `--dump` of `nbllama.finetune` and `nbllama.main`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import nbllama
from nbllama import finetune
from nbllama import main as predict
from nbllama.checkpoint.file import load_checkpoint
from nbllama.options.steps import parse_steps
from nbllama.peek.__main__ import main
from nbllama.peek.dump import Dump, load
from nbllama.peek.tables import difference
from tests.train.toy_runs import file_bits, toy_adapter, toy_model, toy_text, words

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with dumps of the iterations 2 and 3, and the same run without."""
    folder = tmp_path_factory.mktemp("dumps")
    toy_model(folder)
    toy_text(folder / "text.txt")
    dumps = ["--dump", "2-3:t16_3-*,*.attn_q,*.lora_?*", "--dump", "3:loss"]
    out = ["--dump-out", str(folder / "d-ITERATION.npz")]
    plain = ["--lora-out", str(folder / "plain.gguf"), "--checkpoint-out", ""]
    assert finetune.main(words(folder, *dumps, *out, "--save-every", "1")) == 0
    assert finetune.main(words(folder, *plain)) == 0
    return folder


def test_a_run_with_dumps(folder: Path, capsys: Capture) -> None:
    """Its adapter has the same bits; the dump has what the checkpoints have."""
    assert file_bits(folder / "lora-LATEST.gguf") == file_bits(folder / "plain.gguf")
    assert sorted(p.name for p in folder.glob("d-*")) == ["d-2.npz", "d-3.npz"]
    first, second = load(folder / "d-2.npz"), load(folder / "d-3.npz")
    assert "loss" in second and "loss" not in first and first.about["iteration"] == 2
    before, after = (load_checkpoint(folder / f"chk-{i}.gguf") for i in (1, 2))
    for name, x in before.adapter.parameters().items():
        np.testing.assert_array_equal(first[name], x)
        np.testing.assert_array_equal(first[f"{name}.after"], after.adapter.parameters()[name])
        np.testing.assert_array_equal(first[f"{name}.m"], after.m[name])
        np.testing.assert_array_equal(first[f"{name}.v"], after.v[name])
        assert first[f"{name}.grad"].any()
    p = first["kq_soft_max-0"]
    np.testing.assert_allclose(p.sum(axis=2), 1, atol=1e-5)
    code, out, err = run(capsys, folder / "d-2.npz", "t16_3-1", "blk.0.attn_q")
    assert (code, err) == (0, "") and "iteration: 2" in out
    assert re.search(r"kq_soft_max-1 +activation +4 x 32 x 32 +float32 .* \d+ +0\n", out)
    assert "blk.0.attn_q.weight  weight" in out and "lora_a" not in out
    found = json.loads(run(capsys, "--json", folder / "d-2.npz")[1])
    assert found["arrays"]["kq_soft_max-0"]["shape"] == [4, 32, 32]


def test_diff(folder: Path, capsys: Capture, tmp_path: Path) -> None:
    same = run(capsys, "diff", folder / "d-2.npz", folder / "d-2.npz")
    assert same[:2] == (0, f"0 of {len(load(folder / 'd-2.npz'))} arrays differ\n")
    a, b = folder / "chk-1.gguf", folder / "chk-2.gguf"
    code, out, _ = run(capsys, "diff", a, b, "*.lora_b")
    assert code == 1 and "blk.0.attn_q.weight.lora_b" in out and "lora_a" not in out
    n = len(load_checkpoint(a).adapter.pairs)
    assert f"{n} of {n} arrays differ" in out
    x = {"same": np.ones(3), "moved": np.array([1.0, -4, np.nan]), "only a": np.ones(1)}
    y = {"same": np.ones(3), "moved": np.array([1.0, -3, np.nan]), "cut": np.ones(2)}
    Dump(x).save(tmp_path / "x.npz")
    Dump(y | {"shape": np.ones(2)}).save(tmp_path / "y.npz")
    rows = json.loads(run(capsys, "--json", "diff", tmp_path / "x.npz", tmp_path / "y.npz")[1])
    by_name = {r["name"]: r for r in rows["arrays"]}
    assert rows["differ"] == 4 and by_name["only a"]["why"] == "only in A"
    moved = by_name["moved"]
    assert (moved["largest"], moved["relative"], moved["changed"]) == (1.0, 0.25, 1)
    args = ("diff", tmp_path / "x.npz", tmp_path / "y.npz", "moved", "--tolerance")
    assert run(capsys, *args, 0.25)[0] == 0 and run(capsys, *args, 0.24)[0] == 1
    Dump({"x": np.array([1.0, 2])}).save(tmp_path / "x.npz")
    Dump({"x": np.array([1.0, np.nan])}).save(tmp_path / "y.npz")
    assert "inf" in run(capsys, "diff", tmp_path / "x.npz", tmp_path / "y.npz")[1]


def test_diff_with_a_pattern_that_matches_nothing(capsys: Capture, tmp_path: Path) -> None:
    Dump({"one": np.ones(1)}).save(tmp_path / "x.npz")
    Dump({"one": np.ones(1), "two": np.ones(1)}).save(tmp_path / "y.npz")
    files = ("diff", tmp_path / "x.npz", tmp_path / "y.npz")
    code, out, err = run(capsys, *files, "one", "thr*")
    assert (code, out) == (2, "") and "no array name matches thr*" in err
    assert run(capsys, *files, "two")[:2] == (
        1,
        "name  largest difference  relative  elements that "
        "differ\ntwo   only in B\n1 of 1 arrays differ\n",
    )


@pytest.mark.parametrize(
    ("a", "b", "largest"),
    [
        (np.array([2**60, 5]), np.array([2**60 + 1, 5]), 1),
        (np.array([-(2**63)]), np.array([2**63 - 1]), 2**64),
        (np.array([-1]), np.array([2**64 - 1], np.uint64), 2**64),
        (np.array([-3], np.int8), np.array([True]), 4),
        (np.array([-(2**60)]), np.array([-(2**60) - 1]), 1),
        (np.array([7], np.uint8), np.array([5], np.int64), 2),
    ],
)
def test_integers_are_compared_exactly(a: np.ndarray, b: np.ndarray, largest: int) -> None:
    for x, y in ((a, b), (b, a)):
        found = difference("x", x, y)
        assert (found.largest, found.changed) == (largest, 1)
        assert difference("x", x, x).same


def test_every_kind_of_file(folder: Path, capsys: Capture, tmp_path: Path) -> None:
    model = nbllama.load_model(folder / "toy.gguf")
    adapter = toy_adapter(model, {"wq": 2})
    for name in ("a.gguf", "a.bin", "a/"):
        nbllama.save_adapter(f"{tmp_path}/{name}", adapter, model)
        assert "blk.1.attn_q.weight.lora_b" in run(capsys, tmp_path / name)[1]
    code, out, _ = run(capsys, "--values", "3", folder / "toy.gguf", "output_norm")
    first = ", ".join(f"{v:.6g}" for v in model.tensor("output_norm.weight")[:3])
    assert code == 0 and f"    {first}, ..." in out
    assert run(capsys, folder / "chk-2.gguf", "*attn_q*.m")[1].count(" moment ") == 4
    assert run(capsys, folder / "toy.gguf", "nothing")[0] == 2
    assert run(capsys, tmp_path / "none.npz")[0] == 2
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and so on")
    code, _, err = run(capsys, tmp_path / "bad.npz")
    assert code == 2 and err.count("\n") == 1
    assert run(capsys)[0] == 2 and run(capsys, "diff", "x")[0] == 2
    Dump({"\x1b[31m": np.ones(2)}).save(tmp_path / "evil.npz")
    assert "\x1b" not in run(capsys, tmp_path / "evil.npz")[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["auto", "histogram", "heat"])
def test_pictures(kind: str, folder: Path, capsys: Capture, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / f"{i}.svg" for i in range(2)]
    for path in files:
        args = ("--picture", path, "--kind", kind, folder / "d-2.npz", "t16_3-0", "*.0.attn_q")
        assert run(capsys, *args)[0] == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes().startswith(b"<?xml")
    png = tmp_path / "one.png"
    code, _, _ = run(capsys, "--picture", png, "--head", "1", folder / "d-2.npz", "t16_3-0")
    assert code == 0 and png.read_bytes().startswith(b"\x89PNG")
    for ending in ("svg", "png", "pdf"):  # our own pictures are replaced
        again = ("--picture", tmp_path / f"again.{ending}", folder / "d-2.npz", "*.0.attn_q")
        assert run(capsys, *again)[0] == run(capsys, *again)[0] == 0
    assert run(capsys, "--picture", "x.txt", folder / "d-2.npz", "loss*,t16_3-0")[0] == 2
    assert run(capsys, "--picture", png, "--head", "9", folder / "d-2.npz", "t16_3-0")[0] == 2
    assert (
        run(capsys, "--picture", tmp_path / "no" / "x.svg", folder / "d-2.npz", "t16_3-0")[0] == 3
    )


@pytest.mark.parametrize("name", ["drawing.svg", "photo.png", "paper.pdf"])
def test_a_picture_of_someone_else_is_kept(
    folder: Path, capsys: Capture, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"<svg/>")
    code, _, err = run(capsys, "--picture", path, folder / "d-2.npz", "*.0.attn_q")
    assert code == 3 and f"{name}: the existing file is not a picture that peek wrote" in err
    assert path.read_bytes() == b"<svg/>"


def test_pictures_without_matplotlib(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run(capsys, "--picture", "x.svg", folder / "d-2.npz")
    assert code == 2 and "pip install" in err


def test_prediction(folder: Path, capsys: Capture, tmp_path: Path) -> None:
    out = tmp_path / "p.npz"
    args = ["-m", folder / "toy.gguf", "-p", "the hen", "-n", "2", "--temp", "0", "--threads", "1"]
    plain = predict.main([*map(str, args)]), capsys.readouterr().out
    more = ["--dump", "kq_soft_max-0", "--dump", "result_output", "--dump-out", out]
    assert (predict.main([*map(str, [*args, *more])]), capsys.readouterr().out) == plain
    found = load(out)
    n = len(found["tokens"])
    assert found["kq_soft_max-0@1"].shape == (4, 1, n + 1) and "result_output" in found
    assert int(found["result_output"][-1].argmax()) == int(found["tokens@1"][0])


def test_words_of_dump(folder: Path, capsys: Capture) -> None:
    assert parse_steps("1,4-6:a:b") == (frozenset({1, 4, 5, 6}), "a:b")
    for bad in ("x", "1", "1:", ":a", "0:a", "3-1:a", "1;2:a"):
        with pytest.raises(ValueError):
            parse_steps(bad)
    assert finetune.main(words(folder, "--dump", "now:x")) == 2
    assert finetune.main(words(folder, "--dump", "1:atn_norm-0")) == 2
    err = capsys.readouterr().err.splitlines()
    assert "STEP" not in err[0] and "--dump" in err[0] and "atn_norm-0" in err[-1]
