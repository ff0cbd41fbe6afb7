"""`python -m nbllama.finetune`: train a LoRA adapter on a GGUF model."""

from __future__ import annotations

import sys

from nbllama.cli.finetune import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
