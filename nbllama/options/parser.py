"""A command line generated from one table: the fields of a dataclass, each with its option.

The rules are those of the old llama.cpp `finetune` (`_` in an option's name counts as `-`, the last
occurrence wins, no abbreviations) plus `--option=value`. Every error in a command line is one
`UsageError` (exit 2) that names the option, the value and what is allowed. argparse formats the
help, but does not read the command line, because it mistakes values that begin with `-` for
options.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, NamedTuple, TypeVar

from nbllama import __version__
from nbllama.errors import UsageError, shown
from nbllama.options.unknown import unknown
from nbllama.options.values import LARGEST, SMALLEST, NotInFloat32, Port, Value
from nbllama.system.program import called_as

_ABOUT = {"--help": "help", "-h": "help", "--version": "version"}


class Saved(NamedTuple):
    """How a checkpoint stores an option that affects the computation.

    `place`: position of its key among those of all options, never reused; a new option uses the
    next one. `key`: "" for the field's own name. `taken`: whether a run that continues the
    checkpoint uses its value if the option is not given. `may_change`: whether the continued run
    may have a different value.
    """

    place: int
    key: str = ""
    taken: bool = False
    may_change: bool = False


@dataclass(frozen=True)
class Option:
    """An option: `names` as typed, the usual one first; `off`: the names that switch it off.

    `only`, `file`, `saved` and `without`: see `option`.
    """

    dest: str
    names: tuple[str, ...]
    off: tuple[str, ...]
    group: str
    value: Value | None  # None: a switch, which has no value
    default: Any
    shown_default: str
    help: str
    many: bool = False  # can be given several times; the field is a tuple of all values
    only: str = ""
    file: str = ""
    saved: Saved | None = None
    without: Any = None


def option(
    group: str,
    value: Value | None,
    default: Any,
    help: str,
    *,
    also: Sequence[str] = (),
    off: Sequence[str] = (),
    first: str = "",
    shown_default: str | None = None,
    many: bool = False,
    only: str = "",
    file: str = "",
    saved: Saved | None = None,
    without: Any = None,
) -> Any:
    """Declare a dataclass field that is an option, named as the field with `_` written as `-`.

    `also`: additional names. `first`: the name that help shows first. `shown_default`: the
    default as help prints it, None for the value itself. `many`: the field is a tuple of all values
    that are given, instead of the last one.

    `only`: "text" or "records", the kind of training data to which the option applies.
    `file`: "reads" or "writes" for the name of a file or folder; no output may be an input.
    `saved`: how a checkpoint stores the option, None if it does not change the computation.
    `without`: for an option that the old llama.cpp `finetune` or checkpoints of an earlier version
    did not have, the value that gives the same run as without the option.
    """
    made = dict(
        group=group, value=value, help=help, also=also, off=off, shown=shown_default, many=many,
        first=first, only=only, file=file, saved=saved, without=without,
    )  # fmt: skip
    return field(default=default, metadata={"option": made})


def table(kind: type) -> tuple[Option, ...]:
    """Return the options of a dataclass.

    The options of its bases come first, in the order of the bases.
    """
    by_name = {f.name: f for f in fields(kind)}
    rows = []
    for name in _field_names(kind):
        f = by_name[name]
        made = f.metadata["option"]
        plain = "off" if f.default is False else str(f.default)
        names = ("--" + name.replace("_", "-"), *made["also"])
        rows.append(
            Option(
                name,
                tuple(sorted(names, key=lambda n: n != made["first"])),  # else as they are
                tuple(made["off"]),
                made["group"],
                made["value"],
                f.default,
                made["shown"] if made["shown"] is not None else plain,
                made["help"],
                made["many"],
                made["only"],
                made["file"],
                made["saved"],
                made["without"],
            )
        )
    return tuple(rows)


def _field_names(kind: type) -> list[str]:
    """Return the names of all fields; `dataclasses.fields` begins with those of the last base."""
    if not is_dataclass(kind):
        return []
    names = [name for base in kind.__bases__ for name in _field_names(base)]
    return [*names, *(f.name for f in fields(kind) if f.name not in names)]


class _Layout(argparse.RawDescriptionHelpFormatter):
    """argparse's layout, without line breaks at the hyphens of option names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def help_text(
    prog: str, about: str, epilog: str, options: Sequence[Option], *, forms: Sequence[str] = ("",)
) -> str:
    """List the options in argparse's layout; `forms` as for `parse_into`."""
    usage = [f"{prog} {form} [options]".replace("  ", " ") for form in forms]
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="\n       ".join(usage),
        description=about,
        epilog=epilog,
        formatter_class=_Layout,
        add_help=False,
    )
    groups: dict[str, Any] = {}
    for o in options:
        if o.group not in groups:
            groups[o.group] = parser.add_argument_group(o.group)
        text = f"{o.help} (default: {o.shown_default})"
        text += f"; {'/'.join(o.off)} turns this off" if o.off else ""
        kind = {"action": "store_true"} if o.value is None else {"metavar": o.value.metavar}
        groups[o.group].add_argument(*o.names, help=text.replace("%", "%%"), **kind)
    last = parser.add_argument_group("About")
    last.add_argument("--version", action="store_true", help="show the version and exit")
    last.add_argument("-h", "--help", action="store_true", help="show this help and exit")
    return parser.format_help()


