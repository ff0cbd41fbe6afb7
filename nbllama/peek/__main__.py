"""`python -m nbllama.peek`: show any tensor by name."""

from __future__ import annotations

import sys

from nbllama.system.start import Program

__all__ = ["main"]

main = Program("nbllama.cli.peek")

if __name__ == "__main__":
    sys.exit(main.start())
