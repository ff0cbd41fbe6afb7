"""`python -m nbllama.main`: complete a text, or chat with a model."""

from __future__ import annotations

import sys

from nbllama.cli.chat.program import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
