"""Toy base models with adapters that matter, and the two programs as functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from examples.toy_models import make_llama
from nbllama import export_lora, quantize
from nbllama.lora.pairs import Adapter


def adapter_for(path: Path, seed: int = 1, strength: float = 0.2, **options: Any) -> Adapter:
    """An adapter whose delta is about `strength` of each weight's size; options of init_adapter."""
    model = nbllama.load_model(path)
    made = nbllama.init_adapter(model, seed=seed, **options)
    rng = np.random.default_rng(seed)
    for pair in made.pairs.values():
        pair.b[:] = strength * rng.standard_normal(pair.b.shape)
    return made


def toy(
    folder: Path, *, adapter: dict[str, Any] | None = None, **options: Any
) -> tuple[Path, Path]:
    """(base, adapter) as files."""
    base, lora = folder / "base.gguf", folder / "lora.gguf"
    make_llama(base, **options)
    made = adapter_for(base, **({"rank": 3, "alpha": 6.0} | (adapter or {})))
    nbllama.save_adapter(lora, made, nbllama.load_model(base))
    return base, lora


def export(*words: str | Path) -> None:
    assert export_lora.main([*(str(w) for w in words), "--no-compare"]) == 0


def quantized(*words: str | Path) -> None:
    assert quantize.main([str(w) for w in words]) == 0


def refusal(main: Any, words: list[Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and the one line of an error."""
    capsys.readouterr()
    code = main([str(w) for w in words])
    err = capsys.readouterr().err
    assert err.startswith("error: ") and len(err.splitlines()) == 1, err
    return code, err
