"""`python -m nbllama.export_lora`: merge adapters into a model."""

from __future__ import annotations

import sys

from nbllama.system.start import Program

__all__ = ["main"]

main = Program("nbllama.cli.export_lora")

if __name__ == "__main__":
    sys.exit(main.start())
