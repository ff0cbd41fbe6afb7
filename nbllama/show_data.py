"""`python -m nbllama.show_data`: show what is trained in a file of training data."""

from __future__ import annotations

import sys

from nbllama.cli.show_data import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
