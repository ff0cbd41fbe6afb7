"""The command `nbllama VERB ...`, also as `python -m nbllama VERB ...`."""

from __future__ import annotations

import sys

from nbllama.cli.command import main

if __name__ == "__main__":
    sys.exit(main(name="python -m nbllama"))
