"""Get predictions from llama.cpp, through the `xllamacpp` package, if it is installed.

llama.cpp aborts the whole process on some files, so it runs in a child process (`_llama_child.py`).
After each token, its server returns the `CANDIDATES` most likely next tokens with their
log-probabilities, from the softmax over the whole vocabulary.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nbllama.errors import NbllamaError, shown

CANDIDATES = 100
_CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_llama_child.py")
_SECONDS = 1800  # enough for a large model on a slow disk


class Candidates(NamedTuple):
    """The most likely next tokens at one position, in descending order of probability.

    `ids` is int64 `[K]`, and `logp` is float64 `[K]`.
    """

    ids: np.ndarray
    logp: np.ndarray


def installed() -> bool:
    """Return whether `xllamacpp` is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


def candidates(
    model: str,
    adapters: Sequence[tuple[str, float]],
    rows: Sequence[Sequence[int] | np.ndarray],
    *,
    letter: int,
    threads: int,
) -> list[list[Candidates]]:
    """Return llama.cpp's predictions after each token of each row of token ids.

    `adapters` contains (path of a GGUF file, scale) pairs. `letter` is the id of a token that
    consists of whole characters. llama.cpp is forced to draw this token, because it returns no
    probabilities if the drawn token ends inside a character.

    Raises `NbllamaError` if llama.cpp fails or aborts the process.
    """
    request = {
        "model": model,
        "adapters": list(adapters),
        "rows": [[int(i) for i in row] for row in rows],
        "draw": letter,
        "threads": threads,
        "candidates": CANDIDATES,
    }
    try:
        done = subprocess.run(
            [sys.executable, _CHILD],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise NbllamaError(f"llama.cpp did not answer within {_SECONDS} s") from None
    if done.returncode:
        code = done.returncode
        how = f"was terminated by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise NbllamaError(f"llama.cpp {how}: {shown(_last_words(done.stderr))}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise NbllamaError(f"llama.cpp failed: {shown(answer['error'], 600)}")
    return [
        [Candidates(np.array(ids, np.int64), np.array(logp)) for ids, logp in row]
        for row in answer["rows"]
    ]


def _last_words(stderr: bytes) -> str:
    """Return the line that reports a failed assertion, or the last line if none failed."""
    lines = stderr.decode("utf-8", "replace").strip().splitlines() or ["it printed nothing"]
    return next((line for line in lines if "GGML_ASSERT" in line), lines[-1]).strip()
