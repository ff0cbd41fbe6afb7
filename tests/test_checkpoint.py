"""Checkpoints: the same bits back, the old tool's layout, all kinds of damage, kill -9, pruning."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from nbllama import checkpoint
from nbllama.checkpoint import (
    SHA_KEY,
    TrainState,
    load_checkpoint,
    output_name,
    prune,
    save_checkpoint,
)
from nbllama.errors import CheckpointError, Diverged, GGUFError, OutputError, UsageError
from nbllama.gguf_io import StringArray, ValueType, open_gguf, write_gguf
from nbllama.identity import Identity, digest
from nbllama.lora import SLOTS, Adapter, base_names, init_adapter
from nbllama.opt import AdamW

ROOT = Path(__file__).resolve().parents[1]
OLD = ROOT.parent / "shared" / "data" / "old-finetune" / "a-chk-10.gguf"
MODEL = {
    "embedding_length": 24, "feed_forward_length": 40, "attention.head_count": 4,
    "attention.head_count_kv": 2, "block_count": 2, "rope.dimension_count": 6,
    "attention.layer_norm_rms_epsilon": float(np.float32(1e-5)), "rope.freq_base": 10000.0,
    "rope.scale_linear": 1.0,
}  # fmt: skip
SHAPES = {
    name: (24,) if slot.kind == "norm" else {"w2": (24, 40)}.get(slot.name, (40, 24))
    for slot, name in base_names(2)
}
RANKS = {slot.name: 1 if slot.kind == "norm" else 4 for slot in SLOTS}
SETTINGS = {"adam_alpha": 0.1 + 0.2, "batch": 4, "ctx": 64, "data_kind": "raw", "restart": False}
SEED = 2**63 + 5


@dataclasses.dataclass
class FakeHparams:
    arch: str = "llama"
    n_layer: int = 2


def identity(ranks: dict[str, int] | None = None, **changed: Any) -> Identity:
    ranks = {slot.name: (ranks or RANKS).get(slot.name, 0) for slot in SLOTS}
    same = Identity("llama", 4, 0.1, ranks, "b" * 64, "d0" * 32, MODEL, SETTINGS)
    return dataclasses.replace(same, **changed)


def optimiser(ranks: dict[str, int] | None = None, steps: int = 3) -> tuple[Adapter, AdamW]:
    adapter = init_adapter(FakeHparams(), ranks or RANKS, 0.1, 4, 1, SHAPES)
    opt = AdamW(adapter.parameters())
    for step in range(steps):
        opt.step(gradients(opt, step))
    return adapter, opt


def gradients(opt: AdamW, step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {n: rng.standard_normal(x.shape).astype(np.float32) for n, x in opt.params.items()}


def make_state(ranks: dict[str, int] | None = None, **counters: Any) -> TrainState:
    adapter, opt = optimiser(ranks)
    numbers: dict[str, Any] = {
        "seed": SEED, "iteration": opt.iteration, "sample_count": 12, "token_count": 10**12,
        "epoch": 2, "next_sample": 5, "n_samples": 7, "no_improvement": 1, "best_loss": 2.5,
        "previous_loss": 3.25, "environment": {"cpu": "znver9", "numpy": "9.9"},
    }  # fmt: skip
    return TrainState(identity(ranks), adapter, opt.m, opt.v, **numbers | counters)


def assert_same(a: TrainState, b: TrainState) -> None:
    assert a.identity == b.identity
    for name in ("arch", "alpha", "lora_r"):
        assert getattr(a.adapter, name) == getattr(b.adapter, name)
    for x, y in ((a.adapter.parameters(), b.adapter.parameters()), (a.m, b.m), (a.v, b.v)):
        assert list(x) == list(y)
        for name in x:
            assert y[name].dtype == np.float32 and y[name].flags.c_contiguous
            assert y[name].flags.writeable
            np.testing.assert_array_equal(x[name], y[name])
    skip = {"identity", "adapter", "m", "v"}
    for f in dataclasses.fields(TrainState):
        if f.name not in skip:
            assert getattr(a, f.name) == getattr(b, f.name), f.name
            assert type(getattr(a, f.name)) is type(getattr(b, f.name)), f.name


@pytest.mark.parametrize("ranks", [None, {"wq": 2, "w2": 7}, {"tok_embd": 1}])
def test_all_comes_back(tmp_path: Path, ranks: dict[str, int] | None) -> None:
    state = make_state(ranks)
    path = tmp_path / "c.gguf"
    save_checkpoint(path, state)
    assert_same(state, load_checkpoint(path))
    first = path.read_bytes()
    save_checkpoint(path, load_checkpoint(path))
    assert path.read_bytes() == first  # the same state is the same file
    assert os.listdir(tmp_path) == ["c.gguf"]


def test_training_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    straight = optimiser(steps=8)[1]
    save_checkpoint(tmp_path / "c.gguf", make_state())
    state = load_checkpoint(tmp_path / "c.gguf")
    opt = AdamW(state.adapter.parameters())
    opt.restore(state.m, state.v, state.iteration)
    for step in range(3, 8):
        opt.step(gradients(opt, step))
    for a, b in ((straight.params, opt.params), (straight.m, opt.m), (straight.v, opt.v)):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


# --- layout -------------------------------------------------------------------------------------


def test_layout_is_the_old_tool_s(tmp_path: Path) -> None:
    state = make_state()
    save_checkpoint(tmp_path / "c.gguf", state)
    reader = gguf.GGUFReader(tmp_path / "c.gguf")
    keys = {k: (f.contents(), f.types[-1].name) for k, f in reader.fields.items()}
    want = {
        "training.type": ("finetune_lora", "STRING"),
        "general.architecture": ("llama", "STRING"),
        "general.file_type": (0, "UINT32"),
        "llama.context_length": (64, "UINT32"),
        "llama.attention.head_count_kv": (2, "UINT32"),
        "llama.rope.freq_base": (10000.0, "FLOAT32"),
        "training.lora.rank.token_embd": (4, "UINT32"),
        "training.lora.rank.output_norm": (1, "UINT32"),
        "training.lora.rank.ffn_up": (4, "UINT32"),
        "training.file_version": (1, "UINT32"),
        "training.iteration_count": (3, "UINT64"),
        "training.sample_count": (12, "UINT64"),
        "training.token_count": (10**12, "UINT64"),
        "training.epoch_count": (2, "UINT64"),
        "training.shuffle.samples_hash": (0xD0D0D0D0D0D0D0D0, "UINT64"),
        "training.shuffle.sample_count": (7, "UINT64"),
        "training.shuffle.next_sample": (5, "UINT64"),
        "optimizer.file_version": (0, "UINT32"),
        "optimizer.convergence_past_count": (0, "UINT32"),
        "optimizer.parameter_count": (state.adapter.n_parameters, "UINT64"),
        "optimizer.iteration_count": (3, "UINT32"),
        "optimizer.just_initialized": (False, "BOOL"),
        "optimizer.type": ("adam", "STRING"),
        "optimizer.adam.best_loss": (2.5, "FLOAT32"),
        "optimizer.adam.previous_loss": (3.25, "FLOAT32"),
        "optimizer.adam.no_improvement_count": (1, "UINT32"),
    }
    assert {k: keys[k] for k in want} == want
    names = [t.name for t in reader.tensors]
    params = state.adapter.parameters()
    assert names == [*params, "optimizer.adam.first_moments", "optimizer.adam.second_moments"]
    stored = {t.name: t.data.reshape(tuple(t.shape)[::-1]) for t in reader.tensors}
    flat = {"first": [], "second": []}
    for name, x in params.items():
        old = x.T if name.endswith("_a") else x  # ne = [rank, n]
        np.testing.assert_array_equal(stored[name], old)
        for kind, moments in (("first", state.m), ("second", state.v)):
            flat[kind].append((moments[name].T if name.endswith("_a") else moments[name]).ravel())
    for kind, parts in flat.items():
        whole = stored[f"optimizer.adam.{kind}_moments"]
        np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert keys["nbllama.moment_order"][0] == list(params)


@pytest.mark.skipif(not OLD.exists(), reason="no checkpoint of the old tool beside this folder")
def test_superset_of_a_real_old_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.gguf", make_state())
    with open_gguf(OLD) as old, open_gguf(tmp_path / "c.gguf") as new:
        types = [{k: t for k, _, t in f.entries()} for f in (old, new)]
        del types[0]["training.shuffle.rng_state"]  # our order has no state but epoch and number
        assert {k: types[1].get(k) for k in types[0]} == types[0]
        mine = list(new.tensors)
        n_layers = 2
        assert [n for n in old.tensors if not n.startswith(f"blk.{n_layers}.")] == mine
        ranks = [len(f.tensors["blk.0.attn_q.weight.lora_a"].shape) for f in (old, new)]
        assert ranks == [2, 2]
        assert old.tensors["blk.0.attn_q.weight.lora_a"].shape == (256, 4)
        assert new.tensors["blk.0.attn_q.weight.lora_a"].shape == (24, 4)
    with pytest.raises(CheckpointError, match="of another program"):
        load_checkpoint(OLD)


def test_moments_follow_the_order_that_the_file_states(tmp_path: Path) -> None:
    state = make_state({"wq": 2, "w2": 3})
    path = tmp_path / "c.gguf"
    save_checkpoint(path, state)

    def shuffle(entries: dict[str, Any], tensors: dict[str, Any]) -> None:
        order = list(entries["nbllama.moment_order"][0])
        sizes = [tensors[n].size for n in order]
        turned = order[3:] + order[:3]
        for name in ("optimizer.adam.first_moments", "optimizer.adam.second_moments"):
            parts = np.split(tensors[name], np.cumsum(sizes)[:-1])
            tensors[name] = np.concatenate(parts[3:] + parts[:3])
        entries["nbllama.moment_order"] = (StringArray.of(turned), ValueType.ARRAY)

    forge(path, shuffle)
    assert_same(state, load_checkpoint(path))


# --- damage -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(f"{folder}/c.gguf", make_state())
        return Path(folder, "c.gguf").read_bytes()


def refused(path: Path, message: str | None = None) -> None:
    with pytest.raises(CheckpointError, match=message) as e:
        load_checkpoint(path)
    assert e.value.exit_code == 5
    assert str(e.value).startswith(str(path)) and "\n" not in str(e.value)


def test_bit_flips(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "c.gguf"
    rng = random.Random(1)
    header = good.index(b"blk.1.ffn_up.weight.lora_b") + 60
    places = [rng.randrange(len(good)) for _ in range(100)]
    places += [rng.randrange(header) for _ in range(300)]
    for place in places:
        raw = bytearray(good)
        raw[place] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        refused(path)


def test_padding_is_covered(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "c.gguf"
    path.write_bytes(good)
    with open_gguf(path) as f:
        gaps = [t.offset + t.nbytes for t in f.tensors.values() if t.nbytes % f.alignment]
    assert len(gaps) > 5
    for place in gaps:
        raw = bytearray(good)
        raw[place] = 1
        path.write_bytes(raw)
        refused(path, "damaged")


def test_truncations(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "c.gguf"
    rng = random.Random(2)
    # the file ends with padding, which may go without harm
    sizes = {0, 1, 23, 24, len(good) - 32, *(rng.randrange(len(good) - 32) for _ in range(200))}
    for size in sizes:
        path.write_bytes(good[:size])
        refused(path)
    path.write_bytes(good + b"\0" * 32)
    refused(path)


def test_two_tensors_exchanged(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "c.gguf"
    path.write_bytes(good)
    with open_gguf(path) as f:
        m, v = (f.tensors[f"optimizer.adam.{n}_moments"] for n in ("first", "second"))
    raw = bytearray(good)
    raw[m.offset : m.offset + m.nbytes] = good[v.offset : v.offset + v.nbytes]
    raw[v.offset : v.offset + v.nbytes] = good[m.offset : m.offset + m.nbytes]
    path.write_bytes(raw)
    refused(path, "damaged")


def forge(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change keys (name -> (value, type)) and tensors of a file, with a sha256 that is right."""
    with open_gguf(path) as f:
        entries = {k: (v, t) for k, v, t in f.entries() if k != SHA_KEY}
        tensors = {
            t.name: f.data(t.name).view(np.float32).reshape(t.shape).copy()
            for t in f.tensors.values()
        }
    change(entries, tensors)
    rows = [(k, *v) for k, v in entries.items()]
    sha = digest(rows, ((n, x.shape, x) for n, x in tensors.items()))
    write_gguf(path, [*rows, (SHA_KEY, sha, ValueType.STRING)], list(tensors.items()))


