"""The ops that models are built from; each module contains one op and its variants.

`OPS` lists all ops and is built when it is first accessed. To add a module, add its name to `PAGES`
and define `OPS: tuple[Op, ...]` in the module.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbllama.ops.op import Op

    OPS: tuple[Op, ...]

PAGES = (
    "embed",
    "rms_norm",
    "layer_norm",
    "rope",
    "short_conv",
    "delta_net.conv",
    "delta_net.gates",
    "delta_net.grad",
    "out_gate",
    "activation",
    "ungated",
    "experts.router",
    "experts.gate",
    "experts.rows",
    "linear.linear",
    "attention.grad",
    "attention.tree",
    "attention.sinks",
    "softcap",
    "cross_entropy",
)


def __getattr__(name: str) -> Any:
    if name != "OPS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    ops = tuple(op for page in PAGES for op in import_module(f"{__name__}.{page}").OPS)
    globals()["OPS"] = ops
    return ops
