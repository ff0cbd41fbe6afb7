from __future__ import annotations

import numpy as np
import pytest

from nbllama.checkpoint.file import load_checkpoint
from nbllama.data import MT19937
from nbllama.errors import DataError
from tests.conftest import GOLDEN


def test_the_value_that_the_cpp_standard_demands() -> None:
    assert MT19937.seeded(5489).draw(10000)[-1] == 4123659995


def plain(seed: int, n: int) -> list[int]:
    """The generator as in its paper, word by word."""
    x = [seed & 0xFFFFFFFF]
    for i in range(1, 624):
        x.append((1812433253 * (x[-1] ^ x[-1] >> 30) + i) & 0xFFFFFFFF)
    out = []
    for i in range(n):
        y = x[i] & 0x80000000 | x[i + 1] & 0x7FFFFFFF
        x.append(x[i + 397] ^ y >> 1 ^ (0x9908B0DF if y & 1 else 0))
        z = x[-1]
        z ^= z >> 11
        z ^= z << 7 & 0x9D2C5680
        z ^= z << 15 & 0xEFC60000
        out.append(z ^ z >> 18)
    return out


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32 + 7])
def test_numbers(seed: int) -> None:
    got = MT19937.seeded(seed).draw(1500)
    assert got.dtype == np.uint64
    assert got.tolist() == plain(seed, 1500)


def test_the_text_is_the_state() -> None:
    rng = MT19937.seeded(7)
    assert rng.text().split()[0] == "7"  # the first word of the state is the seed
    assert rng.text().split()[-1] == "624"
    assert len(rng.text().split()) == 625
    rng.draw(1000)
    again = MT19937.parse(rng.text())
    assert again.text() == rng.text()
    assert again.draw(700).tolist() == rng.draw(700).tolist() == plain(7, 1700)[1000:]


def test_the_text_of_another_cpp_library() -> None:
    """libc++ prints the words from the position on, the oldest first, without the position."""
    rng = MT19937.seeded(7)
    rng.draw(1000)
    *words, place = rng.text().split()
    # The words before the position are of the newest block, those after it of the previous one;
    # libc++ computes each word when it is needed, so the state is the last 624 words drawn.
    older = MT19937.seeded(7)
    older.draw(624)  # the block before
    block = older.text().split()[:-1]
    at = int(place)
    last = block[at:] + words[:at]
    assert MT19937.parse(" ".join(last)).draw(700).tolist() == plain(7, 1700)[1000:]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 2 3",
        "x " * 625,
        "-1 " * 625,
        "1 " * 624 + "625",
        "4294967296 " * 624 + "1",
        "1 " * 626,
    ],
)
def test_what_is_no_state(text: str) -> None:
    with pytest.raises(DataError, match="random number generator"):
        MT19937.parse(text)


def test_states_of_the_real_tool() -> None:
    for name, seed, n_samples in (("a-chk-10", 7, 5968), ("b-chk-6", 21, 63)):
        state = load_checkpoint(GOLDEN / f"{name}.gguf")
        assert state.rng_state == MT19937.seeded(seed).text()
        assert state.n_samples == n_samples
    rng = MT19937.seeded(21)
    rng.draw(2 * 63)  # one epoch: an order and offsets
    assert load_checkpoint(GOLDEN / "b-chk-12.gguf").rng_state == rng.text()
