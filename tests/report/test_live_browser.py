"""The served page, and the page that compares runs, in a real browser. No run: its rows are
invented.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbllama.report.live.server import LiveServer
from nbllama.report.write import write_report
from tests.browser import chromium, show
from tests.report.live_story import Stops, live_rows, norms_row, served, tokens_row
from tests.report.story import EVIL, run_row, step_row, write_log
from tests.report.test_browser import contrast, luminance


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def stops() -> Stops:
    return Stops()


@pytest.fixture
def live(stops: Stops) -> Iterator[LiveServer]:
    with served(stops) as server:
        for row in live_rows()[:-1]:
            server.state.add(row)
        yield server


def text(browser: Any, selector: str) -> str:
    found = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetParent)"
        ".map(e => e.innerText).join('|')",
        selector,
    )
    assert isinstance(found, str)
    return found


def wait_for(what: Callable[[], Any], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


def press(browser: Any, word: str) -> None:
    browser.execute_script(
        "const found = [...document.querySelectorAll('button')].filter(b => b.offsetParent"
        " && b.textContent === arguments[0]); if (found.length !== 1) throw found.length;"
        "found[0].click()",
        word,
    )


def test_news_are_drawn_as_they_come(browser: Any, live: LiveServer) -> None:
    show(browser, live.address, 1280, 900)
    assert "running" in text(browser, ".about") and text(browser, ".live [role=status]") == "live"
    assert "iteration 120 of 120" in text(browser, ".about")
    before = browser.execute_script("return document.querySelector('.curve.raw').getAttribute('d')")
    live.state.add(step_row(121) | {"n_iter": 200, "loss": 0.7777})
    live.state.note("warning: the rate <b>is</b> high")
    wait_for(lambda: "iteration 121 of 200" in text(browser, ".about"))
    wait_for(lambda: "the rate <b>is</b> high" in text(browser, ".warning"))
    assert "0.7777" in text(browser, ".tile b") and "left" in text(browser, ".tile span")
    after = browser.execute_script("return document.querySelector('.curve.raw').getAttribute('d')")
    assert before != after
    live.close()
    wait_for(lambda: text(browser, ".live [role=status]") == "ended")
    assert text(browser, "button.stop") == ""
    assert browser.get_log("browser") == []


def test_what_came_out_is_said_at_the_top(browser: Any, live: LiveServer) -> None:
    show(browser, live.address, 390, 800)
    assert text(browser, ".verdict") == ""
    answer = {"kind": "trained", "question": EVIL, "wanted": "a", "before": "b", "after": "a"}
    row: dict[str, Any] = {
        "event": "verdict",
        "iter": 120,
        "verdict": "learned",
        "reason": EVIL,
        "over": "epoch",
    }
    row |= {"train_loss_first": 2.5, "train_loss_last": 0.25, "answers": [answer | {"right": True}]}
    live.state.add(row)
    wait_for(lambda: text(browser, ".verdict") == f"learned: {EVIL}")
    assert "training loss, 2.5000 over the first epoch" in text(browser, ".tile span")
    cells = browser.execute_script(
        "return [...document.querySelector('.verdict').nextSibling.querySelectorAll('tbody tr')]"
        ".map(r => [...r.cells].map(c => c.textContent))"
    )
    assert cells == [[EVIL, "trained", "a", "b", "a"]]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390


def test_stop_and_save_wants_two_presses(browser: Any, live: LiveServer, stops: Stops) -> None:
    show(browser, live.address, 1280, 900)
    press(browser, "Stop and save")
    assert stops.count == 0
    press(browser, "Press again to stop")
    wait_for(lambda: stops.count == 1)
    assert text(browser, ".live [role=status]").startswith("stopping")
    live.state.add(
        {"event": "end", "iter": 120, "seconds": 1.0, "reason": "stopped from the live page"}
    )
    wait_for(lambda: "ended: stopped from the live page" in text(browser, ".about"))


def test_questions_are_asked_and_answers_grow(browser: Any, live: LiveServer) -> None:
    show(browser, live.address, 390, 800)
    box = browser.find_element("css selector", ".ask textarea")
    box.send_keys("你好 <b>")
    press(browser, "Ask")
    question = None
    until = time.monotonic() + 10
    while question is None and time.monotonic() < until:
        question = live.state.next_question()
        time.sleep(0.05)
    assert question is not None and question.prompt == "你好 <b>"
    wait_for(lambda: "waiting for the end of an iteration" in text(browser, ".answer"))
    row = {"event": "question", "iter": 121, "id": question.id, "prompt": question.prompt}
    live.state.add(row | {"answer": "half", "done": False})
    wait_for(lambda: "half" in text(browser, ".answer"))
    live.state.add(row | {"answer": f"whole {EVIL}"})
    wait_for(lambda: f"whole {EVIL}" in text(browser, ".answer"))
    assert "half" not in text(browser, ".answer") and box.get_attribute("value") == ""
    # an input box in use is not changed by updates
    box.send_keys("next")
    live.state.add(step_row(121))
    wait_for(lambda: "iteration 121" in text(browser, ".about"))
    assert box.get_attribute("value") == "next"
    assert browser.switch_to.active_element == box
    # Enter asks a question; the number of waiting questions is limited
    for _ in range(5):
        box.clear()
        box.send_keys("again\n")
        wait_for(lambda: box.get_attribute("value") == "" or "wait" in text(browser, ".note"))
    wait_for(lambda: "4 questions are already waiting" in text(browser, ".note"))


def test_a_page_of_another_origin_gets_nothing(
    browser: Any, live: LiveServer, stops: Stops, tmp_path: Path
) -> None:
    """A browser prevents it from reading, and requests that it sends without asking are refused."""
    (tmp_path / "evil.html").write_text("<!DOCTYPE html><title>evil</title>")
    browser.get((tmp_path / "evil.html").as_uri())
    asked = """
    const [address, done] = arguments, say = p => p.then(r => r.type + r.status, () => "refused");
    const json = {"Content-Type": "application/json"}, post = {method: "POST", body: "{}"};
    Promise.all([say(fetch(address)), say(fetch(address, {mode: "no-cors"})),
      say(fetch(address + "stop", {...post, headers: json})),
      say(fetch(address + "stop", {...post, mode: "no-cors"}))]).then(done);
    """
    got = browser.execute_async_script(asked, live.address)
    assert got[0] == got[2] == "refused"
    assert stops.count == 0
    browser.execute_script(
        "const f = document.createElement('iframe'); f.src = arguments[0]; document.body.append(f)",
        live.address,
    )
    time.sleep(0.5)
    frame = browser.find_element("css selector", "iframe")
    browser.switch_to.frame(frame)
    assert browser.execute_script("return document.querySelectorAll('.card').length") == 0
    browser.switch_to.default_content()
    browser.get_log("browser")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark"), (320, "light")])
def test_heat_and_tokens_are_seen(browser: Any, live: LiveServer, width: int, scheme: str) -> None:
    show(browser, live.address, width, 900, scheme)
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('canvas')].map(c => [c.width, c.height,"
        " c.getBoundingClientRect().width, new Set(c.getContext('2d').getImageData(0, 0, c.width,"
        " c.height).data.filter((_, i) => i % 4 === 0)).size])"
    )
    assert [s[:2] for s in sizes] == [[12, 6], [12, 6]]
    assert all(w > 200 and colours > 10 for _, _, w, colours in sizes)
    # all tensors, and one of them
    browser.execute_script(
        "const s = document.querySelector('select[aria-label=tensor]'); s.value = 'attn_q';"
        "s.dispatchEvent(new Event('change'))"
    )
    assert "0.00833" in text(browser, ".read") and "0.6" in text(browser, ".read")
    tokens = browser.execute_script(
        "return [...document.querySelectorAll('.tokens span')].map(s => [s.className,"
        " s.textContent, s.title, getComputedStyle(s).backgroundColor,"
        " getComputedStyle(s).color])"
    )
    assert [t[0] for t in tokens] == ["given"] * 2 + ["tok l0"] * 4 + ["tok l8"]
    assert tokens[4][1] == EVIL and tokens[5][1] == "\ufffd"
    assert tokens[6][2].startswith("loss 9.000, probability")
    # the darkest one is still readable
    card = browser.execute_script(
        "return getComputedStyle(document.querySelector('.card')).backgroundColor"
    )
    assert contrast(over(tokens[6][3], card), luminance(tokens[6][4])) > 4.5
    slider = browser.find_element("css selector", "input[type=range]")
    first = "arguments[0].value = 0; arguments[0].dispatchEvent(new Event('input'))"
    browser.execute_script(first, slider)
    assert "iteration 10," in text(browser, ".pick .note")
    # if the first step is selected, updates do not change that
    live.state.add(norms_row(121))
    live.state.add(tokens_row(121))
    live.state.add(step_row(121))
    wait_for(lambda: "iteration 121" in text(browser, ".about"))
    assert "iteration 10," in text(browser, ".pick .note")
    assert browser.get_log("browser") == []


def over(colour: str, below: str) -> float:
    """Luminance of a colour with an alpha on an opaque one."""
    *rgb, alpha = map(float, colour[colour.index("(") + 1 : -1].split(","))
    under = map(float, below[below.index("(") + 1 : -1].split(","))
    mixed = [round(c * alpha + b * (1 - alpha)) for c, b in zip(rgb, under, strict=True)]
    return luminance(f"rgb({', '.join(map(str, mixed))})")


def test_axes_are_switched(browser: Any, live: LiveServer) -> None:
    show(browser, live.address, 1280, 900)
    path = "return document.querySelector('.curve.train').getAttribute('d')"
    linear = browser.execute_script(path)
    buttons = "document.querySelectorAll('.choices')[0].querySelectorAll('button')"
    browser.execute_script(f"{buttons}[1].click()")
    log = browser.execute_script(path)
    browser.execute_script(f"{buttons}[3].click()")
    both = browser.execute_script(path)
    assert len({linear, log, both}) == 3
    live.state.add(step_row(121))
    wait_for(lambda: "iteration 121" in text(browser, ".about"))
    pressed = browser.execute_script(f"return [...{buttons}].map(b => b.ariaPressed)")
    assert pressed == ["false", "true", "false", "true"]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_two_runs_are_compared(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    second = [run_row(options={"lora-r": 8, "lora-out": "适配器.gguf", "new": EVIL})]
    second += [step_row(i) | {"loss": 1.0} for i in range(1, 60)]
    logs = [write_log(tmp_path / "a.jsonl"), write_log(tmp_path / "b.jsonl", second)]
    write_report([str(log) for log in logs], str(tmp_path / "both.html"))
    show(browser, (tmp_path / "both.html").as_uri(), width, 900, scheme)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map(s => [s.ariaLabel,"
        " [...s.querySelectorAll('.curve')].map(c => getComputedStyle(c).stroke)])"
    )
    assert [name for name, _ in drawn] == [
        "Training loss by iteration", "Validation loss by iteration", "Learning rate by iteration",
        "Gradient norm by iteration", "Tokens per second by iteration", "Memory by iteration",
    ]  # fmt: skip
    assert [len(curves) for _, curves in drawn] == [2, 1, 2, 2, 2, 2]
    assert len(set(drawn[0][1])) == 2
    rows = browser.execute_script(
        "return [...document.querySelectorAll('table')].map(t =>"
        " [...t.rows].map(r => [...r.cells].map(c => c.textContent)))"
    )
    results = {row[0]: row[1:] for row in rows[0]}
    assert results[""] == ["a", "b"] and results["iterations"] == ["120", "59"]
    assert results["training loss at the end, smoothed"][1] == "1.0000"
    assert results["state"] == ["finished", "not finished"]
    differ = {row[0]: row[1:] for row in rows[1]}
    assert differ == {
        "": ["a", "b"], "lora-r": ["16", "8"], "sample-start": [EVIL, ""], "new": ["", EVIL],
    }  # fmt: skip
