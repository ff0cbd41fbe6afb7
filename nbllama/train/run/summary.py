"""The summary at the end of a run, as (name, value) lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nbllama.data.text_checks import mostly_lost
from nbllama.errors import shown
from nbllama.report.log import loss_text, memory
from nbllama.system.memory import peak_resident
from nbllama.train.run.card import write_cards

if TYPE_CHECKING:
    from nbllama.train.forecast import Forecast
    from nbllama.train.run.session import RunSession
    from nbllama.train.run.verdict import Ending
    from nbllama.train.trainer import StepResult
    from nbllama.train.validation import Validation


def summary(
    session: RunSession,
    expected: Forecast,
    results: Sequence[StepResult],
    *,
    ending: Ending,
    watch: Validation,
    begun: dict[str, Any],
) -> list[tuple[str, str]]:
    """Return the lines of the summary, and write the `--card` files.

    The lines show the measurements, the verdict, the written files and the commands to run next.

    `results` are the iterations of this run, and `begun` is the first row of the log.
    """
    outputs = session.outputs
    lines = [("time", str(session.ui.clock))]
    if results:
        mean = sum(r.seconds for r in results) / len(results)
        lines += [
            ("per iteration", f"{mean:.2f} s, forecast {session.mean_seconds(expected):.2f} s"),
            ("peak memory", f"{memory(peak_resident())}, forecast {memory(expected.peak)}"),
            *ending.loss,
        ]
    if watch.best_at >= 0:
        lines.append(("best validation", f"{loss_text(watch.best)} at iteration {watch.best_at}"))
    if lost := mostly_lost(session.data):
        lines.append(("data", lost))
    lines += ending.verdict
    if watch.best_at >= 0 and outputs.adapter:
        lines.append(("best adapter", shown(outputs.best_adapter, 400)))
    lines += outputs.written()
    if session.options.card and outputs.adapter:
        rows = [row for row in lines if "loss" in row[0] or "best" in row[0]]
        rows.insert(0, ("iterations", f"{session.trainer.iteration} in total"))
        lines += write_cards(session, begun, rows)
    return [*lines, *ending.commands]
