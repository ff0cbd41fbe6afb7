"""Count content that was not read exactly as written, and report it in a few lines per file."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from nbllama.errors import counted, shown


class Kind(NamedTuple):
    """A kind of notice: the words after the number 1, those after other numbers, and the rest."""

    one: str
    many: str
    rest: str


READ = {
    "mask": Kind(
        "message that is not an answer has",
        "messages that are not answers have",
        ' a key such as "loss" or "masked"; only answers are trained on, so the key has no effect',
    ),
    "developer": Kind(
        "message has",
        "messages have",
        " the role developer, which the chat template does not support; the template receives the "
        "role system instead",
    ),
    "folded": Kind(
        "system message was",
        "system messages were",
        " prepended to the first question, separated by an empty line (--system-as-user); write "
        "prompts for the trained model in the same way, because llama.cpp's server inserts only a "
        "line feed",
    ),
    "first": Kind(
        "answer is the first message of its chat and has",
        "answers are the first message of their chat and have",
        " no prompt; an answer without a prompt is used as context and not trained on",
    ),
    "open": Kind("chat ends", "chats end", " with an unanswered message, which is not used"),
    "thought": Kind(
        "answer has",
        "answers have",
        " a thought (reasoning_content or <think>) that the chat template omits; the model is "
        "trained on the rest of the answer",
    ),
    "cut off": Kind(
        "answer contains",
        "answers contain",
        " a thought that is not closed; the model learns to stop before it answers; remove cut-off "
        "answers",
    ),
    "hermes": Kind(
        "answer calls",
        "answers call",
        " tools, but the chat template does not support tool calls; each call becomes a line of "
        "JSON in <tool_call> tags (Hermes format), which is trained on as text",
    ),
    "null": Kind(
        "answer calls tools and has",
        "answers call tools and have",
        " no text; the content is set to null, because the chat template writes tool calls only "
        "in messages whose content is null",
    ),
    "joined": Kind(
        "tool call was",
        "tool calls were",
        " joined to the call in the message directly before, as parallel calls in one answer",
    ),
    "tools": Kind(
        "record lists",
        "records list",
        " tools that the chat template omits; the prompt does not contain them, either in training "
        "or on a server",
    ),
    "variables": Kind(
        "record sets",
        "records set",
        ' variables ("chat_template_kwargs") that the chat template does not use',
    ),
    "changed": Kind(
        "message does",
        "messages do",
        " not appear verbatim in the rendered text, because the chat template changes the text",
    ),
}
"""The text of each notice about records, by kind."""


class Notices:
    """Counts of each kind of notice for a file, and the line of the first record with that kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._records: Counter[str] = Counter()
        self._first: dict[str, int] = {}
        self._roles: Counter[str] = Counter()
        self.answers = 0
        self.empty_thoughts = 0
        self.switch = ""
        self.apart: Counter[str] = Counter()
        self.more: list[str] = []

    def add(self, line: int, found: Counter[str]) -> None:
        """Add the counts for the record on one line of the file.

        The keys come from `READ`, or are "role:NAME" for a role whose messages the template leaves
        out.
        """
        for kind, count in found.items():
            self._counts[kind] += count
            self._records[kind] += 1
            self._first.setdefault(kind, line)

    def lines(self, n_records: int, n_samples: int) -> list[str]:
        """Return the report lines for a file of `n_records` good records (`n_samples` samples)."""
        out = []
        if self.apart:
            why = self.apart.most_common(1)[0][0]
            out.append(f"{counted(n_records, 'record')}, {counted(n_samples, 'sample')}: {why}")
        for kind, count in self._counts.items():
            where = f"first: line {self._first[kind]}"
            if kind.startswith("role:"):
                role = shown(kind.removeprefix("role:"), 40)
                out.append(
                    f"{counted(count, 'message')} with the role {role} in "
                    f"{counted(self._records[kind], 'record')} {'is' if count == 1 else 'are'} not "
                    f"in the rendered text, because the chat template leaves "
                    f"{'it' if count == 1 else 'them'} out ({where})"
                )
            else:
                one, many, rest = READ[kind]
                out.append(f"{counted(count, one, many)}{rest} ({where})")
        if self.empty_thoughts:
            way = (
                f"--template-vars {self.switch}=false keeps the thought in the prompt"
                if self.switch
                else "the chat template has no switch that keeps the thought in the prompt"
            )
            out.append(
                f"{self.empty_thoughts} of {counted(self.answers, 'answer')} "
                f"{'begins' if self.empty_thoughts == 1 else 'begin'} with an empty thought, which "
                f"is trained on: the model will learn not to think; {way}"
            )
        return out + self.more
