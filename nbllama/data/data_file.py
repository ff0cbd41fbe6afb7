"""Training data that have been read: a text, or samples with their files and lines."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

from nbllama.data.formats import Conversation, Sample, plain_ones
from nbllama.errors import shown

RAW = "raw"


class Bad(NamedTuple):
    """A bad record: the line it is on, and the reason why it is bad."""

    line: int
    reason: str


class Part(NamedTuple):
    """A file that was read; `first` is the number of its first line, counted across all files."""

    name: str
    first: int


def place_in(parts: Sequence[Part], line: int) -> Part:
    """Convert a line number across all `parts` to a file and a line number in that file."""
    part = parts[bisect.bisect_right([p.first for p in parts], line) - 1]
    return Part(part.name, line - part.first + 1)


class DataFile(NamedTuple):
    """Parsed training data.

    `kind` is "raw" (`text` is then the whole text, or the first of `texts`) or "chat". `format` is
    the name of the most common record format in `FORMATS`, or "raw". `samples` contains (line,
    sample) for each good record. `bad` contains the bad records that were skipped. `notes` contains
    messages to the user. Lines are numbered consecutively across all files; `place` returns the
    file and the line number in it.
    """

    path: str
    kind: str
    format: str
    text: str
    samples: list[tuple[int, Sample]]
    bad: list[Bad]
    notes: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    texts: tuple[str, ...] = ()
    read: str = ""  # a line that lists the keys that were read

    @property
    def has_chats(self) -> bool:
        """Whether the data require a chat template."""
        samples = plain_ones(sample for _, sample in self.samples)
        return any(isinstance(sample, Conversation) for sample in samples)

    def place(self, line: int) -> tuple[str, int]:
        """Return the file that contains a line, and the line number in that file."""
        if not self.parts:
            return self.path, line
        name, number = place_in(self.parts, line)
        return name, number

    def short_place(self, line: int) -> str:
        """Return "line N", with the file name if there are several files."""
        return self.where(line) if self.parts else f"line {line}"

    def where(self, line: int) -> str:
        """Return "FILE, line N" for an error."""
        name, number = self.place(line)
        return f"{shown(name, 400)}, line {number}"
