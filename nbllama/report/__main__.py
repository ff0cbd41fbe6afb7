"""`python -m nbllama.report`: make the page about a run from its log, or compare runs."""

from __future__ import annotations

import sys

from nbllama.cli.report import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
