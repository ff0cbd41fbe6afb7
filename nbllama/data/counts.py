"""Count the keys that are read, renamed or ignored in the records of a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nbllama.data.formats import Format, Record
from nbllama.data.formats.calls import READ_IN_CALLS
from nbllama.data.formats.messages import MESSAGE_KEYS, RESULT_KEYS, TURN_KEYS
from nbllama.data.formats.parts import PART_KEYS
from nbllama.data.formats.tools import SCHEMA_KEYS
from nbllama.errors import DataError, shown

READ_LINE = "read: "  # how a line about the keys begins
_READ = {
    "chat": {"system", "tools", "functions", "chat_template_kwargs"},
    "sharegpt": {"system", "tools", "functions", "chat_template_kwargs"},
    "completion": {"tools", "functions", "chat_template_kwargs"},
    "preference": {"prompt", "weight", "tools", "functions", "chat_template_kwargs"},
    "labelled": {"weight", "tools", "functions", "chat_template_kwargs"},
    "alpaca": {"input", "system", "history", "tools", "functions", "chat_template_kwargs"},
    "text": set[str](),
}
_WITH_QUESTION = {"instruction", "question", "input", "system", "history"}  # of a preference
# Keys that can contain messages.
_CHATS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")


class Counts(NamedTuple):
    """Counts of the keys that were read from a file, and of the changes made to its records."""

    columns: Counter[tuple[str, str]]  # ("question", "instruction")
    roles: Counter[str]  # "human as user"
    other_roles: Counter[str]  # roles that are unknown and stay unchanged
    numbers: Counter[str]  # keys whose numbers were converted to text
    used: Counter[str]  # keys that the format reads, after renaming
    unread: Counter[str]  # keys that the format ignores
    unread_in_messages: Counter[str]  # keys of messages that the format ignores

    @classmethod
    def empty(cls) -> Counts:
        """Return empty counts."""
        return cls(*(Counter() for _ in cls._fields))

    def notes(self, *, chats: bool) -> list[str]:
        """Return a line for each kind of change; `chats` says whether the file contains chats."""
        out = []
        if self.columns:
            names = [f"{old} as {new}" for old, new in self.columns]
            new_names = {new for _, new in self.columns}
            out.append(f"{READ_LINE}{_listed(names)}{_joined(new_names, chats)}")
        if self.roles:
            out.append(f"roles: {_listed(self.roles)}")
        if self.other_roles:
            listed = _counted(self.other_roles)
            out.append(f"unknown roles, passed to the chat template unchanged: {listed}")
        if self.numbers:
            out.append(f"numbers read as text: {_counted(self.numbers)}")
        if self.unread:
            out.append(f"keys not used for training: {_counted(self.unread)}")
        if self.unread_in_messages:
            listed = _counted(self.unread_in_messages)
            out.append(f"keys of messages not used for training: {listed}")
        return out

    def read_line(self, columns: Mapping[str, str], *, chats: bool) -> str:
        """Return a line with every key that was read, whether renamed or not.

        `columns` maps the keys of a format to the names that `--data-columns` assigned to them.
        """
        names: dict[str, list[str]] = {key: [] for key in self.used}
        for old, new in [(shown(name, 40), key) for key, name in columns.items()] + [*self.columns]:
            names.setdefault(new, []).append(f"{old} as {new}" if old != new else old)
        listed = [name for key, renamed in names.items() for name in renamed or [key]]
        return f"{READ_LINE}{_listed(listed)}{_joined(set(names), chats)}"

    def reason(self, error: DataError, record: Record | DataError) -> str:
        """Return the text of an error about a record, with the names of the keys in the file."""
        text = str(error)
        if isinstance(record, dict):
            absent = [old for old, _ in self.columns if record.get(old) is None]
            found = {
                f'the key "{new}" is missing' for old, new in self.columns if old not in absent
            }
            if absent and text in found:  # no key was renamed, because another one is missing
                return f'the key "{absent[0]}" is missing or null'
        return text + self.other_name(text)

    def other_name(self, error: str) -> str:
        """Return a hint for an error about a key that has another name in the file."""
        for old, new in self.columns:
            if error == f'the key "{new}" is missing':
                return f' (in other records, it is called "{old}")'
            if any(name in error for name in (f'"{new}"', f"({new})", f"the {new} is ")):
                return f' (in the file, "{new}" is called "{old}")'
        return ""


def _joined(names: set[str], chats: bool) -> str:
    """Return a phrase that says how a question and its answer are joined."""
    if names & {"instruction", "output"}:
        return " (with the chat template)"
    return " (concatenated as is)" if names & {"prompt", "completion"} and not chats else ""


def _listed(names: Iterable[str]) -> str:
    return shown(", ".join(names), 200)


def _counted(names: Counter[str]) -> str:
    return shown(", ".join(f"{name} ({n})" for name, n in names.most_common(8)), 300)


def count_keys(record: Record, found: Format, counts: Counts) -> None:
    """Count the non-empty keys that the format reads, and those that it ignores."""
    read = _read_from(record, found)
    for key, value in record.items():
        if value in (None, "", [], {}):
            continue
        if key in found.keys or key in read:
            counts.used[key] += 1
        else:
            counts.unread[shown(key, 40) or '""'] += 1
    if record.get("tools"):
        _count_schemas(record["tools"], counts)
    count_message_keys(record, counts)


def _read_from(record: Record, found: Format) -> set[str]:
    """Return the optional keys that the format reads from this record."""
    read = _READ[found.name]
    if found.name not in ("preference", "labelled", "completion"):
        return read
    prompt = record.get("prompt")
    if isinstance(prompt, list) or isinstance(record.get("chosen"), list):
        return read | {"system"}
    return read | _WITH_QUESTION if prompt is None else read


def _count_schemas(tools: Any, counts: Counts) -> None:
    """Count the keys that are read as the parameters of a tool."""
    for key in SCHEMA_KEYS:
        if isinstance(tools, str):
            found = f'"{key}"' in tools
        else:
            found = any(key in tool for tool in tools if isinstance(tool, dict))
        if found:
            counts.columns[(key, "parameters")] += 1


def count_message_keys(record: Record, counts: Counts) -> None:
    """Count the non-empty keys that are not read from the messages of a record."""
    for key in _CHATS:
        messages = record.get(key)
        if isinstance(messages, dict):
            messages = [messages]
        if isinstance(messages, list):
            for message in messages:
                _count_in(message, counts)


def _count_in(message: Any, counts: Counts) -> None:
    if not isinstance(message, dict):
        return
    if isinstance(parts := message.get("content"), list):
        _count_among(parts, PART_KEYS, "content", counts)
    if isinstance(calls := message.get("tool_calls"), list):
        functions = [call.get("function") for call in calls if isinstance(call, dict)]
        _count_among([*calls, *functions], READ_IN_CALLS, "tool_calls", counts)
    read = MESSAGE_KEYS if "role" in message else TURN_KEYS
    if message.keys() <= read:
        return
    if message.get("role") in ("tool", "function"):
        read = read | RESULT_KEYS
    _count(message, read, "", counts)


def _count_among(pieces: list[Any], read: frozenset[str], where: str, counts: Counts) -> None:
    """Count the unread keys in the parts or the tool calls of a message."""
    for piece in pieces:
        if isinstance(piece, dict) and not piece.keys() <= read:
            _count(piece, read, f" in {where}", counts)


def _count(record: Record, read: frozenset[str], where: str, counts: Counts) -> None:
    for key in record.keys() - read:
        if record[key] not in (None, "", [], {}):
            counts.unread_in_messages[shown(key, 40) + where] += 1
