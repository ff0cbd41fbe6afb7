"""The report of scripts/bench: a row per target (met or not met), tables, and a plot."""

from __future__ import annotations

from statistics import median
from typing import Any, NamedTuple

Rows = list[dict[str, Any]]


class Target(NamedTuple):
    """A measured number and its target."""

    what: str
    measured: float
    wanted: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.measured <= self.wanted if self.at_most else self.measured >= self.wanted


def table(rows: Rows, columns: dict[str, str]) -> str:
    """Return a Markdown table; `columns`: title -> format string for a row."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(f.format(**row) for f in columns.values()) + " |" for row in rows]
    return "\n".join(lines)


def find(rows: Rows, **wanted: Any) -> dict[str, Any] | None:
    return next((r for r in rows if all(r.get(k) == v for k, v in wanted.items())), None)


def targets(found: dict[str, Rows]) -> list[Target]:
    """Return all targets that have a measurement."""
    out: list[Target] = []
    many = [r for r in found.get("matmul", []) if r["tokens"] >= 256]
    if many:
        both = [r[way] for r in many for way in ("forward", "gradient")]
        out += [
            Target("matmul, 512 tokens: median throughput relative to sgemm", median(both), 0.95),
            Target("matmul, 512 tokens: lowest throughput relative to sgemm", min(both), 0.85),
        ]
    for tokens, least in ((32, 1.5), (128, 1.2)):
        few = [r for r in found.get("matmul", []) if r["tokens"] == tokens]
        if few:
            both = [r[way + "_decode_all"] for r in few for way in ("forward", "gradient")]
            what = f"matmul, {tokens} tokens: median speed relative to decoding everything + sgemm"
            out.append(Target(what, median(both), least))
    for r in found.get("attention", []):
        if (r["heads"], r["head_dim"]) == ("32/8", 128):
            what = "attention, 32 heads over 8, size 128, 512 tokens"
            out += [
                Target(f"{what}: forward, relative to sgemm", r["forward"], 70 / 150),
                Target(f"{what}: gradient, relative to sgemm", r["gradient"], 0.567),
            ]
    steps = found.get("step", [])
    main = find(steps, ctx=256, batch=4, checkpointing=False, threads=2)
    if main:
        out.append(Target("step, ctx 256 x 4: share", main["share"], 0.8))
    peers = [r for r in found.get("peer", []) if r.get("weights", "float32") == "float32"]
    asked = {(256, False): (1.6, 0.28), (256, True): (1.6, 0.2), (512, False): (2.0, 0.3)}
    for (ctx, checkpointing), (speed, size) in asked.items():
        ours = find(steps, ctx=ctx, checkpointing=checkpointing, threads=2)
        theirs = find(peers, ctx=ctx, checkpointing=checkpointing)
        if ours and theirs:
            how = f"ctx {ctx} x {ours['batch']}, checkpointing {'on' if checkpointing else 'off'}"
            faster = ours["tokens_per_s"] / theirs["tokens_per_s"]
            memory = ours["peak_mb"] / theirs["peak_mb"]
            out += [
                Target(f"{how}: tokens/s relative to PEFT's tokens/s", faster, speed),
                Target(f"{how}: peak memory relative to PEFT's", memory, size, at_most=True),
            ]
    for r, (speed, size) in zip(found.get("jobs", []), ((2.7, 0.3), (5.0, 0.12)), strict=False):
        if "times_faster" in r:
            out += [
                Target(f"{r['job']}: speed relative to PEFT's", r["times_faster"], speed),
                Target(
                    f"{r['job']}: peak memory relative to PEFT's",
                    r["of_its_memory"],
                    size,
                    at_most=True,
                ),
            ]
    one = find(steps, ctx=256, batch=4, checkpointing=False, threads=1)
    if one and main:
        ours = main["tokens_per_s"] / one["tokens_per_s"]
        theirs = main["sgemm_gflops"] / one["sgemm_gflops"]
        out.append(
            Target("step, from 1 to 2 threads: speed-up relative to sgemm's", ours / theirs, 0.95)
        )
    for r in found.get("models", []):
        if r["old"]:
            on = r["checkpointing"]
            old = find(found.get("old", []), checkpointing=on)
            reached = old["tokens_per_s"] if old else (20 if on else 29)
            source = "measured" if old else "recorded"
            what = f"{r['name']}, ctx 64 x 4, checkpointing {'on' if on else 'off'}: "
            what += f"speed relative to the old finetune ({reached:.0f} tokens/s, {source})"
            out.append(Target(what, r["tokens_per_s"] / reached, 9))
            if not on:
                what = f"{r['name']}: peak MB (the old finetune: 1062, recorded)"
                out.append(Target(what, r["peak_mb"], 1062, at_most=True))
        else:
            what = f"{r['name']}, ctx 64 x 4, checkpointing: "
            out += [
                Target(what + "share with recomputation", r["share_with_again"], 0.75),
                Target(
                    what + "peak MB minus file size",
                    r["peak_mb"] - r["file_mb"],
                    1000,
                    at_most=True,
                ),
            ]
    context = {r["ctx"]: r for r in found.get("context", [])}
    if {1024, 2048, 4096} <= context.keys():
        upper = context[4096]["peak_mb"] - context[2048]["peak_mb"]
        lower = context[2048]["peak_mb"] - context[1024]["peak_mb"]
        what = "memory growth, ctx 2048 to 4096, divided by twice the growth from 1024 to 2048"
        out.append(Target(what, upper / (2 * lower), 1.1, at_most=True))
    limits = {"import nbllama": 0.3, "first start": 60.0, "second start": 3.0}
    for r in found.get("start", []):
        out.append(Target(f"{r['what']}: seconds", r["seconds"], limits[r["what"]], at_most=True))
    return out


def target_table(found: dict[str, Rows]) -> str:
    rows = [
        {**t._asdict(), "sign": "<=" if t.at_most else ">=", "met": "met" if t.met else "not met"}
        for t in targets(found)
    ]
    columns = {"what": "{what}", "measured": "{measured:.2f}", "target": "{sign} {wanted:.2f}"}
    return table(rows, columns | {"": "{met}"})


STEP = {
    "ctx x batch": "{ctx} x {batch}",
    "checkpointing": "{checkpointing}",
    "threads": "{threads}",
    "tokens/s": "{tokens_per_s:.0f}",
    "GF/s": "{gflops:.0f}",
    "sgemm GF/s": "{sgemm_gflops:.0f}",
    "share": "{share:.2f}",
    "share with recomputation": "{share_with_again:.2f}",
    "activations MB": "{activations_mb:.0f}",
    "peak MB (forecast)": "{peak_mb:.0f} ({forecast_mb:.0f})",
    "s (forecast)": "{seconds:.2f} ({forecast_seconds:.2f})",
}
VECTORS = {
    "instruction set": "{vectors}",
    "matmul: median / sgemm": "{matmul_median:.2f}",
    "lowest": "{matmul_lowest:.2f}",
    "step: tokens/s": "{tokens_per_s:.0f}",
    "sgemm GF/s": "{sgemm_gflops:.0f}",
    "share": "{share:.2f}",
}
MATMUL = {
    "type": "{type}",
    "n_in x n_out": "{n_in} x {n_out}",
    "tokens": "{tokens}",
    "forward / sgemm": "{forward:.2f}",
    "gradient / sgemm": "{gradient:.2f}",
    "GF/s": "{forward_gflops:.0f}, {gradient_gflops:.0f}",
    "sgemm GF/s": "{sgemm_gflops:.0f}",
}
FEW = MATMUL | {
    "forward / (decode all + sgemm)": "{forward_decode_all:.2f}",
    "gradient / (decode all + sgemm)": "{gradient_decode_all:.2f}",
}
ATTENTION = {
    "heads": "{heads}",
    "D": "{head_dim}",
    "T": "{tokens}",
    "forward GF/s": "{forward_gflops:.0f}",
    "gradient GF/s": "{gradient_gflops:.0f}",
    "forward / sgemm": "{forward:.2f}",
    "gradient / sgemm": "{gradient:.2f}",
}
LOSS = {"head": "{type}", "rows": "{rows}", "vocabulary": "{n_vocab}", "GF/s": "{gflops:.0f}"}
LOSS |= {"share of sgemm": "{share:.2f}"}
PEER = {
    "weights": "{weights}",
    "ctx x batch": "{ctx} x {batch}",
    "checkpointing": "{checkpointing}",
    "tokens/s": "{tokens_per_s:.0f}",
    "peak MB": "{peak_mb:.0f}",
    "first loss (ours)": "{first_loss:.4f} ({our_first_loss:.4f})",
}
JOB = {
    "job": "{job}",
    "seconds": "{seconds:.1f}",
    "peak MB": "{peak_mb:.0f}",
    "PEFT: seconds": "{peer_seconds:.1f}",
    "PEFT: peak MB": "{peer_mb:.0f}",
    "speed relative to PEFT": "{times_faster:.2f}",
    "memory relative to PEFT": "{of_its_memory:.2f}",
    "first loss (PEFT's)": "{first_loss:.4f} ({peer_first_loss:.4f})",
}
ALONE = {name: JOB[name] for name in ("job", "seconds", "peak MB")}
OLD = {"checkpointing": "{checkpointing}", "tokens/s": "{tokens_per_s:.1f}"}
START = {"what": "{what}", "seconds": "{seconds:.2f}", "reported compilation": "{told}"}


PROFILE = {"what": "{what}", "ms": "{ms:.0f}", "% of the step": "{of_step:.1f}"}
PROFILE |= {"relative to sgemm": "{share}"}


def report(found: dict[str, Rows], about: dict[str, str]) -> str:
    """Return the page; parts that were not measured are omitted."""
    many = [r for r in found.get("matmul", []) if r["tokens"] >= 256]
    few = [r for r in found.get("matmul", []) if r["tokens"] < 256]
    peers = [{"weights": "float32"} | r for r in found.get("peer", [])]
    jobs = found.get("jobs", [])
    compared = all("peer_seconds" in r for r in jobs)
    sections = [
        ("Targets", target_table(found)),
        ("A training step", table(found.get("step", []), STEP)),
        (
            "Time of the fastest step at ctx 256 x 4, by kernel",
            table(found.get("profile", []), PROFILE),
        ),
        ("With the same vector width on both sides", table(found.get("vectors", []), VECTORS)),
        ("Long contexts, one sequence, checkpointing", table(found.get("context", []), STEP)),
        ("Larger models", table(found.get("models", []), {"model": "{name}"} | STEP)),
        ("PyTorch + PEFT, the same model and tokens", table(peers, PEER)),
        ("One epoch over records", table(jobs, JOB if compared else ALONE)),
        ("llama.cpp's old finetune", table(found.get("old", []), OLD)),
        ("Quantised matmul, 512 tokens", table(many, MATMUL)),
        ("Quantised matmul, few tokens", table(few, FEW)),
        ("Attention", table(found.get("attention", []), ATTENTION)),
        ("Output product and loss", table(found.get("loss", []), LOSS)),
        ("Start", table(found.get("start", []), START)),
    ]
    text = f"""# Speed and memory