def read(
    options: Sequence[Option], argv: Sequence[str], familiar: Mapping[str, str]
) -> dict[str, Any]:
    """Return the given values by field name, or only "help" or "version" if `argv` has that option.

    A value may begin with `-`, as the old parser allowed, unless it is an option's name.
    Raises `UsageError`.
    """
    by_name: dict[str, Option | None] = dict.fromkeys(_ABOUT)
    for o in options:
        by_name.update(dict.fromkeys((*o.names, *o.off), o))
    values: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        name = plain(name)
        if name not in by_name:
            raise unknown(name, list(by_name), familiar)
        found = by_name[name]
        if found is not None and found.value is not None:
            if not equals:
                alone = found.value.alone if isinstance(found.value, Port) else None
                if alone is not None and (not rest or rest[0].startswith("-")):
                    value = alone
                elif not rest or plain(rest[0].partition("=")[0]) in by_name:
                    raise UsageError(f"{name} requires a value: {found.value.allowed()}")
                else:
                    value = rest.pop(0)
            try:
                parsed = found.value.parse(value)
            except NotInFloat32:
                raise UsageError(
                    f"{name}: '{shown(value)}' is not allowed; the program computes in float32: "
                    f"use a number between {SMALLEST:.1e} and {LARGEST:.1e}"
                ) from None
            except ValueError:
                raise UsageError(
                    f"{name}: '{shown(value)}' is not allowed; use {found.value.allowed()}"
                ) from None
            values[found.dest] = (*values.get(found.dest, ()), parsed) if found.many else parsed
        elif equals:
            raise UsageError(f"{name} takes no value, but got '{shown(value)}'")
        elif found is None:
            return {_ABOUT[name]: True}
        else:
            values[found.dest] = name in found.names
    return values


def plain(name: str) -> str:
    """Return an option's name as it is in the table: `_` counts as `-`."""
    return name.replace("_", "-") if name.startswith("--") else name


T = TypeVar("T")


def parse_into(
    kind: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    about: str,
    epilog: str = "",
    familiar: Mapping[str, str] | None = None,
    forms: Sequence[str] = ("",),
) -> T:
    """Create a `kind` (a dataclass) from a command line (without the program's name).

    `prog`: the program's name if it was not started as a verb of `nbllama`. `familiar`: names that
    other programs use, with the hint (see `nbllama.options.unknown`). `forms`: for the usage line,
    the words that belong to no option, such as "IN OUT".
    Raises `UsageError`; `--help` and `--version` print and raise `SystemExit(0)`.
    """
    options = table(kind)
    values = read(options, argv, familiar or {})
    if "help" in values:
        print(help_text(called_as(prog), about, epilog, options, forms=forms), end="")
        raise SystemExit(0)
    if "version" in values:
        print(f"nbllama {__version__}")
        raise SystemExit(0)
    return kind(**values)


def markdown(options: Sequence[Option]) -> str:
    """Write the options as Markdown tables, one per group."""
    lines: list[str] = []
    group = None
    for o in options:
        if o.group != group:
            if group is not None:
                lines += ["", "</div>"]
            group = o.group
            lines += ["", f"## {group}", "", '<div class="options" markdown>', ""]
            lines += ["| option | allowed | default | meaning |", "|---|---|---|---|"]
        names = ", ".join(f"`{n}`" for n in o.names)
        if o.value is None:
            names += "".join(f" / `{n}`" for n in o.off)
        allowed = "switch" if o.value is None else o.value.allowed()
        cells = (allowed, o.shown_default, o.help)
        row = " | ".join(cell.replace("*", "\\*") for cell in cells)
        lines.append(f"| {names} | {row} |")
    return "\n".join([*lines, "", "</div>"]).strip() + "\n"
