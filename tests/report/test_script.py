"""The arithmetic of the page's script, part by part, in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest

from tests.browser import chromium
from tests.report.live_story import norms_row, tokens_row
from tests.report.story import evaluation_row, step_row

PARTS = ("values", "data", "charts", "heat", "tokens")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        driver.get("about:blank")
        yield driver


def call(browser: Any, code: str, *arguments: Any) -> Any:
    """The result of JavaScript after the computing parts of the page's script."""
    folder = files("nbllama.report.page")
    text = "\n".join(folder.joinpath(f"{name}.js").read_text(encoding="utf-8") for name in PARTS)
    return browser.execute_script(f"{text}\n{code}", *arguments)


def test_ticks_are_round_and_within(browser: Any) -> None:
    assert call(browser, "return ticks(0, 1)") == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert call(browser, "return ticks(1, 120, 5)") == [50, 100]
    assert call(browser, "return ticks(3, 3)") == [3]
    for low, high in ((1e-5, 2e-4), (-3, 12), (2.3001, 2.3002), (0, 7e9)):
        found = call(browser, "return ticks(arguments[0], arguments[1])", low, high)
        assert 2 <= len(found) <= 7
        assert low - 1e-9 * abs(low) <= found[0] and found[-1] <= high * (1 + 1e-9)


def test_ticks_of_a_logarithmic_axis(browser: Any) -> None:
    assert call(browser, "return logTicks(1, 1000, 9)") == [
        1,
        2,
        5,
        10,
        20,
        50,
        100,
        200,
        500,
        1000,
    ]
    assert call(browser, "return logTicks(1e-6, 10, 4)") == pytest.approx([1e-6, 1e-4, 1e-2, 1])
    assert call(browser, "return logTicks(2, 4, 4)") == pytest.approx([2, 2.5, 3, 3.5, 4])


def test_long_curves_are_thinned_and_smoothed(browser: Any) -> None:
    found = call(browser, "return thinned(Array.from({length: 6000}, (_, i) => [i, i % 2]))")
    assert len(found) == 600 and all(y == 0.5 for _, y in found)
    line = [[i, 2.0 * i + 1] for i in range(50)]
    assert call(browser, "return smoothed(arguments[0])", line)[2:-2] == line[2:-2]
    wave = [[i, (-1.0) ** i] for i in range(400)]
    assert max(abs(y) for _, y in call(browser, "return smoothed(arguments[0])", wave)) < 0.12
    assert call(browser, "return smoothed([[1, 5]])") == [[1, 5]]


PATH = """
const made = chart([{name: "a", points: arguments[0], style: "other"}],
  {title: "t", width: 420, height: 230, ...arguments[1]});
return [made.querySelector("path").getAttribute("d").slice(1).split("L").map(
  p => p.split(",").map(Number)), [...made.querySelectorAll("text")].map(t => t.textContent)];
"""


def test_points_lie_where_they_belong(browser: Any) -> None:
    points, _ = call(browser, PATH, [[0, 0.0], [10, 1.0], [20, 0.5]], {})
    assert [x for x, _ in points] == pytest.approx([58, 232, 406], abs=0.1)
    heights = [y for _, y in points]
    assert heights[0] > heights[2] > heights[1]
    assert heights[2] == pytest.approx((heights[0] + heights[1]) / 2, abs=0.1)
    log = {"logX": True, "logY": True}
    points, texts = call(browser, PATH, [[0, 5.0], [1, 0.01], [10, 0.1], [100, 1.0], [101, 0]], log)
    assert [x for x, _ in points] == pytest.approx([58, 232, 406], abs=0.1)
    heights = [y for _, y in points]
    assert heights[1] == pytest.approx((heights[0] + heights[2]) / 2, abs=0.1)
    assert "0.01" in texts and "100" in texts


def test_one_bad_step_does_not_hide_the_others(browser: Any) -> None:
    points = [[i, 1.0 + i / 1000] for i in range(500)]
    points[250] = [250, 1e6]
    _, texts = call(browser, PATH, points, {})
    assert "1.2" in texts and not any("e" in text for text in texts)


