"""Access any weight, activation, gradient or moment by name, as a numpy array.

    with nbllama.peek.watch(model, "attn_norm-0", "kq_soft_max-*") as seen:
        nbllama.logits(model, tokens)
    seen["attn_norm-0"]                     # float32 [N, C]
    print(seen.table())
    seen.save("forward.npz")

| module | contents |
|---|---|
| `names` | names from llama.cpp, tensor numbers from finetune.cpp, patterns |
| `watcher` | `watch`, which copies arrays while the passes run |
| `nbllama.train.run.dumps` | the same for selected iterations of `nbllama.finetune` (`--dump`) |
| `dump` | `Dump`, which maps names to arrays, and `.npz` files |
| `source` | the arrays in a dump, model, checkpoint or adapter |
| `tables`, `pictures` | statistics, differences, histograms, heat maps, attention maps |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Dump", "load", "watch"]

if TYPE_CHECKING:
    from nbllama.peek.dump import Dump, load
    from nbllama.peek.watcher import watch

_HOME = {"Dump": "dump", "load": "dump", "watch": "watcher"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'nbllama.peek' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"nbllama.peek.{_HOME[name]}"), name)
    globals()[name] = value
    return value
