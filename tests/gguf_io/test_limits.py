"""No header costs more than a second or 200 MB, for any claimed sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gguf_io.cases import CASES
from tests.gguf_io.heavy import DANGEROUS

ROOT = Path(__file__).resolve().parents[2]
MOST_SECONDS = 1.0  # CPU time, so that a busy machine does not fail the test
MOST_BYTES = 200_000_000
LOAD = {
    "strings-at-limit",
    "numbers-32-MiB",
    "text-at-limit",
    "everything-at-limit",
    "keys-at-limit",
    "tensors-at-limit",
}
OVER = {
    "strings-over": "all string arrays together exceed 2097152 strings",
    "string-of-10-GiB": "the limit is 50331648 bytes",
    "numbers-8-GiB": "the limit is 50331648 bytes",
    "numbers-64-MiB": "the limit is 50331648 bytes",
    "text-over": "all keys and strings together exceed 16777216 bytes",
    "keys-over": "16385, but the limit is 16384",
    "keys-of-64-KiB": "all keys and strings together exceed 16777216 bytes",
    "tensors-over": "65537, but the limit is 65536",
    "zeros-keys": "key 0 of 16384: empty at byte 24",
    "zeros-tensors": "name of tensor 0 of 65536: empty at byte 24",
    "zeros-nothing": "end of file: at byte 21474836480",
}


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_cost_of_every_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gguf_io.heavy", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    costs = [json.loads(line) for line in done.stdout.splitlines()]
    names = {cost[0] for cost in costs}
    assert names > {name for name, _, _ in CASES if name[:3] in DANGEROUS}
    assert names >= LOAD | set(OVER)
    for name, message, seconds, peak in costs:
        assert seconds < MOST_SECONDS, (name, seconds)
        assert peak < MOST_BYTES, (name, peak)
        assert (message == "") == (name in LOAD), (name, message)
        assert OVER.get(name, "") in message, (name, message)
    # The two expensive files must be expensive: otherwise this test measures nothing.
    assert max(cost[3] for cost in costs) > 100_000_000