`scripts/bench` generated this page on {about["date"]} ({about["machine"]}).
Ratios are medians over rounds of alternating variants; GF/s values are from the fastest run.
Only the first start includes compile time. `share` is (4 x parameters x tokens + attention) / time,
divided by the throughput of numpy's float32 matmul (1024 x 576 x 1536), measured before and after
each step. `share` does not count recomputed blocks (checkpointing) as work; the next column does.
Unless a model is named, the steps train
{about["model"]} on random tokens, with rank 4 on the seven linear layers.

![share of sgemm](bench.svg)
"""
    for title, body in sections:
        if body.count("\n") > 1:
            kind = "numbers told" if title == "Targets" else "numbers"  # of docs/site.css
            text += f'\n## {title}\n\n<div class="{kind}" markdown>\n\n{body}\n\n</div>\n'
    return text


def plot(found: dict[str, Rows]) -> str:
    """Return an SVG with bars: share of sgemm of the matmuls (512 tokens) by type, and of steps."""
    bars: list[tuple[str, float]] = []
    kinds = dict.fromkeys(r["type"] for r in found.get("matmul", []))
    for kind in kinds:
        rows = [r for r in found["matmul"] if r["type"] == kind and r["tokens"] >= 256]
        ways = ("forward", "gradient")
        bars += [(f"{kind} {way}", median(r[way] for r in rows)) for way in ways]
    for r in found.get("step", []):
        name = f"step {r['ctx']} x {r['batch']}, {r['threads']} threads"
        bars.append((name + (", checkpointing" if r["checkpointing"] else ""), r["share"]))
    left, scale, height = 240, 500 / max([1.0, *(share for _, share in bars)]), 16
    bottom = 20 + height * len(bars)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + 590}" '
        f'height="{bottom + 25}" font-family="sans-serif" font-size="11">',
        "<style>text{fill:#1f2328}line{stroke:#1f2328}@media (prefers-color-scheme: dark)"
        "{text{fill:#e6edf3}line{stroke:#e6edf3}}</style>",
    ]
    for i, (name, share) in enumerate(bars):
        y = 15 + i * height
        colour = "#4477aa" if name.endswith("forward") else "#66ccee"
        colour = "#228833" if name.startswith("step") else colour
        lines.append(f'<text x="{left - 6}" y="{y + 10}" text-anchor="end">{name}</text>')
        lines.append(
            f'<rect x="{left}" y="{y + 1}" width="{share * scale:.0f}" height="{height - 4}" '
            f'fill="{colour}"/><text x="{left + share * scale + 4:.0f}" y="{y + 10}">{share:.2f}'
            "</text>"
        )
    x = round(left + scale)
    lines.append(f'<line x1="{x}" y1="10" x2="{x}" y2="{bottom}"/>')
    lines.append(f'<text x="{x}" y="{bottom + 14}" text-anchor="middle">sgemm</text></svg>')
    return "\n".join(lines) + "\n"
