"""`python -m nbllama.peek`: show any tensor by name."""

from __future__ import annotations

import sys

from nbllama.cli.peek import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
