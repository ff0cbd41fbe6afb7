"""Damaged files: the only outcomes are `GGUFError` and a file whose ranges hold."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from nbllama.errors import GGUFError
from nbllama.gguf_io import open_gguf
from tests.gguf_io.build import SMALL
from tests.gguf_io.cases import DATA, ENDS, GOOD, HEADER
from tests.gguf_io.checker import check_against_ggml, check_ranges
from tests.gguf_io.fuzz import mutated

MOST_SECONDS = 1.0


def outcome(path: Path, raw: bytes, *, ggml: bool = False) -> str:
    """ "" when the file loads (and its ranges hold), else the message that refuses it."""
    path.unlink(missing_ok=True)  # several file systems are slow to truncate
    path.write_bytes(raw)
    began = time.process_time()
    try:
        with open_gguf(path) as f:
            assert time.process_time() - began < MOST_SECONDS
            check_ranges(f)
            if ggml:
                check_against_ggml(f)
        return ""
    except GGUFError as e:
        assert time.process_time() - began < MOST_SECONDS
        message = str(e)
        assert message.isprintable() and message.startswith(f"{path}: ")
        return message


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    loaded = [n for n in range(len(GOOD)) if not outcome(path, GOOD[:n])]
    assert loaded == [ENDS[2]]  # nothing but the last tensor's padding is missing: no data is lost


def test_a_truncation_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    for n in range(1, ENDS[2]):
        message = outcome(path, GOOD[:n])
        assert "(truncated?)" in message, (n, message)
        assert f"file has only {n} " in message or f"only {n - 24} follow " in message, (n, message)


def test_every_header_byte(tmp_path: Path) -> None:
    path = tmp_path / "byte.gguf"
    counts: Counter[bool] = Counter()
    for at in range(DATA):
        for value in {0x00, 0xFF, GOOD[at] ^ 0x01, GOOD[at] ^ 0x80} - {GOOD[at]}:
            raw = GOOD[:at] + bytes([value]) + GOOD[at + 1 :]
            counts[outcome(path, raw) == ""] += 1
            assert at < HEADER or value, "padding must be zero"
    # Bytes inside names and values may be anything; counts, lengths, types and offsets may not.
    assert counts[False] > 3 * HEADER * 0.7
    assert counts[True] > 100


def fuzz(path: Path, seed: int, n: int, ggml: bool) -> None:
    rng = random.Random(seed)
    kinds: Counter[str] = Counter()
    for _ in range(n):
        message = outcome(path, mutated(rng), ggml=ggml)
        kinds[re.sub(r"'[^']*'|\d+|of \w+", "", message[len(str(path)) :])] += 1
    assert kinds[""] > n // 20, "too few files load: the mutations are too wild"
    assert kinds[""] < n // 2, "too many files load: the mutations do nothing"
    assert len(kinds) > 50, f"only {len(kinds)} kinds of refusal"


def test_fuzz(tmp_path: Path) -> None:
    fuzz(tmp_path / "fuzz.gguf", seed=1, n=4000, ggml=False)


def test_fuzz_against_ggml(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    fuzz(tmp_path / "fuzz.gguf", seed=2, n=1500, ggml=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_fuzz_long(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("xllamacpp")
    fuzz(tmp_path / "fuzz.gguf", seed=seed, n=100_000, ggml=True)


def test_the_fuzzer_starts_from_valid_files(tmp_path: Path) -> None:
    from tests.gguf_io.fuzz import join, valid_atoms

    rng = random.Random(3)
    path = tmp_path / "valid.gguf"
    for _ in range(300):
        assert outcome(path, join(*valid_atoms(rng))) == ""


def test_the_small_file_has_what_the_byte_test_needs() -> None:
    assert HEADER < DATA, "there is padding to damage"
    assert ENDS[2] < len(GOOD), "the last tensor does not fill its padding"
    assert {t.type_id for t in SMALL.tensors} == {0, 2}