def key(name: str, value: Any, kind: ValueType) -> Callable[[dict, dict], None]:
    return lambda entries, tensors: entries.update({name: (value, kind)})


def drop(name: str) -> Callable[[dict, dict], None]:
    return lambda entries, tensors: (entries if name in entries else tensors).pop(name)


def tensor(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict, dict], None]:
    return lambda entries, tensors: tensors.update({name: make(tensors[name])})


def spoil(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(x: np.ndarray) -> np.ndarray:
        x.reshape(-1)[-1] = value
        return x

    return change


U32, U64, F32 = ValueType.UINT32, ValueType.UINT64, ValueType.FLOAT32
A, B = "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"
M, V = "optimizer.adam.first_moments", "optimizer.adam.second_moments"
FORGED: dict[str, tuple[Callable[[dict, dict], None], str]] = {
    "a counter of another type": (key("training.iteration_count", "10", ValueType.STRING), "count"),
    "a negative counter": (key("training.token_count", -1, ValueType.INT64), "token_count"),
    "no counter": (drop("training.shuffle.next_sample"), "next_sample.*missing"),
    "no seed": (drop("nbllama.seed"), "seed"),
    "no rank": (drop("training.lora.rank.ffn_norm"), "rank.ffn_norm"),
    "loss of another type": (key("optimizer.adam.best_loss", 3, U32), "best_loss"),
    "lora_r 0": (key("nbllama.lora_r", 0, U32), "lora_r"),
    "alpha NaN": (key("nbllama.lora_alpha", float("nan"), ValueType.FLOAT64), "alpha"),
    "alpha 0": (key("nbllama.lora_alpha", 0.0, ValueType.FLOAT64), "alpha"),
    "newer format": (key("nbllama.checkpoint_version", 2, U32), "newer nbllama"),
    "another kind": (key("training.type", "train_model", ValueType.STRING), "not a checkpoint"),
    "an adapter": (key("general.type", "adapter", ValueType.STRING), "an adapter"),
    "NaN in a first moment": (tensor(M, spoil(np.nan)), "NaN"),
    "infinite second moment": (tensor(V, spoil(np.inf)), "infinity"),
    "negative second moment": (tensor(V, spoil(-1e-9)), "negative"),
    "NaN parameter": (tensor(A, spoil(np.nan)), "NaN"),
    "short moments": (tensor(M, lambda x: x[:-1].copy()), "shape"),
    "no moments": (drop(V), "second_moments.*missing"),
    "half a pair": (drop(B), "two halves"),
    "ranks of the halves differ": (tensor(B, lambda x: x[:, :3].copy()), "shapes"),
    "another tensor": (
        lambda entries, tensors: tensors.update({"x.weight": np.ones(1, np.float32)}), "halves"),
    "integers": (tensor(A, lambda x: x.astype(np.int32)), "must be F32"),
    "order without a tensor": (
        key("nbllama.moment_order", StringArray.of([A]), ValueType.ARRAY), "moment_order"),
    "order of another type": (key("nbllama.moment_order", A, ValueType.STRING), "moment_order"),
    "all tensors gone": (lambda entries, tensors: tensors.clear(), "pairs of a LoRA run"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_content_that_cannot_be(tmp_path: Path, good: bytes, name: str) -> None:
    change, message = FORGED[name]
    path = tmp_path / "c.gguf"
    path.write_bytes(good)
    forge(path, change)
    refused(path, message)


def test_a_forged_file_without_change_is_good(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "c.gguf"
    path.write_bytes(good)
    forge(path, lambda entries, tensors: None)
    assert path.read_bytes() == good


def test_no_file_and_no_regular_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none.gguf")
    (tmp_path / "link.gguf").symlink_to("nowhere.gguf")
    for path in (tmp_path, tmp_path / "link.gguf"):
        refused(path)


def test_nothing_is_saved_that_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "c.gguf"
    save_checkpoint(path, make_state())
    before = path.read_bytes()
    for pick in (lambda s: s.m, lambda s: s.v, lambda s: s.adapter.parameters()):
        state = make_state()
        pick(state)[B][0, 0] = np.inf
        with pytest.raises(Diverged, match="not saved"):
            save_checkpoint(path, state)
    assert path.read_bytes() == before
    with pytest.raises(OutputError):
        save_checkpoint(tmp_path / "no" / "folder.gguf", make_state())


# --- kill -9 ------------------------------------------------------------------------------------

_KILLS = """
import json, os, random, signal, sys, time
from nbllama import files
from nbllama.checkpoint import load_checkpoint, save_checkpoint
from tests.test_checkpoint import make_state

path, n_kills, rng = sys.argv[1], int(sys.argv[2]), random.Random(3)
torn = lost = 0
iteration = 1
state = make_state(iteration=1)
save_checkpoint(path, state)
for _ in range(n_kills):
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.close(read)
        while True:
            state.iteration = iteration + 1
            save_checkpoint(path, state)
            iteration += 1
            os.write(write, b".")
    os.close(write)
    time.sleep(rng.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        told = iteration + len(pipe.read())
    found = load_checkpoint(path).iteration
    lost += not told <= found <= told + 1
    iteration = found
swept = len(files.sweep_temporary(path))
print(json.dumps({"lost": lost, "saved": iteration, "swept": swept, "left": os.listdir(
    os.path.dirname(path))}))
"""


def kills(tmp_path: Path, n: int) -> None:
    run = [sys.executable, "-c", _KILLS, str(tmp_path / "c.gguf"), str(n)]
    out = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(out.stdout)
    assert result["lost"] == 0
    assert result["saved"] > n / 4  # saves did happen between the kills
    assert result["left"] == ["c.gguf"]


def test_kill_at_random(tmp_path: Path) -> None:
    """The file is always whole, and never older than the last save that was told to be done."""
    kills(tmp_path, 40)


@pytest.mark.slow
def test_kill_at_random_many_times(tmp_path: Path) -> None:
    kills(tmp_path, 1000)


_DIE = """
import json, os, signal, sys
from tests.test_checkpoint import load_checkpoint, make_state, save_checkpoint

def step(real):
    def call(*args, **kwargs):
        maybe_die()
        result = real(*args, **kwargs)
        maybe_die()
        return result
    return call

def maybe_die():
    global count
    count += 1
    if count == fatal:
        os.kill(os.getpid(), signal.SIGKILL)

path, old, new, seen = sys.argv[1], make_state(iteration=1), make_state(iteration=2), []
for fatal in range(1, 40):
    save_checkpoint(path, old)
    if (child := os.fork()) == 0:
        count = 0
        for name in ("open", "fsync", "replace", "close"):
            setattr(os, name, step(getattr(os, name)))
        save_checkpoint(path, new)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    seen.append((status, load_checkpoint(path).iteration))
    if status == 0:
        break
print(json.dumps(seen))
"""


def test_kill_before_and_after_every_call(tmp_path: Path) -> None:
    run = [sys.executable, "-c", _DIE, str(tmp_path / "c.gguf")]
    out = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    seen = json.loads(out.stdout)
    # open, fsync, replace, and open, fsync, close of the folder: two places each
    assert len(seen) > 12
    assert [status for status, _ in seen] == [9] * (len(seen) - 1) + [0]
    found = [iteration for _, iteration in seen]
    assert found == sorted(found) and set(found) == {1, 2}


# --- names and pruning --------------------------------------------------------------------------


def test_output_names() -> None:
    assert output_name("out/chk-ITERATION.gguf", 30) == "out/chk-30.gguf"
    assert output_name("out/chk-ITERATION.gguf", checkpoint.LATEST) == "out/chk-LATEST.gguf"
    assert output_name("ITERATION-ITERATION", 7) == "7-ITERATION"
    assert output_name("chk.gguf", 7) == "chk.gguf"


def numbered(folder: Path, numbers: list[int]) -> str:
    for n in numbers:
        save_checkpoint(folder / f"chk-{n}.gguf", make_state({"wq": 1}, iteration=n))
    return str(folder / "chk-ITERATION.gguf")


def left(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    pattern = numbered(tmp_path, [8, 9, 10, 100, 11])
    others = ["chk-LATEST.gguf", "chk-08.gguf", "chk-.gguf", "xchk-1.gguf", "chk-1.gguf.old"]
    for name in others:
        (tmp_path / name).write_bytes((tmp_path / "chk-8.gguf").read_bytes())
    assert prune(pattern, 0, 11) == []
    # 100 is not from the past of iteration 11
    removed = [str(tmp_path / f"chk-{n}.gguf") for n in (9, 8)]
    assert prune(pattern, 2, 11) == removed
    assert left(tmp_path) == sorted(others + [f"chk-{n}.gguf" for n in (10, 11, 100)])
    assert prune(pattern, 2, 11) == []


def test_prune_counts_and_removes_only_valid_files(tmp_path: Path) -> None:
    pattern = numbered(tmp_path, [1, 2, 3, 4])
    whole = (tmp_path / "chk-4.gguf").read_bytes()
    (tmp_path / "chk-4.gguf").write_bytes(whole[:-100] + b"\0" * 100)  # moments gone
    (tmp_path / "chk-0.gguf").write_text("notes")
    assert prune(pattern, 2, 4) == [str(tmp_path / "chk-1.gguf")]
    assert left(tmp_path) == [f"chk-{n}.gguf" for n in (0, 2, 3, 4)]


def test_prune_in_the_current_folder_and_without_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered(tmp_path, [1, 2])
    monkeypatch.chdir(tmp_path)
    assert prune("chk-LATEST.gguf", 1, 9) == []
    assert prune("chk-ITERATION.gguf", 1, 9) == ["chk-1.gguf"]
    with pytest.raises(UsageError, match="--keep-last"):
        prune("run-ITERATION/chk.gguf", 1, 9)


def test_errors_are_not_gguf_errors(tmp_path: Path) -> None:
    (tmp_path / "c.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError) as e:
        load_checkpoint(tmp_path / "c.gguf")
    assert not isinstance(e.value, GGUFError)
