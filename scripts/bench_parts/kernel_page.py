"""Write docs/kernels.md from the rows that scripts/tools/kernel_tables measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.kernels.registry import CASES, GROUPS, NO_CASE, Case

HEAD = """# Every kernel compared with numpy and llama.cpp

`scripts/tools/kernel_tables` generated this page on {date} ({machine}). Every function used
one thread. The rows come from the test registry in `tests/kernels`. `test_registry.py` also runs
every row with the two sizes that are not timed, and fails if a function in `nbllama/ops` or a
weight type has no row.

- **to numpy**: the largest difference from a reference in plain float64 numpy, divided by the
  largest number in the reference result, over three sizes: one token, odd sizes, and the size that
  is timed. For a gradient, the value is the largest difference in any of the returned arrays.
- **to llama.cpp**: the largest difference from llama.cpp's own op, called in the same process on
  the same bytes. A product with quantised weights differs by up to a hundredth, because llama.cpp
  first rounds the activations to 8 bits (to half precision for F16), whereas nbllama does not round
  them in training.
- **rate**: throughput of the best run. GB/s figures count every input and output array once; GF/s
  figures count an addition and a multiplication as two operations.
- **x numpy**, **x llama.cpp**: the kernel's speed relative to the numpy reference in float32, or to
  llama.cpp's op (medians of alternating runs). If the value is below 1, the kernel is slower. The
  machine was not idle, so compare ratios, not absolute speeds.

For an op that works in place, the time includes restoring its input before each call. llama.cpp's
ops are called one at a time. llama.cpp's own programs also use fused ops (flash attention) and, for
some types and CPUs, repacked weights, both of which are faster. [Generation](decode.md) compares
whole models with llama.cpp, and [Speed and memory](results/bench.md) compares whole steps with
other trainers.
"""

TEXTS = {
    "small": ("Token by token", "Operations on single tokens or single numbers."),
    "attention": (
        "Attention",
        "ggml's attention op has no gradient, so the llama.cpp side is a chain of ops that have"
        " gradients. A forward row counts the operations in the causal half of the matrix; a"
        " gradient row counts 2.5 times as many.",
    ),
    "products": (
        "Linear layers, LoRA and the loss",
        "The LoRA pair is computed within the product with W.",
    ),
    "decode": (
        "Weight types: decoding",
        "All results are bit-identical. The numpy reference is gguf-py's own `dequantize`.",
    ),
    "matmul": (
        "Weight types: the forward product in training",
        "The time includes packing the activations. numpy multiplies weights that were"
        " decoded to float32 in advance; llama.cpp multiplies integers.",
    ),
    "matmul gradient": (
        "Weight types: the gradient with respect to the input",
        "For this product, llama.cpp decodes the weights and does not round the activations.",
    ),
    "one token": (
        "Weight types: one token",
        "These are the products computed by `matvec`, which decodes rows. (Generation normally"
        " uses integer products instead: [Generation](decode.md).)",
    ),
    "quantise": (
        "Weight types: quantising",
        "Differences are relative L2 norms, computed on the decoded weights. gguf-py has no"
        " quantiser for the types that require a search (Q2_K to Q6_K); for these types, *to numpy*"
        " shows the quantisation error relative to the original weights.",
    ),
}


LAST = {"module": "the module", "llama.cpp": "the llama.cpp function", "size": "the size"}
"""The columns after the numbers; a value that is the same in a whole table is printed above it."""


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
        shared = [f"{LAST[column]} is {value}" for column, value in common.items()]
        out.append(f"## {title}\n\n{text}\n")
        if shared:
            parts = [*shared[:-1], f"and {shared[-1]}"] if shared[1:] else shared
            out.append(f"In all rows, {(', ' if shared[2:] else ' ').join(parts)}.\n")
        out.append('<div class="numbers" markdown>\n')
        out += table(cases, rows, cells, [column for column in LAST if column not in common])
        out.append("</div>\n")
    out.append("## Functions without a row\n")
    out.append("These functions and modules are not compared above, for the reason given:\n")
    out += [f"- `{name.removeprefix('nbllama.')}`: {why}" for name, why in sorted(NO_CASE.items())]
    return "\n".join(out) + "\n"


def about_case(case: Case) -> dict[str, str]:
    module = f"`{case.page.removeprefix('nbllama.')}`"
    return {"module": module, "llama.cpp": case.llama, "size": case.shape}


def table(
    cases: list[Case], rows: dict[str, Any], about: dict[str, dict[str, str]], last: list[str]
) -> Iterator[str]:
    head = ["what", "to numpy", "to llama.cpp", "rate", "x numpy", "x llama.cpp"]
    head += [LAST[column].removeprefix("the ") for column in last]
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
