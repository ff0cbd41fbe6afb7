"""Calls from many Python threads at once, and from forked processes, on both threading layers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nbllama.errors import NbllamaError
from nbllama.kernels import turns
from tests.conftest import ROOT

LAYERS = pytest.mark.parametrize("layer", ["omp", "workqueue"])
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def child(layer: str, *words: str, timeout: float = 300) -> str:
    """Standard output of a Python process on this threading layer."""
    if layer == "omp":
        pytest.importorskip("numba.np.ufunc.omppool", reason="no OpenMP library")
    env = os.environ | {"NUMBA_THREADING_LAYER": layer, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True, text=True, cwd=ROOT, env=env, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@LAYERS
def test_eight_threads_get_what_one_thread_gets(layer: str) -> None:
    assert child(layer, "-m", "tests.kernels.thread_child", "1").split(" ", 1) == [layer, "right\n"]


@pytest.mark.slow
@LAYERS
def test_eight_threads_for_a_while(layer: str) -> None:
    assert child(layer, "-m", "tests.kernels.thread_child", "20", timeout=900).endswith(" right\n")


FORK = """
import multiprocessing, os, sys, threading
from pathlib import Path
import nbllama
from tests.train.toy_runs import toy_model
model = toy_model(Path(sys.argv[1]))

def logits(token):
    try:
        return nbllama.logits(model, [1, 2, token]).tobytes()
    except nbllama.NbllamaError as e:
        return str(e)

def answers(context):
    with multiprocessing.get_context(context).Pool(2) as pool:
        return pool.map_async(logits, [3, 4]).get(timeout=60)

if __name__ == "__main__":
    if sys.argv[2] == "before":
        found = answers("fork")
        print("right" if found == [logits(3), logits(4)] else found)
    else:
        wanted, stop = [logits(3), logits(4)], threading.Event()
        def busy():
            while not stop.is_set():
                logits(5)
        threads = [threading.Thread(target=busy) for _ in range(2)]  # one may hold the lock
        [t.start() for t in threads]
        found = answers("fork")
        stop.set()
        [t.join() for t in threads]
        print("right" if found == wanted else "\\n".join(set(found)))
        print("right" if [logits(3), logits(4)] == wanted else "the parent is wrong")
"""


def forked(layer: str, folder: Path, when: str) -> list[str]:
    program = folder / "program.py"
    program.write_text(FORK)
    return child(layer, str(program), str(folder), when, timeout=90).splitlines()


@FORKS
@LAYERS
def test_a_child_forked_before_anything_was_computed_computes(layer: str, tmp_path: Path) -> None:
    assert forked(layer, tmp_path, "before") == ["right"]


@FORKS
def test_a_child_without_its_threads_is_refused_in_one_line(tmp_path: Path) -> None:
    line, parent = forked("omp", tmp_path, "after")
    assert "spawn" in line and parent == "right"


@FORKS
def test_the_queue_of_work_computes_in_a_forked_child(tmp_path: Path) -> None:
    assert forked("workqueue", tmp_path, "after") == ["right", "right"]


@FORKS
def test_a_turn_that_a_lost_thread_had_is_free_in_a_child() -> None:
    locks, held, end = (turns.LOCK, turns.new_turn()), threading.Event(), threading.Event()

    def hold() -> None:
        with locks[0], locks[1]:
            held.set()
            end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if all(lock.acquire(timeout=5) for lock in locks) else 1)
    status = os.waitpid(pid, 0)[1]
    end.set()
    thread.join()
    assert status == 0


def test_a_refusal_is_one_line() -> None:
    with pytest.raises(NbllamaError, match="spawn start method") as found:
        turns.refuse()
    assert "\n" not in str(found.value)


class Counted:
    """Records how many threads are inside its method at once."""

    def __init__(self) -> None:
        self.turn = turns.new_turn()
        self.inside = self.most = 0

    @turns.one_at_a_time
    def method(self, deeper: int = 1) -> int:
        self.inside += 1
        self.most = max(self.most, threading.active_count() and self.inside)
        time.sleep(0.001)
        found = self.method(deeper - 1) if deeper else 7
        self.inside -= 1
        return found


def test_methods_of_one_object_take_turns_and_may_call_each_other() -> None:
    one = Counted()
    threads = [threading.Thread(target=one.method) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert one.most == 2  # a call within a call of the same thread
    assert one.method() == 7


def test_an_error_ends_the_turn() -> None:
    @turns.in_turn
    def fails() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    free: list[bool] = []

    def other() -> None:
        free.append(turns.LOCK.acquire(timeout=5))
        turns.LOCK.release()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert free == [True]


def test_a_thread_is_not_kept_waiting_by_a_busy_one() -> None:
    """While a thread takes one turn after the other, another thread also gets its turns."""
    stop, had = threading.Event(), [0, 0]

    @turns.in_turn
    def one_turn(i: int) -> None:
        time.sleep(0.002)
        had[i] += 1

    def busy(i: int) -> None:
        while not stop.is_set():
            one_turn(i)

    threads = [threading.Thread(target=busy, args=(i,)) for i in range(2)]
    for t in threads:
        t.start()
    time.sleep(1)
    stop.set()
    for t in threads:
        t.join()
    assert min(had) > sum(had) / 20, had
