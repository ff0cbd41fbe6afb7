"""`python -m nbllama.convert`: rename the keys of a Baichuan model to those of llama."""

from __future__ import annotations

import sys

from nbllama.cli.convert import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
