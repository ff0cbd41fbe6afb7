"""`nbllama.peek`: activations against the float64 model, gradients and moments, bits unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from examples.toy_archs import MODELS
from nbllama.data.batch import Batch
from nbllama.errors import GGUFError, NotEnoughMemory, UsageError
from nbllama.generation.session import Session
from nbllama.model.gradients import loss_and_gradients
from nbllama.model.passes import Model, load_model
from nbllama.model.reference import ReferenceModel, parameters64
from nbllama.ops.cross_entropy import cross_entropy_ref
from nbllama.peek.dump import Dump, load
from nbllama.peek.names import BLOCK, ENDS, Patterns, aliases, kind_of
from nbllama.peek.watcher import Watcher
from nbllama.train.run.dumps import Dumps
from tests.train.toy_runs import random_rows, same_bits, state_of, toy_adapter, toy_model, trainer

ROWS = (1, 7, 12)
SLOTS = {"wq": 2, "wk": 2, "wv": 2, "wo": 2, "w1": 2, "w2": 2, "w3": 2}


def thin(name: str, folder: Path, **more: Any) -> Model:
    MODELS[name].make(folder / "toy.gguf", **more)
    return load_model(folder / "toy.gguf")


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gqa": ("llama, 7B to 30B", {}),
    "alibi": ("baichuan, 13B (ALiBi)", {}),
    "norms of q and k": ("qwen3, all dense sizes", {}),
    "biases": ("qwen2, 7B", {}),
    "post norms, window, caps": ("gemma2, 2B and 9B", {}),
    "residual scale": ("minicpm, with scales in the file", {}),
    "fused": ("phi3, medium (GQA)", {}),
}


def batch_of(model: Model) -> Batch:
    return random_rows(model, ROWS).batch(range(len(ROWS)))


@pytest.mark.parametrize("case", CASES)
def test_activations_are_those_of_the_reference(case: str, tmp_path: Path) -> None:
    """All nodes of the float64 model, and all gradients from its finite differences."""
    name, more = CASES[case]
    model = thin(name, tmp_path, **more)
    slots = {"wqkv": 2, "wo": 2, "w3": 2, "w2": 2} if model.hp.fused_qkv else SLOTS
    adapter, batch = toy_adapter(model, slots | {"tok_embd": 2}), batch_of(model)
    with nbllama.peek.watch(model, "*-0", "*-1", "*-0.grad", "result_*", "loss", "inp*") as seen:
        loss_and_gradients(model, adapter, batch, checkpointing=True)
    wanted: dict[str, np.ndarray] = {}
    reference, params = ReferenceModel(model), parameters64(adapter)
    reference.logits(batch, params, adapter.scale, seen=wanted.__setitem__)
    compared = 0
    for node, x in wanted.items():
        if node in seen:
            finite = np.isfinite(x)
            size = np.abs(x[finite]).max()
            apart = np.abs(np.where(finite, seen[node], 0) - np.where(finite, x, 0)).max()
            assert apart < 2e-5 * size, node
            np.testing.assert_array_equal(np.isfinite(seen[node]), finite, node)
            compared += 1
    hp = model.hp
    norms = 4 * hp.has_qk_norm + 4 * hp.has_post_norms
    assert compared == 2 * 17 + norms + 3  # per block, and inp_embd, result_norm, result_output
    rows = batch.targets >= 0
    losses = cross_entropy_ref(wanted["result_output"][rows], batch.targets[rows])
    np.testing.assert_allclose(seen["loss"], losses, rtol=1e-5)
    _slopes(seen, reference, params, adapter.scale, batch)


def _slopes(seen: Dump, reference: ReferenceModel, params: Any, scale: float, batch: Batch) -> None:
    """Each activation's gradient against the float64 model with that activation perturbed."""
    rng = np.random.default_rng(2)
    moved = [name for name in seen if name.endswith("-0.grad")] + ["inp_embd.grad"]
    assert len(moved) > 12
    for name in [*moved, "result_norm.grad", "result_output.grad"]:
        g, node = seen[name], name.removesuffix(".grad")
        direction = rng.standard_normal(g.shape)
        sides = []
        for sign in (1, -1):
            change = {node: sign * 1e-5 * direction}
            sides.append(reference.loss(batch, params, scale, change))
        numeric = (sides[0] - sides[1]) / 2e-5
        assert np.abs(g).max() > 0, name
        assert abs((g * direction).sum() - numeric) < 2e-4 * np.linalg.norm(g) + 1e-8, name


