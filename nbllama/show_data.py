"""`python -m nbllama.show_data`: what a trainer makes of a file of training data.

Prints the first samples token by token, those marked that the loss is taken on, and statistics.
The program only; `nbllama.cli.show_data` does it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nbllama.cli.run import run_program
from nbllama.cli.show_options import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with these arguments (those of the process by default); the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)

    def program() -> int:
        options = parse(words)
        from nbllama.cli.show_data import show

        show(options)
        return 0

    return run_program(program, "--debug" in words)


if __name__ == "__main__":
    raise SystemExit(main())
