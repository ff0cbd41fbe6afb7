"""The program `python -m nbllama.gradcheck -m model.gguf`."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import TYPE_CHECKING

from nbllama.errors import NbllamaError, NotEnoughMemory, UsageError, shown
from nbllama.options.gradcheck import GradcheckOptions, parse
from nbllama.system.program import run_program
from nbllama.system.regular import first_bytes

if TYPE_CHECKING:
    from nbllama.data.batch import Batch
    from nbllama.gradcheck.check import Checked, Losses
    from nbllama.model.passes import Model

_TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all; it sleeps."


def _run(words: list[str]) -> None:
    o = parse(words)
    from nbllama.kernels.cores import use_threads

    use_threads(o.threads)
    from nbllama.adapter.file import load_adapter
    from nbllama.gradcheck.check import check, random_adapter
    from nbllama.gradcheck.part import part_of, part_of_adapter, usual_layers
    from nbllama.model.passes import load_model
    from nbllama.train.run.layers import blocks

    start = time.perf_counter()
    whole = load_model(o.model_base)
    layers = list(blocks(o.layers, whole.hp.n_layer)) if o.layers else usual_layers(whole)
    _check_memory(whole, layers)
    model, batch = part_of(whole, layers), _batch(whole, o)
    if o.lora:
        try:
            adapter = load_adapter(o.lora, whole.hp, whole.shapes)
        except FileNotFoundError:
            raise UsageError(f"{shown(o.lora, 400)}: no such adapter file") from None
        adapter = part_of_adapter(adapter, layers)
        if not adapter.pairs:
            raise UsageError(
                "--layers: the adapter has no pairs in these blocks; pass different blocks"
            )
    else:
        adapter = random_adapter(model, o.rank, o.seed)
    losses: list[Losses] = []
    found = list(
        check(model, adapter, batch, tolerance=o.tolerance, seed=o.seed, tell=losses.append)
    )
    # the model contains only a few blocks, renumbered: report the names in the file
    found = [c._replace(name=_old_name(model, c.name)) for c in found]
    _print(o, found, losses[0], layers, batch.n_tokens, time.perf_counter() - start)
    wrong = [c for c in found if c.verdict == "WRONG"]
    if wrong:
        c = max(wrong, key=lambda c: c.error)
        raise NbllamaError(
            f"{len(wrong)} of {len(found)} gradients are wrong; the largest error, in "
            f"{c.name}.{c.half}, is {c.error:.2g} times the gradient norm"
        )


def _old_name(model: Model, name: str) -> str:
    from nbllama.gradcheck.part import PartOfFile

    assert isinstance(model.gguf, PartOfFile)
    return model.gguf.old_names[name]


def _print(
    o: GradcheckOptions, found: list[Checked], losses: Losses, layers: list[int], n: int,
    seconds: float,
) -> None:  # fmt: skip
    from nbllama.gradcheck.table import table

    if o.json:
        rows = [c._asdict() | {"error": c.error if c.error == c.error else None} for c in found]
        print(json.dumps({"layers": layers, **losses._asdict(), "checked": rows}, indent=1))
        return
    print(f"blocks {', '.join(map(str, layers))}; {n} tokens; {seconds:.0f} s")
    print(f"loss {losses.ours:.6f}, in float64 {losses.reference:.6f}\n")
    print(table(found, o.all), end="")
    if any(c.verdict == "zero" for c in found):
        print("\nzero: not checked; the gradient of A is zero while B is zero, as in a new adapter")


def _check_memory(model: Model, layers: list[int]) -> None:
    """Raise `NotEnoughMemory` if two float64 copies of the blocks do not fit in memory."""
    import math

    from nbllama.gradcheck.part import renamed
    from nbllama.system.memory import available_memory

    shapes = (t.shape for name, t in model.gguf.tensors.items() if renamed(name, layers))
    need = 2.5 * 8 * sum(map(math.prod, shapes))
    if need > (left := available_memory()):
        raise NotEnoughMemory(
            f"{len(layers)} blocks in float64 need {need / 1e9:.1f} GB, but only {left / 1e9:.1f} "
            "GB is free; pass fewer blocks, such as --layers first:1"
        )


def _batch(model: Model, o: GradcheckOptions) -> Batch:
    """Return the first tokens of the text as two sequences that do not attend to each other."""
    import numpy as np

    from nbllama.data.batch import Batch
    from nbllama.errors import DataError

    text = _TEXT * (1 + o.tokens // 16)
    if o.data:
        try:
            text = first_bytes(o.data, 64 * o.tokens).decode("utf-8", "ignore")
        except OSError as e:
            raise DataError(f"{shown(o.data, 400)}: cannot be read: {e.strerror}") from e
    ids = np.array(model.tokenizer.encode(text, add_special=False)[: o.tokens + 1], np.int32)
    if len(ids) < 4:
        raise DataError(
            f"{shown(o.data, 400)}: {len(ids)} tokens are not enough; use a longer text"
        )
    cut = 2 * len(ids) // 3
    rows = [ids[:cut], ids[cut - 1 :]]
    return Batch.from_rows([(row[:-1].copy(), row[1:].copy()) for row in rows])


main = partial(run_program, _run)
