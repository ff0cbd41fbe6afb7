"""The program: `python -m nbllama.perplexity`.

Options: `nbllama.cli.eval_options`. What is computed: `nbllama.evaluate`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nbllama.cli.cores import use_threads
from nbllama.cli.eval_options import parse_perplexity
from nbllama.cli.run import run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (see `nbllama.errors`)."""
    return run_program(_run, argv)


def _run(words: list[str]) -> None:
    asked = parse_perplexity(words)
    use_threads(asked.options.threads)
    from nbllama.cli.scoring import print_divergence, print_perplexity

    if asked.options.kl_divergence:
        print_divergence(asked)
    else:
        print_perplexity(asked)


if __name__ == "__main__":
    sys.exit(main())
