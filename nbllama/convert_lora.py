"""`python -m nbllama.convert_lora`: convert an adapter to another file format."""

from __future__ import annotations

import sys

from nbllama.cli.convert_lora import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
