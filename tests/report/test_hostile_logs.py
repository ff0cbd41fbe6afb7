"""Foreign logs: a page or one line, for any contents."""

from __future__ import annotations

import json
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nbllama.cli.report import main
from nbllama.report.page import template
from nbllama.report.payload import payload
from nbllama.report.records import Run
from tests.report.story import rows

VALUES: list[Any] = [
    None, True, -1, 0, 10**400, 2**63, 1e308, -1e308, 1e-320, "", "<script>x</script>", "\x1b[31m",
    [], [1], [[1, "x"], [2, 1e308], ["a", -5]], {}, {"a": [1]}, {"prompt": 5, "answer": [1]},
]  # fmt: skip
LINES = [
    '{"iter":1,"loss":1e999,"n_iter":"<script>"}',
    '{"event":"run","iter":0,"forecast":[1]}',
    '{"event":"run","iter":1,"forecast":true}',
    '{"iter":1' + "0" * 400 + ',"loss":1}',
    '{"iter":0,"loss":1,"n_iter":"x","event":"evaluation","val_loss":1,"samples":5}',
    '{"event":"run","iter":0,"data":{"lengths":[["a","b"],["c",1e999],5,["d",-7]]}}',
    '{"event":"run","iter":0,"options":5,"data":"x"}',
    '{"iter":2,"loss":' + "[" * 900 + "]" * 900 + "}",
    '{"event":"run","iter":0,"model":' + "[" * 900 + "]" * 900 + "}",
]


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs), attrs


def _of_a_page() -> list[str]:
    tags = _Tags()
    tags.feed(template.page(payload([("log", Run(steps=[{"iter": 1, "loss": 2.0}]))])))
    return tags.found


# The elements of every page: text of a log is not an element.
OURS = _of_a_page()


def page(folder: Path, text: str) -> str:
    (folder / "log").write_text(text, encoding="utf-8", errors="surrogatepass")
    assert main([str(folder / "log"), str(folder / "page.html")]) == 0
    return (folder / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_is_not_ours(tmp_path: Path, line: str) -> None:
    made = page(tmp_path, f'{line}\n{{"iter":5,"loss":2.0}}\n')
    tags = _Tags()
    tags.feed(made)
    assert tags.found == OURS


def test_any_value_at_any_place(tmp_path: Path) -> None:
    """Each place of a complete log, one after another, with each value."""
    rng = random.Random(5)
    ours = [row for row in rows() if row["iter"] % 30 == 0 or row["iter"] < 3]
    places = [(i, key) for i, row in enumerate(ours) for key in row]
    inner = [
        (i, key, k)
        for i, row in enumerate(ours)
        for key, x in row.items()
        if isinstance(x, dict)
        for k in x
    ]
    chosen = rng.sample(places, min(120, len(places)))
    for place in [*chosen, *inner]:
        changed = json.loads(json.dumps(ours))
        at = changed[place[0]]
        for key in place[1:-1]:
            at = at[key]
        at[place[-1]] = rng.choice(VALUES)
        text = "".join(json.dumps(row) + "\n" for row in changed)
        tags = _Tags()
        tags.feed(page(tmp_path, text))
        assert tags.found == OURS, place
