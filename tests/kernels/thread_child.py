"""A process in which eight Python threads call the package at once; run by `test_turns.py`.

Prints `right`, or every call whose bytes differ from the same call alone.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import prange
from numba.core.caching import NullCache

import nbllama
from nbllama.generation.batch import generate_many
from nbllama.kernels.jit import kernel
from nbllama.lora.pairs import Adapter
from nbllama.model.passes import Model
from nbllama.ops import OPS
from nbllama.opt.adamw import AdamW
from nbllama.quants import QUANTS, decode
from nbllama.quants.encode import quantise
from nbllama.train.trainer import Trainer
from tests.train.toy_runs import random_rows, toy_adapter, toy_model, trainer

THREADS = 8
TOKENS = [[1, 45, 7, 300, 12, 12, 99, 260], list(range(3, 60)), [9, 8]]
Call = Callable[[], Any]


def digest(found: Any) -> str:
    """Hash of the bytes of all arrays, and of everything else as text."""
    h = hashlib.sha256()

    def add(x: Any) -> None:
        if isinstance(x, np.ndarray):
            h.update(f"{x.shape} {x.dtype}".encode() + x.tobytes())
        elif isinstance(x, dict):
            for name in sorted(x):
                h.update(name.encode())
                add(x[name])
        elif isinstance(x, list | tuple):
            for y in x:
                add(y)
        else:
            h.update(repr(x).encode())

    add(found)
    return h.hexdigest()


def steps(model: Model) -> Any:
    """Three steps of a separate run."""
    adapter = toy_adapter(model)
    run = trainer(model, adapter, random_rows(model, [30, 17, 25, 40]), grad_acc=2)
    losses = [run.step().loss for _ in range(3)]
    return losses, adapter.parameters()


def updates() -> Any:
    rng = np.random.default_rng(2)
    params = {"a": rng.standard_normal((40, 30)).astype(np.float32)}
    optimiser = AdamW(params)
    grads = {"a": rng.standard_normal((40, 30)).astype(np.float32)}
    return [optimiser.step(grads).grad_norm for _ in range(3)], params, optimiser.m


def saved_and_loaded(model: Model, adapter: Adapter) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.gguf"
        nbllama.save_adapter(path, adapter, model)
        return nbllama.load_adapter(path, model).parameters()


def quantised() -> Any:
    rows = np.random.default_rng(3).standard_normal((64, 1024)).astype(np.float32)
    types = {t.name: t.id for t in QUANTS.values()}
    raw = {name: quantise(types[name], rows) for name in ("Q8_0", "BF16")}
    return raw, [decode(types[name], x, rows.size) for name, x in raw.items()]


def calls(model: Model, adapter: Adapter) -> dict[str, Call]:
    made: dict[str, Call] = {}
    for i, tokens in enumerate(TOKENS):
        made[f"logits {i}"] = partial(nbllama.logits, model, tokens, adapter)
        made[f"trace {i}"] = partial(nbllama.trace, model, tokens, adapter)
        made[f"gradients {i}"] = partial(nbllama.loss_and_gradients, model, adapter, tokens)
        made[f"generate {i}"] = partial(nbllama.generate, model, tokens, 5, adapter)
    made["generate_many"] = partial(generate_many, model, TOKENS, 4, adapter)
    made["init_adapter"] = lambda: nbllama.init_adapter(model, 3, seed=4).parameters()
    made["save, load"] = partial(saved_and_loaded, model, adapter)
    made["Trainer"], made["Optimiser"] = partial(steps, model), updates
    made["quantise"] = quantised
    for op in OPS:
        rng = np.random.default_rng(7)
        inputs = op.sample(rng, "odd", np.float32)
        dy = rng.standard_normal(op.forward_ref(**inputs).shape).astype(np.float32)
        made[op.name] = partial(op.forward, **inputs)
        made[f"{op.name}, gradient"] = partial(op.grad, dy, **inputs)
    return made


def at_once(run: Callable[[int], None]) -> None:
    """`run(i)` in thread i, all started together."""
    begin = threading.Barrier(THREADS)

    def thread(i: int) -> None:
        begin.wait()
        run(i)

    threads = [threading.Thread(target=thread, args=(i,)) for i in range(THREADS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


@kernel(parallel=True)
def double(x, out):
    for i in prange(x.shape[0]):
        out[i] = x[i] + x[i]


def compiled_at_once() -> list[str]:
    """A kernel that is compiled for two types, by all threads at the same time."""
    made, wrong = kernel(parallel=True)(double.py_func), []
    made._cache = NullCache()

    def run(i: int) -> None:
        x = np.arange(1000).astype((np.float32, np.int16)[i % 2])
        out = np.empty_like(x)
        made(x, out)
        if not np.array_equal(out, 2 * x):
            wrong.append(f"compile, thread {i}")

    at_once(run)
    return wrong if len(made.signatures) == 2 else [*wrong, f"compiled {made.signatures}"]


def two_steps(run: Trainer, _: int) -> None:
    run.step()
    run.step()


def one_trainer(model: Model) -> list[str]:
    """Two steps in each thread of one and the same run, and as many in one thread."""
    found = []
    for together in (True, False):
        adapter = toy_adapter(model)
        run = trainer(model, adapter, random_rows(model, [30, 17, 25, 40]))
        if together:
            at_once(partial(two_steps, run))
        else:
            for _ in range(2 * THREADS):
                run.step()
        found.append(digest([run.iteration, adapter.parameters(), run.opt.m, run.opt.v]))
    return [] if found[0] == found[1] else ["steps of one trainer"]


def main() -> None:
    rounds = int(sys.argv[1])
    sys.setswitchinterval(1e-4)
    with tempfile.TemporaryDirectory() as folder:
        model = toy_model(Path(folder))
        made = calls(model, toy_adapter(model))
        wanted = {name: digest(call()) for name, call in made.items()}
        wrong = compiled_at_once() + one_trainer(model)
        names, fresh = list(made), toy_model(Path(folder))  # whose tables are not computed yet
        made = calls(fresh, toy_adapter(fresh))

        def run(i: int) -> None:
            for step in range(rounds * len(names)):
                name = names[(step * 7 + i * 5) % len(names)]
                try:
                    if digest(made[name]()) != wanted[name]:
                        wrong.append(name)
                except Exception as e:
                    wrong.append(f"{name}: {type(e).__name__}: {e}")

        at_once(run)
    print(numba.threading_layer(), ", ".join(wrong) or "right")


if __name__ == "__main__":
    main()
