"""Threads bound to separate cores, and the threading layer."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
from numba import prange, types

from nbllama.kernels import own_cores
from nbllama.kernels.cores import physical_cores
from nbllama.kernels.jit import kernel
from nbllama.kernels.own_cores import _cores
from tests.conftest import ROOT

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="sched_setaffinity is Linux's")

if sys.platform == "linux":
    _get_mask = types.ExternalFunction(
        "sched_getaffinity", types.int32(types.int32, types.uintp, types.voidptr)
    )

    @kernel(parallel=True)
    def _read_masks(masks):
        for i in prange(masks.shape[0]):
            _get_mask(0, 8 * masks.shape[1], masks[i].ctypes)


def bound_to(threads: int) -> list[set[int]]:
    """The processors that each of Numba's threads may use."""
    masks = np.zeros((threads, 16), np.uint64)
    _read_masks(masks)
    return sets(masks)


def sets(masks: np.ndarray) -> list[set[int]]:
    """The numbers of the bits that are set in each row of uint64 `[n, words]`."""
    bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")
    return [set(np.flatnonzero(row).tolist()) for row in bits]


@LINUX
def test_each_thread_has_a_core_and_this_thread_has_all_of_them_afterwards():
    threads = physical_cores()
    if threads < 2:
        pytest.skip("needs two cores")
    before, allowed = numba.get_num_threads(), os.sched_getaffinity(0)
    numba.set_num_threads(threads)
    try:
        with own_cores.own_cores():
            inside = bound_to(threads)
        assert bound_to(threads) == [allowed] * threads
        assert os.sched_getaffinity(0) == allowed
        assert sum(len(s) for s in inside) == len(set.union(*inside)) == len(allowed)
        with pytest.raises(KeyError), own_cores.own_cores():
            raise KeyError
        assert os.sched_getaffinity(0) == allowed
    finally:
        numba.set_num_threads(before)


@LINUX
def test_fewer_threads_than_cores_are_left_to_the_system():
    before, allowed = numba.get_num_threads(), os.sched_getaffinity(0)
    numba.set_num_threads(1)
    try:
        with own_cores.own_cores():
            assert os.sched_getaffinity(0) == allowed
    finally:
        numba.set_num_threads(before)


COMPILES = """
import os
import numba
from nbllama.kernels.jit import kernel
from nbllama.kernels.own_cores import own_cores
def add_one(x):
    return x + 1
allowed = os.sched_getaffinity(0)
with own_cores():
    if os.sched_getaffinity(0) == allowed:
        raise SystemExit(f"not bound: {numba.threading_layer()}")
    os.environ["NUMBA_DUMP_IR"] = "0"  # Numba rereads its configuration as it compiles
    print(kernel()(add_one)(3))
"""


@LINUX
def test_a_kernel_may_be_compiled_while_this_thread_has_one_core():
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two processors")
    given = {"NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER"}
    env = {name: value for name, value in os.environ.items() if name not in given}
    words = [sys.executable, "-c", COMPILES]
    done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True)
    if "not bound: workqueue" in done.stderr:
        pytest.skip("without OpenMP the thread that starts a kernel does not compute")
    assert done.stdout == "4\n", done.stderr


def masks_of(monkeypatch, siblings, processors, threads):
    """Masks as sets of processors, on a machine whose cores are `siblings`."""
    monkeypatch.setattr(own_cores, "_core_of", lambda p: next(str(s) for s in siblings if p in s))
    _cores.cache_clear()
    masks = _cores(frozenset(processors), threads)
    _cores.cache_clear()
    return None if masks is None else sets(masks[0])


PAIRS = [{i, i + 70} for i in range(70)]  # 70 cores with two processors each


def test_a_core_is_all_its_processors(monkeypatch):
    assert masks_of(monkeypatch, PAIRS, range(140), 70) == PAIRS


def test_as_many_threads_as_processors(monkeypatch):
    assert masks_of(monkeypatch, PAIRS, range(140), 140) == [{i} for i in range(140)]


def test_only_what_the_process_may_use(monkeypatch):
    assert masks_of(monkeypatch, PAIRS, [3, 73, 68], 2) == [{3, 73}, {68}]


@pytest.mark.parametrize("threads", [1, 69, 71])
def test_another_number_of_threads_is_not_bound(monkeypatch, threads):
    assert masks_of(monkeypatch, PAIRS, range(140), threads) is None


def test_one_core_needs_no_binding(monkeypatch):
    assert masks_of(monkeypatch, PAIRS, [5], 1) is None


LAYER = """
import sys
if sys.argv[1] == "none":
    sys.modules["numba.np.ufunc.omppool"] = None  # as where no OpenMP library is installed
import nbllama.kernels.jit, numba, os
from nbllama.kernels.threading_layer import get_num_threads
get_num_threads()
print(numba.threading_layer(), os.environ.get("GOMP_SPINCOUNT"))
"""


def layer(word: str, **env: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", LAYER, word], capture_output=True, text=True, check=True, cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "NUMBA_THREADING_LAYER"} | env,
    )  # fmt: skip
    return done.stdout.split()


def test_without_openmp_the_queue_of_work_takes_its_place():
    assert layer("none") == ["workqueue", "None"]


def test_a_layer_that_the_user_names_is_used():
    assert layer("all", NUMBA_THREADING_LAYER="workqueue") == ["workqueue", "None"]


def test_openmp_where_it_is_and_the_environment_stays_as_it_was():
    pytest.importorskip("numba.np.ufunc.omppool", reason="no OpenMP library")
    assert layer("all") == ["omp", "None"]
    assert layer("all", GOMP_SPINCOUNT="77") == ["omp", "77"]


STEP = """
import hashlib, sys
from pathlib import Path
import numba
from nbllama.model.gradients import loss_and_gradients
from tests.train.toy_runs import random_batch, toy_adapter, toy_model
model = toy_model(Path(sys.argv[1]))
loss, grads = loss_and_gradients(model, toy_adapter(model), random_batch(model, [70, 9]), True)
digest = hashlib.sha256()
for name in sorted(grads):
    digest.update(grads[name].tobytes())
print(numba.threading_layer(), loss.hex(), digest.hexdigest())
"""


def test_all_layers_give_the_same_bits(tmp_path):
    pytest.importorskip("numba.np.ufunc.omppool", reason="no OpenMP library")
    found = []
    for name in ("omp", "workqueue"):
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", STEP, str(folder)], capture_output=True, text=True, cwd=ROOT,
            env=os.environ | {"NUMBA_THREADING_LAYER": name},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        used, *bits = done.stdout.split()
        assert used == name
        found.append(bits)
    assert found[0] == found[1]
