"""The registry of architectures that are checked: thin random models of each kind that people have.

`MODELS` is the one list: the logits, gradients, adapters and merges of every entry are compared in
tests/test_archs.py, and `--list-archs` must name exactly these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tests.toy_models import make_llama

WIDE = {"n_embd": 256, "n_ff": 256}


class Thin(NamedTuple):
    """A thin model: arguments of `make_llama`, and those that give rows of whole K-quant blocks."""

    arch: str
    options: dict[str, Any]
    wide: dict[str, Any] = WIDE

    def make(self, path: Path, **changes: Any) -> None:
        options: dict[str, Any] = {"arch": self.arch, **self.options, **changes}
        make_llama(path, **options)

    def make_wide(self, path: Path, types: str) -> None:
        self.make(path, types=types, **self.wide)

    @property
    def deep(self) -> bool:
        """Has as many layers as the real one, because llama.cpp goes by their number."""
        return bool(self.options.get("n_layer", 2) > 8)


MODELS: dict[str, Thin] = {
    "llama": Thin("llama", {}),
    "llama, 70B (GQA 64/8)": Thin(
        "llama",
        {"n_embd": 512, "n_head": 64, "n_head_kv": 8, "n_ff": 128},
        {"n_ff": 256},
    ),
    "llama, Mistral": Thin(
        "llama", {"keys": {"attention.sliding_window": 16}, "rope_freq_base": 1e6}
    ),
    "llama, Chinese-LLaMA-2-16k": Thin(
        "llama", {"n_head_kv": 4, "rope_scaling": ("linear", 4.0), "n_vocab": 555}
    ),
    "llama, Llama 3 1B": Thin(
        "llama",
        {"tied": True, "rope_factors": True, "rope_freq_base": 500000.0, "tokenizer": "bpe"},
    ),
    "llama, Yi": Thin("llama", {"rope_freq_base": 5e6, "n_head_kv": 1}),
    "baichuan, 7B (RoPE)": Thin(
        "baichuan", {"n_layer": 32, "n_embd": 32, "n_ff": 48, "n_head_kv": 4}
    ),
    "baichuan, 13B (ALiBi)": Thin(
        "baichuan",
        {"n_layer": 40, "n_embd": 40, "n_head": 5, "n_head_kv": 5, "n_ff": 48},
        WIDE | {"n_head": 4, "n_head_kv": 4},
    ),
}
