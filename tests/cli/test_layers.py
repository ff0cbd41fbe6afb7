"""`--lora-layers`."""

from __future__ import annotations

import pytest

from nbllama.errors import UsageError
from nbllama.train.run.layers import as_text, blocks


@pytest.mark.parametrize(
    ("text", "want", "short"),
    [
        ("all", range(30), "all"),
        ("last:8", range(22, 30), "22-29"),
        ("first:1", [0], "0"),
        ("4-11,20", [*range(4, 12), 20], "4-11,20"),
        ("20, 4-11,5", [*range(4, 12), 20], "4-11,20"),
        ("0-29", range(30), "all"),
        ("3,4,5,9", [3, 4, 5, 9], "3-5,9"),
    ],
)
def test_lists(text: str, want: list[int], short: str) -> None:
    assert blocks(text, 30) == tuple(want)
    assert as_text(blocks(text, 30), 30) == short
    assert blocks(short, 30) == tuple(want)


@pytest.mark.parametrize(
    "text", ["", "last", "last:0", "last:31", "last:x", "30", "5-4", "1,,2", "-1"]
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--lora-layers"):
        blocks(text, 30)
