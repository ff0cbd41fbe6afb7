"""Positional words on a command line, such as file names."""

from __future__ import annotations

from collections.abc import Sequence

from nbllama.options.parser import Option, plain


def take_words(argv: Sequence[str], options: Sequence[Option]) -> tuple[list[str], list[str]]:
    """Return the positional words, and the remaining words for `parser.parse_into`.

    Everything after `--` is positional.
    """
    by_name = {name: o for o in options for name in (*o.names, *o.off)}
    words: list[str] = []
    left: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return words + rest, left
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        left.append(word)
        name, equals, _ = word.partition("=")
        found = by_name.get(plain(name))
        if found is not None and found.value is not None and not equals and rest:
            left.append(rest.pop(0))
    return words, left
