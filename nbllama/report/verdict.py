"""What came out of the run, at the head of its page: the verdict, and answers before and after."""

from __future__ import annotations

from nbllama.report.records import Row, Run
from nbllama.report.text import safe


def verdict(run: Run) -> str:
    """Write the section; "" for a run that has no verdict."""
    found = run.verdict
    if not found.get("verdict"):
        return ""
    asked = [row for row in found.get("answers") or [] if isinstance(row, dict)]
    return (
        f'<section class="card"><h2>{safe(found["verdict"])}</h2>'
        f"<p>{safe(found.get('reason', ''))}</p>{''.join(map(_answers, asked))}</section>\n"
    )


def _answers(row: Row) -> str:
    rows = [("before", row.get("before")), ("after", row.get("after"))]
    if not row.get("right"):
        rows.append(("in the data", row.get("wanted")))
    lines = "".join(
        f'<tr><td class="n">{name}</td><td class="text">{safe(text or "")}</td></tr>'
        for name, text in rows
    )
    kind = "question that was trained" if row.get("kind") == "trained" else "held-out question"
    return (
        f'<div class="sample"><p class="prompt text">{safe(row.get("question", ""))}</p>'
        f'<table class="answers">{lines}</table><p class="note">A {kind}.</p></div>'
    )
