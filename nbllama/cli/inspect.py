"""The program `python -m nbllama.inspect FILE`.

It prints everything that can be read. If the file is unusable, the last line gives the reason, and
the exit code is the one that the other programs return for this file.
"""

from __future__ import annotations

from functools import partial

from nbllama.options.inspect import parse
from nbllama.system.program import run_program


def _run(words: list[str]) -> None:
    options, path = parse(words)
    from nbllama.inspect.look import look
    from nbllama.inspect.show import as_json, as_text

    found = look(path, base=options.model_base, rank=options.lora_r, check=options.check)
    print(as_json(found) if options.json else as_text(found, options.all), end="")
    if found.refused is not None:
        raise found.refused


main = partial(run_program, _run)
