"""Three epochs of the last eight blocks, with the frozen blocks' output stored and without.

    scripts/tools/bench_trunk [MODEL.gguf] [--layers last:8] [--epochs 3]

The data are the demo's chats (rank 8, alpha 16, batch 8, no checkpointing). The two runs take
turns, one epoch at a time. Prints a line per epoch and the ratio of the sums; the adapters must
have the same bits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import nbllama
from nbllama.kernels.cores import use_threads
from nbllama.options.finetune.table import parse
from nbllama.train.probe import compile_kernels
from nbllama.train.run.given import Given
from nbllama.train.run.outputs import Outputs
from nbllama.train.run.recorder import Recorder
from nbllama.train.run.screen import Silent
from nbllama.train.run.session import RunSession
from nbllama.train.run.stop import StopFlag
from nbllama.train.trainer import Trainer
from nbllama.train.trunk import TrunkCache
from scripts.tools.widen_smollm2 import demo_model

DATA = Path(__file__).resolve().parents[2] / "examples" / "demo" / "train.jsonl"


def make(model: nbllama.Model, layers: str, epochs: int) -> RunSession:
    """Return a run that writes nothing."""
    options = parse([
        f"--model-base={model.gguf.path}", f"--train-data={DATA}", "--batch=8",
        f"--epochs={epochs}", "--lora-r=8", "--lora-alpha=16", "--adam-alpha=1e-3", "--seed=1",
        f"--lora-layers={layers}", "--no-checkpointing", "--checkpoint-in=", "--checkpoint-out=",
        "--lora-out=",
    ])  # fmt: skip
    return RunSession(
        options, [], use_threads(None), outputs=Outputs(options), ui=Recorder(Silent()),
        stop=StopFlag("SIGINT"), given=Given(model),
    )  # fmt: skip


def epoch(trainer: Trainer) -> float:
    """Run one epoch; returns its seconds."""
    number, start = trainer.position.epoch, time.perf_counter()
    while trainer.position.epoch == number:
        trainer.step()
    return time.perf_counter() - start


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--layers", default="last:8")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    model = nbllama.load_model(args.model or demo_model())
    plain, stored = (make(model, args.layers, args.epochs).trainer for _ in range(2))
    compile_kernels(plain)
    layer = plain.adapter.lowest_layer()
    sums = [0.0, 0.0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trunk"
        with TrunkCache(
            str(path), "0" * 64, layer=layer, width=model.hp.n_embd, say=print
        ) as stored.trunk:
            for number in range(args.epochs):
                pair = epoch(plain), epoch(stored)
                sums = [a + b for a, b in zip(sums, pair, strict=True)]
                print(
                    f"epoch {number + 1}: {pair[0]:.2f} s computed, {pair[1]:.2f} s stored, "
                    f"ratio {pair[1] / pair[0]:.3f}",
                    flush=True,
                )
        megabytes = path.stat().st_size / 1e6
    print(f"all: ratio {sums[1] / sums[0]:.3f}; the file has {megabytes:.1f} MB")
    theirs = stored.adapter.parameters()
    if any(x.tobytes() != theirs[name].tobytes() for name, x in plain.adapter.parameters().items()):
        sys.exit("error: the adapters differ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
