"""Options of a command line are replaced under each of their names."""

from __future__ import annotations

import pytest

from nbllama.options.finetune.table import OPTIONS
from nbllama.options.words import replace_options


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("--model-base m.gguf", "--model-base m.gguf"),
        ("--seed 1 --model-base m.gguf --adam-iter 60", "--model-base m.gguf"),
        ("--seed=1 --adam_iter 60 --batch 2", "--batch 2"),
        ("-s 1 --sample-start -x", "--sample-start -x"),
        ("--seed --adam-iter --no-checkpointing", "--no-checkpointing"),  # a seed "--adam-iter"
        ("--log --seed --force", "--log --seed --force"),  # a log "--seed"
    ],
)
def test_replaced(given: str, left: str) -> None:
    new = [("--adam-iter", "51"), ("--seed", "2")]
    assert replace_options(given.split(), OPTIONS, new) == [
        *left.split(), "--adam-iter", "51", "--seed", "2"
    ]  # fmt: skip
