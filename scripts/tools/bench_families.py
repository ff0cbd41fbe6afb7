"""Steps and single tokens of the dense architectures, on random models with few, wide layers.

A step is compared with a step of a `llama` model of the same size, in necessary FLOPs per second; a
single token is compared with llama.cpp, on models with more and wider layers. Both sides run in
turns, and the ratios are medians over the rounds. Run by scripts/tools/bench_families.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numba
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "scripts" / "tools")]

from bench import machine  # noqa: E402
from bench_generation import Llama  # noqa: E402
from bench_parts.step import Case, make_trainer, work_of  # noqa: E402
from bench_parts.timing import timed  # noqa: E402

from examples.toy_archs import MODELS  # noqa: E402
from nbllama.generation.session import Session  # noqa: E402
from nbllama.model.passes import load_model  # noqa: E402

PAGE = ROOT / "docs" / "results" / "families.md"
SIZES: dict[str, Any] = {
    "n_layer": 2, "n_embd": 1024, "n_head": 16, "n_head_kv": 4, "head_dim": 64, "n_ff": 2816,
    "n_vocab": 8192, "types": "Q4_0",
}  # fmt: skip
TOKEN_SIZES: dict[str, Any] = SIZES | {"n_layer": 4, "n_embd": 2048, "n_head": 32, "n_ff": 5632}
LLAMA = "llama, 7B to 30B"
FAMILIES = {
    "gemma": "gemma, 2B and 7B",
    "olmo2": "olmo2, OLMo 2",
    "exaone4": "exaone4, 1.2B",
    "glm4": "glm4, GLM-4-0414 9B and 32B",
    "command-r": "command-r, 35B",
    "cohere2": "cohere2, 7B and 111B",
    "starcoder2": "starcoder2, 3B to 15B",
    "stablelm": "stablelm, 2 1.6B (biases)",
    "nemotron": "nemotron, Minitron 4B and 8B",
    "phi2": "phi2, 1, 1.5 and 2",
    "apertus": "apertus, 8B and 70B",
    "arcee": "arcee, AFM 4.5B",
}
TOKENS, ROUNDS, SINGLE, LEAD = 256, 9, 16, 32


def make(name: str, path: Path, sizes: dict[str, Any]) -> None:
    """Write the model; windows are wider than the context, so that all do the same work."""
    thin = MODELS[name]
    sizes = dict(sizes)
    if "n_rot" in thin.options:
        sizes["n_rot"] = 32
    keys = dict(thin.options.get("keys") or {})
    if "attention.sliding_window" in keys:
        keys["attention.sliding_window"] = 4096
    if name.startswith("apertus"):
        keys = {k: [v[0]] * sizes["n_layer"] for k, v in keys.items()}
    thin.make(path, **sizes, keys=keys)


def in_turns(runs: Sequence[Callable[[], float]]) -> list[list[float]]:
    """Return the seconds of each run in every round except the first; they run in turns."""
    rounds = [[run() for run in runs] for _ in range(1 + ROUNDS)]
    return [list(times) for times in zip(*rounds[1:], strict=True)]


def step_share(path: Path, llama: Path) -> tuple[float, float]:
    """Return the GF/s of a step, and the ratio to the GF/s of the llama model."""
    cases = [Case(str(p), TOKENS, 1, ROUNDS, False) for p in (path, llama)]
    trainers = [make_trainer(case) for case in cases]
    ours, theirs = in_turns([lambda t=t: timed(t.step) for t in trainers])
    work, llama_work = (work_of(t.model, c)[0] for t, c in zip(trainers, cases, strict=True))
    ratio = median(b / a for a, b in zip(ours, theirs, strict=True))
    return work / min(ours) / 1e9, ratio * work / llama_work


def token_ratio(path: Path, threads: int) -> tuple[float, float]:
    """Return tokens/s for single tokens, and the ratio to llama.cpp's."""
    model = load_model(path)
    ours, theirs = Session(model, None, 512), Llama(path, 512, threads)
    ids = np.random.default_rng(0).integers(3, model.hp.n_vocab, LEAD + SINGLE)

    def tokens(run: Any, back: Callable[[], object]) -> Callable[[], float]:
        def measure() -> float:
            back()
            run.feed(ids[:LEAD])
            return min(timed(lambda t=t: run.feed(t)) for t in ids[LEAD:, None])

        return measure

    a, b = in_turns([tokens(ours, lambda: ours.truncate(0)), tokens(theirs, theirs.clear)])
    return 1 / min(a), median(y / x for x, y in zip(a, b, strict=True))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FAMILIES))
    p.add_argument("--write", action="store_true")
    o = p.parse_args()
    if unknown := [n for n in o.names if n not in FAMILIES]:
        p.error(f"unknown: {', '.join(unknown)}")
    threads = numba.get_num_threads()
    lines = [
        "| architecture | step, GF/s | relative to llama | generation, tokens/s "
        "| relative to llama.cpp |",
        "|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        llama = Path(folder) / "base.gguf"
        make(LLAMA, llama, SIZES)
        for name in ["llama", *(o.names or FAMILIES)]:
            path = Path(folder) / f"{name}.gguf"
            family = LLAMA if name == "llama" else FAMILIES[name]
            make(family, path, SIZES)
            speed, share = step_share(path, llama)
            make(family, path, TOKEN_SIZES)
            rate, ratio = token_ratio(path, threads)
            lines.append(f"| {name} | {speed:.0f} | {share:.2f} | {rate:.0f} | {ratio:.2f} |")
            print(lines[-1], flush=True)
    if o.write:
        small, large = (", ".join(f"{k} {v}" for k, v in s.items()) for s in (SIZES, TOKEN_SIZES))
        PAGE.write_text(
            "# Speed of the dense architectures\n\n"
            f"`scripts/tools/bench_families --write` generated this page on {date.today()} "
            f"({machine()}, {threads} threads).\n\nThe models have random weights, and any "
            f"attention windows are wider than the context. A training step processes {TOKENS} "
            "tokens. The GF/s column counts only the operations that a step requires; the next "
            "column divides this figure by that of a llama model of the same size. In generation, "
            f"tokens are processed one at a time after a prompt of {LEAD} tokens, and nbllama and "
            f"llama.cpp run alternately. Speeds are the fastest of {ROUNDS} rounds; ratios are "
            "medians.\n\n"
            f"- Sizes for the training step: {small}\n- Sizes for generation: {large}\n\n"
            + "\n".join(lines) + "\n",
            encoding="utf-8",
        )  # fmt: skip


if __name__ == "__main__":
    main()
