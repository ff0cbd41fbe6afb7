"""The times at the end of a run."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from numba.core import event

from nbllama.train.run.clock import Clock
from tests.train.runs import Run, logged
from tests.train.toy_runs import events


def test_the_parts_of_the_time() -> None:
    clock = Clock(time.perf_counter() - 162)
    assert str(clock) == "0:02:42 in total"
    clock.iteration_done(70)
    clock.iteration_done(1)  # only the first iteration counts
    assert str(clock) == "0:02:42 in total, 0:01:32 of it before the first iteration"
    with clock.watching_compilation(), event.trigger_event("numba:compile"):
        time.sleep(0.02)
    assert 0.02 <= clock.compilation < 1
    assert "kernels" not in str(clock)
    row = clock.row()
    assert row["before"] is not None and 91.9 < row["before"] < 92.1
    with event.trigger_event("numba:compile"):  # the run is over
        time.sleep(0.02)
    assert clock.compilation == row["compilation"]


def test_compilation_is_shown() -> None:
    clock = Clock()
    with clock.watching_compilation(), event.trigger_event("numba:compile"):
        time.sleep(1.01)
    assert str(clock) == "0:00:01 in total; compiling kernels took 0:00:01"


def test_a_run_counts_from_the_start_of_the_program(folder: Path, run: Run) -> None:
    start = time.perf_counter()
    done = run(logged(folder, 2))
    all_seconds = time.perf_counter() - start
    assert done.code == 0, done.err
    assert re.search(r"^time +\S+ in total, \S+ of it before the first iteration", done.out, re.M)
    (row,) = events(folder / "log.jsonl", "end")
    steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    seconds = sum(step["seconds"] for step in steps if "event" not in step)
    assert 0 < row["before"] <= row["seconds"] - seconds
    assert all_seconds - 0.5 < row["seconds"] <= all_seconds
