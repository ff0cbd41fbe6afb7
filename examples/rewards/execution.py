"""The reward of this example: does a query find the right rows?

`right` is 1 for an answer whose query finds the same rows as the record's query in both databases,
and 0 for any other answer.
"""

from __future__ import annotations

import sqlite3
from functools import cache
from typing import Any

from examples.text2sql import execute


@cache
def database(path: str) -> sqlite3.Connection:
    """Open a database read-only."""
    return execute.open_read_only(path)


def right(prompt: Any, answer: str, record: dict[str, Any]) -> float:
    """Return 1 for a right query, else 0."""
    databases = [database(path) for path in record["databases"]]
    return float(execute.judge(databases, record["sql"], execute.extract_sql(answer)).right)
