"""`python -m nbllama.finetune`: train a LoRA adapter on a GGUF model."""

from __future__ import annotations

import sys

from nbllama.system.start import Program

__all__ = ["main"]

main = Program("nbllama.cli.finetune")

if __name__ == "__main__":
    sys.exit(main.start())
