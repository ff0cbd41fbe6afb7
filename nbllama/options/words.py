"""Extract positional arguments from a command line, and replace options in it."""

from __future__ import annotations

from collections.abc import Sequence

from nbllama.options.parser import Option, plain


def take_words(argv: Sequence[str], options: Sequence[Option]) -> tuple[list[str], list[str]]:
    """Return the positional arguments, and the remaining words for `parser.parse_into`.

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


def replace_options(
    argv: Sequence[str], options: Sequence[Option], new: Sequence[tuple[str, str]]
) -> list[str]:
    """Return `argv` with the values in `new`, which contains (name, value) pairs.

    Earlier occurrences of these options, under any of their names, are removed, and `new` is
    appended.
    """
    by_name = {name: o for o in options for name in (*o.names, *o.off)}
    replaced = {by_name[name].dest for name, _ in new}
    left: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        found = by_name.get(plain(name))
        value = [rest.pop(0)] if found and found.value is not None and not equals and rest else []
        if found is None or found.dest not in replaced:
            left += [word, *value]
    return left + [word for pair in new for word in pair]
