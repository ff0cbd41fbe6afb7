"""`python -m nbllama.gradcheck`: correct models pass, and any single wrong sign is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from examples.toy_archs import MODELS
from examples.toy_models import make_llama
from nbllama.gradcheck.__main__ import main
from nbllama.gradcheck.part import usual_layers
from nbllama.model import block, bound, parts
from nbllama.model import passes as model
from nbllama.model.bound import Bound
from nbllama.model.passes import load_model
from tests.train.toy_runs import toy_adapter

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["--threads", "1", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gradcheck") / "toy.gguf"
    make_llama(path, n_layer=3, types={"*": "F32", "attn_v": "Q8_0"})
    return path


def test_a_right_model(toy: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "-m", toy)
    assert (code, err) == (0, "") and out.startswith("blocks 0, 2; ")
    rows = {line.split()[0]: line.split() for line in out.splitlines()[4:]}
    assert rows["attn_v"][1:3] == ["Q8_0", "2"] and rows["output"][1:3] == ["F32", "1"]
    assert len(rows) == 12 and all(row[-1] == "ok" for row in rows.values())
    found = json.loads(run(capsys, "-m", toy, "--json", "--layers", "1-2")[1])
    assert {c["name"].split(".")[1] for c in found["checked"] if "blk" in c["name"]} == {"1", "2"}
    assert all(c["error"] < 1e-4 for c in found["checked"]) and len(found["checked"]) == 2 * 21
    assert found["ours"] == pytest.approx(found["reference"], rel=1e-5)
    assert "blk.2.ffn_up" in run(capsys, "-m", toy, "--all", "--layers", "2")[1]


def flipped(output: int | str, *, of: str = "") -> Callable[[Any], Any]:
    """A gradient function whose output, an argument by number or keyword, has the wrong sign.

    `of`: only for calls whose first argument after self is this name.
    """

    def wrap(real: Any) -> Any:
        def wrong(*args: Any, **more: Any) -> Any:
            out = more[output] if isinstance(output, str) else args[output]
            if of and args[1] != of:
                out = None
            before = None if out is None else out.copy()
            result = real(*args, **more)
            if before is not None:
                # added values are subtracted; written values are negated
                added = more.get("add", False)
                out[...] = 2 * before - out if added else -out
            return result

        return wrong

    return wrap


def flipped_pair(half: str) -> Callable[[Any], Any]:
    """`linear_grad` that adds the gradient of A or B with the wrong sign."""

    def wrap(real: Any) -> Any:
        def wrong(w: Any, pair: Any, *args: Any, **more: Any) -> Any:
            grad = getattr(pair, half) if pair is not None else None
            before = None if grad is None else grad.copy()
            result = real(w, pair, *args, **more)
            if grad is not None and before is not None:
                grad[...] = 2 * before - grad
            return result

        return wrong

    return wrap


FAULTS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "rms_norm, dx": (bound, "rms_norm_grad", flipped("dx")),
    "rms_norm, dw": (bound, "rms_norm_grad_weight", flipped(3)),
    "attention, dq": (block, "attend_grad", flipped("dq")),
    "attention, dk": (block, "attend_grad", flipped("dk")),
    "attention, dv": (block, "attend_grad", flipped("dv")),
    "gate": (block, "gated_grad", flipped(1)),
    "up": (block, "gated_grad", flipped(2)),
    "linear, dx": (parts, "linear_grad", flipped("dx")),
    "linear, dA": (parts, "linear_grad", flipped_pair("da")),
    "linear, dB": (parts, "linear_grad", flipped_pair("db")),
    "last norm": (Bound, "normed_grad", flipped("dx", of="output_norm.weight")),
    "embedding, dB": (model, "embed_lora_grad", flipped("db")),
    "output, dx": (model, "output_loss", flipped("dx")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_wrong_sign_is_caught(
    fault: str, toy: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, wrap = FAULTS[fault]
    monkeypatch.setattr(module, name, wrap(getattr(module, name)))
    code, out, err = run(capsys, "-m", toy, "--layers", "0,1", "-n", "8")
    assert code == 1 and "WRONG" in out
    assert err.startswith("error: ") and "wrong" in err and err.count("\n") == 1


def test_a_rotation_that_is_not_turned_back(
    toy: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = model.Model.rotate

    def wrong(self: Any, *args: Any, inverse: bool = False) -> None:
        real(self, *args, inverse=False)

    monkeypatch.setattr(model.Model, "rotate", wrong)
    code, out, _ = run(capsys, "-m", toy, "--layers", "first:1")
    assert code == 1
    verdicts = {line.split()[0]: line.split()[-1] for line in out.splitlines()[4:]}
    assert verdicts["attn_q"] == verdicts["attn_k"] == "WRONG" and verdicts["attn_v"] == "ok"


def test_a_small_wrong_part_and_a_nan(
    toy: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One per cent too much in one half is an error; so is a NaN."""
    real = Bound.add_norm_grad
    for factor in (1.01, np.nan):

        def wrong(
            self: Bound, name: str, dy: np.ndarray, *rest: np.ndarray, by: float = factor
        ) -> None:
            real(self, name, dy * np.float32(by), *rest)

        monkeypatch.setattr(Bound, "add_norm_grad", wrong)
        code, out, _ = run(capsys, "-m", toy, "--layers", "0")
        assert code == 1 and out.count("WRONG") == 3  # the norms, and nothing else


