"""docs/kernels.md from the rows that scripts/kernel_tables measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.kernels.registry import CASES, GROUPS, NO_CASE, Case

HEAD = """# Every kernel beside numpy and llama.cpp

Made by `scripts/kernel_tables` on {date}; {machine}, one
thread each. The rows are the registry of the tests, `tests/kernels`: `test_registry.py` runs each
of them in two other sizes, and fails when a function of `nbllama/ops` or a weight type has none.

- **to numpy**: the largest difference to a reference in plain numpy and float64, divided by the
  largest number of the reference, over three sizes: one token, odd numbers of everything, and the
  size that is timed. A gradient's row is for all arrays that it returns; the largest counts.
- **to llama.cpp**: the same against llama.cpp's own op, called in the same process on the same
  bytes. A product with quantised weights differs by up to a hundredth, because llama.cpp first
  rounds the activations to 8 bits (to halves for F16), and training here does not.
- **rate**: of the best run. GB/s count every array that goes in or out once, GF/s an addition and a
  multiplication as two.
- **x numpy**, **x llama.cpp**: how many times as fast as the same reference in float32, and as
  llama.cpp's op: medians of runs in turns. Below 1 the other is faster. The machine was not idle:
  trust ratios, not rates.

Where an op works in place, the copy that lets it run again is timed with it. llama.cpp's ops are
called one by one, as its library has them; its programs also have fused ones (flash attention) and,
for some types and CPUs, repacked weights, which are faster. Whole models against llama.cpp:
[Generation](decode.md); whole steps against other trainers: [Speed and memory](results/bench.md).
"""

TEXTS = {
    "small": ("Token by token", "What works on each token or number by itself."),
    "attention": (
        "Attention",
        "ggml has no attention with a gradient: llama.cpp's side is the chain of ops that has one."
        " Forward rows count the products of a causal half, gradients 2.5 times as many.",
    ),
    "products": (
        "Linear layers, LoRA and the loss",
        "The LoRA pair rides along in the big product.",
    ),
    "decode": (
        "Weight types: decoding",
        "To the bit. numpy is gguf-py's own `dequantize`.",
    ),
    "matmul": (
        "Weight types: the product of training",
        "Packing of the activations is timed with it. numpy multiplies float32 weights that were"
        " decoded before; llama.cpp's product is one of integers.",
    ),
    "matmul gradient": (
        "Weight types: the gradient by the input",
        "Here llama.cpp decodes the weights and rounds nothing.",
    ),
    "one token": (
        "Weight types: one token",
        "The product of `matvec`, which decodes rows. (Generation with a token program multiplies"
        " integers instead: [Generation](decode.md).)",
    ),
    "quantise": (
        "Weight types: quantising",
        "Differences are relative L2 norms of the decoded weights. For the types with a search"
        " (Q2_K to Q6_K) gguf-py has no quantiser: *to numpy* is then the error of the type"
        " itself, to the weights before.",
    ),
}


def page(rows: dict[str, Any], about: dict[str, Any]) -> str:
    out = [HEAD.format(**about)]
    for group in GROUPS:
        title, text = TEXTS[group]
        cases = [case for case in CASES if case.group == group and case.name in rows]
        shapes = {case.shape for case in cases}
        common = f" All with {shapes.pop()}." if len(shapes) == 1 else ""
        out.append(f"## {title}\n\n{text}{common}\n")
        out += table(cases, rows, with_shape=not common)
    out.append("## Without a row\n")
    out += [f"- `{name.removeprefix('nbllama.')}`: {why}" for name, why in sorted(NO_CASE.items())]
    return "\n".join(out) + "\n"


def table(cases: list[Case], rows: dict[str, Any], with_shape: bool) -> Iterator[str]:
    head = ["what", *(["size"] if with_shape else []), "module", "llama.cpp", "to numpy"]
    head += ["to llama.cpp", "rate", "x numpy", "x llama.cpp"]
    yield "| " + " | ".join(head) + " |"
    yield "| " + " | ".join("---" for _ in head) + " |"
    for case in cases:
        row = rows[case.name]
        cells = [case.name, *([case.shape] if with_shape else [])]
        cells += [f"`{case.page.removeprefix('nbllama.')}`", case.llama]
        cells += [error(row["error"]), error(row["llama_error"])]
        cells += [f"{row['rate']:.3g} {case.unit}", times(row["times_numpy"])]
        cells += [times(row["times_llama"])]
        yield "| " + " | ".join(cells) + " |"
    yield ""


def error(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"
