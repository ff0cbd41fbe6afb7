"""Draws the README's picture, docs/images/demo.svg, from what scripts/demo has left behind."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import matplotlib

from nbllama.report.records import read_log
from tests.conftest import ROOT
from tests.docs.pages import WALKTHROUGH, for_dark_pages


def percent(path: Path) -> float:
    """Percent of right answers."""
    return float(json.loads(path.read_text(encoding="utf-8"))["percent"])


def main(folder: Path) -> None:
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    log = read_log(str(folder / "metrics.jsonl"))
    before, after = (percent(folder / f"{name}.json") for name in ("before", "after"))
    with plt.style.context(str(WALKTHROUGH / "figures.mplstyle")):
        figure, (left, right) = plt.subplots(1, 2, width_ratios=(2.2, 1), figsize=(7, 2.4))
        left.plot([s["iter"] for s in log.steps], [s["loss"] for s in log.steps])
        rate = sorted(s["tokens_per_s"] for s in log.steps)[len(log.steps) // 2]
        left.set(xlabel="iteration", ylabel="loss", ylim=(0, None), title="scripts/demo: training")
        left.text(0.97, 0.9, f"{len(log.steps)} iterations, {rate:.0f} tokens/s in the median",
                  transform=left.transAxes, ha="right")  # fmt: skip
        bars = right.bar(["before", "after"], [before, after], color=["C5", "C2"], width=0.6)
        right.bar_label(bars, fmt="%.0f %%")
        right.set(ylim=(0, 112), yticks=[], title="right answers to new questions")
        right.grid(False)
        out = io.StringIO()
        figure.savefig(out, format="svg")
    target = ROOT / "docs" / "images" / "demo.svg"
    target.write_text(for_dark_pages(out.getvalue()), encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo"))
