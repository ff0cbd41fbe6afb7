"""kill -9 of a process that saves: at any time, the file under the final name is complete."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_KILLS = """
import json, os, random, signal, sys, time
from nbllama.system import files
from nbllama.checkpoint.file import load_checkpoint, save_checkpoint
from tests.checkpoint.run_states import make_state

path, n_kills, rng = sys.argv[1], int(sys.argv[2]), random.Random(3)
state, lost, iteration = make_state(iteration=0), 0, 0
save_checkpoint(path, state)
start = time.perf_counter()
for _ in range(5):
    save_checkpoint(path, state)
one_save = (time.perf_counter() - start) / 5
for _ in range(n_kills):
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        while True:
            state.iteration += 1
            save_checkpoint(path, state)
            os.write(write, b".")
    os.close(write)
    reported = iteration + sum(len(os.read(read, 1)) for _ in range(rng.randrange(3)))
    time.sleep(rng.uniform(0, 1.5 * one_save))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        reported += len(pipe.read())
    state.iteration = iteration = load_checkpoint(path).iteration
    lost += not reported <= iteration <= reported + 1
files.sweep_temporary(path)
print(json.dumps({"lost": lost, "saved": iteration, "left": os.listdir(os.path.dirname(path))}))
"""


def kills(tmp_path: Path, n: int) -> None:
    run = [sys.executable, "-c", _KILLS, str(tmp_path / "c.gguf"), str(n)]
    out = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(out.stdout)
    assert result["lost"] == 0
    assert result["saved"] > n / 2  # one per child on average, and more if there was time
    assert result["left"] == ["c.gguf"]


def test_kill_at_random(tmp_path: Path) -> None:
    """The file is always complete, and never older than the last save reported as done."""
    kills(tmp_path, 40)


@pytest.mark.slow
@pytest.mark.long
def test_kill_at_random_many_times(tmp_path: Path) -> None:
    kills(tmp_path, 1000)


_DIE = """
import json, os, signal, sys
from nbllama.checkpoint.file import load_checkpoint, save_checkpoint
from tests.checkpoint.run_states import make_state

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
