"""The commands that the summary of a run suggests: continue the run, or chat and merge."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nbllama.options.finetune.table import OPTIONS, PROG
from nbllama.options.words import replace_options
from nbllama.system.program import called_as

if TYPE_CHECKING:
    from nbllama.train.run.session import RunSession

Rows = list[tuple[str, str]]  # names and values
LEARNED, HARDLY, BY_HEART = "learned", "hardly learned", "learned by heart"


def next_commands(
    session: RunSession, word: str, paths: Mapping[str, str], *, further: str
) -> Rows:
    """Return the suggested commands by name.

    `word` is the verdict, and `paths` contains the files that were written. `further` are options
    for more iterations, or "" if none are needed.
    """
    adapter = paths.get("best" if word == BY_HEART else "adapter", "")
    if not adapter:
        return []
    rows: Rows = []
    if further and word != BY_HEART and (checkpoint := paths.get("checkpoint")):
        name, value = further.split(" or ")[0].split()
        more = [("--checkpoint-in", checkpoint), (name, value)]
        words = replace_options(session.words, OPTIONS, more)
        rows.append(("to continue", f"{called_as(PROG)} {shlex.join(words)}"))
        if word == HARDLY:
            return rows
    model = session.options.model_base
    out = os.path.basename(model).removesuffix(".gguf")
    merged = ["--model-base", model, "--lora", adapter, "--model-out", f"{out}-merged.gguf"]
    chat = _command("chat", ["--model", model, "--lora", adapter])
    return [*rows, ("to chat", chat), ("to merge", _command("export-lora", merged))]


def _command(name: str, words: Sequence[str]) -> str:
    """Return the command line for another subcommand, called in the same way as this program."""
    program = called_as(PROG).removesuffix("finetune").rstrip(" .")
    return f"{program} {name} {shlex.join(words)}"
