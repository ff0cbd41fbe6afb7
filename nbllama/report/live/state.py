"""The state of a served page: the run so far, updates, and requests from readers.

The training thread adds rows; the server threads read them and add questions. This module does no
computation.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from nbllama.report.page.template import page
from nbllama.report.payload import event, payload, run_object
from nbllama.report.records import Row, Run

NEWS = 400  # rows kept for readers; a reader with an older version receives the whole run
MOST_WAITING = 4  # questions
MOST_LETTERS = 4000  # per question


class Question(NamedTuple):
    """A question from a reader; `id` starts at 1."""

    id: int
    prompt: str


class _Now(NamedTuple):
    """A snapshot of the run: its log, messages for the user, and open questions."""

    run: Run
    notes: list[str]
    questions: list[Row]
    going: bool

    def whole(self) -> dict[str, Any]:
        """Return the object displayed by the page."""
        made = run_object(self.run)
        made["notes"] = self.notes
        made["questions"] += [event(row) for row in self.questions]
        if self.going:
            made["state"] = "running"
        return made


class LiveState:
    """The run as displayed by its page. All methods are thread-safe.

    `stop` is called once, from a server thread, if a reader asks the run to stop.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._changed = threading.Condition()
        self._run = Run()
        self._notes: list[str] = []
        self._version = 0
        self._whole_from = 0  # readers with an older version receive the whole run
        self._news: deque[tuple[int, dict[str, Any]]] = deque(maxlen=NEWS)
        self._waiting: deque[Question] = deque()
        self._open: dict[int, Row] = {}  # questions without a complete answer
        self._asked = 0
        self._over = False
        self._delivered = 0
        self._last_read = 0.0

    # Methods for the run

    def begin(self, earlier: Run) -> None:
        """Show the log of a resumed run; call this method before `add`."""
        with self._changed:
            self._run = earlier
            self._publish(None)

    def add(self, row: Row, *, keep: bool = True) -> None:
        """Show a row; if `keep` is false, show it only to the current readers."""
        with self._changed:
            unanswered = row.get("event") == "question" and row.get("done") is False
            if unanswered:
                self._open[row["id"]] = row
            elif keep:
                self._open.pop(row.get("id", 0), None)
                self._run.add(row)
            whole = row.get("event") in ("run", "verdict", "end")
            shown = None if whole else event(row)
            if whole or shown is not None:
                self._publish(shown, passing=not keep)

    def note(self, text: str) -> None:
        """Show a message for the user."""
        with self._changed:
            self._notes = [*self._notes[-19:], text]
            self._publish({"event": "note", "text": text})

    def next_question(self) -> Question | None:
        """Remove and return the oldest waiting question."""
        with self._changed:
            return self._waiting.popleft() if self._waiting else None

    def end(self, patience: float = 2.0) -> None:
        """Mark the run as ended; wait up to `patience` seconds for all readers to be informed."""
        with self._changed:
            for row in self._open.values():
                answer = (
                    str(row.get("answer", "")) or "(the run ended before the question was answered)"
                )
                self._run.add(row | {"answer": answer, "done": True})
            self._open.clear()
            self._waiting.clear()
            self._over = True
            self._publish(None)
            read_lately = time.monotonic() - self._last_read < 5
            until = time.monotonic() + (patience if read_lately else 0.0)
            while self._delivered < self._version and time.monotonic() < until:
                self._changed.wait(until - time.monotonic())

    def _publish(self, news: dict[str, Any] | None, *, passing: bool = False) -> None:
        """Publish `news` as a new version; if it is None, readers receive the whole run.

        The caller must hold the lock.
        """
        self._version += 1
        if news is None:
            self._whole_from = self._version
        else:
            self._news.append((self._version, news | {"passing": True} if passing else news))
        self._changed.notify_all()

    # Methods for readers

    def page(self) -> str:
        """Return the page with the run so far."""
        with self._changed:
            live = {"version": self._version, "over": self._over}
            now = self._now()
        data = payload([("", now.run)], live)
        data["runs"] = [now.whole()]
        return page(data)

    def since(self, version: int, timeout: float) -> dict[str, Any]:
        """Return the updates after `version`, waiting up to `timeout` seconds for them.

        The result contains `version` (the version after the updates), `events` (new rows), `run`
        (the whole run if it replaces the events, otherwise None) and `over` (whether the run has
        ended).
        """
        with self._changed:
            self._last_read = time.monotonic()
            # a version above ours is from an earlier run on the same port: do not wait
            self._changed.wait_for(lambda: self._version != version or self._over, timeout)
            self._last_read = time.monotonic()
            behind = version < self._whole_from or version > self._version
            oldest = self._news[0][0] if self._news else 0
            behind = behind or (version + 1 < oldest and self._version > version)
            now = self._now() if behind else None
            events = [] if behind else [news for v, news in self._news if v > version]
            found = {"version": self._version, "events": events, "over": self._over}
        return found | {"run": now.whole() if now is not None else None}

    def delivered(self, version: int) -> None:
        """Record that a reader has received all updates up to `version`."""
        with self._changed:
            self._delivered = max(self._delivered, version)
            self._changed.notify_all()

    def ask(self, prompt: str) -> str:
        """Add a question; return "", or the reason why the question is refused."""
        text = prompt.strip()
        with self._changed:
            if self._over:
                return "the run is over"
            if not text or len(text) > MOST_LETTERS:
                return f"a question must be 1 to {MOST_LETTERS} characters long"
            if len(self._waiting) >= MOST_WAITING:
                return f"{MOST_WAITING} questions are already waiting"
            self._asked += 1
            question = Question(self._asked, text)
            self._waiting.append(question)
            at = self._run.steps[-1]["iter"] if self._run.steps else 0
            row = {"event": "question", "iter": at, "id": question.id, "prompt": text}
            self._open[question.id] = row | {"done": False}
            self._publish(event(self._open[question.id]))
        return ""

    def stop(self) -> str:
        """Ask the run to stop and save; return "", or the reason why the run cannot stop."""
        with self._changed:
            if self._over:
                return "the run is over"
        self._stop()
        return ""

    def _now(self) -> _Now:
        """Copy everything that the page displays; the caller must hold the lock."""
        going = not self._over and not self._run.end
        return _Now(self._run.copy(), list(self._notes), list(self._open.values()), going)
