"""`--card`: a model card and an Ollama Modelfile, written next to a run's adapter.

Each file begins with a marker. An existing file without the marker belongs to the user and is
never replaced.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from nbllama.adapter.file import format_of
from nbllama.errors import NbllamaError, OutputError, escaped, shown
from nbllama.options.values import parse_variables
from nbllama.system.files import atomic_write
from nbllama.system.regular import first_bytes
from nbllama.text import chat_template_for, find_layout
from nbllama.text.chat_template import ChatTemplate
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
    """The file names of the base model and the adapter.

    `gguf` says whether the adapter is in the current GGUF format, which is the only one that
    llama.cpp reads. Ollama reads other formats only for some architectures.
    """

    base: str
    adapter: str
    gguf: bool

    @property
    def readable(self) -> str:
        """The name of the adapter in GGUF format, which `conversion` creates if necessary."""
        if self.gguf:
            return self.adapter
        bare = _bare(self.adapter)
        return (bare[: -len(".bin")] if bare.lower().endswith(".bin") else bare) + ".gguf"

    @property
    def merged(self) -> str:
        """The name of the merged model, next to the adapter."""
        return self.readable.removesuffix(".gguf") + "-merged.gguf"

    @property
    def conversion(self) -> str:
        """The command that creates `readable`, or "" if the adapter is in GGUF format."""
        words = [self.adapter, self.readable, "--model-base", self.base]
        arguments = " ".join(map(shlex.quote, words))
        return "" if self.gguf else f"python -m nbllama.convert_lora {arguments}\n"


def _bare(name: str) -> str:
    return name.rstrip("/" + os.sep) or name


def modelfile(files: Files, chat_template: str, system: str = "") -> str:
    """Return the Modelfile for `ollama create NAME -f FILE`; its second line explains how to merge.

    The file contains a template only for ChatML; for other models, Ollama has its own template or
    reads the one in the model file. `system` is the text that the chat template puts before a chat
    without a system message. The older form, which refers to the adapter and its base model
    separately, is included as comments.

    Raises `OutputError` if a path contains a control character, which could inject an instruction.
    """
    base, adapter, merged = map(os.path.abspath, (files.base, files.adapter, files.merged))
    for path in (base, adapter):
        if not path.isprintable():
            raise OutputError(
                f"no Modelfile for {shown(path, 400)}: its name contains a control character; "
                "rename the file"
            )
    words = " ".join(map(shlex.quote, ["-m", base, "-l", adapter, "-o", merged]))
    lines = [
        f"# {_MARK}; ollama create NAME -f THIS_FILE\n",
        f"# run this first: python -m nbllama.export_lora {words}\n",
        f"FROM {merged}\n",
    ]
    if "<|im_start|>" in chat_template:
        lines.append(_CHATML)
    if system and '"""' not in system:
        lines.append(f'SYSTEM """{system}"""\n')
    lines.append("# older versions of Ollama also accept the adapter itself; replace FROM with:\n")
    if not files.gguf:
        lines.append(f"# (convert it to GGUF with: {files.conversion.strip()})\n")
    lines.append(f"# FROM {base}\n# ADAPTER {os.path.abspath(files.readable)}\n")
    return "".join(lines)


def system_line(template: ChatTemplate) -> str:
    """Return the text that a chat template puts before a chat without a system message, or ""."""
    mark = "a system message of no other chat"
    question = {"role": "user", "content": "a question"}
    try:
        with_mark = template.render([{"role": "system", "content": mark}, question], False)
        plain = template.render([question], False)
    except NbllamaError:  # a template that rejects system messages adds none
        return ""
    before, found, after = with_mark.partition(mark)
    if not found or len(plain) <= len(before) + len(after):
        return ""
    if not (plain.startswith(before) and plain.endswith(after)):
        return ""
    return plain[len(before) : len(plain) - len(after)].strip()


def card(
    run: dict[str, Any], files: Files, fingerprint: str, results: list[tuple[str, str]]
) -> str:
    """Return the model card in Markdown.

    `run` is the first row of the log (`nbllama.train.run.story.begun`), and `results` contains
    (name, value) pairs about iterations and losses.

    Untrusted text, such as file names, is escaped so that it is not interpreted as Markdown or
    HTML.
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
        _table([("file", run["model"]), ("sha256 of a sample of the weights", fingerprint)]),
        "## Data\n",
        _table([(k, str(v)) for k, v in data.items()]),
        "## Results\n",
        _table(results),
        "## Options\n",
        _table([(k, str(v)) for k, v in run["options"].items() if v != ""]),
        "## How to run it\n",
        _fenced(commands),
        f"Created by nbllama {_cell(run['version'])}, {_cell(run['started'])}.\n",
    ]
    return "\n".join(parts)


def _fenced(text: str) -> str:
    """Return a code block whose fence is longer than any run of backticks in the code."""
    longest = max((len(row) for row in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = "\n".join(escaped(line) for line in text.split("\n"))
    return f"{fence}\n{lines}\n{fence}\n"


def _table(rows: list[tuple[str, str]]) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines, ""])


def _cell(text: str) -> str:
    """Return text as one line of Markdown, with all markup escaped."""
    return _MARKUP.sub(lambda found: _ENTITIES[found[0]], shown(text, 400))


def write_cards(
    session: RunSession, begun: dict[str, Any], results: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Write the card and the Modelfile next to an adapter; `begun` is the first row of the log.

    Returns (ending, file) for each file written. A failure is reported but does not end the run,
    because the adapter itself is complete.
    """
    outputs = session.outputs
    gguf = format_of(outputs.adapter) == "gguf"
    files = Files(session.options.model_base, outputs.latest_adapter, gguf)
    source, system = _template(session)
    makers: dict[str, Callable[[], str]] = {
        "card.md": lambda: card(begun, files, session.identity.base, results),
        "Modelfile": lambda: modelfile(files, source, system),
    }
    stem = outputs.config.removesuffix(".config.yaml")
    written = write_all(stem, makers, session.ui.note)
    outputs.paths |= {ending: f"{stem}.{ending}" for ending, _ in written}
    return written


def _template(session: RunSession) -> tuple[str, str]:
    """Return the template and system text for chat data, or the model's own template and ""."""
    options, tokenizer = session.options, session.model.tokenizer
    if session.data.kind != "chat" or not (options.chat_template or tokenizer.chat_template):
        return tokenizer.chat_template or "", ""
    layout = find_layout(options.chat_template) if options.chat_template else None
    day = options.template_date
    template = chat_template_for(
        tokenizer,
        layout.source if layout else None,
        now=datetime.fromisoformat(day) if day else None,
        variables=parse_variables(options.template_vars),
    )
    try:
        return template.source, system_line(template)
    finally:
        template.close()


def write_all(
    stem: str, makers: dict[str, Callable[[], str]], note: Callable[[str], None]
) -> list[tuple[str, str]]:
    """Generate each text and write it to `stem`.ENDING; return (ending, file) pairs."""
    written = []
    for ending, made in makers.items():
        path = f"{stem}.{ending}"
        try:
            write(path, made())
            written.append((ending, shown(path, 400)))
        except Exception as e:  # a failure must not end the run
            note(f"--card: {shown(e, 900)}")
    return written


def write(path: str, text: str) -> None:
    """Write the file atomically. Raises `OutputError` if a file without the marker exists."""
    if os.path.lexists(path) and _MARK.encode() not in first_bytes(path, 200).partition(b"\n")[0]:
        raise OutputError(
            f"{shown(path, 400)}: the file was not written by nbllama, so it is not replaced"
        )
    with atomic_write(path) as out:
        out.write(text.encode())
