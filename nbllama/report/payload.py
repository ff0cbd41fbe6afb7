"""The content of the page about a run: a JSON object built from the rows of a log.

The object is the same for a page in a file and a page served during training. A served page
receives the `event` for each new row and adds it to the object (`nbllama/report/page/data.js`).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from nbllama import __version__
from nbllama.errors import UsageError
from nbllama.report.records import Row, Run, number, points, text

MOST_POINTS = 2000  # per curve; in longer curves, neighbouring points are averaged
OF_PREFERENCES = (
    "margin", "accuracy", "logp_chosen", "logp_rejected", "tokens_chosen", "tokens_rejected",
)  # fmt: skip
OF_REWARDS = ("reward", "reward_std", "kl", "answer_tokens", "same", "answers_per_s")
SERIES = (
    "loss", "lr", "grad_norm", "tokens_per_s", "rss_bytes", "seconds", *OF_PREFERENCES,
    *OF_REWARDS,
)  # fmt: skip
MOST_RUNS = 8
MOST_NORMS, MOST_TEXTS, MOST_QUESTIONS = 512, 400, 200

Point = tuple[float, float]


def payload(runs: Sequence[tuple[str, Run]], live: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the object for a page about one run, or for a page that compares several runs.

    `runs` contains the name and log of each run. `live` is the state of a served page
    (`nbllama.report.live.state`), or None for a file. Raises `UsageError` for more than `MOST_RUNS`
    runs.
    """
    if len(runs) > MOST_RUNS:
        raise UsageError(f"cannot compare {len(runs)} runs on one page; pass at most {MOST_RUNS}")
    made = [run_object(run) for _, run in runs]
    if len(made) > 1:
        for (name, _), one in zip(runs, made, strict=True):
            one["name"] = name
    names = ", ".join(one["name"] for one in made)
    title = f"Training run: {names}" + (", compared" if len(made) > 1 else "")
    return {"title": title, "live": live, "runs": made}


def run_object(run: Run) -> dict[str, Any]:
    """Return the object for one run; anything that is not in the log is omitted or empty."""
    head, last = run.run, run.steps[-1] if run.steps else {}
    return {
        "name": text(head.get("model") or "a run"),
        "version": text(head.get("version", __version__)),
        "started": text(head.get("started") or ""),
        "state": _state(run),
        "iter": last.get("iter", head.get("iter", 0)),
        "n_iter": _whole(last, "n_iter") or _whole(head, "n_iter"),
        "steps": len(run.steps),
        "seconds": sum(number(r, "seconds") or 0.0 for r in run.steps),
        "tokens": sum(number(r, "tokens") or 0.0 for r in run.steps),
        "memory": max((y for _, y in points(run.steps, "rss_bytes")), default=None),
        "series": {key: _columns(thinned(points(run.steps, key))) for key in SERIES},
        "recent": [v for r in run.steps[-11:] if (v := number(r, "seconds")) is not None],
        "evaluations": [e for r in run.evaluations if (e := event(r)) is not None],
        "norms": [e for r in every(run.norms, MOST_NORMS) if (e := event(r)) is not None],
        "texts": [e for r in run.texts[-MOST_TEXTS:] if (e := event(r)) is not None],
        "questions": [e for r in run.questions[-MOST_QUESTIONS:] if (e := event(r)) is not None],
        "data": _pairs(head.get("data"), without="lengths"),
        "lengths": _lengths(head.get("data")),
        "forecast": _numbers(head.get("forecast"), ("seconds", "peak_bytes")),
        "peak_bytes": number(run.end, "peak_bytes"),
        "verdict": _verdict(run.verdict),
        "options": _pairs(head.get("options")),
        "commands": commands(run),
        "notes": [],
    }


def event(row: Row) -> dict[str, Any] | None:
    """Convert a row to the form that the page reads; return None for an unknown kind of row."""
    kind = row.get("event", "step")
    made: dict[str, Any] = {"event": kind, "iter": row["iter"]}
    if kind == "step":
        keys = (*SERIES, "tokens", "n_iter")
        return made | {key: number(row, key) for key in keys}
    if kind == "evaluation":
        found = _numbers(row, ("val_loss", "perplexity", "train_loss", "seconds"))
        return made | found | {"best": row.get("best") is True, "samples": _samples(row)}
    if kind == "norms":
        made["blocks"] = _whole(row, "blocks") or 0
        return made | {key: _norms(row.get(key)) for key in ("gradient", "update")}
    if kind == "tokens":
        pieces, losses = row.get("pieces"), row.get("losses")
        if not isinstance(pieces, list) or not isinstance(losses, list):
            return None
        nats = [number({"x": loss}, "x") for loss in losses[: len(pieces)]]
        made["sample"] = _whole(row, "sample") or 0
        return made | {"pieces": [text(p) for p in pieces[: len(nats)]], "losses": nats}
    if kind == "question":
        return made | {
            "id": _whole(row, "id") or 0,
            "prompt": text(row.get("prompt", "")),
            "answer": text(row.get("answer", "")),
            "done": row.get("done") is not False,
        }
    return None


