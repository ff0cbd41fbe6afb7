"""`python -m nbllama.quantize`: write a model in another weight type."""

from __future__ import annotations

import sys

from nbllama.cli.quantize import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
