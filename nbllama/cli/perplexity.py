"""The program `python -m nbllama.perplexity`.

The options are in `nbllama.options.perplexity`, and the computation is in `nbllama.evaluate`.
"""

from __future__ import annotations

from functools import partial

from nbllama.kernels.cores import use_threads
from nbllama.options.perplexity import parse_perplexity
from nbllama.system.program import run_program


def _run(words: list[str]) -> None:
    asked = parse_perplexity(words)
    use_threads(asked.options.threads)
    from nbllama.cli.scores import print_divergence, print_perplexity

    if asked.options.kl_divergence:
        print_divergence(asked)
    else:
        print_perplexity(asked)


main = partial(run_program, _run)
