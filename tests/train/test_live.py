"""`--live`: a page is served during a run, and does not change the run."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from nbllama.report.live.server import LiveServer
from nbllama.report.log import StepRecord
from nbllama.train.live import measures
from nbllama.train.live.measures import Budget, Measures
from nbllama.train.live.norms import Norms
from nbllama.train.live.texts import sequences
from nbllama.train.run.screen import Silent
from tests.report.live_story import news, post, served
from tests.train.runs import Run, copy_of, logged
from tests.train.toy_runs import (
    events,
    file_bits,
    log_rows,
    random_rows,
    toy_adapter,
    toy_chat,
    toy_model,
    trainer,
    words,
)  # fmt: skip

SHORT: dict[str, Any] = dict(ctx=16, batch=2, warmup=2, seed=11, threads=1)
THREAD = "nbllama-live"


class Notes(Silent):
    """A screen that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


class Page:
    """Reads and posts like the page, from the run's own callbacks."""

    def __init__(self, screen: Notes) -> None:
        self._screen = screen

    @property
    def server(self) -> LiveServer:
        (address,) = (a for line in self._screen.lines if (a := _address(line)))
        server = object.__new__(LiveServer)
        server.port, server.secret = int(address[0]), address[1]
        return server


def _address(line: str) -> tuple[str, str] | None:
    found = re.search(r"http://127\.0\.0\.1:(\d+)/([A-Za-z0-9_-]+)/$", line)
    return (found[1], found[2]) if found else None


def tuned(data: Any, on_step: Any, **options: Any) -> tuple[Any, Notes]:
    screen = Notes()
    page = Page(screen)
    run = nbllama.tune(
        "toy.gguf", data, screen=screen, on_step=lambda r: on_step(page, r), **(SHORT | options)
    )
    return run, screen


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_watching_and_asking_change_no_bit(folder: Path, run: Run, kind: str) -> None:
    more: dict[str, Any] = {}
    data = "text.txt"
    if kind == "chat":
        data = str(toy_chat(folder / "chat.jsonl"))
        more = dict(ctx=64, chat_template="chatml", template_date="2026-01-02", lr=1e-2)
    more |= dict(adam_iter=6, grad_acc=2, eval_every=2, val_split=0.2)
    plain = nbllama.tune("toy.gguf", data, **(SHORT | more), quiet=True)
    asked: list[int] = []

    def ask(page: Page, record: StepRecord) -> None:
        if record.iter in (1, 2, 4):
            assert post(page.server, "ask", {"prompt": "the hen and"}) == (200, b"")
            asked.append(record.iter)

    watched, screen = tuned(data, ask, live=True, log="log", **more)
    for name, x in plain.adapter.parameters().items():
        assert (watched.adapter.parameters()[name] == x).all(), name
    assert watched.losses == plain.losses and watched.val_losses == plain.val_losses
    answers = events(folder / "log", "question")
    assert asked == [1, 2, 4]
    assert [row["prompt"] for row in answers] == ["the hen and"] * 3
    assert all(row["answer"] and "not answered" not in row["answer"] for row in answers)
    assert len([line for line in screen.lines if _address(line)]) == 1
    assert not [line for line in watched.notes if _address(line)]


def test_answers_are_those_of_the_adapter_as_it_is(folder: Path) -> None:
    def ask(page: Page, record: StepRecord) -> None:
        if record.iter == 5:
            post(page.server, "ask", {"prompt": "the hen and"})

    options = dict(adam_iter=6, lr=0.05, warmup=0, log="log", live=True)
    watched, _ = tuned("text.txt", ask, **options)
    (row,) = events(folder / "log", "question")
    model = watched.model
    ids = model.tokenizer.encode("the hen and", add_special=True)
    said = model.tokenizer.decode(nbllama.generate(model, ids, 200, watched.adapter))
    assert row["iter"] == 6 and row["answer"] == said.rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def test_what_is_measured_is_in_the_log_and_on_the_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measures, "SHARE", 1e9)  # measure each iteration
    found: list[Any] = []

    def look(page: Page, record: StepRecord) -> None:
        if record.iter == 3:
            found.append(news(page.server, 0)["run"])

    more: dict[str, Any] = dict(sample_prompts=["the hen"], sample_tokens=4, eval_every=2)
    run, _ = tuned("text.txt", look, live=True, log="log", adam_iter=4, **more)
    norms, texts = events(folder / "log", "norms"), events(folder / "log", "tokens")
    steps = log_rows(folder / "log")
    assert [row["iter"] for row in norms] == [1, 2, 3, 4]
    for row, step in zip(norms, steps, strict=True):
        squares = sum(v * v for of in row["gradient"].values() for v in of if v is not None)
        assert squares**0.5 == pytest.approx(step["grad_norm"], rel=1e-3)
        assert len(row["gradient"]["attn_q"]) == row["blocks"]
    assert [row["sample"] for row in texts] == [1, 2, 3, 4]
    assert all(len(row["pieces"]) == len(row["losses"]) for row in texts)
    shown = found[0]
    assert shown["iter"] == 3 and len(shown["norms"]) == 3
    samples = [e["samples"] for e in shown["evaluations"]]
    assert samples == [row["samples"] for row in events(folder / "log", "evaluation")[:2]]
    assert samples[0][0]["prompt"] == "the hen"
    assert shown["state"] == "running" and shown["n_iter"] == 4
    assert run.paths["log"] == "log"


