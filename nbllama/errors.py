"""One exception class per exit code; programs print `str(error)` as one line and exit.

| exit | meaning | exception |
|---|---|---|
| 1 | failure at run time, or a failed check | `NbllamaError` |
| 2 | bad usage or a bad file | `UsageError`, `GGUFError`, `DataError` |
| 3 | a path that cannot be written | `OutputError` |
| 4 | not enough memory | `NotEnoughMemory` |
| 5 | a checkpoint or adapter that does not match | `CheckpointError` |
| 6 | the last save failed | `SaveFailed` |
| 7 | the run diverged | `Diverged` |
| 130, 143, 129, 138 | interrupted by SIGINT, SIGTERM, SIGHUP, SIGUSR1 | `Interrupted` |
"""

from __future__ import annotations

from collections.abc import Sequence

NOT_A_NUMBER = "the model computed NaN or infinity; check the file, the adapters and their scales"


class NbllamaError(Exception):
    """A failure, reported in one line that says what is wrong, where, and what to do.

    Control characters in the message, which can originate from a file, are escaped.
    """

    exit_code = 1

    def __init__(self, message: str = "", *more: object) -> None:
        super().__init__(escaped(message), *more)


class UsageError(NbllamaError):
    """An invalid command line or argument."""

    exit_code = 2


class GGUFError(NbllamaError):
    """A GGUF file that is damaged or not supported."""

    exit_code = 2


class DataError(NbllamaError):
    """Training data that cannot be used."""

    exit_code = 2


class MessageError(DataError):
    """Chat messages that cannot be used for training.

    `numbers` contains the index of each message, or None for the list of tools.
    """

    def __init__(self, numbers: Sequence[int | None], reason: str) -> None:
        self._numbers, self._reason = tuple(numbers), reason
        super().__init__(self.counted(0))

    def counted(self, shift: int) -> str:
        """Return the error text with message numbers increased by `shift`."""
        names = (
            "the list of tools" if n is None else f"message {n + 1 + shift}" for n in self._numbers
        )
        return f"{', '.join(names)}{self._reason}"


class OutputError(NbllamaError):
    """An output path that cannot be written."""

    exit_code = 3


class NotEnoughMemory(NbllamaError):
    """A run does not fit in memory, or an allocation failed."""

    exit_code = 4


class CheckpointError(NbllamaError):
    """A checkpoint or adapter that is damaged or does not match the base model."""

    exit_code = 5


class SaveFailed(NbllamaError):
    """The last save of a run failed."""

    exit_code = 6


class Diverged(NbllamaError):
    """The loss or the gradient remained NaN or infinite."""

    exit_code = 7


class Interrupted(NbllamaError):
    """A signal stopped the run; `exit_code` is 128 plus the signal number."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def escaped(text: object) -> str:
    """Return `text` with control characters and other non-printable characters escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


def counted(n: int, one: str, many: str = "") -> str:
    """Return `n` followed by the singular or plural word, such as "1 file" or "2 files"."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def shown(text: object, limit: int = 120) -> str:
    """Return `text` with control characters escaped, truncated to `limit` characters."""
    out = escaped(text)
    return out if len(out) <= limit else out[: limit - 1] + "…"
