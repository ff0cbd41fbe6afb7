"""The measurements for docs/decode.md; run by scripts/tools/bench_generation.

`speed`: prompt and single tokens, the package and llama.cpp in turns in one process, as the median
of paired ratios. `memory`: private memory of a session of 512 tokens. `accuracy`: the difference
between the probabilities of a text's tokens with int8 products and with exact products.
"""

from __future__ import annotations

import argparse
import ctypes as C
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numba
import numpy as np

from nbllama.generation.memory import session_memory
from nbllama.generation.session import Session
from nbllama.model.passes import load_model

PROMPT, SINGLE, ROUNDS = 256, 24, 5
CONTEXT = 512


class Llama:
    """llama.cpp on a file: the same number of threads, otherwise its defaults."""

    def __init__(self, path: Path, n_ctx: int, threads: int) -> None:
        from tests.oracle import lib, model, vocab

        self._oracle = model
        m = lib.model_default_params()
        m.n_gpu_layers = 0
        c = lib.context_default_params()
        c.n_ctx, c.n_batch, c.n_ubatch = n_ctx, 512, 512
        c.n_threads = c.n_threads_batch = threads
        self._opened = vocab.OpenModel(path, m)
        self._context = model._new_context(self._opened._model, c)
        self._batch = model._batch_init(512, 0, 1)
        self._memory = lib.function("llama_get_memory", C.c_void_p, C.c_void_p)(self._context)
        self._clear = lib.function("llama_memory_clear", None, C.c_void_p, C.c_bool)
        self._length = 0

    def clear(self) -> None:
        self._clear(self._memory, True)
        self._length = 0

    def feed(self, tokens: Sequence[int] | np.ndarray) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = int(token), self._length + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i == len(tokens) - 1
        if self._oracle._decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        self._length += len(tokens)
        self._oracle._get_logits(self._context)


def seconds(f: Callable[[], object]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def speed(path: Path, threads: int) -> None:
    model = load_model(path)
    session, theirs = Session(model, None, 1024), Llama(path, 1024, threads)
    ids = np.random.default_rng(0).integers(3, model.hp.n_vocab, PROMPT + SINGLE)
    prompt, single = ids[:PROMPT], ids[PROMPT:, None]
    session.feed(prompt)
    session.feed(single[0])
    theirs.feed(prompt)
    times: list[list[float]] = []
    for _ in range(ROUNDS):
        session.truncate(0)
        theirs.clear()
        row = [seconds(lambda: session.feed(prompt)), seconds(lambda: theirs.feed(prompt))]
        row.append(seconds(lambda: [session.feed(t) for t in single]))
        row.append(seconds(lambda: [theirs.feed(t) for t in single]))
        times.append(row)
    best = [min(t[i] for t in times) for i in range(4)]
    print(
        f"| {path.name} | {PROMPT / best[0]:.0f} | {PROMPT / best[1]:.0f} | "
        f"{median(t[1] / t[0] for t in times):.2f} | {SINGLE / best[2]:.1f} | "
        f"{SINGLE / best[3]:.1f} | {median(t[3] / t[2] for t in times):.2f} |",
        flush=True,
    )


def private_bytes() -> int:
    """Return the RssAnon of this process; SystemExit on systems other than Linux."""
    if sys.platform != "linux":
        sys.exit("error: private memory can be measured on Linux only")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(x.split()[1] for x in lines if x.startswith("RssAnon")))


def memory(path: Path, threads: int) -> None:
    """Measure a full context of `CONTEXT` tokens, most of it one prompt. A small session runs
    first, so that memory such as machine code and the file's header is not counted.
    """
    model = load_model(path)
    for n_ctx in (64, CONTEXT):
        before = private_bytes()
        session = Session(model, None, n_ctx, step=n_ctx)
        session.feed(np.arange(3, n_ctx - 9))
        for token in range(12):
            session.feed([3 + token])
        took = private_bytes() - before
        del session
    forecast = session_memory(model, None, CONTEXT, step=CONTEXT, threads=threads)
    print(
        f"| {path.name} | {model.gguf.size / 1e6:.0f} | {forecast.cache / 1e6:.1f} | "
        f"{forecast.arena / 1e6:.1f} | {forecast.private / 1e6:.1f} | {took / 1e6:.1f} | "
        f"{took / forecast.private:.3f} |",
        flush=True,
    )


def accuracy(path: Path, text: Path, n: int = 500) -> None:
    model = load_model(path)
    ids = model.tokenizer.encode(text.read_text(encoding="utf-8"))[: n + 1]
    exact, fast = Session(model, None, len(ids), exact=True), Session(model, None, len(ids))
    losses, divergence, same = [], [], 0
    for token, target in itertools.pairwise(ids):
        p, q = (log_softmax(s.feed([token])) for s in (exact, fast))
        losses.append((-p[target], -q[target]))
        divergence.append(float((np.exp(p) * (p - q)).sum()))
        same += int(p.argmax() == q.argmax())
    a, b = np.exp(np.mean(losses, axis=0))
    print(
        f"| {path.name} | {a:.4f} | {b:.4f} | {100 * (b / a - 1):+.2f} % | "
        f"{np.mean(divergence):.5f} | {100 * same / len(losses):.1f} % |",
        flush=True,
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x -= x.max()
    return x - np.log(np.exp(x).sum())


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("what", choices=("speed", "memory", "accuracy"))
    p.add_argument("files", nargs="+", type=Path)
    p.add_argument("--threads", type=int, default=numba.get_num_threads())
    given = p.parse_args()
    numba.set_num_threads(given.threads)
    if given.what == "accuracy":
        accuracy(given.files[0], given.files[1])
        return
    for path in given.files:
        if given.what == "speed":
            speed(path, given.threads)
        else:
            memory(path, given.threads)


if __name__ == "__main__":
    main()
