"""`python -m nbllama.inspect`: show what is in a model, checkpoint or adapter."""

from __future__ import annotations

import sys

from nbllama.cli.inspect import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
