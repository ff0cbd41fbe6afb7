"""The time of a training step by kernel: `profile(Case)`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import nbllama.model.block
import nbllama.model.bound
import nbllama.model.passes
import nbllama.ops.linear.linear
from bench_parts.step import Case, make_trainer
from bench_parts.timing import Sgemm, timed
from nbllama.train.probe import compile_kernels

# name of a row: the modules in which callers look up its functions
KERNELS: dict[str, list[tuple[ModuleType, str]]] = {
    "products with the weights, forward": [(nbllama.ops.linear.linear, "matmul")],
    "products with the weights, gradient": [(nbllama.ops.linear.linear, "matmul_grad")],
    "output product and loss, with gradient": [(nbllama.model.passes, "output_loss")],
    "attention": [(nbllama.model.block, "attend")],
    "attention, gradient": [(nbllama.model.block, "attend_grad")],
    "packing with h = s x Aᵀ": [(nbllama.ops.linear.linear, "pack_with_hidden")],
    "packing with dh, dA, dB": [(nbllama.ops.linear.linear, "pack_with_gradients")],
    "norms": [(nbllama.model.bound, "rms_norm"), (nbllama.model.bound, "rms_norm_grad")],
    "SwiGLU": [(nbllama.model.block, "gated"), (nbllama.model.block, "gated_grad")],
}
PRODUCTS = ("matmul", "matmul_grad", "output_loss")


@contextmanager
def counted(seconds: dict[str, float], flops: dict[str, float]) -> Iterator[None]:
    """Add up the time of every call of `KERNELS`, and the work of products."""
    before = []
    for row, places in KERNELS.items():
        for module, name in places:
            f = getattr(module, name)
            before.append((module, name, f))
            setattr(module, name, _timing(f, row, name, seconds, flops))
    try:
        yield
    finally:
        for module, name, f in before:
            setattr(module, name, f)


def _timing(
    f: Callable[..., Any], row: str, name: str, seconds: dict[str, float], flops: dict[str, float]
) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        result = f(*args, **options)
        seconds[row] += time.perf_counter() - begin
        if name in PRODUCTS:
            weight = args[0]
            tokens = len(args[2])  # length of y, dx, or the targets
            times = 4 if name == "output_loss" else 2
            flops[row] += times * tokens * weight.shape[0] * weight.shape[1]
        return result

    return call


def profile(case: Case) -> list[dict[str, Any]]:
    """Return a row per entry of `KERNELS`, and one for the rest, of the fastest step."""
    trainer = make_trainer(case)
    compile_kernels(trainer)
    trainer.step()
    sgemm, best = Sgemm(), (float("inf"), {}, {}, 0.0)
    for _ in range(case.steps):
        seconds: dict[str, float] = defaultdict(float)
        flops: dict[str, float] = defaultdict(float)
        before = sgemm.rate()
        with counted(seconds, flops):
            whole = timed(trainer.step)
        if whole < best[0]:
            best = (whole, dict(seconds), dict(flops), (before + sgemm.rate()) / 2)
    whole, spent, work, rate = best
    if missing := sorted(KERNELS.keys() - spent.keys()):
        raise RuntimeError(f"not called: {', '.join(missing)}; update KERNELS")
    rows = [
        {
            "what": what,
            "ms": 1e3 * s,
            "of_step": 100 * s / whole,
            "share": f"{work[what] / s / rate:.2f}" if what in work else "",
        }
        for what, s in sorted(spent.items(), key=lambda item: -item[1])
    ]
    left = whole - sum(spent.values())
    rest = "RoPE, residual additions, optimiser, Python"
    return [*rows, {"what": rest, "ms": 1e3 * left, "of_step": 100 * left / whole, "share": ""}]
