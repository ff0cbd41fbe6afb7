"""`python -m nbllama.main`: complete a text, or chat with a model."""

from __future__ import annotations

import sys

from nbllama.system.start import Program

__all__ = ["main"]

main = Program("nbllama.cli.chat.program")

if __name__ == "__main__":
    sys.exit(main.start())
