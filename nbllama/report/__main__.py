"""`python -m nbllama.report`: generate a page about a run from its log, or compare runs."""

from __future__ import annotations

import sys

from nbllama.system.start import Program

__all__ = ["main"]

main = Program("nbllama.cli.report")

if __name__ == "__main__":
    sys.exit(main.start())
