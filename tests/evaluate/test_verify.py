"""`python -m nbllama.verify`: each check with an adapter that passes and one that fails."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from examples.toy_models import make_llama
from nbllama.cli import checks
from nbllama.evaluate import llama_cpp
from nbllama.evaluate.llama_cpp import Candidates
from nbllama.verify import main
from tests.conftest import ROOT
from tests.export.merge_models import adapter_for, refusal, toy
from tests.train.toy_runs import Done, toy_text

Run = Callable[..., Done]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    def call(*args: object) -> Done:
        capfd.readouterr()
        code = main([*map(str, args), "-t", "1"])
        return Done(code, *capfd.readouterr())

    yield call


def number(text: str, before: str) -> float:
    """The divergence in the line that begins with `before`."""
    found = re.search(rf"{re.escape(before)}.*?KL divergence ([0-9.e+-]+)", text)
    assert found, text
    return float(found[1])


def test_all_checks_pass(tmp_path: Path, run: Run) -> None:
    """Also in llama.cpp, with an adapter in a format that it does not read."""
    pytest.importorskip("xllamacpp")
    base, lora = toy(tmp_path)
    other = adapter_for(base, seed=2, rank=2, alpha=2.0)
    nbllama.save_adapter(tmp_path / "b.bin", other, nbllama.load_model(base))
    text = toy_text(tmp_path / "t.txt", 40)
    words = ("--lora", lora, "--lora-scaled", tmp_path / "b.bin", "0.5", "-f", text)
    done = run("-m", base, *words)
    assert done.code == 0, done
    assert number(done.out, "effect of the adapter") > 0.01
    assert number(done.out, "merged against unmerged (f32)") < 1e-8
    assert "b.bin: converted to GGUF" in done.out
    assert number(done.out, "llama.cpp against nbllama, base") < 1e-6
    assert number(done.out, "llama.cpp against nbllama, with the adapter") < 1e-6
    assert re.search(r"with the adapter: .* token at ([0-9]+)/\1\n", done.out)


@pytest.mark.parametrize(
    ("words", "said"),
    [((), "B is zero in every pair"), (("--lora-scaled", "lora.gguf", "0"), "the scale is 0")],
)
def test_no_effect(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    base, _ = toy(tmp_path)
    if not words:
        model = nbllama.load_model(base)
        nbllama.save_adapter("new.gguf", nbllama.init_adapter(model, rank=2), model)
    done = run("-m", base, *(words or ("--lora", "new.gguf")))
    assert (
        done.code == 1
        and done.err
        == f"error: no effect: {said}"
        + ("" if words else ", as before the first training step")
        + "\n"
    ), done


def test_a_merge_that_loses_the_adapter(tmp_path: Path, run: Run) -> None:
    base, lora = toy(tmp_path, adapter=dict(strength=0.002))
    done = run("-m", base, "--lora", lora, "--no-llama", "--outtype", "q8_0")
    assert done.code == 1 and re.match(
        "error: merging loses [0-9]{2,}% of the adapter", done.err
    ), done
    assert number(done.out, "merged against unmerged (q8_0)") > 0.1 * number(done.out, "effect")


def test_llama_cpp_does_not_do_what_norms_add(tmp_path: Path, run: Run) -> None:
    """llama.cpp ignores pairs of norms: this is the case that the check is for."""
    pytest.importorskip("xllamacpp")
    base = tmp_path / "m.gguf"
    make_llama(base)
    none = dict.fromkeys(("wq", "wk", "wv", "wo", "w1", "w2", "w3"), 0)
    ranks = none | {"att_norm": 2, "ffn_norm": 2}
    made = adapter_for(base, rank=2, alpha=4.0, strength=0.5, ranks=ranks)
    nbllama.save_adapter(tmp_path / "a.gguf", made, nbllama.load_model(base))
    done = run("-m", base, "--lora", tmp_path / "a.gguf", "--no-merge")
    assert done.code == 1 and "the adapter has a different effect in llama.cpp" in done.err, done


def test_a_process_that_llama_cpp_ends(tmp_path: Path, run: Run) -> None:
    """It aborts on an adapter of a tied token_embd."""
    pytest.importorskip("xllamacpp")
    base = tmp_path / "m.gguf"
    make_llama(base, tied=True)
    made = adapter_for(base, rank=2, alpha=4.0, ranks={"tok_embd": 2})
    nbllama.save_adapter(tmp_path / "a.gguf", made, nbllama.load_model(base))
    done = run("-m", base, "--lora", tmp_path / "a.gguf", "--no-merge")
    assert done.code == 1 and "llama.cpp was terminated by signal 6: " in done.err, done
    assert len(done.err.splitlines()) == 1


def test_without_xllamacpp_and_without_room(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, lora = toy(tmp_path)
    monkeypatch.setattr(llama_cpp, "installed", lambda: False)
    full = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    done = run("-m", base, "--lora", lora)
    assert done.code == 0, done
    assert "llama.cpp: not compared because the xllamacpp package is not installed\n" in done.out
    assert re.search(r"not compared because .* does not fit in .* \(0 MB free\)", done.out), done


def test_divergence_by_hand() -> None:
    rng = np.random.default_rng(1)
    p, q = (np.exp(3 * rng.standard_normal(9)) for _ in range(2))
    p, q = p / p.sum(), q / q.sum()
    top = np.argsort(-p)
    whole = Candidates(top, np.log(p[top]))
    assert checks.divergence(whole, np.log(q)) == pytest.approx((p * np.log(p / q)).sum(), rel=1e-9)
    part = checks.divergence(Candidates(top[:4], np.log(p[top[:4]])), np.log(q))
    rest = p[top[4:]].sum(), q[top[4:]].sum()
    known = (p[top[:4]] * np.log(p[top[:4]] / q[top[:4]])).sum()
    assert part == pytest.approx(known + rest[0] * np.log(rest[0] / rest[1]), rel=1e-9)
    assert part < checks.divergence(whole, np.log(q))
    assert checks.divergence(whole, np.log(p)) == 0


def test_the_module_alone_does_not_load_llama_cpp() -> None:
    code = "import sys, nbllama.cli.checks; print('xllamacpp' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "False\n"


def test_bad_inputs_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, lora = toy(tmp_path)
    other, broken = tmp_path / "other.gguf", tmp_path / "broken.gguf"
    make_llama(other, n_embd=96, n_ff=192)
    broken.write_bytes(base.read_bytes()[:5000])
    latin, empty = tmp_path / "latin.txt", tmp_path / "empty.txt"
    latin.write_bytes(b"caf\xe9")
    empty.touch()
    good: list[Any] = ["-m", base, "--lora", lora]
    for words, code, said in (
        ([], 2, "the model is missing"),
        (["-m", base], 2, "the adapter is missing"),
        (["-m", tmp_path / "no.gguf", "--lora", lora], 2, "cannot be opened"),
        (["-m", broken, "--lora", lora], 2, "truncated"),
        (["-m", lora, "--lora", lora], 2, "adapter"),
        (["-m", base, "--lora", tmp_path / "no.gguf"], 2, "no such adapter file"),
        (["-m", base, "--lora", base], 5, "cannot be used"),
        (["-m", other, "--lora", lora], 5, "the base model has (96, 96)"),
        ([*good, "--lora-scaled", lora, "much"], 2, "scale 'much' is not a number"),
        ([*good, "--lora-scaled", f"{lora}:inf"], 2, "scale 'inf' is not a number"),
        ([*good, "--outtype", "q7"], 2, "unknown type 'q7'"),
        ([*good, "--outtype", "q8_0", "--no-merge"], 2, "--no-merge disables"),
        ([*good, "-f", tmp_path / "no.txt"], 2, "no such file"),
        ([*good, "-f", latin], 2, "latin.txt is not UTF-8"),
        ([*good, "-f", empty], 2, "the text has 0 tokens"),
    ):
        got, line = refusal(main, words, capsys)
        assert (got, said in line) == (code, True), (words, got, line)


@pytest.mark.slow
def test_the_demo_model(tmp_path: Path, run: Run, demo_model: Path) -> None:
    """On quantised weights, llama.cpp's rounding is visible, but not blamed on the adapter."""
    pytest.importorskip("xllamacpp")
    made = adapter_for(demo_model, rank=4, alpha=8.0, strength=0.03)
    nbllama.save_adapter(tmp_path / "a.gguf", made, nbllama.load_model(demo_model))
    done = run("-m", demo_model, "--lora", tmp_path / "a.gguf")
    assert done.code == 0, done
    assert number(done.out, "merged against unmerged (f32)") < 1e-6
    assert 1e-6 < number(done.out, "with the adapter") < 0.05
