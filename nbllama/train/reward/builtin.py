"""The built-in rewards: exact match, pattern match, valid JSON, and SQL result.

Each reward is 1 for a correct answer and 0 for a wrong one. Built-in rewards run in a child process
with the same limits as a user's function. `problem` checks a record before the run. This module
imports nothing from nbllama because the child process loads it as a file.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

Reward = Callable[[Any, str, dict[str, Any]], float]

NAMES = ("exact", "json", "sql")
PATTERN = "regex"  # regex:PATTERN

WANTED = ("answer", "completion", "output", "response", "target")
_MOST_ROWS = 10_000
_SECONDS = 1.0  # maximum CPU seconds per query
_STEPS = 1000  # SQLite instructions between two time checks
_KEPT = 16  # number of databases to keep open
_READING = {
    sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE,
}  # fmt: skip


def wanted(record: dict[str, Any]) -> str | None:
    """Return the correct answer in a record, or None if there is none.

    The correct answer is stored under one of the keys in `WANTED`. In a chat, it can also be the
    last message, if that message is from the assistant.
    """
    for key in WANTED:
        value = record.get(key)
        if isinstance(value, list) and value and isinstance(value[-1], dict):
            value = value[-1].get("content")
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and value.strip():
            return value
    chat = record.get("messages")
    if isinstance(chat, list) and chat and isinstance(chat[-1], dict):
        value = chat[-1].get("content")
        if chat[-1].get("role") == "assistant" and isinstance(value, str):
            return value
    return None


def problem(name: str, record: dict[str, Any]) -> str:
    """Return why a reward cannot score answers for a record, or "" if it can."""
    if name in ("exact", "sql") and wanted(record) is None:
        return f'the reward {name} requires the correct answer under the key "answer"'
    if name == "sql":
        if not isinstance(record.get("database"), str):
            return 'the reward sql requires the key "database" with SQL that creates the tables'
        try:
            _rows(_database(record["database"]), str(wanted(record)))
        except (sqlite3.Error, sqlite3.Warning, ValueError) as e:
            return f"the record's SQL fails: {e}"
    return ""


def exact(prompt: Any, answer: str, record: dict[str, Any]) -> float:
    """Return 1 if the answer equals the correct one, ignoring leading and trailing whitespace."""
    right = wanted(record)
    if right is None:
        raise ValueError("the record has no answer")
    return float(answer.strip() == right.strip())


def regex(pattern: str) -> Reward:
    """Return a reward function that returns 1 if the answer contains a match for the pattern."""
    compiled = re.compile(pattern)

    def score(prompt: Any, answer: str, record: dict[str, Any]) -> float:
        return float(compiled.search(answer) is not None)

    return score


def valid_json(prompt: Any, answer: str, record: dict[str, Any]) -> float:
    """Return 1 if the whole answer is valid JSON."""
    try:
        json.loads(answer, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def sql(prompt: Any, answer: str, record: dict[str, Any]) -> float:
    """Return 1 if the answer's query and the correct query return the same rows.

    Both queries run on the record's database. The order of the rows matters only if the correct
    query specifies an order.
    """
    db, right = _database(record["database"]), str(wanted(record))
    expected = _rows(db, right)
    try:
        found = _rows(db, query_in(answer))
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        return 0.0
    if has_order(right):
        return float(found == expected)
    return float(Counter(found) == Counter(expected))


def query_in(answer: str) -> str:
    """Return the query in an answer, without a trailing semicolon.

    If the answer contains a fenced code block, the query is taken from the block.
    """
    fenced = re.search(r"```[a-zA-Z]*\s(.*?)(?:```|$)", answer, re.DOTALL)
    return (fenced[1] if fenced else answer).strip().rstrip(";").strip()


def has_order(query: str) -> bool:
    """Return whether the outermost query has an ORDER BY clause."""
    bare = re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"", "''", query.lower())
    while (less := re.sub(r"\([^()]*\)", " ", bare)) != bare:
        bare = less
    return re.search(r"\border\s+by\b", bare) is not None


_open: dict[str, sqlite3.Connection] = {}


def _database(script: str) -> sqlite3.Connection:
    """Run the script in a new in-memory database, make the database read-only, and return it."""
    if script not in _open:
        db = sqlite3.connect(":memory:")
        db.text_factory = lambda raw: raw.decode("utf-8", "replace")
        db.set_authorizer(  # allow only the in-memory database, no files
            lambda action, *_: (
                sqlite3.SQLITE_DENY
                if action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)
                else sqlite3.SQLITE_OK
            )
        )
        db.executescript(script)
        db.set_authorizer(
            lambda action, *_: sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY
        )
        while len(_open) >= _KEPT:
            _open.pop(next(iter(_open))).close()
        _open[script] = db
    return _open[script]


def _rows(db: sqlite3.Connection, query: str) -> list[tuple[Any, ...]]:
    if not query:
        raise ValueError("no query")
    end = time.thread_time() + _SECONDS
    db.set_progress_handler(lambda: time.thread_time() > end, _STEPS)
    try:
        rows = db.execute(query).fetchmany(_MOST_ROWS + 1)
    finally:
        db.set_progress_handler(None, 0)
    if len(rows) > _MOST_ROWS:
        raise ValueError(f"more than {_MOST_ROWS} rows")
    return [
        tuple(float(f"{x:.9g}") if isinstance(x, int | float) else x for x in row) for row in rows
    ]
