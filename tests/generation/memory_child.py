"""A process that measures its own private memory.

`python -m tests.generation.memory_child TOY MODEL N_CTX`

RssAnon of /proc/self/status is the memory of a process that is not in files. It is read

- when a session on TOY, with the same weight types, has compiled or loaded every kernel and has
  ended: the memory of Python, Numba and its machine code;
- when a session on MODEL has filled a context of N_CTX tokens, all except the last `SINGLE` in
  one prompt.

Prints one line of JSON: the two in bytes, pages of MODEL's file that are in memory, and the
forecast of `nbllama.generation.memory`.
"""

from __future__ import annotations

import gc
import json
import sys

import numba
import numpy as np

from nbllama.generation.memory import session_memory
from nbllama.generation.session import Session
from nbllama.model.passes import load_model
from nbllama.system.memory import mapped

SINGLE = 4


def private_bytes() -> int:
    """RssAnon now."""
    gc.collect()
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("RssAnon:"))
    return 1024 * int(line.split()[1])


def fill(path: str, n_ctx: int) -> Session:
    """A session on the model whose context is full."""
    model = load_model(path)
    session = Session(model, None, n_ctx, step=n_ctx)
    ids = np.random.default_rng(1).integers(3, min(300, model.hp.n_vocab), n_ctx)
    session.feed(ids[:-SINGLE])
    for token in ids[-SINGLE:]:
        session.feed([int(token)])
    return session


def main() -> None:
    toy, path, n_ctx = sys.argv[1], sys.argv[2], int(sys.argv[3])
    fill(toy, 64)
    before = private_bytes()
    session = fill(path, n_ctx)
    after = private_bytes()
    told = session_memory(session.model, None, n_ctx, step=n_ctx, threads=numba.get_num_threads())
    found = {"before": before, "after": after, "mapped": mapped(path), "held": session.nbytes}
    print(json.dumps(found | told._asdict() | {"private": told.private}))


if __name__ == "__main__":
    main()
