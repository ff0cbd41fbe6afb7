"""The command `nbllama VERB ...`, also available as `python -m nbllama VERB ...`."""

from __future__ import annotations

import sys

from nbllama.system.start import Program

main = Program("nbllama.cli.command")
start = main.start  # the command

if __name__ == "__main__":
    sys.exit(Program("nbllama.cli.command", name="python -m nbllama").start())
