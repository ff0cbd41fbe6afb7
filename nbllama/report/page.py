"""The page itself, from the rows of a run's log."""

from __future__ import annotations

import math
from typing import Any

from nbllama import __version__
from nbllama.report.log import duration, memory
from nbllama.report.records import Row, Run, number, points
from nbllama.report.style import STYLE
from nbllama.report.svg import Line, bars, chart, label, smoothed
from nbllama.report.text import safe
from nbllama.report.verdict import verdict


def page(run: Run) -> str:
    """Write the whole file. Whatever a log leaves out is left out of the page."""
    parts = [_head(run), verdict(run), _tiles(run), _loss(run), _others(run), _samples(run)]
    parts += [_data(run)]
    parts += [_forecast(run), _evaluations(run), _options(run)]
    title = f"Training run: {safe(_name(run))}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{"".join(parts)}
<footer>nbllama {safe(run.run.get("version", __version__))}. Losses are nats per trained token.
</footer>
</main>
</body>
</html>
"""


def _name(run: Run) -> str:
    return str(run.run.get("model") or "a run")


def _head(run: Run) -> str:
    steps, about = run.steps, []
    if started := run.run.get("started"):
        about.append(f"started {safe(started)}")
    if steps:
        last = steps[-1]
        of = f" of {safe(last['n_iter'])}" if "n_iter" in last else ""
        about.append(f"iteration {last['iter']}{of}")
    reason = run.end.get("reason")
    about.append(
        f"ended: {safe(reason)}" if reason else ("finished" if run.end else "not finished")
    )
    return f'<h1>{safe(_name(run))}</h1>\n<p class="about">{" · ".join(about)}</p>\n'


def _tiles(run: Run) -> str:
    tiles: list[tuple[str, str]] = []
    losses = points(run.steps, "loss")
    if losses:
        first, last = losses[0][1], losses[-1][1]
        when = "at first"
        means = [number(run.verdict, f"train_loss_{end}") for end in ("first", "last")]
        if means[0] is not None and means[1] is not None:
            first, last = means[0], means[1]
            when = f"over the first {run.verdict.get('over', '')}"
        tiles.append((f"{last:.4f}", f"training loss, {first:.4f} {when}"))
    values = points(run.evaluations, "val_loss")
    if values:
        at, best = min(values, key=lambda p: p[1])
        tiles.append((f"{best:.4f}", f"best validation loss, iteration {at:g}"))
        first = values[0][1]
        if max(best, first) < 700:
            told = f"validation perplexity, {math.exp(first):.4g} at first"
            tiles.append((f"{math.exp(best):.4g}", told))
    seconds = sum(number(r, "seconds") or 0.0 for r in run.steps)
    tokens = sum(number(r, "tokens") or 0.0 for r in run.steps)
    if seconds:
        tiles.append((f"{tokens / seconds:.0f}", "tokens a second"))
        tiles.append((duration(seconds), f"in {len(run.steps)} iterations"))
    rss = points(run.steps, "rss_bytes")
    if rss:
        tiles.append((memory(int(max(y for _, y in rss))), "most memory"))
    boxes = "".join(
        f'<div class="tile"><b>{safe(v)}</b><span>{safe(t)}</span></div>' for v, t in tiles
    )
    return f'<div class="tiles">{boxes}</div>\n' if boxes else ""


def _key(entries: list[tuple[str, str]]) -> str:
    items = "".join(f'<li><i class="{style}"></i>{safe(name)}</li>' for style, name in entries)
    return f'<ul class="key">{items}</ul>'


def _loss(run: Run) -> str:
    steps, values = points(run.steps, "loss"), points(run.evaluations, "val_loss")
    lines = [
        Line("training", steps, "raw"),
        Line("training, smoothed", smoothed(steps), "train"),
        Line("validation", values, "val", dots=len(values) <= 200),
    ]
    key = [("train", "training, thin: each iteration")]
    key += [("val", "validation")] if values else []
    title = "Loss by iteration"
    wide, narrow = (chart(lines, title, width=w, height=h) for w, h in ((900, 340), (380, 270)))
    return (
        f'<section class="card"><h2>Loss</h2><div class="wide">{wide}</div>'
        f'<div class="narrow">{narrow}</div>{_key(key)}</section>\n'
    )


def _others(run: Run) -> str:
    steps, cards = run.steps, []
    limit = number(run.run.get("forecast") or {}, "peak_bytes")
    for title, key, show, from_zero in (
        ("Learning rate", "lr", label, True),
        ("Gradient norm", "grad_norm", label, True),
        ("Tokens a second", "tokens_per_s", label, True),
        ("Memory", "rss_bytes", lambda v: memory(int(v)), True),
    ):
        found = points(steps, key)
        lines, entries = [Line(title, found, "other")], ""
        if key == "rss_bytes" and limit and found:
            ends = [(found[0][0], limit), (found[-1][0], limit)]
            lines.append(Line("forecast of the most", ends, "limit"))
            entries = _key([("limit", "forecast of the most")])
        drawn = chart(lines, f"{title} by iteration", show=show, from_zero=from_zero)
        cards.append(f'<section class="card"><h2>{title}</h2>{drawn}{entries}</section>')
    return f'<div class="grid2">{"".join(cards)}</div>\n'


def _samples(run: Run) -> str:
    asked: dict[str, list[tuple[Row, str]]] = {}
    for row in run.evaluations:
        for sample in row.get("samples") or []:
            if isinstance(sample, dict):
                answer = str(sample.get("answer", ""))
                asked.setdefault(str(sample.get("prompt", "")), []).append((row, answer))
    if not asked:
        return ""
    blocks = []
    for prompt, answers in asked.items():
        rows = ""
        for row, answer in answers:
            when = "before" if row["iter"] == 0 else f"iteration {row['iter']}"
            style = ' class="best"' if row.get("best") else ""
            shown = safe(answer) if answer else '<span class="none">(nothing)</span>'
            rows += f'<tr{style}><td class="n">{when}</td><td class="text">{shown}</td></tr>'
        blocks.append(
            f'<div class="sample"><p class="prompt text">{safe(prompt)}</p>'
            f'<table class="answers">{rows}</table></div>'
        )
    return (
        f'<section class="card"><h2>Sample answers</h2>{"".join(blocks)}'
        '<p class="note">The most likely words at each evaluation. Coloured: a new lowest '
        "validation loss.</p></section>\n"
    )


def _table(rows: list[tuple[str, ...]], head: tuple[str, ...] = ()) -> str:
    top = "".join(f"<th>{safe(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr><th>{safe(first)}</th>" + "".join(f"<td>{safe(c)}</td>" for c in rest) + "</tr>"
        for first, *rest in rows
    )
    return f"<table>{f'<thead><tr>{top}</tr></thead>' if top else ''}<tbody>{body}</tbody></table>"


def _pairs(value: Any) -> list[tuple[str, ...]]:
    """(name, value) rows of an object of a log."""
    return [(str(k), str(v)) for k, v in value.items()] if isinstance(value, dict) else []


def _data(run: Run) -> str:
    data = run.run.get("data")
    if not isinstance(data, dict):
        return ""
    counts = data.get("lengths")
    drawn = ""
    if isinstance(counts, list):
        found = [(str(c[0]), int(c[1])) for c in counts if isinstance(c, list) and len(c) == 2]
        drawn = (
            f"{bars(found, 'Samples by length')}<p class='note'>Samples by length in tokens.</p>"
        )
    rows = _pairs({k: v for k, v in data.items() if k != "lengths"})
    return (
        '<div class="grid2"><section class="card"><h2>Data</h2>'
        f'{_table(rows)}</section><section class="card"><h2>Lengths</h2>{drawn}</section></div>\n'
    )


def _forecast(run: Run) -> str:
    told = run.run.get("forecast") or {}
    rows: list[tuple[str, ...]] = []
    times = [v for r in run.steps if (v := number(r, "seconds")) is not None]
    if (seconds := number(told, "seconds")) is not None and times:
        rows.append(("an iteration", f"{seconds:.2f} s", f"{sum(times) / len(times):.2f} s"))
    peak, most = number(told, "peak_bytes"), number(run.end, "peak_bytes")
    if peak is not None and most is not None:
        rows.append(("most memory", memory(int(peak)), memory(int(most))))
    if not rows:
        return ""
    drawn = _table(rows, ("", "forecast", "truth"))
    return f'<section class="card"><h2>Forecast and truth</h2>{drawn}</section>\n'


def _evaluations(run: Run) -> str:
    rows = []
    for row in run.evaluations:
        loss, mean = number(row, "val_loss"), number(row, "train_loss")
        if loss is None:
            continue
        style = ' class="best"' if row.get("best") else ""
        cells = [str(row["iter"]), f"{loss:.4f}", label(math.exp(loss)) if loss < 700 else "inf"]
        cells.append("" if mean is None else f"{mean:.4f}")
        rows.append(f"<tr{style}>" + "".join(f'<td class="n">{c}</td>' for c in cells) + "</tr>")
    if not rows:
        return ""
    head = "".join(
        f"<th>{h}</th>"
        for h in ("iteration", "validation loss", "perplexity", "training loss since the last")
    )
    return (
        '<section class="card"><details open><summary>Evaluations</summary><table><thead><tr>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></details></section>\n"
    )


def _options(run: Run) -> str:
    rows = _pairs(run.run.get("options"))
    if not rows:
        return ""
    return (
        '<section class="card"><details><summary>Options</summary>'
        f"{_table(rows)}</details></section>\n"
    )