def test_with_an_adapter(toy: Path, tmp_path: Path, capsys: Capture) -> None:
    base = load_model(toy)
    nbllama.save_adapter(tmp_path / "a.gguf", toy_adapter(base, {"wq": 2, "w3": 3}), base)
    code, out, _ = run(capsys, "-m", toy, "--lora", tmp_path / "a.gguf", "--all")
    assert code == 0 and "blk.2.ffn_up" in out and "attn_k" not in out
    nbllama.save_adapter(tmp_path / "new.gguf", nbllama.init_adapter(base), base)
    code, out, _ = run(capsys, "-m", toy, "--lora", tmp_path / "new.gguf", "--layers", "0")
    assert code == 0 and "ok (one half zero)" in out and "not checked" in out
    make_llama(tmp_path / "other.gguf", n_ff=64)
    assert run(capsys, "-m", tmp_path / "other.gguf", "--lora", tmp_path / "a.gguf")[0] == 5
    (tmp_path / "text.txt").write_text("the hen and the rat " * 30, encoding="utf-8")
    assert run(capsys, "-m", toy, "--data", tmp_path / "text.txt", "--layers", "0")[0] == 0


def test_refusals(toy: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(capsys)[0] == 2
    assert run(capsys, "-m", tmp_path / "no.gguf")[0] == 2
    assert run(capsys, "-m", toy, "--lora", tmp_path / "no.gguf")[0] == 2
    assert run(capsys, "-m", toy, "--layers", "9")[0] == 2
    assert run(capsys, "-m", toy, "--data", tmp_path / "no.txt")[0] == 2
    (tmp_path / "empty.txt").write_text("")
    assert run(capsys, "-m", toy, "--data", tmp_path / "empty.txt")[0] == 2


KINDS = ["qwen2, 7B", "qwen3, all dense sizes", "gemma2, 2B and 9B", "phi3, medium (GQA)"]


@pytest.mark.parametrize("name", KINDS)
def test_architectures(name: str, tmp_path: Path, capsys: Capture) -> None:
    MODELS[name].make(tmp_path / "toy.gguf")
    code, out, err = run(capsys, "-m", tmp_path / "toy.gguf", "--data", "")
    assert (code, err) == (0, ""), out
    assert usual_layers(load_model(tmp_path / "toy.gguf"))[0] == 0


@pytest.mark.slow
def test_the_demo_model(demo_model: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "-m", demo_model, "--json")
    found = json.loads(out)["checked"]
    assert (code, err) == (0, "") and len(found) == 2 * (2 + 2 * 9)
    assert max(c["error"] for c in found) < 2e-4
