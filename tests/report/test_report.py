"""The page about a run: its input, its contents, and what it must not let through.

Its appearance: `tests/report/test_browser.py`.
"""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nbllama.errors import DataError, UsageError
from nbllama.report.__main__ import main
from nbllama.report.page.template import SCRIPTS, page
from nbllama.report.payload import MOST_POINTS, commands, payload, thinned
from nbllama.report.records import Run, read_log
from nbllama.report.write import labels
from tests.report.live_story import live_rows
from tests.report.story import CHINESE, EVIL, evaluation_row, rows, run_row, step_row, write_log

VOID = {"meta", "link"}
FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|</script|import"
)


class Reader(HTMLParser):
    """Tags, texts, and whether what is opened is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.inside: dict[str, str] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            tag = self.open[-1]
            self.inside[tag] = self.inside.get(tag, "") + data


def made(tmp_path: Path, lines: list[dict[str, Any]] | None = None) -> str:
    return page(payload([("", read_log(str(write_log(tmp_path / "log.jsonl", lines))))]))


def data_of(text: str) -> dict[str, Any]:
    """The JSON in a page."""
    found: dict[str, Any] = json.loads(text.split('id="data">')[1].split("</script>")[0])
    return found


def run_of(text: str) -> dict[str, Any]:
    (run,) = data_of(text)["runs"]
    assert isinstance(run, dict)
    return run


def test_everything_is_in_the_page(tmp_path: Path) -> None:
    run = run_of(made(tmp_path, live_rows()))
    assert run["name"] == f"SmolLM2 {EVIL}.gguf" and run["state"] == "finished"
    assert (run["iter"], run["n_iter"], run["steps"]) == (120, 120, 120)
    assert run["seconds"] == pytest.approx(180.0) and run["tokens"] == 108_000
    assert run["forecast"] == {"seconds": 1.4, "peak_bytes": 9e8} and run["peak_bytes"] == 8.5e8
    assert run["series"]["loss"] == [
        list(range(1, 121)),
        [step_row(i)["loss"] for i in range(1, 121)],
    ]
    assert [e["iter"] for e in run["evaluations"]] == [0, 30, 60, 90, 120]
    assert run["evaluations"][0]["samples"][0] == {"prompt": CHINESE, "answer": EVIL}
    assert ["data", "诗.jsonl"] in run["data"] and run["lengths"][0] == ["1-50", 3]
    assert ["sample-start", EVIL] in run["options"] and run["version"] == "9.9"
    assert len(run["norms"]) == 12 and run["norms"][0]["gradient"]["attn_q"][1] == 0.2
    assert run["texts"][0]["pieces"][4] == EVIL and run["texts"][0]["losses"][0] is None
    assert run["questions"][0]["answer"] == EVIL


def test_nothing_of_a_run_becomes_markup_and_nothing_is_fetched(tmp_path: Path) -> None:
    text = made(tmp_path, live_rows())
    reader = Reader(text)
    tags = "html head meta meta meta meta link title style body main noscript h1 p script script"
    assert reader.tags == tags.split()
    for name, value in reader.attributes:
        assert not name.startswith("on") and name != "style"
        if name in ("src", "href"):
            assert value == "data:,"
    assert EVIL not in text and "@" not in reader.inside["title"]
    assert reader.inside["title"] == f"Training run: SmolLM2 {EVIL}.gguf"
    # the only address is the name of SVG's elements
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in text and "@import" not in text


def test_the_policy_allows_the_pages_own_script_alone(tmp_path: Path) -> None:
    text = made(tmp_path)
    (policy,) = (v for n, v in Reader(text).attributes if v and v.startswith("default-src"))
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["connect-src"] == rules["base-uri"] == "'none'"
    assert re.fullmatch("'sha256-[A-Za-z0-9+/=]{44}'", rules["script-src"])
    assert re.fullmatch("'sha256-[A-Za-z0-9+/=]{44}'", rules["style-src"])


def test_the_script_makes_no_markup_from_text() -> None:
    folder = Path(page.__code__.co_filename).parent
    assert {p.stem for p in folder.glob("*.js")} == set(SCRIPTS)
    for name in SCRIPTS:
        text = (folder / f"{name}.js").read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300
        assert not FORBIDDEN.search(text), name


def test_characters_that_turn_or_hide_a_title_are_shown_as_such(tmp_path: Path) -> None:
    lines = [run_row(model="a\u202eb\x00c\x1bd\u2066e"), step_row(1)]
    assert "<title>Training run: a\ufffdb\ufffdc\ufffdd\ufffde</title>" in made(tmp_path, lines)
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(run_row(model="x\ud800y")) + "\n")
    page(payload([("", read_log(str(log)))])).encode()


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
        [run_row(), {"event": "norms", "iter": 1, "gradient": [1], "update": {"a": 3, "b": ["x"]}}],
        [run_row(), {"event": "tokens", "iter": 1, "pieces": 3}, {"event": 5, "iter": 1}],
        [run_row(), {"event": "tokens", "iter": 1, "pieces": ["a", 2], "losses": ["x"]}],
        [run_row(), {"event": "question", "iter": 1}, {"event": "later", "iter": 2, "x": 1}],
        [run_row(), {"event": "verdict", "iter": 1, "answers": [1, {"question": 3}]}],
    ],
)
def test_what_is_missing_or_odd_is_left_out(tmp_path: Path, lines: list[dict[str, object]]) -> None:
    text = made(tmp_path, lines)
    Reader(text)
    data = json.dumps(data_of(text))
    assert not re.search(r"\bNaN\b|\bInfinity\b|None|1e\+?308", data)


VALUES: list[Any] = [
    None, True, -1, 0, 10**400, 2**63, 1e308, -1e308, 1e-320, "", "<script>x</script>", "\x1b[31m",
    [], [1], [[1, "x"], [2, 1e308], ["a", -5]], {}, {"a": [1]}, {"prompt": 5, "answer": [1]},
]  # fmt: skip


def test_any_value_at_any_place(tmp_path: Path) -> None:
    rng = random.Random(5)
    ours = [row for row in live_rows() if row["iter"] % 30 == 0 or row["iter"] < 3]
    for i, row in enumerate(ours):
        for key in row:
            changed = json.loads(json.dumps(ours))
            changed[i][key] = rng.choice(VALUES)
            text = made(tmp_path, changed)
            assert text.count("<script") == 2 and text.count("</script>") == 2
            data_of(text)


def test_a_killed_run_is_continued(tmp_path: Path) -> None:
    """Steps of the killed run after its last checkpoint are replaced by the repeated ones."""
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
    for name, told in (("a", "not the log of a run"), ("b", "No such file")):
        with pytest.raises(DataError, match=told):
            read_log(str(tmp_path / name))


def test_the_program(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log, out = write_log(tmp_path / "l.jsonl"), tmp_path / "out.html"
    assert main([str(log), str(out)]) == 0
    assert out.read_text(encoding="utf-8") == page(payload([("", read_log(str(log)))]))
    for words, code in (
        ([], 2), ([str(log), str(log), str(out)], 2), (["none", str(out)], 2), ([str(out)], 2),
        ([str(log), str(out), str(out)], 2), ([str(log), str(tmp_path / "none" / "x.html")], 3),
        (["--help"], 0), ([str(log), "not-there.jsonl", str(out)], 2),
    ):  # fmt: skip
        assert main(words) == code, words
    assert "Traceback" not in capfd.readouterr().err
    assert read_log(str(log)).steps  # the log is still there


def test_a_page_without_a_name_lies_next_to_its_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a, b = write_log(tmp_path / "a.jsonl"), write_log(tmp_path / "b.jsonl")
    assert main([str(a)]) == 0 and main([str(a), str(b)]) == 0
    assert capfd.readouterr().out.splitlines() == [
        str(tmp_path / "a.html"), str(tmp_path / "a-vs-b.html"),
    ]  # fmt: skip
    before = (tmp_path / "a.html").read_bytes()
    assert main([str(a)]) == 2 and "already exists" in capfd.readouterr().err
    assert main([str(a), str(tmp_path / "a.html")]) == 0
    assert (tmp_path / "a.html").read_bytes() == before
    assert read_log(str(b)).steps  # a second log is not a page


def test_a_comparison(tmp_path: Path) -> None:
    other = [run_row(options={"lora-r": 8, "lr": 1e-3}), *map(step_row, range(1, 50))]
    logs = [write_log(tmp_path / "a.jsonl"), write_log(tmp_path / "b.jsonl", other)]
    out = tmp_path / "both.html"
    assert main([*map(str, logs), str(out)]) == 0
    data = data_of(out.read_text(encoding="utf-8"))
    assert data["title"] == "Training run: a, b, compared"
    assert [(run["name"], run["iter"]) for run in data["runs"]] == [("a", 120), ("b", 49)]
    with pytest.raises(UsageError, match="at most 8"):
        payload([("x", Run())] * 9)


def test_labels_of_logs_are_different() -> None:
    assert labels(["a.jsonl", "x/b.jsonl"]) == ["a", "b"]
    assert labels(["one/log.jsonl", "two/log.jsonl"]) == ["one/log", "two/log"]
    assert labels(["log.jsonl", "two/log.jsonl"]) == ["log", "two/log"]
    assert labels(["a.x", "a.y"]) == ["a (1)", "a (2)"]


def test_what_to_do_next() -> None:
    options = {
        "model-base": "my model.gguf", "lora-out": "out/lora-ITERATION.gguf",
        "checkpoint-out": "chk-ITERATION.gguf",
    }  # fmt: skip
    words = ["--model-base", "my model.gguf", "--adam-iter", "120"]
    run = Run(run_row(options=options, words=words), [step_row(100)])
    found = dict(commands(run))
    chat = "nbllama chat --model 'my model.gguf' --lora out/lora-LATEST.gguf"
    assert found["chat with the model, using the adapter"] == chat
    assert found["run the remaining iterations"] == (
        "nbllama finetune --model-base 'my model.gguf' --adam-iter 120 --checkpoint-in"
        " chk-LATEST.gguf --adam-iter 20 --epochs 0"
    )
    run.steps = [step_row(120)]
    assert "run the remaining iterations" not in dict(commands(run))
    assert commands(Run(run_row(options=None))) == commands(Run()) == []


def test_long_curves_are_thinned_to_means(tmp_path: Path) -> None:
    found = thinned([(float(i), float(i % 2)) for i in range(20_000)])
    assert len(found) == MOST_POINTS and all(y == 0.5 for _, y in found)
    lines = [run_row(), *(step_row(i) for i in range(1, 5001))]
    run = run_of(made(tmp_path, lines))
    assert len(run["series"]["loss"][0]) == MOST_POINTS and run["steps"] == 5000


def test_an_empty_run() -> None:
    Reader(page(payload([("", Run())])))


def test_rows_are_what_the_tests_say() -> None:
    assert len(rows()) == 1 + 5 + 120 + 1