def commands(run: Run) -> list[list[str]]:
    """Return commands that the user may run next, each as [description, command].

    The list is empty if the log does not contain the options of the run.
    """
    options, words = run.run.get("options"), run.run.get("words")
    if not isinstance(options, dict):
        return []
    names = {key: text(options.get(key) or "") for key in ("model-base", "lora-out")}
    model, adapter = names["model-base"], _latest(options, "lora-out")
    checkpoint = _latest(options, "checkpoint-out")
    found = []
    if model and adapter:
        both = ["--model", model, "--lora", adapter]
        merged = ["export-lora", "--model-base", model, "--lora", adapter]
        found = [
            ["chat with the model, using the adapter", _command(["chat", *both])],
            ["check the adapter in nbllama and llama.cpp", _command(["verify", *both])],
            ["merge the adapter into the model", _command([*merged, "--model-out", "merged.gguf"])],
        ]
    done, all_of_them = run.steps[-1]["iter"] if run.steps else 0, _whole(run.run, "n_iter") or 0
    if done < all_of_them and checkpoint and isinstance(words, list) and words:
        left = ["--checkpoint-in", checkpoint, "--adam-iter", text(all_of_them - done)]
        rest = _command(["finetune", *map(text, words), *left, "--epochs", "0"])
        found.append(["run the remaining iterations", rest])
    return found


def _latest(options: Mapping[str, Any], name: str) -> str:
    mark = text(options.get("pattern-fn-it") or "ITERATION")
    return text(options.get(name) or "").replace(
        mark, text(options.get("fn-latest") or "LATEST"), 1
    )


def _command(words: Iterable[str]) -> str:
    return f"nbllama {shlex.join(words)}"


def _state(run: Run) -> str:
    if reason := run.end.get("reason"):
        return f"ended: {reason}"
    return "finished" if run.end else "not finished"


def thinned(found: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Return at most `most` points, averaging neighbouring points."""
    n = len(found)
    if n <= most:
        return list(found)
    cuts = [i * n // most for i in range(most + 1)]
    groups = [found[a:b] for a, b in pairwise(cuts)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def every(rows: list[Row], most: int) -> list[Row]:
    """Return at most `most` evenly spaced rows."""
    n = len(rows)
    return rows if n <= most else [rows[i * n // most] for i in range(most)]


def _columns(found: list[Point]) -> list[list[float]]:
    return [[x for x, _ in found], [y for _, y in found]]


def _whole(row: Row, key: str) -> int | None:
    value = row.get(key)
    return value if type(value) is int and abs(value) < 1 << 53 else None


def _numbers(value: Any, keys: Sequence[str]) -> dict[str, float | None]:
    return {key: number(value, key) if isinstance(value, dict) else None for key in keys}


def _pairs(value: Any, without: str = "") -> list[list[str]]:
    """Return the keys and values of an object in a log as pairs of strings."""
    if not isinstance(value, dict):
        return []
    return [[text(k), text(v)] for k, v in value.items() if k != without]


def _lengths(data: Any) -> list[list[Any]]:
    """Return the histogram of sample lengths as (range in tokens, number of samples) pairs."""
    counts = data.get("lengths") if isinstance(data, dict) else None
    if not isinstance(counts, list):
        return []
    pairs = (c for c in counts if isinstance(c, list) and len(c) == 2)
    return [[text(name), n] for name, n in pairs if type(n) is int and 0 <= n < 1 << 53]


def _samples(row: Row) -> list[dict[str, str]]:
    samples = row.get("samples")
    return [
        {key: text(s.get(key, "")) for key in ("prompt", "answer", *({"reward"} & s.keys()))}
        for s in (samples if isinstance(samples, list | tuple) else [])
        if isinstance(s, dict)
    ]


def _verdict(row: Row) -> dict[str, Any] | None:
    """Return the verdict on a run: a word, the reason, and answers before and after training."""
    if not row:
        return None
    keys = ("kind", "question", "wanted", "before", "after")
    answers = row.get("answers")
    return {
        "word": text(row.get("verdict", "")),
        "reason": text(row.get("reason", "")),
        "first": number(row, "train_loss_first"),
        "last": number(row, "train_loss_last"),
        "over": text(row.get("over", "")),
        "answers": [
            {key: text(a.get(key, "")) for key in keys} | {"right": a.get("right") is True}
            for a in (answers if isinstance(answers, list) else [])
            if isinstance(a, dict)
        ],
    }


def _norms(value: Any) -> dict[str, list[float | None]]:
    """Return the norms of each kind of tensor as a list with one norm per block."""
    if not isinstance(value, dict):
        return {}
    return {
        text(name): [number({"x": x}, "x") for x in found]
        for name, found in value.items()
        if isinstance(found, list)
    }
