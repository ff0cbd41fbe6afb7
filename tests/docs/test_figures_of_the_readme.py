"""The READMEs' figures of speed and memory are those of docs/results/bench.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
BENCH = ROOT / "docs" / "results" / "bench.json"


def row(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The only row with these values."""
    (found,) = [r for r in rows if all(r[name] == value for name, value in wanted.items())]
    return found


def figures() -> dict[str, str]:
    bench = json.loads(BENCH.read_text(encoding="utf-8"))
    ours = row(bench["step"], ctx=256, batch=4, checkpointing=False, threads=2)
    peft = row(bench["peer"], ctx=256, batch=4, checkpointing=False)
    avx2 = row(bench["vectors"], vectors="AVX2")
    return {
        "ours": f"{ours['tokens_per_s']:.0f}",
        "ours GB": f"{ours['peak_mb'] / 1000:.1f}",
        "peft": f"{peft['tokens_per_s']:.0f}",
        "peft GB": f"{peft['peak_mb'] / 1000:.1f}",
        "avx2": f"{avx2['tokens_per_s']:.0f}",
        "times": f"{ours['tokens_per_s'] / peft['tokens_per_s']:.1f}",
        "memory": f"{ours['peak_mb'] / peft['peak_mb']:.2f}",
    }


def wrong(text: str, now: dict[str, str]) -> list[str]:
    """Statements of a README about speed that differ from the measurements."""
    text = " ".join(FENCE.sub("", text).split())
    found = {
        "tokens/s": re.findall(r"([\d.]+) tokens/s", text),
        "GB": re.findall(r"([\d.]+) GB", text),
        "times": re.findall(r"([\d.]+)(?: times as fast as PyTorch| 倍)", text),
    }
    speeds = [now["ours"], now["peft"]]
    wanted = {
        "tokens/s": [speeds, [*speeds, now["avx2"]]],
        "GB": [[now["ours GB"], now["peft GB"]]],
        "times": [[now["times"]]],
    }
    return [f"{name}: {found[name]}" for name in wanted if found[name] not in wanted[name]]


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_the_readme_has_what_was_measured(page: Path) -> None:
    now = figures()
    assert not wrong(page.read_text(encoding="utf-8"), now), now
    assert 0.22 <= float(now["memory"]) <= 0.28  # "a quarter of the memory"


def test_another_figure_is_found() -> None:
    now, text = figures(), READMES[0].read_text(encoding="utf-8")
    for name in ("ours", "peft", "avx2", "ours GB", "peft GB", "times"):
        unit = {"times": " times", "GB": " GB"}.get(name.split()[-1], " tokens/s")
        other = re.sub(
            rf"\b{re.escape(now[name])}(\s+){unit.strip()}", rf"9.9\1{unit.strip()}", text
        )
        assert other != text, name
        assert wrong(other, now), name


def test_the_table_of_models_is_as_fast_as_was_measured() -> None:
    """docs/which-model.md computes its throughput from the same measurements."""
    import scripts.tools.forecast_table as table

    page = (ROOT / "docs" / "which-model.md").read_text(encoding="utf-8")
    for name, like, _, billions in table.MODELS:
        speed = table.tokens_per_second(billions)
        line = next(x for x in page.splitlines() if x.startswith(f"| {name} ({like}) |"))
        end = f"| {speed:.0f} tokens/s | {table.hours(table.TOKENS / speed)} |"
        assert line.endswith(end), (line, end)
