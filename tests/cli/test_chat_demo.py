"""The program with the demo's quantised model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nbllama
from nbllama.generation.session import Session

QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "exact",
    [pytest.param(True, marks=pytest.mark.slow, id="float32"), pytest.param(False, id="int8")],
)
def test_the_quantised_model_knows_a_capital(demo_model: Path, exact: bool) -> None:
    model = nbllama.load_model(demo_model)
    ids = model.tokenizer.encode(QUESTION, parse_special=True)
    session, said = Session(model, None, 64, exact=exact), []
    logits = session.feed(ids)
    for _ in range(6):
        said.append(int(np.argmax(logits)))
        logits = session.feed(said[-1:])
    assert model.tokenizer.decode(said) == "The capital of France is Paris"
