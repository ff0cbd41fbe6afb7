"""Arguments of the public functions: an error names the argument and says what to pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from nbllama.errors import NbllamaError, UsageError
from nbllama.generation.model import Model
from tests.train.toy_runs import toy_model

NAN = float("nan")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    toy_model(folder)
    return nbllama.load_model(folder / "toy.gguf")


@pytest.mark.parametrize(
    "ids",
    [[1.7, 2.2], [1.0, 2.0], [True, False], [NAN], "hello", ["1"], [2**70], [2**63], [[1, 2]],
     [[1, 2], [3]], None, 5, {1, 2}, np.array([1.5])],
    ids=repr,
)  # fmt: skip
def test_what_is_not_a_list_of_token_ids(model: Model, ids: Any) -> None:
    adapter = nbllama.init_adapter(model)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("tokens", lambda: nbllama.logits(model, ids)),
        ("tokens", lambda: nbllama.trace(model, ids)),
        ("tokens", lambda: nbllama.loss_and_gradients(model, adapter, ids)),
        ("prompt", lambda: nbllama.generate(model, ids, 1)),
        ("prompt 2", lambda: nbllama.generate_many(model, [[1], ids], 1)),
    ]
    if ids is not None:
        calls.append(("targets", lambda: nbllama.loss_and_gradients(model, adapter, [1, 2], ids)))
    for name, call in calls:
        with pytest.raises(UsageError, match=rf"^{name}[:,] .*token id") as e:
            call()
        assert isinstance(e.value, ValueError)


def test_no_tokens(model: Model) -> None:
    for call in (nbllama.logits, nbllama.trace):
        with pytest.raises(UsageError, match="tokens: the list is empty"):
            call(model, [])


def test_token_ids_in_other_types(model: Model) -> None:
    wanted = nbllama.logits(model, [1, 2, 3])
    for ids in (
        range(1, 4),
        (1, 2, 3),
        np.array([1, 2, 3], np.uint64),
        np.array([1, 2, 3], object),
    ):
        np.testing.assert_array_equal(nbllama.logits(model, ids), wanted)
    rows: Any = np.array([[1, 2], [3, 4]])
    many = nbllama.generate_many(model, rows, 2)
    assert many == nbllama.generate_many(model, [[1, 2], [3, 4]], 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank: '0' is not allowed; use a whole number from 1"),
        ({"rank": -1}, "rank: '-1'"),
        ({"rank": 2.5}, "rank: '2.5'"),
        ({"rank": "4"}, "rank: the text '4'"),
        ({"rank": True}, "rank: 'True'"),
        ({"rank": 10**12}, "rank: '1000000000000'"),
        ({"alpha": NAN}, "alpha: 'nan' is not allowed; use a number above 0"),
        ({"alpha": 0}, "alpha: '0'"),
        ({"alpha": -1.0}, "alpha: '-1.0'"),
        ({"alpha": 1e300}, "alpha: '1e+300'"),
        ({"alpha": "4"}, "alpha: the text '4'"),
        ({"seed": -1}, "seed: '-1' is not allowed; use a whole number from 0"),
        ({"seed": None}, "seed: 'None'"),
        ({"ranks": {"wz": 2}}, "ranks: the text 'wz' is not a slot; use tok_embd"),
        ({"ranks": {"wq": 2.5}}, "ranks, wq: '2.5'"),
        ({"ranks": 5}, "ranks: '5' is not allowed; use a dict"),
    ],
)
def test_settings_of_a_new_adapter(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as e:
        nbllama.init_adapter(model, **options)
    assert str(e.value).startswith(message)


def test_settings_of_numpy(model: Model) -> None:
    options: dict[str, Any] = {"rank": np.int64(2), "alpha": np.float32(8), "seed": np.uint64(3)}
    adapter = nbllama.init_adapter(model, **options)
    assert (adapter.lora_r, adapter.alpha, adapter.scale) == (2, 8.0, 4.0)
    assert type(adapter.lora_r) is int and type(adapter.alpha) is float


@pytest.mark.parametrize("value", [None, "toy.gguf", 5])
def test_what_is_not_a_model(model: Model, value: Any, tmp_path: Path) -> None:
    adapter = nbllama.init_adapter(model)
    calls: list[Callable[[], object]] = [
        lambda: nbllama.logits(value, [1]),
        lambda: nbllama.trace(value, [1]),
        lambda: nbllama.loss_and_gradients(value, adapter, [1, 2]),
        lambda: nbllama.generate(value, [1]),
        lambda: nbllama.generate_many(value, [[1]]),
        lambda: nbllama.init_adapter(value),
        lambda: nbllama.save_adapter(tmp_path / "a.gguf", adapter, value),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r"^model: .* pass nbllama\.load_model"):
            call()


def test_what_is_not_an_adapter(model: Model, tmp_path: Path) -> None:
    bad: Any = "lora.gguf"
    calls: list[Callable[[], object]] = [
        lambda: nbllama.logits(model, [1], bad),
        lambda: nbllama.trace(model, [1], bad),
        lambda: nbllama.loss_and_gradients(model, bad, [1, 2]),
        lambda: nbllama.generate(model, [1], 1, bad),
        lambda: nbllama.generate_many(model, [[1]], 1, bad),
        lambda: nbllama.save_adapter(tmp_path / "a.gguf", bad, model),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r"^adapter: .*pass"):
            call()


@pytest.mark.parametrize("path", [None, 0, b"toy.gguf"])
def test_what_is_not_a_path(model: Model, path: Any) -> None:
    adapter = nbllama.init_adapter(model)
    calls: list[Callable[[], object]] = [
        lambda: nbllama.load_model(path),
        lambda: nbllama.load_adapter(path, model),
        lambda: nbllama.save_adapter(path, adapter, model),
        lambda: adapter.save(path),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r"^path: .* pass the name of a file"):
            call()


@pytest.mark.parametrize("name", ["rms_eps", "rope_freq_base", "rope_freq_scale"])
@pytest.mark.parametrize("value", ["10000", NAN, 0, -1, True])
def test_constants_of_a_model(model: Model, name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name}: .* use a number above 0"):
        nbllama.load_model(model.gguf.path, **{name: value})


def test_numbers_of_tokens(model: Model) -> None:
    bad: Any
    for bad in (-1, 2.5, "3", None, True, 10**12):
        for call in (
            lambda bad=bad: nbllama.generate(model, [1], bad),
            lambda bad=bad: nbllama.generate_many(model, [[1]], bad),
        ):
            with pytest.raises(NbllamaError, match=r"max_new_tokens: .* use a whole number from 0"):
                call()
    with pytest.raises(UsageError, match="prompts: 'None' is not allowed; pass a list"):
        nbllama.generate_many(model, None)  # type: ignore[arg-type]
