"""The program `nbllama chat`. Its options are in `nbllama.options.chat_verbs`."""

from __future__ import annotations

from functools import partial

from nbllama.cli.chat.program import run
from nbllama.options.chat_verbs import parse_chat
from nbllama.system.program import run_program

main = partial(run_program, partial(run, parse=parse_chat))
