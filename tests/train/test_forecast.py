"""The forecast equals the real memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from examples.toy_models import make_llama
from nbllama.errors import NotEnoughMemory
from nbllama.model.passes import Model
from nbllama.system import memory as system_memory
from nbllama.system.memory import available_memory, mapped
from nbllama.train import forecast
from nbllama.train.forecast import Forecast, check_memory
from nbllama.train.probe import step_seconds
from nbllama.train.trainer import Trainer
from tests.train.toy_runs import (
    random_rows,
    run_child,
    toy_adapter,
    toy_model,
    toy_text,
    trainer,
    words,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return toy_model(tmp_path_factory.mktemp("model"))


def make(model: Model, checkpointing: bool = True, **options: Any) -> Trainer:
    rows = random_rows(model, (30, 20, 25))
    return trainer(model, toy_adapter(model), rows, checkpointing=checkpointing, **options)


def test_activations_and_logits_to_the_byte(model: Model) -> None:
    taken = {}
    for checkpointing in (True, False):
        t = make(model, checkpointing)
        told = check_memory(t, 1)
        assert told.activations[checkpointing] == t.acts.nbytes
        assert told.loss == sum(x.nbytes for x in vars(t.buffers).values())
        assert told.saving == 12 * t.adapter.n_parameters
        assert told.weights == Path(model.gguf.path).stat().st_size
        taken[checkpointing] = told.activations
    assert taken[True] == taken[False] and taken[True][False] > 1.2 * taken[True][True]


def test_the_parts_add_up() -> None:
    told = Forecast(1, {True: 20, False: 300}, False, 300, 4000, 50000, 600000, 7000000, 0.5, 0.4)
    assert told.untouched == 654300 and told.peak == 7654301
    assert told._replace(chosen=20).untouched == 654020


def test_forecasting_changes_no_bit(model: Model) -> None:
    t = make(model)
    name = "blk.0.attn_q.weight.lora_a"
    values = t.adapter.parameters()[name], t.opt.m[name]
    for x in values:
        x[0, :4] = [-0.0, 1e-42, 3.5, -1e30]
    before = [x.tobytes() for x in values]
    check_memory(t, 2)
    assert [x.tobytes() for x in values] == before


def test_too_little_memory_is_said_before_anything_is_compiled(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = make(model, False)
    need, with_it = (check_memory(make(model, c), 1).untouched for c in (False, True))
    assert with_it < need - 1000
    monkeypatch.setattr(forecast, "available_memory", lambda: need)
    assert check_memory(t, 1).untouched == need
    monkeypatch.setattr(forecast, "available_memory", lambda: need - 1)
    with pytest.raises(NotEnoughMemory, match="pass --use-checkpointing") as e:
        check_memory(t, 1)
    assert e.value.exit_code == 4
    monkeypatch.setattr(forecast, "available_memory", lambda: with_it - 1)
    for checkpointing in (False, True):
        with pytest.raises(NotEnoughMemory, match="smaller --batch or --ctx"):
            check_memory(make(model, checkpointing), 1)


@pytest.mark.parametrize("version", [1, 2])
def test_control_groups_limit_what_is_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    own, (limit, used) = tmp_path / "cgroup", ("max", "current")
    root, line, total = tmp_path / "fs", "0::/outer/inner", ""
    if version == 1:
        line, total, limit, used = (
            "7:cpu:/x\n5:memory:/outer/inner",
            "total_",
            "limit_in_bytes",
            "usage_in_bytes",
        )
        root = root / "memory"
    own.write_text(line + "\n")
    monkeypatch.setattr(system_memory, "PROC_CGROUP", str(own))
    monkeypatch.setattr(system_memory, "SYS_CGROUP", str(tmp_path / "fs"))
    everything = psutil.virtual_memory().available

    def group(folder: str, most: str, now: str, files: int) -> None:
        at = root / folder
        at.mkdir(parents=True, exist_ok=True)
        (at / f"memory.{limit}").write_text(most + "\n")
        (at / f"memory.{used}").write_text(now + "\n")
        (at / "memory.stat").write_text(
            f"anon 5\n{total}active_file {files}\n{total}inactive_file 7\nodd\n"
        )

    group("outer/inner", "max" if version == 2 else "9223372036854771712", "4000", 100)
    assert available_memory() > everything / 2
    group("outer", "500000", "60000", 3000)
    assert available_memory() == 500000 - 60000 + 3007
    group("outer/inner", "5000", "4000", 100)
    assert available_memory() == 1000 + 107
    group("outer/inner", "3000", "4000", 0)
    assert available_memory() == 0
    own.unlink()
    assert available_memory() > everything / 2


def test_the_mapped_file_is_not_counted_twice(tmp_path: Path) -> None:
    model = toy_model(tmp_path, n_vocab=9000)  # 2.3 MB of embeddings, and as much of output
    path = model.gguf.path
    before = mapped(path)
    sums = [float(model.gguf.data(n).astype(np.uint32).sum()) for n in model.gguf.tensors]
    assert len(sums) > 20
    size = Path(path).stat().st_size
    assert before < size and 0.95 * size < mapped(path) < size + 2 * 4096
    assert mapped(tmp_path / "no such file") == 0


# 4 blocks of 256: a step's memory (about 100 MB without checkpointing) is then large enough to see
# next to the 170 MB of an interpreter with its kernels.
SMALL: dict[str, Any] = dict(
    n_layer=4, n_embd=256, n_head=8, n_head_kv=4, n_ff=512, n_vocab=3000, n_ctx_train=256
)


@pytest.mark.parametrize(
    "how",
    [
        "--no-checkpointing",
        pytest.param("--use-checkpointing", marks=(pytest.mark.slow, pytest.mark.long)),
    ],
)
def test_the_peak_is_as_forecast(tmp_path: Path, how: str) -> None:
    make_llama(tmp_path / "toy.gguf", **SMALL)
    toy_text(tmp_path / "text.txt", 3000)
    args = words(tmp_path, how, "--batch", "8", "--adam-iter", "2", ctx=256)
    done = run_child(args, tmp_path)
    assert done.code == 0, done.err
    found = re.search(r"(?m)^peak memory +(\d+) MB, forecast (\d+) MB$", done.out)
    assert found, done.out
    peak, told = map(int, found.groups())
    assert peak > 170
    assert told == pytest.approx(peak, rel=0.15)
    assert re.search(r"(?m)^per iteration +[0-9.]+ s, forecast [0-9.]+ s$", done.out)


def test_the_timed_loss_is_not_of_certain_tokens(tmp_path: Path) -> None:
    """A tied output layer is certain of a token if it reads its embedding: denormals follow."""
    model = toy_model(tmp_path, tied=True)
    t = make(model)
    step_seconds(t)
    n = t.laid_out(t.feed.take(t.position, t.batch, 1).batches)[0].n_tokens
    first, last = t.acts.x(0, n), t.acts.x(model.hp.n_layer, n)
    np.testing.assert_allclose(np.square(last).sum(axis=1), np.square(first).sum(axis=1), rtol=1e-5)
    for a, b in zip(first, last, strict=True):
        assert abs(float(a @ b)) < 0.8 * float(a @ a)
