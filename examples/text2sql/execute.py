"""Run a query on SQLite so that nothing it does can hurt, and compare what two queries find."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 2.0  # of computing for one query; a busy machine does not count
MOST_ROWS = 10_000
_STEPS = 1000  # of SQLite's virtual machine between two looks at the clock

_READING = {
    sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE,
}  # fmt: skip


class Found(NamedTuple):
    """Rows of a query, or why there are none."""

    rows: list[tuple[Any, ...]]
    error: str = ""


class Verdict(NamedTuple):
    """Whether an answer is right, and if not, why."""

    right: bool
    reason: str


def open_read_only(path: str | os.PathLike[str]) -> sqlite3.Connection:
    """A connection that can only read `path`: the file is opened so, and all statements but
    `select` are refused, those that would reach other files too.
    """
    uri = Path(path).resolve().as_uri() + "?mode=ro"
    db = sqlite3.connect(uri, uri=True)
    db.text_factory = lambda raw: raw.decode("utf-8", "replace")
    db.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY
    )
    return db


def execute(db: sqlite3.Connection, sql: str, seconds: float = SECONDS) -> Found:
    """Rows of one statement; `error` says if it took too long, found too much or failed."""
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
    """Whether the outermost query asks for an order: "order by" outside of parentheses and
    quotes.
    """
    bare = re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"", "''", sql.lower())
    while (less := re.sub(r"\([^()]*\)", " ", bare)) != bare:
        bare = less
    return re.search(r"\border\s+by\b", bare) is not None


def same_rows(
    wanted: Sequence[tuple[Any, ...]], found: Sequence[tuple[Any, ...]], ordered: bool
) -> bool:
    """Whether two results are the same: each row as often as in the other, in the same order if
    that was asked for. Columns keep their order; numbers are compared to 9 digits.
    """
    a, b = [_plain(row) for row in wanted], [_plain(row) for row in found]
    return a == b if ordered else Counter(a) == Counter(b)


def _plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        float(f"{x:.9g}") if isinstance(x, int | float) and not isinstance(x, bool) else x
        for x in row
    )


def judge(databases: Sequence[sqlite3.Connection], wanted: str, answer: str) -> Verdict:
    """Whether the query `answer` finds what the query `wanted` finds, on every database.

    Raises `ValueError` if `wanted` itself does not run.
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
    """The query in an answer: of a fenced block if there is one, from the first word `select` or
    `with` up to a semicolon or an empty line; "" if there is none.
    """
    fenced = re.search(r"```[a-zA-Z]*\s(.*?)(?:```|$)", text, re.DOTALL)
    body = fenced[1] if fenced else text
    start = re.search(r"\b(select|with)\b", body, re.IGNORECASE)
    if start is None:
        return ""
    return re.split(r";|\n\s*\n", body[start.start() :], maxsplit=1)[0].strip()