def test_numbers_as_texts(browser: Any) -> None:
    values = [0, 2e-4, 1.5e-4, 0.5, 12345.0, 1.25, -3]
    found = ["0", "2e-4", "1.5e-4", "0.5", "1.2e4", "1.25", "-3"]
    assert call(browser, "return arguments[0].map(label)", values) == found
    seconds = [0, 0.6, 61, 3599.7, 86399, 90000, 200000]
    assert call(browser, "return arguments[0].map(duration)", seconds) == [
        "0:00:00", "0:00:01", "0:01:01", "1:00:00", "23:59:59", "1 day 1:00:00", "2 days 7:33:20",
    ]  # fmt: skip
    assert call(browser, "return [512400000, 1250000000].map(memory)") == ["512 MB", "1.25 GB"]
    assert call(browser, "return median([3, 1, 2]) + median([1, 2])") == 3.5
    shown = call(browser, r'return clean("a\u202eb\u0000c\ud800d\ud83d\ude00\n\t")')
    assert shown == "a\ufffdb\ufffdc\ufffdd\U0001f600\n\t"


RUN = """
const run = {series: Object.fromEntries(SERIES.map(n => [n, [[], []]])), evaluations: [], norms: [],
  texts: [], questions: [], notes: [], recent: [], steps: 0, seconds: 0, tokens: 0, memory: null};
arguments[0].forEach(row => add(run, row));
return run;
"""


def event(row: dict[str, Any], **more: Any) -> dict[str, Any]:
    from nbllama.report.payload import event as made

    found = made(row)
    assert found is not None
    return found | more


def test_rows_are_added_as_a_whole_log_is_read(browser: Any) -> None:
    rows = [event(step_row(i)) for i in range(1, 13)] + [event(evaluation_row(12, 2.0, True))]
    run = call(browser, RUN, rows)
    assert run["iter"] == 12 and run["n_iter"] == 120 and run["steps"] == 12
    assert run["seconds"] == 18 and run["tokens"] == 12 * 900 and len(run["recent"]) == 11
    assert run["series"]["loss"] == [
        list(range(1, 13)),
        [step_row(i)["loss"] for i in range(1, 13)],
    ]
    assert run["evaluations"][0]["samples"][1]["answer"].startswith("line one")
    many = call(browser, RUN, [event(step_row(i)) for i in range(1, 9001)])
    assert many["steps"] == 9000 and 2000 < len(many["series"]["loss"][0]) <= 4000
    assert many["series"]["loss"][0][0] > 1


def test_what_passes_by_makes_room_and_questions_are_answered(browser: Any) -> None:
    def asked(i: int, answer: str, done: bool) -> dict[str, Any]:
        row = {"event": "question", "iter": 1, "id": i, "prompt": f"p{i}", "answer": answer}
        return event(row | {"done": done})

    texts = [event(tokens_row(i, 0), passing=i % 3 > 0) for i in range(1, 8)]
    run = call(
        browser, RUN, [*texts, asked(1, "", False), asked(2, "", False), asked(1, "x", True)]
    )
    assert [t["iter"] for t in run["texts"]] == [3, 6, 7]
    assert [(q["id"], q["answer"]) for q in run["questions"]] == [(1, "x"), (2, "")]


def test_columns_of_the_heat_map(browser: Any) -> None:
    row = event(norms_row(2, 3))
    found = call(browser, "return column(arguments[0], 'gradient', 'attn_q')", row)
    assert found == [0.5, 1.0, 1.5]
    every = call(browser, "return column(arguments[0], 'gradient', ALL)", row)
    assert every == pytest.approx([0.5 * 10**0.5, 10**0.5, 1.5 * 10**0.5])
    assert call(browser, "return [0, 1, -5, 9].map(colour)") == [
        [68, 1, 84], [253, 231, 37], [68, 1, 84], [253, 231, 37],
    ]  # fmt: skip
    assert call(browser, "return [0, 3, 6, 60, -1].map(shade)") == [0, 4, 8, 8, 0]


def test_options_that_differ(browser: Any) -> None:
    runs = [
        {"options": [["a", "1"], ["b", "2"], ["c", "3"]]},
        {"options": [["a", "1"], ["b", "5"]]},
    ]
    assert call(browser, "return differences(arguments[0])", runs) == [
        ["b", "2", "5"], ["c", "3", ""],
    ]  # fmt: skip
