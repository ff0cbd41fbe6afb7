"""What the user sees of a run on many machines, and machines that join a cluster."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from nbllama.cli.ui import Display, plain_line
from nbllama.report.log import StepRecord, WorkerRow, as_row
from nbllama.train.blocks.address import Address
from nbllama.train.blocks.spread import NoWorkers
from nbllama.train.blocks.worker import facts
from nbllama.train.run.many import LINK, forecast_line, plan_of, traffic
from nbllama.train.trainer import Trainer
from scripts.many_parts.scale import step_seconds
from tests.train.blocks.test_bits import made
from tests.train.runs import Run, refused
from tests.train.toy_runs import Child, log_rows, toy_model, words

ROWS = (WorkerRow("1@a", 4, 120.04, 0.973), WorkerRow("2@b", 2, 60.5, 1.0))


def record(workers: tuple[WorkerRow, ...]) -> StepRecord:
    return StepRecord(1, 4, 0, 2.5, 1e-3, 0.5, 64, 64, 32.0, 2.0, 1 << 20, workers=workers)


def test_workers_in_the_log_and_on_the_screen() -> None:
    row = as_row(record(ROWS))
    first = {"worker": "1@a", "blocks": 4, "tokens_per_s": 120.04, "share": 0.973}
    assert row["workers"][0] == first and len(row["workers"]) == 2
    assert "workers" not in as_row(record(()))
    assert plain_line(record(ROWS), 3.0).endswith(" workers=1@a:120.0:97%,2@b:60.5:100%")
    assert "workers" not in plain_line(record(()), 3.0)


def test_workers_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    with Display(out) as display:
        display.step(record(ROWS))
    assert "1@a 120 tokens/s 97 % busy, 2@b 60 tokens/s 100 % busy" in out.getvalue()


def test_the_forecast() -> None:
    assert traffic(160_000_000, 4, 2) == 960_000_000
    line = forecast_line(160_000_000, 100.0, micro=16, block=4, workers=(2, 4, 8), local=False)
    # 2 workers compute two blocks of 25 s each, and 6 gradients take 1.28 s each
    assert line.startswith("4 blocks per step, gradient 160 MB;")
    assert f"2 workers {100 / (50 + 7.68):.1f} x and 960 MB" in line
    assert f"4 workers {100 / (25 + 10.24):.1f} x and 1.28 GB" in line
    assert f"8 workers {100 / (25 + 15.36):.1f} x and 1.92 GB" in line  # half of them have no block
    line = forecast_line(1_000_000, 8.0, micro=8, block=0, workers=[2], local=True)
    assert line.startswith("1 block ") and "2 workers 0.5 x and 3 MB" in line


def test_the_simulation_of_a_network() -> None:
    one = int(LINK)  # bytes that take a second
    assert step_seconds(1, 2, 1, 10.0, one) == pytest.approx(20, rel=0.06)
    # the second worker waits for the parameters, and its gradient takes as long
    assert step_seconds(2, 1, 1, 10.0, one) == pytest.approx(12, rel=0.06)
    # the last of eight workers begins after 7 s; gradients arrive one after another
    assert step_seconds(8, 1, 1, 10.0, one) == pytest.approx(18, rel=0.06)


def test_the_forecast_before_a_run(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["--dry-run", "--grad-acc", "4", "--block", "1", "--ray"]
    done = run(words(folder, *more, "local:2"))
    assert done.code == 0 and "4 blocks per step" in done.out and "2 workers 1.0 x" in done.out
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    done = run(words(folder, *more, "10.0.0.1:6379"))
    assert done.code == 0 and "8 workers" in done.out and "1 Gbit/s" in done.out
    assert "ray" not in sys.modules


def test_a_run_without_workers_saves_and_says_how_to_continue(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def stops(self: Trainer, *how: Any) -> Any:
        if self.iteration == 2:
            raise NoWorkers("no worker was available for 30 s (--worker-timeout)")
        return step(self, *how)

    monkeypatch.setattr(Trainer, "step", stops)
    done = run(words(folder, "--block", "1"))
    assert done.code == 1, done
    assert "no worker was available for 30 s" in done.err
    assert "--checkpoint-in" in done.err and (folder / "chk-2.gguf").exists()


def test_workers_that_do_not_fit_in_memory(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--dry-run", "--grad-acc", "4", "--block", "1", "--ray", "local:4"]
    assert run(words(folder, *more)).code == 0
    monkeypatch.setattr("nbllama.train.run.many.available_memory", lambda: 1000)
    refused(run(words(folder, *more)), 4, "--ray local:4: the workers need", "fewer workers")


@pytest.mark.slow
def test_a_signal_saves_and_stops(folder: Path) -> None:
    pytest.importorskip("ray")
    more = ["--grad-acc", "4", "--block", "1", "--adam-iter", "400", "--log", "log.jsonl"]
    child = Child(words(folder, *more, "--ray", "local:1"), folder)
    log = folder / "log.jsonl"
    child.wait_for(lambda: log.exists() and len(log_rows(log)) > 2)
    child.process.terminate()
    done = child.end()
    assert done.code == 143, done
    n = len(log_rows(log))
    assert (folder / f"chk-{n}.gguf").exists()


@pytest.mark.slow
def test_a_banned_machine_does_not_come_back(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    from nbllama.train.blocks.ray_pool import RayPool

    t = made(toy_model(tmp_path))
    plan = plan_of(t, facts(), threads=1, alone=False)
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    pool = RayPool(Address(cluster.address), plan)
    try:
        first, second = pool.workers()
        node = pool.node_of(second)
        pool.lose(first)
        pool.ban(second)
        assert pool.workers() == []
        pool.begin(t.adapter.parameters())
        pool.wait_for_joining()
        (new,) = pool.workers()  # the machine of the lost worker is used again
        assert pool.node_of(new) != node
        pool.begin(None)
        pool.wait_for_joining()
        assert pool.workers() == [new]
    finally:
        pool.close()
        cluster.shutdown()
