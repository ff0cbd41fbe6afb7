"""nbllama: LoRA training of quantised GGUF models on CPUs, with readable kernels.

    import nbllama
    model = nbllama.load_model("model.gguf")
    tokens = model.tokenizer.encode("Hello", add_special=True)
    logits = nbllama.logits(model, tokens)                         # float32 [N, V]
    adapter = nbllama.init_adapter(model, rank=4)
    loss, grads = nbllama.loss_and_gradients(model, adapter, tokens)  # by tensor name

`run = nbllama.tune(model, data)` trains an adapter, and `model.generate(prompt)` completes a prompt
(docs/python.md). Every tensor is a numpy array: `model.tensor(name)`, `adapter.parameters()`,
`nbllama.trace(...)`.
"""

from __future__ import annotations

import sys


def _starts_a_program() -> bool:
    """Return whether the package is imported by the command `nbllama` or `python -m nbllama...`."""
    words, name = sys.orig_argv, sys.argv[0] if sys.argv else ""
    if name == "-m":  # Python is locating the module
        word = words[words.index("-m") + 1] if "-m" in words else ""
        return word.partition(".")[0] == "nbllama"
    return name.replace("\\", "/").rpartition("/")[2] in ("nbllama", "nbllama.exe")


if _starts_a_program():
    # Until the program has installed its handlers, Ctrl-C ends it without a traceback.
    try:
        import _signal as signal  # type: ignore[import-not-found]  # signal imports more

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:
        sys.exit(130)

from typing import TYPE_CHECKING, Any  # noqa: E402

__version__ = "0.2.0"
__all__ = [
    "AdamW",
    "Adapter",
    "Model",
    "NbllamaError",
    "__version__",
    "generate",
    "generate_many",
    "init_adapter",
    "load_adapter",
    "load_model",
    "logits",
    "loss_and_gradients",
    "save_adapter",
    "trace",
    "tune",
]

if TYPE_CHECKING:
    from nbllama.adapter.savable import Adapter
    from nbllama.api import (
        init_adapter,
        load_adapter,
        logits,
        loss_and_gradients,
        save_adapter,
        trace,
        tune,
    )
    from nbllama.errors import NbllamaError
    from nbllama.generation.batch import generate_many
    from nbllama.generation.model import Model, load_model
    from nbllama.generation.session import generate
    from nbllama.opt.adamw import AdamW

_HOME = {
    "AdamW": "opt.adamw",
    "Adapter": "adapter.savable",
    "Model": "generation.model",
    "NbllamaError": "errors",
    "generate": "generation.session",
    "generate_many": "generation.batch",
    "load_model": "generation.model",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import nbllama` is fast."""
    if name not in __all__:
        raise AttributeError(f"module 'nbllama' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"nbllama.{_HOME.get(name, 'api')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