def test_losses_of_tokens_are_those_of_the_step(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    t = trainer(model, toy_adapter(model), random_rows(model, [9, 17, 30, 5]), grad_acc=2)
    t.buffers.seen = []
    position = t.position
    result = t.step()
    losses = np.concatenate(t.buffers.seen)
    assert len(losses) == result.trained
    assert losses.mean(dtype=np.float64) == pytest.approx(result.loss, rel=1e-6)
    batches = t.feed.take(position, 2, 2).batches
    for one in sequences(batches, losses):
        alone, _ = nbllama.loss_and_gradients(model, before(model), one.tokens, one.targets)
        assert np.nanmean(one.losses) == pytest.approx(alone, rel=1e-4)
        assert (np.isnan(one.losses) == (one.targets < 0)).all()
    with pytest.raises(ValueError, match="trained tokens, but"):
        list(sequences(batches, losses[:-1]))


def before(model: Any) -> Any:
    return toy_adapter(model)


def test_norms_of_gradient_and_update(tmp_path: Path) -> None:
    model = toy_model(tmp_path)
    adapter = toy_adapter(model)
    t = trainer(model, adapter, random_rows(model, [9, 17]))
    norms = Norms(adapter, model.hp.n_layer)
    for _ in range(2):
        norms.take_before()
        old = {name: x.copy() for name, x in adapter.parameters().items()}
        result = t.step()
        row = norms.row(t.iteration, t.gradients)
    name = "blk.1.ffn_down.weight"
    both = [f"{name}.lora_a", f"{name}.lora_b"]
    update = sum(((adapter.parameters()[n] - old[n]).astype(float) ** 2).sum() for n in both)
    gradient = sum((t.gradients[n].astype(float) ** 2).sum() for n in both)
    assert row["update"]["ffn_down"][1] == pytest.approx(update**0.5, rel=1e-3)
    assert row["gradient"]["ffn_down"][1] == pytest.approx(gradient**0.5, rel=1e-3)
    squares = sum(v * v for of in row["gradient"].values() for v in of if v is not None)
    assert squares**0.5 == pytest.approx(result.grad_norm, rel=1e-3)
    # outside the blocks: after them
    assert row["gradient"]["output"][:-1] == [None] * model.hp.n_layer


def test_the_budget() -> None:
    now = [1000.0]
    budget = Budget(0.01, lambda: now[0])
    assert budget.allows
    budget.took(0.5)
    for now[0], allowed in ((1001.0, False), (1049.9, False), (1050.1, True)):
        assert budget.allows is allowed
    now[0] = 1065.0
    budget.took(0.05)  # of what was not used
    budget.took(0.05)
    assert budget.allows
    now[0] = 5000.0  # which is limited
    budget.took(0.3)
    assert budget.allows
    budget.took(0.1)
    for now[0], allowed in ((5000.0, False), (5009.9, False), (5010.1, True)):
        assert budget.allows is allowed


def test_stop_and_save(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like Ctrl-C: the progress is saved, and the line says how to continue."""
    done_first = run(logged(folder, 6))
    assert done_first.code == 0
    whole = file_bits(folder / "chk-6.gguf")
    there = copy_of(folder, "stopped")
    after = Measures.after

    def stops(self: Measures) -> None:
        after(self)
        if self._trainer.iteration == 3:
            assert post(servers[0], "stop", {}) == (200, b"")

    servers: list[LiveServer] = []
    start = LiveServer.__init__

    def kept(self: LiveServer, *args: Any) -> None:
        start(self, *args)
        servers.append(self)

    monkeypatch.setattr(LiveServer, "__init__", kept)
    monkeypatch.setattr(Measures, "after", stops)
    done = run(logged(there, 6, "--live", "--report", str(there / "r.html")))
    assert done.code == 130 and "stopped after iteration 3; continue with" in done.err, done
    assert "--checkpoint-in" in done.err and servers[0].secret in done.out
    assert servers[0].secret not in done.err
    assert events(there / "log.jsonl", "end")[0]["reason"] == "stopped from the live page"
    text = (there / "r.html").read_text(encoding="utf-8")
    assert servers[0].secret not in text and "ended: stopped from the live page" in text
    monkeypatch.undo()
    again = logged(there, 3, "--checkpoint-in", str(there / "chk-LATEST.gguf"))
    assert run(again).code == 0
    assert file_bits(there / "chk-6.gguf") == whole


def test_a_run_that_is_continued_shows_its_earlier_iterations(folder: Path) -> None:
    found: list[Any] = []
    files: dict[str, Any] = dict(log="log", checkpoint_out="chk-ITERATION.gguf", adam_iter=3)
    tuned("text.txt", lambda page, record: None, **files)

    def look(page: Page, record: StepRecord) -> None:
        found.append(news(page.server, 0)["run"])

    tuned("text.txt", look, live=True, checkpoint_in="chk-LATEST.gguf", **files)
    assert [run["series"]["loss"][0] for run in found] == [list(range(1, n)) for n in (5, 6, 7)]
    assert found[0]["state"] == "running" and found[0]["n_iter"] == 6


def live_threads() -> Iterable[str]:
    return [t.name for t in threading.enumerate() if t.name == THREAD]


def test_nothing_listens_unless_asked_and_nothing_is_left(folder: Path) -> None:
    seen: list[Any] = []
    tuned("text.txt", lambda page, record: seen.append(live_threads()), adam_iter=1)
    options: dict[str, Any] = dict(adam_iter=1, live=True)
    tuned("text.txt", lambda page, record: seen.append(live_threads()), **options)
    assert seen == [[], [THREAD]] and not live_threads()
    nbllama.tune("toy.gguf", "text.txt", **SHORT, dry_run=True, live=True, quiet=True)
    assert not live_threads()


def test_a_page_that_cannot_be_does_not_stop_the_run(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served() as other:
        done = run(words(folder, "--adam-iter", "2", "--live", str(other.port)))
    assert done.code == 0 and f"--live {other.port}: Address already in use" in done.out
    assert "training continues without the page" in done.out

    def fails(self: Norms, *args: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Norms, "row", fails)
    done = run(words(folder, "--adam-iter", "4", "--live"))
    assert done.code == 0 and done.out.count("--live: RuntimeError: broken") == 1, done
    assert (folder / "lora-4.gguf").exists() and not live_threads()


def test_the_address_is_shown_even_to_the_quiet(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nbllama.tune("toy.gguf", "text.txt", **SHORT, adam_iter=1, live=True, quiet=True)
    assert len([line for line in capfd.readouterr().err.splitlines() if _address(line)]) == 1


@pytest.mark.parametrize("value", ["80", "65536", "x", "-1", "1.5"])
def test_ports_that_cannot_be(folder: Path, run: Run, value: str) -> None:
    done = run(words(folder, f"--live={value}"))
    assert done.code == 2 and "a port from 1024 to 65535" in done.err
    with pytest.raises(nbllama.NbllamaError, match="a port from 1024"):
        nbllama.tune("toy.gguf", "text.txt", live=value, quiet=True)


def test_live_is_no_part_of_the_saved_options(folder: Path, run: Run) -> None:
    assert run(words(folder, "--adam-iter", "1", "--live")).code == 0
    assert "\nlive:" not in (folder / "lora-LATEST.config.yaml").read_text()
    (folder / "c.yaml").write_text("live: true\n")
    done = run(words(folder, "--adam-iter", "1", "--config", "c.yaml"))
    assert done.code == 0 and _address_in(done.out)
    (folder / "c.yaml").write_text("live: off\n")
    done = run(words(folder, "--adam-iter", "1", "--config", "c.yaml"))
    assert done.code == 0 and not _address_in(done.out)


def _address_in(text: str) -> bool:
    return any(_address(line) for line in text.splitlines())
