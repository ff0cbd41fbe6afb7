"""`--card`: a model card and an Ollama Modelfile beside the adapter of a run.

Each begins with a mark of ours; a file of that name without it is someone's own and stays.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import Any

from nbllama.errors import OutputError, shown
from nbllama.files import atomic_write

_MARK = "written by nbllama"
_CHATML = """TEMPLATE \"\"\"{{ range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
\"\"\"
PARAMETER stop "<|im_end|>"
"""


def modelfile(base: str, adapter: str, chat_template: str) -> str:
    """For `ollama create NAME -f FILE`. A template is stated for ChatML alone: of other models
    Ollama knows or reads it by itself.
    """
    place = f"FROM {os.path.abspath(base)}\nADAPTER {os.path.abspath(adapter)}\n"
    template = _CHATML if "<|im_start|>" in chat_template else ""
    return f"# {_MARK}; ollama create NAME -f THIS_FILE\n{place}{template}"


def card(
    run: dict[str, Any], adapter: str, base: str, fingerprint: str, results: list[tuple[str, str]]
) -> str:
    """The model card in Markdown. `run`: the row that begins a log (`cli.story.begun`); `results`:
    lines about losses.
    """
    data = {k: v for k, v in run["data"].items() if k != "lengths"}
    files = f"{shlex.quote(base)} --lora {shlex.quote(adapter)}"
    parts = [
        f"<!-- {_MARK} -->\n# {os.path.basename(adapter.rstrip('/'))}\n",
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
        f"```\nllama-cli -m {files}\npython -m nbllama.main -m {files}\n```\n",
        f"Made by nbllama {run['version']}, {run['started']}.\n",
    ]
    return "\n".join(parts)


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines, ""])


def _cell(text: str) -> str:
    return shown(text, 400).replace("|", "\\|")


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