def test_gradients_and_moments_are_what_the_optimiser_saw(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    adapter = toy_adapter(model, SLOTS)
    opt = nbllama.AdamW(adapter.parameters(), alpha=1e-2)
    tokens = list(range(3, 20))
    before = {k: v.copy() for k, v in adapter.parameters().items()}
    with nbllama.peek.watch(model, "*.lora_*", "*.attn_q", adapter=adapter, opt=opt) as seen:
        _, grads = nbllama.loss_and_gradients(model, adapter, tokens)
        opt.step(grads)
    for name, x in before.items():
        np.testing.assert_array_equal(seen[name], x)
        np.testing.assert_array_equal(seen[f"{name}.after"], adapter.parameters()[name])
        np.testing.assert_array_equal(seen[f"{name}.grad"], grads[name])
        np.testing.assert_array_equal(seen[f"{name}.m"], opt.m[name])
        np.testing.assert_array_equal(seen[f"{name}.v"], opt.v[name])
        g = np.minimum(1, 1 / np.sqrt(sum((x**2).sum() for x in grads.values()))) * grads[name]
        np.testing.assert_allclose(seen[f"{name}.m"], 0.1 * g, rtol=2e-5, atol=1e-12)
    with nbllama.peek.watch(model, "blk.1.attn_q", "*ffn_norm.weight") as seen:
        pass
    assert {*seen} == {"blk.0.ffn_norm.weight", "blk.1.attn_q.weight", "blk.1.ffn_norm.weight"}
    np.testing.assert_array_equal(seen["blk.1.attn_q.weight"], model.tensor("blk.1.attn_q.weight"))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_a_watched_run_has_the_same_bits(
    tmp_path: Path, checkpointing: bool, dropout: float
) -> None:
    """With everything copied, and without a watcher: parameters, moments and counters."""
    model = toy_model(tmp_path)
    states = []
    for asked in ((), ("1:*",)):
        said: list[str] = []
        data = random_rows(model, [5, 9, 1, 12, 7, 6])
        t = trainer(
            model, toy_adapter(model, SLOTS), data, grad_acc=2, checkpointing=checkpointing,
            dropout=dropout, alpha=1e-2,
        )  # fmt: skip
        dumps = Dumps(asked, str(tmp_path / "d-ITERATION.npz"), t, said.append)
        for i in range(3):
            with dumps.at(i + 1):
                t.step()
        states.append(state_of(t))
        assert len(said) == len(asked) and model.watch is None
    plain, watched = states
    assert plain.counters == watched.counters and same_bits(plain.arrays, watched.arrays)
    found = load(tmp_path / "d-1.npz")
    assert found.about["iteration"] == 1 and not (tmp_path / "d-2.npz").exists()
    # two micro-batches, each with its own activations; the weights and gradients once
    names = set(found)
    others = {"ffn_geglu", "ffn_gelu", "ffn_relu2", "ffn_xielu"}  # of other models
    for node in (n for n in BLOCK if n.numbers and n.name not in others):
        assert {f"{node.name}-1", f"{node.name}-1@1"} <= names, node
    assert {n.name for n in ENDS} <= names and "Qcur-0.grad@1" in names
    assert found["Qcur-0"].shape[0] == len(found["tokens"])
    assert {f"{p}{s}" for p in t.opt.params for s in ("", ".grad", ".m", ".v", ".after")} <= names
    assert set(model.shapes) <= names


def test_nothing_is_done_for_a_watcher_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a watcher, no reference runs and there are no extra products; a watcher adds some."""
    model, adapter = toy_model(tmp_path), None
    calls: list[str] = []
    from nbllama.model import parts, passes, watching

    for module, name in ((parts, "linear"), (passes, "linear"), (watching, "cross_entropy_ref")):
        real = getattr(module, name)

        def counted(*args: Any, real: Any = real, name: str = name, **more: Any) -> Any:
            calls.append(name)
            return real(*args, **more)

        monkeypatch.setattr(module, name, counted)
    adapter = toy_adapter(model, SLOTS)
    batch = batch_of(model)
    loss_and_gradients(model, adapter, batch, checkpointing=True)
    # 7 linears in each of two blocks, and again in the first except for `down`, by checkpointing
    assert calls == ["linear"] * (7 * 2 + 6)
    calls.clear()
    with nbllama.peek.watch(model, "ffn_inp-0"):
        loss_and_gradients(model, adapter, batch, checkpointing=True)
    assert calls == ["linear"] * (7 * 2 + 6)
    calls.clear()
    with nbllama.peek.watch(model, "attn_out-0", "loss"):
        loss_and_gradients(model, adapter, batch, checkpointing=True)
    assert calls.count("linear") == 7 * 2 + 6 + 2 and calls.count("cross_entropy_ref") == 1


def test_prediction(tmp_path: Path) -> None:
    """A cache: probabilities over all keys so far, and a number for each further call."""
    model, tokens = toy_model(tmp_path), [5, 9, 20, 7, 30]
    with nbllama.peek.watch(model, "kq_soft_max-1", "t34", "tokens") as seen:
        session = Session(model, None, 16, exact=True)
        session.feed(tokens[:3])
        session.feed(tokens[3:4])
        last = session.feed(tokens[4:])
    with nbllama.peek.watch(model, "kq_soft_max-1", "result_output") as whole:
        nbllama.logits(model, tokens)
    assert [seen[f"kq_soft_max-1{s}"].shape for s in ("", "@1", "@2")] == [
        (4, 3, 3), (4, 1, 4), (4, 1, 5),
    ]  # fmt: skip
    np.testing.assert_allclose(
        seen["kq_soft_max-1@2"][:, 0], whole["kq_soft_max-1"][:, 4], atol=1e-6
    )
    np.testing.assert_array_equal(seen["result_output@2"][0], last)
    np.testing.assert_allclose(seen["t34@2"][0], whole["t34"][4], atol=1e-4)


def test_names() -> None:
    assert aliases("Qcur-3@1") == ("t07-3@1", "t13-3@1") and aliases("blk.0.attn_q.weight") == ()
    fits = Patterns(["t07-*, blk.?.attn_q", "*.grad"])
    assert fits("Qcur-11") and fits("Qcur-2@5") and fits("blk.3.attn_q.weight") and fits("a.grad@2")
    assert not fits("Qcur_raw-1") and not fits("blk.3.attn_qkv.weight") and not fits("Kcur-3")
    kinds = {
        "blk.0.attn_q.weight": "weight", "output.weight.lora_b": "parameter", "l_out-4@2":
        "activation", "blk.0.attn_q.weight.lora_a.m": "moment", "l_out-4.grad@1": "gradient",
        "tokens@3": "batch", "blk.0.attn_q.weight.lora_a.grad": "gradient",
    }  # fmt: skip
    assert {name: kind_of(name) for name in kinds} == kinds
    with pytest.raises(UsageError):
        Patterns([" , "])


def test_refusals(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    watch = nbllama.peek.watch
    misspelt = pytest.raises(UsageError, match="no name matches atn_norm-0")
    with misspelt, watch(model, "attn_norm-0", "atn_norm-0"):
        pass
    too_much = pytest.raises(NotEnoughMemory, match="result_output")
    with too_much, watch(model, "result_output", most_bytes=5000):
        nbllama.logits(model, list(range(10)))
    assert model.watch is None
    twice = pytest.raises(RuntimeError, match="already being watched")
    with watch(model, "l_out-0"), twice, watch(model, "l_out-0"):
        pass
    assert isinstance(Watcher(model, Patterns(["*"]), Dump()), Watcher)
    with pytest.raises(UsageError, match=r"no name matches blk\.9"):
        adapter = toy_adapter(model, SLOTS)
        Dumps(["1:blk.9.*"], "x", trainer(model, adapter, random_rows(model, [4])), print)


def test_bad_archives(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    Dump({"a": np.arange(3.0)}, {"model": "m"}).save(path)
    assert load(path).about == {"model": "m"}
    good = path.read_bytes()
    for bad in (good[:-30], b"PK\x03\x04" + bytes(40), b""):
        path.write_bytes(bad)
        with pytest.raises(GGUFError):
            load(path)
    np.savez_compressed(path, a=np.zeros(10**6))
    with pytest.raises(GGUFError, match="compressed"):
        load(path)
    np.savez(path, a=np.array([object()], dtype=object))
    with pytest.raises(GGUFError):
        load(path)
    np.savez(path, a=np.array(["text"]))
    with pytest.raises(GGUFError, match="not an array of numbers"):
        load(path)


@pytest.mark.slow
def test_the_demo_model(demo_model: Path) -> None:
    """Logits and probabilities of the real model, whose rows sum to 1; weights as decoded."""
    model = load_model(demo_model)
    tokens = model.tokenizer.encode("The capital of France is", add_special=True)
    with nbllama.peek.watch(model, "kq_soft_max-*", "result_output", "l_out-29", "kqv_out-7",
                            "Vcur-7", "blk.3.attn_q") as seen:  # fmt: skip
        z = nbllama.logits(model, tokens)
    np.testing.assert_array_equal(seen["result_output"], z)
    assert model.tokenizer.decode([int(z[-1].argmax())]).strip() == "Paris"
    for layer in range(30):
        p = seen[f"kq_soft_max-{layer}"]
        assert p.shape == (9, len(tokens), len(tokens)) and np.triu(p, 1).max() == 0
        np.testing.assert_allclose(p.sum(axis=2), 1, atol=1e-5)
    p, v = seen["kq_soft_max-7"], seen["Vcur-7"]
    out = np.stack([p[h] @ v[:, h // 3] for h in range(9)], axis=1)
    np.testing.assert_allclose(seen["t16-7"], out, atol=1e-4)
    weight = model.tensor("blk.3.attn_q.weight")
    np.testing.assert_array_equal(seen["blk.3.attn_q.weight"], weight)
