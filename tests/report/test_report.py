"""The page about a run: what it reads, what it shows, and what it must not let through."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from nbllama.report.svg import Line, chart, label, smoothed, thinned, ticks

from nbllama.errors import DataError
from nbllama.report.__main__ import main
from nbllama.report.page import page
from nbllama.report.records import Run, read_log
from tests.report.story import CHINESE, EVIL, evaluation_row, rows, run_row, step_row, write_log

VOID = {"meta", "link", "line", "circle", "path", "rect", "br"}


class Reader(HTMLParser):
    """Tags, texts, and whether what is opened is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def made(tmp_path: Path, lines: list[dict[str, object]] | None = None) -> str:
    return page(read_log(str(write_log(tmp_path / "log.jsonl", lines))))


def test_everything_is_in_the_page(tmp_path: Path) -> None:
    text = made(tmp_path)
    seen = "".join(Reader(text).texts)
    for part in (
        CHINESE, EVIL, "诗.jsonl", "适配器.gguf", "巍巍长庆寺，巍巍大兴宫。第120步",
        "iteration 120 of 120", "finished", "Learning rate", "Gradient norm", "Tokens a second",
        "Memory", "Forecast and truth", "1.40 s", "1.50 s", "900 MB", "850 MB", "before",
        "(nothing)", "line one\n\n  line two\tand", "nbllama 9.9", "1-50", "lora-r",
    ):  # fmt: skip
        assert part in seen, part
    assert text.count('class="curve') == 2 * 3 + 4 + 1  # loss twice, four others, the forecast


def test_nothing_of_a_run_becomes_markup_and_nothing_is_fetched(tmp_path: Path) -> None:
    text = made(tmp_path)
    reader = Reader(text)
    assert not {"script", "img", "iframe", "object", "embed", "base", "form"} & set(reader.tags)
    for name, value in reader.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value == "data:,"
    assert "http:" not in text and "https:" not in text and "url(" not in text
    assert "<script" not in text and EVIL not in text


def test_characters_that_turn_or_hide_a_text_are_shown_as_such(tmp_path: Path) -> None:
    lines = [run_row(model="a\u202eb\x00c\x1bd\u2066e"), step_row(1)]
    assert "a\ufffdb\ufffdc\ufffdd\ufffde" in made(tmp_path, lines)
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(run_row(model="x\ud800y")) + "\n")
    page(read_log(str(log))).encode()


@pytest.mark.parametrize(
    "lines",
    [
        [step_row(1)],
        [run_row()],
        [run_row(), evaluation_row(0, 3.0, True)],
        [run_row(), {"iter": 1, "loss": None, "seconds": None}],
        [run_row(data=None, forecast=None, options=None), step_row(1), step_row(2)],
        [run_row(data={"lengths": [["a"], 3, ["b", 2]]}, forecast={"seconds": "x"}), step_row(1)],
        [run_row(), {"event": "evaluation", "iter": 4, "samples": [3, {}], "val_loss": 1e308}],
        [{"iter": 1, "loss": True, "lr": "x", "tokens": [], "seconds": 1e400}],
    ],
)
def test_what_is_missing_or_odd_is_left_out(tmp_path: Path, lines: list[dict[str, object]]) -> None:
    text = made(tmp_path, lines)
    Reader(text)
    assert not re.search(r"\bnan\b|\binf\b|None", text)


def test_a_killed_run_is_continued(tmp_path: Path) -> None:
    """What the killed run did after its last checkpoint counts only as it was done again."""
    first = [run_row(), *map(step_row, range(1, 26)), evaluation_row(20, 2.0, True)]
    again = [run_row(10), *(step_row(i) | {"loss": 9.0} for i in range(11, 16))]
    run = read_log(str(write_log(tmp_path / "log.jsonl", [*first, *again])))
    assert [r["iter"] for r in run.steps] == list(range(1, 16))
    assert [r["loss"] == 9.0 for r in run.steps] == [False] * 10 + [True] * 5
    assert run.evaluations == [] and run.run["iter"] == 10 and run.end == {}


