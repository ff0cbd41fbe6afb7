"""Numbers that do not fit float32, and checkpoints with impossible stored options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nbllama
from nbllama.errors import CheckpointError, UsageError
from nbllama.gguf_io import ValueType
from nbllama.options.finetune.table import OPTIONS, parse
from nbllama.options.values import Real
from tests.checkpoint.run_states import forge
from tests.train.runs import Run, listing, refused
from tests.train.toy_runs import toy_model, words

FLOATS = [o for o in OPTIONS if isinstance(o.value, Real)]
LARGE = ("lora_alpha", "norm_rms_eps", "rope_freq_base", "rope_freq_scale", "adam_alpha")


@pytest.mark.parametrize("option", FLOATS, ids=lambda o: o.dest)
def test_no_option_takes_what_float32_does_not_hold(option: Any) -> None:
    for text in ("1e308", "-1e308", "1e39", "3.5e38", "1e-320", "1e-40", "-1e-45", "nan", "inf"):
        with pytest.raises(UsageError, match=f"{option.names[0]}: '"):
            parse(["--model-base", "m", f"{option.names[0]}={text}"])


@pytest.mark.parametrize("name", LARGE)
def test_real_bounds(name: str) -> None:
    """Well within float32, but not usable for training."""
    with pytest.raises(UsageError, match=r"at most|from .* to "):
        parse(["--model-base", "m", f"--{name.replace('_', '-')}=1e13"])


@pytest.mark.parametrize("name", ["rms_eps", "rope_freq_base", "rope_freq_scale"])
def test_constants_from_python(tmp_path: Path, name: str) -> None:
    toy_model(tmp_path)
    value: Any
    for value in (0.0, -1.0, 1e39, 1e-40, float("nan"), float("inf")):
        constant: dict[str, Any] = {name: value}
        with pytest.raises(UsageError, match=f"{name}: .*; use a number above 0"):
            nbllama.load_model(tmp_path / "toy.gguf", **constant)


SETTINGS: dict[str, tuple[Any, ValueType]] = {
    "nbllama.settings.ctx": (2**40, ValueType.INT64),
    "nbllama.settings.adam_alpha": (float("inf"), ValueType.FLOAT64),
    "nbllama.settings.cos_decay_min": ("low", ValueType.STRING),
    "nbllama.settings.eval_every": (-3, ValueType.INT64),
    "nbllama.settings.warmup": (2.5, ValueType.FLOAT64),
    "nbllama.validation.last": (float("nan"), ValueType.FLOAT64),
    "nbllama.validation.best_at": (float("inf"), ValueType.FLOAT64),
    "training.iteration_count": (2**32, ValueType.UINT64),
    "training.token_count": (2**64 - 1, ValueType.UINT64),
    "training.lora.rank.attn_q": (2**32 - 1, ValueType.UINT32),
    "nbllama.lora_alpha": (1e308, ValueType.FLOAT64),
}


def test_what_a_checkpoint_states(folder: Path, run: Run) -> None:
    more = ["--val-split", "0.4", "--eval-every", "2"]
    assert run(words(folder, *more)).code == 0
    good = (folder / "chk-4.gguf").read_bytes()
    bad = folder / "bad.gguf"
    for key, value in SETTINGS.items():
        bad.write_bytes(good)
        changed = {key: value}
        forge(bad, lambda entries, tensors, new=changed: entries.update(new))  # type: ignore[misc]
        before = listing(folder)
        refused(
            run(words(folder, *more, "--checkpoint-in", str(bad), "--force")),
            5,
            "bad.gguf",
            key.split(".")[-1],
        )
        assert listing(folder) == before


def test_places_far_away_are_harmless(folder: Path, run: Run) -> None:
    """The largest allowed numbers give a run, and are saved again."""
    assert run(words(folder)).code == 0
    path = folder / "chk-4.gguf"
    most = {"epoch_count": 2**53, "sample_count": 2**53, "token_count": 2**53}

    def change(entries: dict[str, Any], tensors: dict[str, Any]) -> None:
        entries.update({f"training.{k}": (v, ValueType.UINT64) for k, v in most.items()})
        entries["training.shuffle.next_sample"] = (2**53, ValueType.UINT64)

    forge(path, change)
    assert run(words(folder, "--checkpoint-in", str(path))).code == 0


def test_an_adapter_with_an_alpha_that_float32_does_not_hold(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    adapter = nbllama.init_adapter(model, rank=2)
    for alpha in (1e-320, 1e39):
        adapter.alpha = alpha
        with pytest.raises((ValueError, CheckpointError)):
            nbllama.save_adapter(tmp_path / "a.gguf", adapter, model)
    assert not (tmp_path / "a.gguf").exists()
