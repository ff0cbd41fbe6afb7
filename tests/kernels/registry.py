"""All cases, and the parts of `nbllama.ops` that do not need a separate case.

A public function of a page of `nbllama/ops`, or a weight type, that is in neither fails
`test_registry.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import nbllama.ops
from tests.kernels import (
    attention,
    dense,
    elements,
    experts,
    loss,
    mixers,
    products,
    tokens,
    weights,
)
from tests.kernels.case import CASES, Case

__all__ = ["CASES", "GROUPS", "NO_CASE", "Case", "public_functions"]

assert all(
    (tokens, elements, dense, experts, attention, products, loss, mixers, weights)
)  # this registers their cases

GROUPS = (
    *("small", "attention", "products"),
    *("decode", "matmul", "matmul gradient", "one token", "quantise"),
)
"""In the order of the page."""

NO_CASE: dict[str, str] = {
    "nbllama.ops.op": "checks arguments; has no kernel",
    "nbllama.ops.token.tables": "defines the tables that `walk` reads",
    "nbllama.ops.token.run.walk": "computes one token through a whole model; "
    "compared with the ordinary forward pass by tests/generation/test_token_program.py and "
    "with llama.cpp by tests/generation/test_generation_vs_llama.py; "
    "timed by scripts/tools/bench_generation",
    "nbllama.ops.token.run.n_threads": "returns the number of threads",
    "nbllama.ops.token.run.row_product": "the only product in `walk`, compared with "
    "llama.cpp for each weight type by tests/quants/test_dot.py",
    "nbllama.ops.attention.attention.alibi_slopes": "computes a table, covered by "
    "the 'attention, ALiBi' rows",
    "nbllama.ops.attention.attention.attention_matrices": "plain numpy, used only for dumps",
    "nbllama.ops.attention.attention.probabilities": "plain numpy, used by "
    "the reference and for dumps",
    "nbllama.ops.attention.tree": "copies rows for `attention` and sums their gradients; "
    "compared with its reference by tests/ops/test_registry_sweep.py",
    "nbllama.ops.rope.rope_tables": "plain numpy, covered by the 'rope' rows",
    "nbllama.ops.rope.yarn_range": "plain numpy, called by `rope_tables`",
    "nbllama.ops.ungated.xielu_numbers": "computes two numbers, covered by the 'xielu' rows",
    "nbllama.ops.short_conv.leave_state": "copies rows, tested in tests/generation/test_states.py",
    "nbllama.ops.delta_net.delta_net.fading": "computes exponentials, covered by "
    "the 'delta_net' rows",
    "nbllama.ops.dropout.dropout_for": "generates a key, covered by the 'dropout' rows",
    "nbllama.ops.linear.tiles.forward_entry": "the kernel of `matmul`",
    "nbllama.ops.linear.tiles.gradient_entry": "the kernel of `matmul_grad`",
    "nbllama.ops.token.run.thread_entry": "the kernel of `walk`",
    "nbllama.ops.linear.matvec.matvec_entry": "the kernel of `matvec`",
    **{
        f"nbllama.ops.{name}": "a helper for sizes, checks or array layouts"
        for name in (
            "attention.attention.forward_floats", "attention.grad.gradient_floats",
            "attention.grad.n_parts", "attention.tiles.check_streams",
            "attention.tiles.round_up", "linear.linear.hidden_floats",
            "linear.lora.packed_rows", "linear.lora.check_outer", "linear.lora.reused",
            "linear.lora_grad.sum_floats", "linear.lora_grad.n_groups", "cross_entropy.packed",
            "cross_entropy.unpacked", "linear.matmul.even", "linear.matmul.k_block",
            "linear.matmul.scratch_bytes",
            "linear.matmul.split", "linear.panels.n_panels", "linear.panels.panel_floats",
            "linear.panels.panels_of", "short_conv.sequences", "delta_net.delta_net.check_inputs",
            "delta_net.grad.gradient_floats",
        )
    },
}  # fmt: skip
"""Functions, or whole modules, without a row, and why."""


def _modules() -> Iterator[str]:
    folder = Path(nbllama.ops.__path__[0])
    for path in sorted(folder.rglob("*.py")):
        name = ".".join(("nbllama", "ops", *path.relative_to(folder).with_suffix("").parts))
        yield name.removesuffix(".__init__")


def public_functions() -> dict[str, Callable[..., Any]]:
    """Every function of a page of `nbllama.ops` that other modules may call, by its full name;
    references and kernels are excluded by their names and their type.
    """
    found = {}
    for module in _modules():
        for name, f in vars(import_module(module)).items():
            function = inspect.unwrap(f) if callable(f) else f
            if (
                inspect.isfunction(function)
                and not hasattr(f, "py_func")
                and function.__module__ == module
                and not name.startswith("_")
                and not name.endswith("_ref")
            ):
                found[f"{module}.{name}"] = f
    return found
