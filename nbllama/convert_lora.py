"""`python -m nbllama.convert_lora`: convert an adapter to another file format."""

from __future__ import annotations

import sys

from nbllama.system.start import Program

__all__ = ["main"]

main = Program("nbllama.cli.convert_lora")

if __name__ == "__main__":
    sys.exit(main.start())
