"""`--card`: a model card and an Ollama Modelfile beside the adapter of a run.

Each begins with a mark of ours; a file of that name without it is someone's own and stays.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

from nbllama.adapter.file import format_of
from nbllama.errors import OutputError, escaped, shown
from nbllama.system.files import atomic_write
from nbllama.system.regular import first_bytes
from nbllama.train.run.session import RunSession

_MARK = "written by nbllama"
_ENTITIES = {c: f"&#{ord(c)};" for c in "&<>|`*[]\\"}
_MARKUP = re.compile("[" + re.escape("".join(_ENTITIES)) + "]")
_CHATML = """TEMPLATE \"\"\"{{ range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
\"\"\"
PARAMETER stop "<|im_end|>"
"""


class Files(NamedTuple):
    """The base model and the adapter.

    `gguf`: whether it is in the format of today's llama.cpp, the only one that llama.cpp and, for
    every architecture, Ollama read.
    """

    base: str
    adapter: str
    gguf: bool

    @property
    def readable(self) -> str:
        """The adapter as GGUF: itself, or the name of what `conversion` makes."""
        if self.gguf:
            return self.adapter
        bare = _bare(self.adapter)
        return (bare[: -len(".bin")] if bare.lower().endswith(".bin") else bare) + ".gguf"

    @property
    def conversion(self) -> str:
        """The command that makes `readable`; "" where it is there already."""
        words = [self.adapter, self.readable, "--model-base", self.base]
        made = " ".join(map(shlex.quote, words))
        return "" if self.gguf else f"python -m nbllama.convert_lora {made}\n"


def _bare(name: str) -> str:
    return name.rstrip("/" + os.sep) or name


def modelfile(files: Files, chat_template: str) -> str:
    """Write the file for `ollama create NAME -f FILE`.

    A template is stated for ChatML alone: of other models Ollama knows it or reads it from the
    file.

    Raises `OutputError` for a path with a control character, which would be another instruction.
    """
    base, adapter = map(os.path.abspath, (files.base, files.readable))
    for path in (base, adapter, files.adapter):
        if not path.isprintable():
            raise OutputError(
                f"no Modelfile for {shown(path, 400)}: its name holds a control character; rename"
                " the file"
            )
    lines = [f"# {_MARK}; ollama create NAME -f THIS_FILE\n"]
    if not files.gguf:
        lines.append(f"# the adapter must be GGUF; first: {files.conversion}")
    lines.append(f"FROM {base}\nADAPTER {adapter}\n")
    return "".join(lines) + (_CHATML if "<|im_start|>" in chat_template else "")


def card(
    run: dict[str, Any], files: Files, fingerprint: str, results: list[tuple[str, str]]
) -> str:
    """Write the model card in Markdown.

    `run`: the row that begins a log (`cli.story.begun`); `results`: lines about iterations and
    losses.

    What comes from outside, such as names of files, is shown as it is: no character of it is
    Markdown or HTML.
    """
    data = {k: v for k, v in run["data"].items() if k != "lengths"}
    ours, theirs = (
        f"{shlex.quote(files.base)} --lora {shlex.quote(name)}"
        for name in (files.adapter, files.readable)
    )
    commands = f"python -m nbllama.main -m {ours}\n{files.conversion}llama-cli -m {theirs}"
    parts = [
        f"<!-- {_MARK} -->\n# {_cell(os.path.basename(_bare(files.adapter)))}\n",
        "A LoRA adapter.\n",
        "## Base\n",
        _table([("file", run["model"]), ("sha256 of its weights' sample", fingerprint)]),
        "## Data\n",
        _table([(k, str(v)) for k, v in data.items()]),
        "## Results\n",
        _table(results),
        "## Options\n",
        _table([(k, str(v)) for k, v in run["options"].items() if v != ""]),
        "## Running it\n",
        _fenced(commands),
        f"Made by nbllama {_cell(run['version'])}, {_cell(run['started'])}.\n",
    ]
    return "\n".join(parts)


def _fenced(text: str) -> str:
    """Write a block of code whose fence is longer than any row of backticks in it."""
    longest = max((len(row) for row in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = "\n".join(escaped(line) for line in text.split("\n"))
    return f"{fence}\n{lines}\n{fence}\n"


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines, ""])


def _cell(text: str) -> str:
    """Write a text within a line of Markdown: what would begin markup is escaped."""
    return _MARKUP.sub(lambda found: _ENTITIES[found[0]], shown(text, 400))


def write_cards(
    session: RunSession, begun: dict[str, Any], results: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Write card and Modelfile next to the adapter of a run, whose log begins with the row `begun`.

    Returns (ending, file) of what was written. A failure is a line for the user: the adapter is
    there.
    """
    outputs = session.outputs
    gguf = format_of(outputs.adapter) == "gguf"
    files = Files(session.options.model_base, outputs.latest_adapter, gguf)
    template = session.model.tokenizer.chat_template or ""
    makers: dict[str, Callable[[], str]] = {
        "card.md": lambda: card(begun, files, session.identity.base, results),
        "Modelfile": lambda: modelfile(files, template),
    }
    stem = outputs.config.removesuffix(".config.yaml")
    written = write_all(stem, makers, session.ui.note)
    outputs.paths |= {ending: f"{stem}.{ending}" for ending, _ in written}
    return written


def write_all(
    stem: str, makers: dict[str, Callable[[], str]], note: Callable[[str], None]
) -> list[tuple[str, str]]:
    """Make and write each text as `stem`.ENDING; (ending, file) of what was written."""
    written = []
    for ending, made in makers.items():
        path = f"{stem}.{ending}"
        try:
            write(path, made())
            written.append((ending, shown(path, 400)))
        except Exception as e:  # a card is worth less than the run
            note(f"--card: {shown(e, 900)}")
    return written


def write(path: str, text: str) -> None:
    """Write atomically. Raises `OutputError` where a file is that has no mark of ours."""
    if os.path.lexists(path) and _MARK.encode() not in first_bytes(path, 200).partition(b"\n")[0]:
        raise OutputError(f"{shown(path, 400)}: is not a file that nbllama wrote; it is kept")
    with atomic_write(path) as out:
        out.write(text.encode())
