"""docs/kernels.md from the rows that scripts/tools/kernel_tables measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.kernels.registry import CASES, GROUPS, NO_CASE, Case

HEAD = """# Every kernel beside numpy and llama.cpp

Made by `scripts/tools/kernel_tables` on {date}; {machine}, one
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


LAST = {"module": "module", "llama.cpp": "llama.cpp's side", "size": "size"}
"""The columns behind the numbers; one that is the same in a whole table stands above it."""


def page(rows: dict[str, Any], about: dict[str, Any]) -> str:
    out = [HEAD.format(**about)]
    for group in GROUPS:
        title, text = TEXTS[group]
        cases = [case for case in CASES if case.group == group and case.name in rows]
        cells = {case.name: about_case(case) for case in cases}
        common = {
            column: next(iter(cells.values()))[column]
            for column in LAST
            if len({c[column] for c in cells.values()}) == 1
        }
        said = "; ".join(f"{LAST[column]} {value}" for column, value in common.items())
        out.append(f"## {title}\n\n{text}\n")
        if said:
            out.append(f"All rows: {said}.\n")
        out.append('<div class="numbers" markdown>\n')
        out += table(cases, rows, cells, [column for column in LAST if column not in common])
        out.append("</div>\n")
    out.append("## Without a row\n")
    out += [f"- `{name.removeprefix('nbllama.')}`: {why}" for name, why in sorted(NO_CASE.items())]
    return "\n".join(out) + "\n"


def about_case(case: Case) -> dict[str, str]:
    module = f"`{case.page.removeprefix('nbllama.')}`"
    return {"module": module, "llama.cpp": case.llama, "size": case.shape}


def table(
    cases: list[Case], rows: dict[str, Any], about: dict[str, dict[str, str]], last: list[str]
) -> Iterator[str]:
    head = ["what", "to numpy", "to llama.cpp", "rate", "x numpy", "x llama.cpp"]
    head += [LAST[column] for column in last]
    yield "| " + " | ".join(head) + " |"
    yield "| " + " | ".join("---" for _ in head) + " |"
    for case in cases:
        row = rows[case.name]
        cells = [case.name, error(row["error"]), error(row["llama_error"])]
        cells += [f"{row['rate']:.3g} {case.unit}", times(row["times_numpy"])]
        cells += [times(row["times_llama"]), *(about[case.name][column] for column in last)]
        yield "| " + " | ".join(cells) + " |"
    yield ""


def error(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"
