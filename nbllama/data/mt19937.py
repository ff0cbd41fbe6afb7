"""The random number generator of the old tool (C++'s `std::mt19937`) and its text form.

A checkpoint written by the old tool stores the generator as text printed by the C++ library.
libstdc++ prints the 624 words of the state and the position within them, whereas libc++ prints 624
words starting from that position. numpy's bit generator uses the same words and position. Source:
"Mersenne Twister" (Matsumoto and Nishimura, 1998).
"""

from __future__ import annotations

import numpy as np

from nbllama.errors import DataError

_N = 624
MOST = 0xFFFFFFFF  # std::mt19937::max()


class MT19937:
    """A generator of 32-bit random numbers; `draw` advances its state."""

    def __init__(self, words: np.ndarray, place: int) -> None:
        """Create a generator with the state `words`, uint32 [624], at the position `place`.

        `place` is 0 to 624; 624 means that all words have been used.
        """
        self._bits = np.random.MT19937()
        self._bits.state = {
            "bit_generator": "MT19937",
            "state": {"key": words.astype(np.uint32), "pos": place},
        }

    @classmethod
    def seeded(cls, seed: int) -> MT19937:
        """Return the generator `std::mt19937(seed)`, which uses the low 32 bits of the seed."""
        state = np.random.RandomState(seed & MOST).get_state(legacy=False)["state"]
        return cls(state["key"], state["pos"])

    @classmethod
    def parse(cls, text: str) -> MT19937:
        """Parse a state printed by a C++ library. Raises `DataError` for anything else."""
        words = text.split()
        if len(words) == _N:
            words.append(str(_N))
        if len(words) != _N + 1:
            raise DataError(f"a random number generator's state has 625 numbers, not {len(words)}")
        if not all(w.isascii() and w.isdigit() for w in words):
            raise DataError("a random number generator's state must consist of numbers")
        numbers = [int(w) for w in words]
        if max(numbers) > MOST or numbers[-1] > _N:
            raise DataError("a random number generator's state contains a number that is too large")
        return cls(np.array(numbers[:-1], np.uint32), numbers[-1])

    def text(self) -> str:
        """Return the state in the text form of libstdc++."""
        state = self._bits.state["state"]
        return " ".join(map(str, [*state["key"].tolist(), int(state["pos"])]))

    def draw(self, n: int) -> np.ndarray:
        """Return the next n numbers, uint64 [n], each below 2^32."""
        return np.asarray(self._bits.random_raw(n), np.uint64)
