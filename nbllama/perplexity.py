"""`python -m nbllama.perplexity`: measure how well a model predicts a text."""

from __future__ import annotations

import sys

from nbllama.cli.perplexity import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
