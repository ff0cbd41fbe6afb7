"""Every template with every chat, nbllama next to the reference."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nbllama.data import Conversation
from nbllama.data.chat import ChatReader
from nbllama.data.formats import FORMATS, Style
from nbllama.data.notices import Notices
from nbllama.data.row import Row
from nbllama.errors import DataError, NbllamaError
from nbllama.gguf_io import open_gguf
from nbllama.text import Tokenizer, chat_template_for, tokenizer_from_gguf
from tests.data.rule.chats import chats
from tests.data.rule.reference import NOW, Reference, Refused
from tests.text.vocabs import train_bpe, write_vocab

CONTROL = 3
_MARK = re.compile(
    r"<\|[^<>|{}'\s]{1,40}\|>|<\uff5c[^<>\uff5c{}']{1,40}\uff5c>|\[/?[A-Z_]{3,20}\]"
    r"|<(?:start|end)_of_turn>|<turn\|>|<\|turn>|<seed:[a-z]+>|\[e~\[|<sep>|<SPECIAL_\d+>"
    r"|<(?:beginning|end)_of_sentence>"
)
# Texts that end an answer in these templates, besides those of llama.cpp.
_ENDS = (
    "<|END_OF_TURN_TOKEN|>", "<|role_end|>", "<seed:eos>", "<|message_sep|>", "<SPECIAL_12>",
    "<|end_of_msg|>", "<end_of_sentence>", "<\uff5chy_eos:opensource\uff5c>", "<|eot|>",
    "<|assistant_end|>", "<sep>",
)  # fmt: skip


class Cell(NamedTuple):
    """One template with one chat. mark: see `MARKS`."""

    template: str
    kind: str
    mark: str
    why: str


MARKS = {
    "=": "trained exactly as the rule requires",
    "~": "trained as required, except for a part that the template omits; a message says so",
    "x": "the template itself refuses the chat",
    "r": "refused: an empty answer",
    "c": "refused by the rule: the answer has a thought, but the prompt already closes the thought",
    "R": "refused, although the template renders the chat",
    "D": "trained differently",
}
RIGHT = "=~rc"
# What the page says about each of `chats.KINDS`.
ABOUT = {
    "one turn": "a question and an answer",
    "two turns": "two questions with answers",
    "system, one turn": "a system message, a question and an answer",
    "system, two turns": "a system message and two questions with answers",
    "tools, object": "a list of tools, and a tool call whose arguments are a JSON object",
    "tools, text": "a list of tools, and a tool call whose arguments are a JSON string",
    "calls without tools": "a tool call, but no list of tools",
    "thought in a key": 'an answer with a thought under "reasoning_content"',
    "thoughts in a key": 'two answers with thoughts under "reasoning_content"',
    "thoughts in the text": "two answers that contain thoughts between `<think>` and `</think>`",
    "user twice": "two questions in a row, then an answer",
    "assistant twice": "a question, then two answers in a row",
    "ends with user": "a question with an answer, then a question without one",
    "empty answer": "a question with an empty answer",
    "Chinese": "a system message and two questions with answers, in Chinese",
}


@cache
def _bpe() -> tuple[list[str], list[int], list[str]]:
    return train_bpe()


def vocabulary(folder: Path, source: str) -> Tokenizer:
    """A small BPE vocabulary that has the marks of a template as control tokens."""
    tokens, types, merges = _bpe()
    marks = [m for m in dict.fromkeys(_MARK.findall(source)) if m not in tokens]
    new = ["<s>", "</s>", *marks]
    new = [t for t in dict.fromkeys(new) if t not in tokens]
    tokens, types = [*tokens, *new], [*types, *[CONTROL] * len(new)]
    ids = {t: i for i, t in enumerate(tokens)}
    end = next((e for e in _ENDS if e in ids), "</s>")
    keys = {"bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"], "eot_token_id": ids[end]}
    path = write_vocab(
        folder / "v.gguf", "gpt2", tokens, types=types, merges=merges, pre="llama-bpe",
        keys={**keys, "add_bos_token": False},
    )  # fmt: skip
    with open_gguf(path) as f:
        return tokenizer_from_gguf(f)


def cells(folder: Path, name: str, source: str) -> Iterator[Cell]:
    """The cells of one template."""
    tokenizer = vocabulary(folder, source)
    ends = [tokenizer.token_text(i) for i in tokenizer.eog_ids]
    reference = Reference(source, "<s>", "</s>", ends)
    with chat_template_for(tokenizer, source, now=NOW) as template:
        reader = ChatReader(tokenizer, template)
        for kind, record in chats().items():
            reader.notices = Notices()
            try:
                wanted: Any = reference.pairs(record)
            except Refused as e:
                wanted = e
            try:
                chat = FORMATS["chat"].read(record, Style())
                assert isinstance(chat, Conversation)
                rows: Any = reader.rows(reader.render([chat])[0])
            except NbllamaError as e:
                rows = e
            notes = reader.notices.lines(1, 1) if not isinstance(rows, NbllamaError) else []
            yield Cell(name, kind, *_compare(tokenizer, wanted, rows, notes))


def _compare(tokenizer: Tokenizer, wanted: Any, rows: Any, notes: list[str]) -> tuple[str, str]:
    if isinstance(rows, NbllamaError):
        line = str(rows)
        if isinstance(wanted, Refused):
            return "x", line
        if "the answer is empty" in line:
            return "r", line
        if wanted is None and isinstance(rows, DataError):
            return "c" if "closes the thought" in line else "R", line
        return "R", line
    if isinstance(wanted, Refused):
        return "D", f"the template refuses: {wanted}"
    if wanted is None:
        return "D", "the rule refuses"
    expected = []
    for pair in wanted:
        prompt = tokenizer.encode(pair.prompt, parse_special=True)
        expected.append((prompt, tokenizer.encode(pair.answer, parse_special=True)))
    if not _same(rows, expected):
        shown = [r.text[-80:] for r in rows]
        return "D", f"found {shown}, wanted {[(p.prompt[-40:], p.answer[-60:]) for p in wanted]}"
    if any(pair.told for pair in wanted):
        return ("~", "") if notes else ("D", "not said")
    return "=", ""


def _same(rows: list[Row], expected: list[tuple[list[int], list[int]]]) -> bool:
    """Whether the rows train these answers after these prompts, each once, and nothing else."""
    marks = [np.zeros(len(row.ids), int) for row in rows]
    for prompt, answer in expected:
        for row, mark in zip(rows, marks, strict=True):
            n = len(prompt) + len(answer)
            if row.ids[:n].tolist() == prompt + answer and row.trained[len(prompt) : n].all():
                mark[len(prompt) : n] += 1
                break
        else:
            return False
    return all((m == row.trained).all() for row, m in zip(rows, marks, strict=True))


def page(found: list[Cell]) -> str:
    """The page of results: the matrix, the meaning of its marks, and the refusals."""
    kinds = list(dict.fromkeys(c.kind for c in found))
    names = list(dict.fromkeys(c.template for c in found))
    marks = {(c.template, c.kind): c.mark for c in found}
    counts = Counter(c.mark for c in found)
    rendered = len(found) - counts["x"]
    right = sum(counts[m] for m in RIGHT)
    refused: dict[tuple[str, str], list[str]] = {}
    for c in found:
        if c.mark == "R":
            why = c.why.partition(": ")[2]  # without the message's number
            refused.setdefault((c.template, why), []).append(c.kind)
    lines = [
        "# Chat templates, one by one",
        "",
        f"This page compares nbllama with a reference on {len(kinds)} chats for each of the "
        f"{len(names)} chat templates in",
        "llama.cpp's tests. The reference renders each chat with jinja2, configured as in "
        "Transformers, and",
        "applies the rule of [What exactly is trained](../what-is-trained.md). A slow test "
        "regenerates this table",
        "and fails if it differs (`tests/data/test_templates_of_llama_cpp.py`).",
        "",
        f"Of the {len(found)} combinations of a template and a chat, {rendered} can be rendered. "
        "Of these, "
        f"**{right} ({100 * right / rendered:.1f} %) follow the rule,",
        f"{counts['R']} are refused with a message, and {counts['D']} are trained differently.**",
        "",
        "| mark | count | meaning |",
        "|---|---|---|",
        *[f"| `{m}` | {counts[m]} | {text} |" for m, text in MARKS.items()],
        "",
        "| number | chat | contents |",
        "|---|---|---|",
        *[f"| {i} | {kind} | {ABOUT[kind]} |" for i, kind in enumerate(kinds, 1)],
        "",
        "| template | " + " | ".join(str(i + 1) for i in range(len(kinds))) + " |",
        "|---|" + "---|" * len(kinds),
        *[
            f"| {name} | " + " | ".join(marks[name, kind] for kind in kinds) + " |"
            for name in names
        ],
        "",
        "## Refused",
        "",
        *[f"- {name} ({'; '.join(kinds)}): {why}." for (name, why), kinds in refused.items()],
    ]
    return "\n".join(lines) + "\n"
