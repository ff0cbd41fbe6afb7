"""Damaged files of records: never plain text, only our own errors, nothing lost."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from nbllama.data import open_data
from nbllama.errors import NbllamaError
from tests.data.mutants import SEEDS, mutants

N = int(os.environ.get("NBLLAMA_MUTANTS", "500"))


@pytest.mark.parametrize(("name", "content", "n"), SEEDS, ids=[s[0] for s in SEEDS])
def test_the_files_that_are_damaged_are_whole(
    tmp_path: Path, name: str, content: bytes, n: int
) -> None:
    (tmp_path / name).write_bytes(content)
    found = open_data(tmp_path / name)
    assert found.kind == "chat" and len(found.samples) == n and not found.bad


def parquet_seed() -> list[tuple[str, bytes, int]]:
    pa = pytest.importorskip("pyarrow")
    import io

    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({"question": ["a", "b"], "answer": ["c", "d"]}), out)
    return [("p.parquet", out.getvalue(), 2)]


def test_mutants(tmp_path: Path) -> None:
    """`NBLLAMA_MUTANTS=20000` runs as many."""
    try:
        more = parquet_seed()
    except pytest.skip.Exception:
        more = []
    n_read = n_refused = 0
    for name, content in mutants(7, N, more):
        path = tmp_path / name
        path.write_bytes(content)
        for skip_bad in (False, True):
            try:
                found = open_data(path, skip_bad=skip_bad)
            except NbllamaError as e:
                n_refused += 1
                assert "\n" not in str(e), (name, content, str(e))
                continue
            n_read += 1
            whole = n_alpaca(content)
            if name == "noname" and (not whole or 2 * whole < content.count(b"\n")):
                continue  # no name and few complete records: its kind is unknown
            assert found.kind == "chat", (name, content)
            assert len(found.samples) + len(found.bad) >= n_marks(content), (name, content)
            reported = found.bad or any("not read" in n or "not trained" in n for n in found.notes)
            if not reported and name.endswith(("json", "jsonl")) and b"\0" not in content:
                said = repr(found.samples)
                for answer in ("Under the mat.", "At six.", "Gouda."):
                    n_there = content.count(f'"{answer}"'.encode())
                    assert said.count(f"'{answer}'") >= n_there, (name, content, answer)
    assert n_read > N // 10 and n_refused > N // 10


def n_alpaca(content: bytes) -> int:
    return content.count(b'{"instruction": "Name a cheese.", "input": "", "output": "Gouda."}')


def n_marks(content: bytes) -> int:
    """Count complete records on separate lines of a text, without the reader."""
    whole = rb'^\{"messages": \[\{"role": "user", "content": "[^"\\]*"\}, ' \
            rb'\{"role": "assistant", "content": "[^"\\]*"\}\]\},?\r?$'  # fmt: skip
    return len(re.findall(whole, content, re.M))
