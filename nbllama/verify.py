"""`python -m nbllama.verify`: check what an adapter does, also in llama.cpp."""

from __future__ import annotations

import sys

from nbllama.cli.verify import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
