"""`python -m nbllama.convert`: rename the keys of a Baichuan model to the llama keys."""

from __future__ import annotations

import sys

from nbllama.system.start import Program

__all__ = ["main"]

main = Program("nbllama.cli.convert")

if __name__ == "__main__":
    sys.exit(main.start())