def test_cut_lines_are_passed_over(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl")
    text = log.read_text(encoding="utf-8").splitlines(keepends=True)
    bad = ['{"iter": 3, "lo\n', "[1]\n", "\n", '{"iter": "x"}\n', '{"iter": -1}\n', "[" * 100_000]
    log.write_text("".join(text[:5] + bad[:5] + text[5:]) + bad[5], encoding="utf-8")
    assert read_log(str(log)) == read_log(str(write_log(tmp_path / "whole.jsonl")))


def test_files_that_are_no_log(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff\x00no log\n{}\n")
    for name, told in (("a", "no log of a run"), ("b", "No such file")):
        with pytest.raises(DataError, match=told):
            read_log(str(tmp_path / name))


def test_the_program(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log, out = write_log(tmp_path / "l.jsonl"), tmp_path / "out.html"
    assert main([str(log), str(out)]) == 0
    assert out.read_text(encoding="utf-8") == page(read_log(str(log)))
    for words, code in (
        ([], 2), ([str(log)], 2), ([str(log), str(log)], 2), (["none", str(out)], 2),
        ([str(log), str(tmp_path / "none" / "x.html")], 3), (["--help"], 0),
    ):  # fmt: skip
        assert main(words) == code, words
    assert "Traceback" not in capfd.readouterr().err
    assert read_log(str(log)).steps  # the log is still there


# Drawing


def test_ticks_are_round_and_within() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(1, 120, 5) == [50, 100]
    assert ticks(3, 3) == [3]
    for low, high in ((1e-5, 2e-4), (-3, 12), (2.3001, 2.3002), (0, 7e9)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 7
        assert low - 1e-9 * abs(low) <= found[0] and found[-1] <= high * (1 + 1e-9)


def test_long_curves_are_thinned_to_means() -> None:
    points = [(float(i), float(i % 2)) for i in range(6000)]
    found = thinned(points)
    assert len(found) == 600 and all(y == 0.5 for _, y in found)
    assert thinned(points[:600]) == points[:600]


def test_smoothing_keeps_a_straight_line_and_takes_out_a_wave() -> None:
    points = [(float(i), 2.0 * i + 1) for i in range(50)]
    assert smoothed(points)[2:-2] == points[2:-2]
    wave = smoothed([(float(i), (-1.0) ** i) for i in range(400)])
    assert max(abs(y) for _, y in wave) < 0.12
    assert smoothed([(1.0, 5.0)]) == [(1.0, 5.0)]


def test_points_lie_where_they_belong() -> None:
    text = chart([Line("a", [(0, 0.0), (10, 1.0), (20, 0.5)], "other")], "t", width=420, height=230)
    found = re.search(r'class="curve other" d="M([^"]*)"', text)
    assert found is not None
    xy = [tuple(map(float, part.split(","))) for part in found[1].split("L")]
    assert [x for x, _ in xy] == pytest.approx([58, 232, 406], abs=0.1)
    heights = [y for _, y in xy]
    assert heights[0] > heights[2] > heights[1]
    assert heights[2] == pytest.approx((heights[0] + heights[1]) / 2, abs=0.1)


def test_one_bad_step_does_not_hide_the_others() -> None:
    points = [(float(i), 1.0 + i / 1000) for i in range(500)]
    points[250] = (250.0, 1e6)
    text = chart([Line("a", points, "raw")], "t")
    assert "1.2" in text and "1e6" not in text and "5e5" not in text


def test_labels() -> None:
    assert [label(v) for v in (0, 2e-4, 1.5e-4, 0.5, 12345.0, 1.25, -3)] == [
        "0", "2e-4", "1.5e-4", "0.5", "1.2e4", "1.25", "-3",
    ]  # fmt: skip


def test_an_empty_run() -> None:
    Reader(page(Run()))


def test_rows_are_what_the_tests_say() -> None:
    assert len(rows()) == 1 + 5 + 120 + 1
