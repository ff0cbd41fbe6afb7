import numpy as np
import pytest

from nbllama.data import NOT_TRAINED, Batch


def row(tokens: list[int], targets: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(tokens, np.int32), np.array(targets, np.int32)


def test_rows_lie_end_to_end() -> None:
    batch = Batch.from_rows([row([5, 6, 7], [6, -1, 8]), row([9], [3]), row([1, 2], [-1, 4])])
    expected = {
        "tokens": [5, 6, 7, 9, 1, 2],
        "targets": [6, -1, 8, 3, -1, 4],
        "positions": [0, 1, 2, 0, 0, 1],
        "seq_offsets": [0, 3, 4, 6],
    }
    for name, values in expected.items():
        array = getattr(batch, name)
        assert array.tolist() == values, name
        assert array.dtype == np.int32 and array.flags.c_contiguous, name
    assert (batch.n_tokens, batch.n_sequences, batch.n_trained) == (6, 3, 4)
    assert NOT_TRAINED == -1


def test_rows_are_copied() -> None:
    tokens, targets = row([1, 2], [2, 3])
    batch = Batch.from_rows([(tokens, targets)])
    tokens[0] = targets[0] = 99
    assert batch.tokens.tolist() == [1, 2] and batch.targets.tolist() == [2, 3]


@pytest.mark.parametrize(
    "rows", [[], [row([], [])], [row([1], [2]), row([], [])], [row([1, 2], [3])]]
)
def test_bad_rows_are_refused(rows: list[tuple[np.ndarray, np.ndarray]]) -> None:
    with pytest.raises(ValueError):
        Batch.from_rows(rows)
