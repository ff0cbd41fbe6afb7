"""`--card`: a model card and an Ollama Modelfile beside the adapter of a run.

Each begins with a mark of ours; a file of that name without it is someone's own and stays.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

from nbllama.adapter.file import format_of
from nbllama.errors import OutputError, shown
from nbllama.system.files import atomic_write
from nbllama.train.run.session import RunSession

_MARK = "written by nbllama"
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
    """
    lines = [f"# {_MARK}; ollama create NAME -f THIS_FILE\n"]
    if not files.gguf:
        lines.append(f"# the adapter must be GGUF; first: {files.conversion}")
    base, adapter = map(os.path.abspath, (files.base, files.readable))
    lines.append(f"FROM {base}\nADAPTER {adapter}\n")
    return "".join(lines) + (_CHATML if "<|im_start|>" in chat_template else "")


def card(
    run: dict[str, Any], files: Files, fingerprint: str, results: list[tuple[str, str]]
) -> str:
    """Write the model card in Markdown.

    `run`: the row that begins a log (`cli.story.begun`); `results`: lines about iterations and
    losses.
    """
    data = {k: v for k, v in run["data"].items() if k != "lengths"}
    ours, theirs = (
        f"{shlex.quote(files.base)} --lora {shlex.quote(name)}"
        for name in (files.adapter, files.readable)
    )
    parts = [
        f"<!-- {_MARK} -->\n# {os.path.basename(_bare(files.adapter))}\n",
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
        f"```\npython -m nbllama.main -m {ours}\n{files.conversion}llama-cli -m {theirs}\n```\n",
        f"Made by nbllama {run['version']}, {run['started']}.\n",
    ]
    return "\n".join(parts)


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines, ""])


def _cell(text: str) -> str:
    return shown(text, 400).replace("|", "\\|")


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
    texts = {
        "card.md": card(begun, files, session.identity.base, results),
        "Modelfile": modelfile(files, template),
    }
    stem = outputs.config.removesuffix(".config.yaml")
    written = write_all(stem, texts, session.ui.note)
    outputs.paths |= {ending: f"{stem}.{ending}" for ending, _ in written}
    return written


def write_all(
    stem: str, texts: dict[str, str], note: Callable[[str], None]
) -> list[tuple[str, str]]:
    """Write each text as `stem`.ENDING; (ending, file) of what was written."""
    written = []
    for ending, text in texts.items():
        path = f"{stem}.{ending}"
        try:
            write(path, text)
            written.append((ending, shown(path, 400)))
        except (OSError, OutputError) as e:
            note(f"--card: {e}")
    return written


def write(path: str, text: str) -> None:
    """Atomically. Raises `OutputError` where a file lies that has no mark of ours."""
    if os.path.lexists(path):
        with open(path, "rb") as file:
            ours = _MARK.encode() in file.readline(200)
        if not ours:
            raise OutputError(f"{shown(path, 400)}: is not a file that nbllama wrote; it is kept")
    with atomic_write(path) as out:
        out.write(text.encode())
