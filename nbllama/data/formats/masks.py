"""Keys that exclude an answer from training, or request training on it."""

from __future__ import annotations

from nbllama.data.formats.checks import Record
from nbllama.data.formats.record import ANSWERING_ROLE
from nbllama.errors import DataError

MASK_KEYS = ("weight", "loss", "train", "trainable", "masked")


def silent_ones(messages: list[Record], roles: list[str]) -> tuple[frozenset[int], tuple[str, ...]]:
    """Return the indices of the answers that mask keys exclude from training, and notices.

    Each notice is represented by its kind (`nbllama.data.notices`).

    Raises `DataError` if the value of a mask key is not 0, 1, true or false, if mask keys
    contradict each other, or if one requests training on a message that is not an answer.
    """
    silent = set()
    notices: tuple[str, ...] = ()
    for i, (message, role) in enumerate(zip(messages, roles, strict=True)):
        wanted = wanted_by(message, f"message {i + 1}: ")
        if not wanted:
            continue
        if role != ANSWERING_ROLE:
            if any(wanted.values()):
                key = next(key for key, on in wanted.items() if on)
                raise DataError(
                    f'message {i + 1}: "{key}" marks a message with the role "{role}" for '
                    "training, but only answers can be trained on"
                )
            notices = ("mask",)
        elif len(set(wanted.values())) > 1:
            raise DataError(f"message {i + 1}: {' and '.join(wanted)} contradict each other")
        elif not any(wanted.values()):
            silent.add(i)
    return frozenset(silent), notices


def wanted_by(message: Record, where: str) -> dict[str, bool]:
    """Return, for each mask key in a message, whether it requests training. Raises `DataError`."""
    wanted: dict[str, bool] = {}
    if message.keys().isdisjoint(MASK_KEYS):
        return wanted
    for key in MASK_KEYS:
        value = message.get(key)
        if value is None:
            continue
        if isinstance(value, str) or value not in (0, 1):
            raise DataError(f'{where}"{key}" must be 0 or 1')
        wanted[key] = bool(value) != (key == "masked")
    return wanted


def check_whole(piece: Record, what: str) -> None:
    """Raise `DataError` if a mask key excludes only a piece of an answer from training."""
    if piece.keys().isdisjoint(MASK_KEYS):
        return
    for key, wanted in wanted_by(piece, f"{what}: ").items():
        if not wanted:
            raise DataError(
                f'{what} has "{key}", but only whole messages can be excluded from training; move '
                "the key into the message"
            )
