"""RoPE scaling by the keys of a file: old and new keys, YaRN, and the user's overrides."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nbllama.arch import Hparams, RopeScaling, with_overrides
from tests.arch.files import Model, read


class TestRopeScaling:
    def scaling(self, model: Model, path: Path, kind: str | None, **keys: float) -> Hparams:
        if kind is not None:
            model.string("llama.rope.scaling.type", kind)
        for key, value in keys.items():
            if key == "original_context_length":
                model.count(f"llama.rope.scaling.{key}", int(value))
            else:
                model.number(f"llama.rope.scaling.{key}", value)
        return read(model, path)

    def test_linear(self, model: Model, path: Path) -> None:
        for kind in (None, "linear"):
            hp = self.scaling(model, path, kind, factor=4.0)
            assert hp.rope_freq_scale == 0.25
            assert hp.rope_scaling == RopeScaling("linear", 4.0, 128)

    def test_old_key(self, model: Model, path: Path) -> None:
        model.number("llama.rope.scale_linear", 8.0)
        assert read(model, path).rope_freq_scale == 0.125
        model.number("llama.rope.scaling.factor", 2.0)  # the new key wins
        assert read(model, path).rope_freq_scale == 0.5

    def test_none_ignores_the_factor(self, model: Model, path: Path) -> None:
        hp = self.scaling(model, path, "none", factor=4.0)
        assert (hp.rope_freq_scale, hp.rope_scaling) == (1.0, RopeScaling("none", 1.0, 128))

    def test_factor_zero_is_one(self, model: Model, path: Path) -> None:
        assert self.scaling(model, path, "linear", factor=0.0).rope_scaling.kind == "none"

    def test_yarn(self, model: Model, path: Path) -> None:
        hp = self.scaling(model, path, "yarn", factor=4.0, original_context_length=32)
        assert hp.rope_freq_scale == 0.25
        assert hp.rope_scaling == RopeScaling("yarn", 4.0, 32, 1.0, 1.0, 32.0, 1.0)

    def test_yarn_magnitude(self, model: Model, path: Path) -> None:
        """ggml multiplies by 1 + 0.1 ln f; what remains must be YaRN's own m(f), 1 for f < 1."""
        for factor in (0.5, 1.0, 3.0, 40.0):
            s = self.scaling(model, path, "yarn", factor=factor).rope_scaling
            by_ggml = 1 + 0.1 * math.log(factor)
            wanted = by_ggml if factor > 1 else 1.0
            assert s.attn_factor * by_ggml == pytest.approx(wanted, rel=3e-7)  # float32 steps

    def test_attn_factor(self, model: Model, path: Path) -> None:
        assert self.scaling(model, path, "linear", attn_factor=1.5).rope_scaling.attn_factor == 1.5
        hp = self.scaling(model, path, "yarn", factor=4.0, attn_factor=1.5)
        assert hp.rope_scaling.attn_factor == 1.5

    def test_yarn_betas_are_not_read_for_llama(self, model: Model, path: Path) -> None:
        hp = self.scaling(model, path, "yarn", factor=4.0, yarn_beta_fast=8.0)
        assert (hp.rope_scaling.beta_fast, hp.rope_scaling.beta_slow) == (32.0, 1.0)
        assert hp.warnings == (
            "llama.rope.scaling.yarn_beta_fast is ignored for llama, as in llama.cpp",
        )

    def test_overrides(self, model: Model, path: Path) -> None:
        plain = read(model, path)
        assert with_overrides(plain) == plain
        hp = with_overrides(plain, rms_eps=1e-6, rope_freq_base=5e5, rope_freq_scale=0.5)
        assert hp.rms_eps == float(np.float32(1e-6)) and hp.rope_freq_base == 5e5
        assert hp.rope_freq_scale == 0.5
        assert hp.rope_scaling == RopeScaling("linear", 2.0, 128)

    def test_override_of_yarn(self, tmp_path: Path) -> None:
        want = self.scaling(Model(), tmp_path / "a", "yarn", factor=8.0, attn_factor=1.5)
        got = self.scaling(Model(), tmp_path / "b", "yarn", factor=0.5, attn_factor=1.5)
        got = with_overrides(got, rope_freq_scale=0.125)
        assert got.rope_freq_scale == want.rope_freq_scale
        assert got.rope_scaling.attn_factor == pytest.approx(want.rope_scaling.attn_factor, 1e-6)
        assert replace(got.rope_scaling, attn_factor=0) == replace(want.rope_scaling, attn_factor=0)
