"""The program `python -m nbllama.peek FILE [PATTERN ...]`, or `... diff A B [PATTERN ...]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from nbllama.errors import UsageError, shown
from nbllama.options.peek import PeekOptions, parse
from nbllama.system.program import run_program

if TYPE_CHECKING:
    from nbllama.peek.dump import Dump


def _run(words: list[str]) -> int:
    asked = parse(words)
    from nbllama.peek.source import open_source

    if len(asked.files) == 1:
        _show(open_source(asked.files[0], asked.patterns), asked.options)
        return 0
    a, b = (open_source(path) for path in asked.files)
    if asked.patterns:
        a, b = _matching(a, b, asked.patterns)
    return _compare(a, b, asked.options)


def _matching(a: Dump, b: Dump, patterns: Sequence[str]) -> tuple[Dump, Dump]:
    """Select arrays by pattern. Raises `UsageError` if a pattern matches in neither file."""
    from nbllama.peek.dump import Dump
    from nbllama.peek.names import Patterns

    fits = Patterns(patterns)
    if unused := fits.unused([*a, *b]):
        raise UsageError(f"no array name matches {shown(unused[0])}")
    first, second = (Dump({k: v for k, v in x.items() if fits(k)}, x.about) for x in (a, b))
    return first, second


def _show(dump: Dump, options: PeekOptions) -> None:
    from nbllama.peek.names import kind_of
    from nbllama.peek.tables import statistics, table

    if options.json:
        rows = {
            name: {"kind": kind_of(name), "shape": x.shape, "dtype": str(x.dtype)}
            | {k: v if v == v else None for k, v in statistics(x)._asdict().items()}
            for name, x in dump.items()
        }
        print(json.dumps({"about": dump.about, "arrays": rows}, indent=1))
    else:
        for key, value in dump.about.items():
            print(f"{shown(key)}: {shown(value, 400)}")
        print(table(dump, options.values), end="")
    if options.picture:
        from nbllama.peek.pictures import draw

        for note in draw(dump, options.picture, options.kind, options.head):
            print(f"note: {note}", file=sys.stderr)


def _compare(a: Dump, b: Dump, options: PeekOptions) -> int:
    from nbllama.peek.tables import difference_table, differences

    found = [
        d._replace(changed=0) if not d.why and d.relative <= options.tolerance else d
        for d in differences(a, b)
    ]
    if options.json:
        rows = [{k: v if v == v else None for k, v in d._asdict().items()} for d in found]
        print(json.dumps({"differ": sum(not d.same for d in found), "arrays": rows}, indent=1))
    else:
        print(difference_table(found, options.all), end="")
    return int(any(not d.same for d in found))


main = partial(run_program, _run)
