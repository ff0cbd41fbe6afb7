"""`python -m nbllama.gradcheck`: check the gradients of a model against finite differences."""

from __future__ import annotations

import sys

from nbllama.cli.gradcheck import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
