"""The public functions, used as in the documentation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from nbllama.data import Batch
from nbllama.errors import CheckpointError, GGUFError, UsageError
from nbllama.model.passes import Model
from nbllama.model.reference import ReferenceModel
from tests.conftest import ROOT
from tests.train.toy_runs import same_bits, toy_adapter, toy_model

TOKENS = [1, 45, 7, 300, 12, 12, 99, 260]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model(tmp_path_factory.mktemp("model"))


def cross_entropy(logits: np.ndarray, targets: list[int]) -> np.ndarray:
    """Loss of each row in float64."""
    z = logits.astype(np.float64)
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), targets]


def test_the_example_of_the_package_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_model(tmp_path)
    (tmp_path / "toy.gguf").rename(tmp_path / "model.gguf")
    monkeypatch.chdir(tmp_path)
    assert nbllama.__doc__
    code = textwrap.dedent("\n".join(re.findall(r"(?m)^    .*$", nbllama.__doc__)))
    assert code.count("\n") == 5
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["logits"].shape == (len(names["tokens"]), 320)
    assert names["loss"] > 0 and names["grads"].keys() == names["adapter"].parameters().keys()


@pytest.mark.parametrize("with_adapter", [False, True])
def test_logits_are_those_of_plain_numpy(model: Model, with_adapter: bool) -> None:
    adapter = toy_adapter(model) if with_adapter else None
    params = {} if adapter is None else adapter.parameters()
    ids = np.array(TOKENS, np.int32)
    wanted = ReferenceModel(model).logits(
        Batch.from_rows([(ids, ids)]), params, 0.0 if adapter is None else adapter.scale
    )
    found = nbllama.logits(model, TOKENS, adapter)
    assert found.shape == (len(TOKENS), 320) and found.dtype == np.float32
    # float32 through two blocks; the largest logit is about 4
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(nbllama.logits(model, ids, adapter), found)


def test_the_loss_is_that_of_the_logits(model: Model) -> None:
    adapter = toy_adapter(model)
    z = nbllama.logits(model, TOKENS, adapter)
    loss, _ = nbllama.loss_and_gradients(model, adapter, TOKENS)
    wanted = cross_entropy(z[:-1], TOKENS[1:]).mean()
    assert loss == pytest.approx(wanted, rel=1e-6)
    targets = [-1, 5, -1, -1, 319, 0, -1, 7]
    loss, _ = nbllama.loss_and_gradients(model, adapter, TOKENS, targets)
    at = [i for i, t in enumerate(targets) if t >= 0]
    wanted = cross_entropy(z[at], [targets[i] for i in at]).mean()
    assert loss == pytest.approx(wanted, rel=1e-6)


def test_gradients_have_names_and_shapes_of_the_parameters(model: Model) -> None:
    adapter = toy_adapter(model)
    loss, grads = nbllama.loss_and_gradients(model, adapter, TOKENS)
    params = adapter.parameters()
    assert list(grads) == list(params)
    for name, g in grads.items():
        assert g.shape == params[name].shape and g.dtype == np.float32
        assert np.abs(g).max() > 0, name
    again, same = nbllama.loss_and_gradients(model, adapter, TOKENS, checkpointing=True)
    assert again == loss and same_bits(same, grads)


def test_one_optimiser_step_lowers_the_loss(model: Model) -> None:
    adapter = nbllama.init_adapter(model, rank=4)
    before, grads = nbllama.loss_and_gradients(model, adapter, TOKENS)
    info = nbllama.AdamW(adapter.parameters(), alpha=1e-2).step(grads)
    after, _ = nbllama.loss_and_gradients(model, adapter, TOKENS)
    assert info.grad_norm > 0 and after < before - 0.01


def test_trace_gives_every_activation(model: Model) -> None:
    adapter = toy_adapter(model, {"wq": 2})
    found = nbllama.trace(model, TOKENS, adapter)
    n, hp = len(TOKENS), model.hp
    shapes = {
        "x": (n, hp.n_embd), "q": (n, hp.n_head, hp.head_dim), "k": (n, hp.n_head_kv, hp.head_dim),
        "v": (n, hp.n_head_kv, hp.head_dim), "att": (n, hp.n_head, hp.head_dim),
        "x_mid": (n, hp.n_embd), "gate": (n, hp.n_ff), "up": (n, hp.n_ff),
    }  # fmt: skip
    wanted = {f"blk.{i}.{k}": s for i in range(hp.n_layer) for k, s in shapes.items()}
    wanted |= {"x_out": (n, hp.n_embd), "logits": (n, hp.n_vocab)}
    assert {name: x.shape for name, x in found.items()} == wanted

    np.testing.assert_array_equal(found["logits"], nbllama.logits(model, TOKENS, adapter))
    np.testing.assert_array_equal(found["blk.0.x"], model.tensor("token_embd.weight")[TOKENS])
    for i in range(hp.n_layer):
        x, x_mid, gate = (found[f"blk.{i}.{k}"] for k in ("x", "x_mid", "gate"))
        att = found[f"blk.{i}.att"].reshape(n, -1)
        w_o, w_down = (model.tensor(f"blk.{i}.{t}.weight") for t in ("attn_output", "ffn_down"))
        act = gate / (1 + np.exp(-gate)) * found[f"blk.{i}.up"]
        after = found[f"blk.{i + 1}.x" if i + 1 < hp.n_layer else "x_out"]
        np.testing.assert_allclose(x_mid, x + att @ w_o.T, atol=1e-5)
        np.testing.assert_allclose(after, x_mid + act @ w_down.T, atol=1e-5)
        # the first token attends only to itself
        np.testing.assert_allclose(
            found[f"blk.{i}.att"][0, ::2], found[f"blk.{i}.v"][0], rtol=1e-6, atol=0
        )
    plain = nbllama.trace(model, TOKENS)
    assert np.abs(plain["blk.0.q"] - found["blk.0.q"]).max() > 1e-2
    assert same_bits({"v": plain["blk.0.v"]}, {"v": found["blk.0.v"]})


def test_a_new_adapter(model: Model) -> None:
    adapter = nbllama.init_adapter(model)
    assert {p.rank for p in adapter.pairs.values()} == {4} and adapter.scale == 1.0
    assert len(adapter.pairs) == 7 * model.hp.n_layer
    np.testing.assert_array_equal(
        nbllama.logits(model, TOKENS, adapter), nbllama.logits(model, TOKENS)
    )
    other = nbllama.init_adapter(model, 3, 12, ranks={"wq": 0, "out": 5}, seed=9)
    assert other.scale == 4.0 and other.pairs["output.weight"].rank == 5
    assert not any("attn_q" in name for name in other.pairs)
    again = nbllama.init_adapter(model, 3, 12, ranks={"wq": 0, "out": 5}, seed=9)
    assert same_bits(again.parameters(), other.parameters())
    with pytest.raises(KeyError):
        nbllama.init_adapter(model, ranks={"attn_q": 4})


def test_adapters_are_saved_and_loaded(model: Model, tmp_path: Path) -> None:
    adapter = toy_adapter(model, {"wq": 2, "w2": 2})
    assert nbllama.save_adapter(tmp_path / "a.gguf", adapter, model) == []
    loaded = nbllama.load_adapter(tmp_path / "a.gguf", model)
    assert loaded.scale == adapter.scale == 1.5
    assert same_bits(loaded.parameters(), adapter.parameters())
    np.testing.assert_array_equal(
        nbllama.logits(model, TOKENS, loaded), nbllama.logits(model, TOKENS, adapter)
    )
    (line,) = nbllama.save_adapter(tmp_path / "n.gguf", toy_adapter(model), model)
    assert "norm" in line
    other = toy_model(tmp_path, n_embd=48, n_head=4, n_head_kv=2)
    with pytest.raises(CheckpointError, match="base model has"):
        nbllama.load_adapter(tmp_path / "a.gguf", other)


def test_an_adapter_of_another_model_meets_no_kernel(model: Model, tmp_path: Path) -> None:
    other = toy_model(tmp_path, n_layer=3, n_ff=64)
    adapter = toy_adapter(model, {"w1": 2})
    for call in (nbllama.logits, nbllama.trace):
        with pytest.raises(
            CheckpointError, match=r"blk\.0\.ffn_gate\.weight has shape .96, 64."
        ) as e:
            call(other, TOKENS, adapter)
    assert e.value.exit_code == 5
    with pytest.raises(CheckpointError):
        nbllama.loss_and_gradients(other, adapter, TOKENS)
    with pytest.raises(CheckpointError, match="no such tensor"):
        nbllama.logits(model, TOKENS, toy_adapter(other, {"wq": 2}))


@pytest.mark.parametrize("token", [-1, 320, 2**40])
def test_what_is_outside_the_vocabulary_is_refused(model: Model, token: int) -> None:
    adapter = toy_adapter(model)
    with pytest.raises(ValueError, match=r"outside 0\.\.319"):
        nbllama.logits(model, [1, token, 3])
    with pytest.raises(ValueError, match=r"outside 0\.\.319"):
        nbllama.trace(model, [1, token, 3])
    for target in (-2, 320, 2**40):
        with pytest.raises(ValueError, match=r"a target is outside -1\.\.319"):
            nbllama.loss_and_gradients(model, adapter, [1, 2, 3], [4, target, -1])


def test_other_bad_arguments(model: Model) -> None:
    adapter = toy_adapter(model)
    with pytest.raises(ValueError, match="no position has a target"):
        nbllama.loss_and_gradients(model, adapter, [5])
    with pytest.raises(ValueError, match="3 tokens, but 2 targets"):
        nbllama.loss_and_gradients(model, adapter, [1, 2, 3], [4, 5])
    with pytest.raises(ValueError):
        nbllama.logits(model, [])
    with pytest.raises(GGUFError):
        nbllama.load_model(Path(__file__))
    with pytest.raises(UsageError, match="rank-out"):
        nbllama.init_adapter(_tied(model), ranks={"out": 3})


def _tied(model: Model) -> Model:
    folder = Path(model.gguf.path).parent / "tied"
    folder.mkdir()
    return toy_model(folder, tied=True)


def _look_inside(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "look_inside.py"), *args],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=600,
    )


def test_look_inside(model: Model) -> None:
    done = _look_inside(str(model.gguf.path), "--layer", "1", "--text", "the hen")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2 layers; ")
    shown = [line.split()[0] for line in lines if line.startswith("  blk.")]
    weights = [n for n in model.shapes if n.startswith("blk.1.")]
    names = ("x", "q", "k", "v", "att", "x_mid", "gate", "up")
    linears = [w for w in weights if "norm" not in w]
    assert shown[: len(weights)] == weights
    assert shown[len(weights) : len(weights) + 8] == [f"blk.1.{n}" for n in names]
    assert sorted(shown[len(weights) + 8 :]) == sorted(
        f"{w}.lora_{h}" for w in linears for h in "ab"
    )
    before, after = re.findall(r"(\d+\.\d+)", lines[-1])
    assert float(after) < float(before)


def test_look_inside_says_what_is_wrong() -> None:
    done = _look_inside("no-such.gguf")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and "no-such.gguf" in done.stderr


@pytest.mark.slow
def test_look_inside_the_demo_model(demo_model: Path) -> None:
    done = _look_inside()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("30 layers; ")
