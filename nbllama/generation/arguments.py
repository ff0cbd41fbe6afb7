"""Check the model, the adapter and the number of tokens that a Python program passes."""

from __future__ import annotations

from contextlib import AbstractContextManager

from nbllama.arguments import MOST, enough_memory, whole
from nbllama.errors import UsageError, shown
from nbllama.lora.pairs import Adapter
from nbllama.model.passes import Model


def check_model(model: object) -> None:
    """Raise `UsageError` unless `model` is a model."""
    if not isinstance(model, Model):
        raise UsageError(f"model: {shown(model)!r} is not a model; pass nbllama.load_model(path)")


def check_adapter(adapter: object) -> None:
    """Raise `UsageError` unless `adapter` is an `Adapter` or None."""
    if adapter is not None and not isinstance(adapter, Adapter):
        raise UsageError(
            f"adapter: {shown(adapter)!r} is not an adapter; pass nbllama.load_adapter(path, model)"
        )


def number_of_tokens(name: str, value: object) -> int:
    """Return the maximum number of new tokens."""
    return whole(name, value, 0, MOST)


def memory_for(n: int) -> AbstractContextManager[None]:
    """Return a context that reports a lack of memory for a prompt and `n` new tokens."""
    return enough_memory(f"a prompt and {n} new tokens", "allow fewer new tokens")
