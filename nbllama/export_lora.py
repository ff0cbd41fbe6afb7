"""`python -m nbllama.export_lora`: merge adapters into a model."""

from __future__ import annotations

import sys

from nbllama.cli.export_lora import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
