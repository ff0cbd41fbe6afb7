"""One token by its program, against the passes that take any number of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from examples.toy_archs import MODELS, random_adapter
from nbllama.errors import GGUFError
from nbllama.generation.session import KVCache, Session
from nbllama.generation.token_program import TokenProgram, has_program
from nbllama.lora.pairs import Adapter
from nbllama.model.bound import Bound
from nbllama.model.passes import Model, load_model
from nbllama.ops.attention.few import CHUNK
from nbllama.ops.layer_norm import layer_norm_ref
from nbllama.ops.linear.int8_rows import int8_product_ref, int8_rows
from nbllama.ops.linear.linear import LoraPair
from nbllama.ops.linear.matmul import Weight
from nbllama.ops.token import tables as kinds
from nbllama.ops.token.run import walk
from nbllama.ops.token.tasks import GATE_PART
from nbllama.ops.ungated import CODES, ungated_ref, xielu_numbers
from nbllama.quants import QUANTS, as_readonly, decode
from nbllama.quants.dot import int8_block
from tests import oracle
from tests.train.toy_runs import toy_adapter, toy_model

PROMPT = [1, 45, 7, 300, 12, 12, 99]
THEN = [5, 44, 3]


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = numba.get_num_threads()
    numba.set_num_threads(min(n, before))
    try:
        yield
    finally:
        numba.set_num_threads(before)


def single(model: Model, adapter: Adapter | None, tokens: list[int], **how: Any) -> np.ndarray:
    """Logits `[len(THEN), V]` of the tokens after `tokens`, one by one."""
    session = Session(model, adapter, len(tokens) + len(THEN), **how)
    session.feed(tokens)
    return np.array([session.feed([token]) for token in THEN])


def together(model: Model, adapter: Adapter | None, tokens: list[int]) -> np.ndarray:
    """The same by passes over all tokens."""
    found = []
    for n in range(1, len(THEN) + 1):
        whole = [*tokens, *THEN[:n]]
        found.append(Session(model, adapter, len(whole), exact=True).feed(whole))
    return np.array(found)


def assert_near(got: np.ndarray, want: np.ndarray, bound: float = 2e-5) -> None:
    assert np.isfinite(want).all()
    assert np.abs(got - want).max() < bound * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("name", MODELS)
def test_a_program_says_what_the_blocks_say(tmp_path: Path, name: str) -> None:
    MODELS[name].make(tmp_path / "m.gguf")
    model = load_model(tmp_path / "m.gguf")
    assert has_program(model)
    tokens = [i % 50 + 3 for i in range(40)]  # beyond the windows
    assert_near(single(model, None, tokens), together(model, None, tokens))
    adapter = random_adapter(model, norms=True)
    got = single(model, adapter, tokens)
    assert_near(got, together(model, adapter, tokens))
    assert np.abs(got - single(model, None, tokens)).max() > 1e-3


@pytest.mark.parametrize("window", [0, 300])
def test_keys_in_several_chunks(tmp_path: Path, window: int) -> None:
    keys = {"attention.sliding_window": window} if window else {}
    thin = MODELS["gemma2, 2B and 9B" if window else "llama, 70B (64 heads, 8 KV heads)"]
    thin.make(tmp_path / "m.gguf", keys=keys, n_ctx_train=1024)
    model = load_model(tmp_path / "m.gguf")
    tokens = [i % 61 + 3 for i in range(2 * CHUNK - 2)]
    assert_near(single(model, None, tokens), together(model, None, tokens))


MIXED = {"*": "Q4_0", "attn_v": "Q6_K"}
WIDE: dict[str, Any] = dict(n_embd=256, n_head=4, n_head_kv=2, n_ff=512)


def test_threads_do_not_change_bits(tmp_path: Path) -> None:
    model = toy_model(tmp_path, types=MIXED, **WIDE)
    adapter = toy_adapter(model)
    with threads(1):
        one = single(model, adapter, PROMPT)
    with threads(2):
        np.testing.assert_array_equal(single(model, adapter, PROMPT), one)


@pytest.mark.parametrize(
    "name",
    [
        "qwen2moe, 1.5-MoE A2.7B and 57B-A14B",
        "lfm2moe, 8B-A1B",
        "qwen35moe, 35B-A3B",
    ],
)
def test_mixtures_and_hybrids_in_int8(tmp_path: Path, name: str) -> None:
    """Int8 inputs give the same bits at 1 and 2 threads, and are near the exact ones."""
    MODELS[name].make_wide(tmp_path / "m.gguf", "Q8_0")
    model = load_model(tmp_path / "m.gguf")
    adapter = random_adapter(model, norms=True)
    with threads(1):
        one = single(model, adapter, PROMPT)
    with threads(2):
        np.testing.assert_array_equal(single(model, adapter, PROMPT), one)
    # Without the large random pairs: with them rounding changes which experts a token takes.
    rounded, exact = (single(model, None, PROMPT, exact=on) for on in (False, True))
    assert not np.array_equal(rounded, exact)
    assert np.abs(rounded - exact).max() < 0.1 * np.abs(exact).max()


def test_a_broken_expert_is_found_when_a_token_takes_it(tmp_path: Path) -> None:
    MODELS["qwen3moe, 30B-A3B and 235B-A22B"].make(tmp_path / "m.gguf")
    session = Session(load_model(tmp_path / "m.gguf"), None, 8)
    broken = {
        name: tuple(w._replace(raw=as_readonly(_with_nan(w.raw))) for w in of)
        for name, of in session.model.experts.items()
    }
    session.model.experts = broken
    with pytest.raises(GGUFError, match="exps"):
        session.feed([5])


def _with_nan(raw: np.ndarray) -> np.ndarray:
    values = raw.view(np.float32).copy()
    values[5] = np.nan
    return values.view(np.uint8)


def test_a_model_of_many_types_goes_by_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model(tmp_path)
    assert has_program(model)
    monkeypatch.setattr("nbllama.generation.token_program.MOST_TYPES", 0)
    assert not has_program(model)
    assert_near(single(model, None, PROMPT), together(model, None, PROMPT))
    cache = KVCache(model, 8)
    with pytest.raises(ValueError, match="0 types, not 1"):
        TokenProgram(
            model, Bound(model, None), k=cache.k, v=cache.v, x=np.zeros(64, np.float32), exact=False
        )


def weight(name: str, n_out: int, n_in: int) -> Weight:
    type_id = oracle.QUANT_TYPES[name]
    values = np.random.default_rng([n_out, type_id]).standard_normal((n_out, n_in))
    data = oracle.quantize(type_id, values.astype(np.float32))
    return Weight(name, type_id, as_readonly(np.frombuffer(data, np.uint8)), (n_out, n_in))


def walk_through(write: Any, types: list[int], exact: bool, n: int) -> None:
    """Run a program of at most 4 phases and vectors of n numbers on two threads."""
    arrays = write.tables() | {
        "scratch": np.empty((2, n), np.float32),
        "q32": np.empty(n, np.int8), "d32": np.empty(n, np.float32),
        "s32": np.empty(n, np.float32), "q256": np.empty(n, np.int8),
        "d256": np.empty(n, np.float32), "s256": np.empty(n, np.int16),
        "drawn": np.zeros(4, np.int64), "done": np.zeros(4, np.int64),
    }  # fmt: skip
    step = np.zeros(1, kinds.STEP)
    for name, array in arrays.items():
        step[name] = array.ctypes.data
    step["n_phases"], step["most_rows"], step["width"] = len(arrays["program"]), 4, n
    walk(types, exact, step, 2)


@pytest.mark.parametrize("has_w, has_b", [(True, True), (True, False), (False, False)])
def test_layer_norm_and_ungated_activations(has_w: bool, has_b: bool) -> None:
    """The rows of LayerNorm and of layers without a gate, in the entry that the next test has."""
    from nbllama.generation.token_writer import Writer

    rng, n = np.random.default_rng(3), 1536
    x, w, b = (rng.standard_normal(n).astype(np.float32) for _ in range(3))
    w_, b_ = w if has_w else None, b if has_b else None
    normed, numbers = np.empty(n, np.float32), xielu_numbers(0.3, -0.4, 0.5, -1e-6)
    types = [oracle.QUANT_TYPES[name] for name in ("Q4_1", "Q6_K", "IQ3_S")]
    write = Writer({t: i for i, t in enumerate(types)}, True)
    at = [write.floats(array, n) for array in (x, w_, b_, normed)]
    write.phase(kinds.NORM, 1, [(*at, n, 1, 1e-5, 1.0, 0)])
    outs = {kind: np.empty(n, np.float32) for kind in CODES}
    for kind, out in outs.items():
        row = (write.floats(normed, n), write.floats(out, n), n, CODES[kind], *numbers, 0)
        write.phase(kinds.ACT, -(-n // GATE_PART), [row])
    walk_through(write, types, True, n)
    wide_w, wide_b = (None if a is None else a.astype(float) for a in (w_, b_))
    wanted = layer_norm_ref(x[None].astype(float), wide_w, wide_b, 1e-5)[0]
    np.testing.assert_allclose(normed, wanted, rtol=0, atol=3e-6)
    for kind, out in outs.items():
        wanted = ungated_ref(normed.astype(float), kind, numbers)
        np.testing.assert_allclose(out, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("exact", [False, True])
def test_products_with_bias_pair_and_addition(exact: bool) -> None:
    from nbllama.generation.token_writer import Layer, Writer

    rng, n = np.random.default_rng(2), 768
    x, w_norm = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
    ws = [weight("Q4_1", 70, n), weight("Q6_K", 1, n), weight("IQ3_S", 45, n)]
    a, b = rng.standard_normal((3, n)), rng.standard_normal((70, 3))
    pair = LoraPair(a.astype(np.float32), b.astype(np.float32), 0.5, None, None)
    bias = rng.standard_normal(45).astype(np.float32)
    normed = np.empty(n, np.float32)
    types = [w.type_id for w in ws]
    write = Writer({t: i for i, t in enumerate(types)}, exact)
    at = [write.floats(array, n) for array in (x, w_norm, None, normed)]
    write.phase(kinds.NORM, 1, [(*at, n, 0, 1e-5, 2.0, write.forms(ws))])
    ys = [np.full(w.shape[0], 7, np.float32) for w in ws]
    write.products(
        normed,
        [Layer(ws[0], pair, None, ys[0]), Layer(ws[1], None, None, ys[1], add=True),
         Layer(ws[2], None, bias, ys[2])],
    )  # fmt: skip
    walk_through(write, types, exact, n)

    mean = np.mean(x.astype(np.float64) ** 2)
    np.testing.assert_allclose(normed, 2 * w_norm * x / np.sqrt(mean + 1e-5), rtol=1e-5)
    want = []
    for w in ws:
        matrix = decode(w.type_id, w.raw, w.shape[0] * n).reshape(w.shape).astype(np.float64)
        block = 0 if exact else int8_block(w.type_id)
        rows = int8_product_ref(int8_rows(normed[None], block), matrix) if block else None
        want.append(rows[0] if rows is not None else matrix @ normed)
    want[0] += 0.5 * b @ (a @ normed)
    want[1] += 7
    want[2] += bias
    for y, wanted in zip(ys, want, strict=True):
        np.testing.assert_allclose(y, wanted, rtol=3e-6, atol=3e-6 * np.abs(wanted).max())
    assert QUANTS[types[2]].name == "IQ3_S" and not int8_block(types[2])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    cache, x = KVCache(model, 8), np.zeros(model.hp.n_embd, np.float32)
    program = TokenProgram(model, Bound(model, None), k=cache.k, v=cache.v, x=x, exact=True)
    for position in (-1, 8):
        with pytest.raises(ValueError, match="outside a context of 8"):
            program.run(position)
    wrong: list[tuple[Any, Any, Any]] = [
        (cache.k[1:], cache.v, x),
        (cache.k, cache.v[:, :7], x),
        (cache.k, cache.v, x[:-1]),
        (cache.k, cache.v, x.astype(np.float64)),
    ]
    for k, v, stream in wrong:
        with pytest.raises(ValueError):
            TokenProgram(model, Bound(model, None), k=k, v=v, x=stream, exact=True)
    for step, types in ((np.zeros(1), [0]), (np.zeros(1, kinds.STEP), [0] * 7)):
        with pytest.raises(ValueError, match="walk"):
            walk(types, True, step, 1)
