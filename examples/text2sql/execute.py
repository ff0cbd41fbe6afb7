"""Run a query safely on SQLite, and compare the results of two queries."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 2.0  # CPU time limit of one query
MOST_ROWS = 10_000
_STEPS = 1000  # steps of SQLite's virtual machine between two checks of the time

_READING = {
    sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE,
}  # fmt: skip


class Found(NamedTuple):
    """The rows of a query, or the reason why there are none."""

    rows: list[tuple[Any, ...]]
    error: str = ""


class Verdict(NamedTuple):
    """Whether an answer is right and, if not, the reason."""

    right: bool
    reason: str


def open_read_only(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """Return a connection that can only read `path`: the file is opened read-only, and all
    statements except `select` are refused, including those that would access other files.
    """
    uri = Path(path).resolve().as_uri() + "?mode=ro"
    db = sqlite3.connect(uri, uri=True)
    db.text_factory = lambda raw: raw.decode("utf-8", "replace")
    db.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY
    )
    return db


def execute(db: sqlite3.Connection, sql: str, seconds: float = SECONDS) -> Found:
    """Return the rows of one statement; `error` is set if it is too slow, too large or fails."""
    end = time.thread_time() + seconds
    db.set_progress_handler(lambda: time.thread_time() > end, _STEPS)
    try:
        rows = db.execute(sql).fetchmany(MOST_ROWS + 1)
    except sqlite3.OperationalError as e:
        late = time.thread_time() > end
        return Found([], f"longer than {seconds:g} s" if late else f"SQLite: {e}")
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as e:
        return Found([], f"SQLite: {e}")
    finally:
        db.set_progress_handler(None, 0)
    if len(rows) > MOST_ROWS:
        return Found([], f"more than {MOST_ROWS} rows")
    return Found(rows)


def has_order(sql: str) -> bool:
    """Return whether the outermost query specifies an order: "order by" outside of parentheses and
    quotes.
    """
    bare = re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"", "''", sql.lower())
    while (less := re.sub(r"\([^()]*\)", " ", bare)) != bare:
        bare = less
    return re.search(r"\border\s+by\b", bare) is not None


def same_rows(
    wanted: Sequence[tuple[Any, ...]], found: Sequence[tuple[Any, ...]], ordered: bool
) -> bool:
    """Return whether two results are the same: each row occurs equally often, and in the same order
    if the query asks for one. The order of columns matters; numbers are compared to 9 digits.
    """
    a, b = [_plain(row) for row in wanted], [_plain(row) for row in found]
    return a == b if ordered else Counter(a) == Counter(b)


def _plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        float(f"{x:.9g}") if isinstance(x, int | float) and not isinstance(x, bool) else x
        for x in row
    )


def judge(databases: Sequence[sqlite3.Connection], wanted: str, answer: str) -> Verdict:
    """Return whether the queries `answer` and `wanted` have the same result on every database.

    Raises `ValueError` if `wanted` does not run.
    """
    if not answer:
        return Verdict(False, "no query")
    for db in databases:
        right = execute(db, wanted)
        if right.error:
            raise ValueError(f"the query that should be right does not run: {right.error}")
        found = execute(db, answer)
        if found.error:
            return Verdict(False, found.error)
        if not same_rows(right.rows, found.rows, has_order(wanted)):
            return Verdict(False, "other rows")
    return Verdict(True, "")


def extract_sql(text: str) -> str:
    """Return the query in an answer: from the first word `select` or `with` (in a fenced block, if
    there is one) up to a semicolon or an empty line; "" if there is none.
    """
    fenced = re.search(r"```[a-zA-Z]*\s(.*?)(?:```|$)", text, re.DOTALL)
    body = fenced[1] if fenced else text
    start = re.search(r"\b(select|with)\b", body, re.IGNORECASE)
    if start is None:
        return ""
    return re.split(r";|\n\s*\n", body[start.start() :], maxsplit=1)[0].strip()
