"""A command-line parser generated from a dataclass in which each field is an option.

The rules are those of the old llama.cpp `finetune`: `_` in an option name is equivalent to `-`, the
last occurrence wins, and abbreviations are not allowed. In addition, `--option=value` works. Every
error in a command line raises a `UsageError` (exit code 2) that states the option, the value and
what is allowed. argparse formats the help but does not parse the command line, because it would
mistake values that begin with `-` for options.
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
from nbllama.options.values import LARGEST, SMALLEST, BadValue, NotInFloat32, Port, Value
from nbllama.system.program import called_as

_ABOUT = {"--help": "help", "-h": "help", "--version": "version"}


class Saved(NamedTuple):
    """How an option that affects the computation is stored in a checkpoint.

    `place` is the position of the key among the keys of all options. A new option uses the next
    free position, and positions are never reused. `key` is the key itself; "" means the field
    name. `taken` says whether a resumed run uses the stored value if the option is not given, and
    `may_change` says whether the resumed run may use a different value.
    """

    place: int
    key: str = ""
    taken: bool = False
    may_change: bool = False


@dataclass(frozen=True)
class Option:
    """An option of a program.

    `names` lists its names, starting with the usual one, and `off` lists the names that turn a
    switch off. For `only`, `file`, `saved` and `without`, see the function `option`.
    """

    dest: str
    names: tuple[str, ...]
    off: tuple[str, ...]
    group: str
    value: Value | None  # None for a switch, which has no value
    default: Any
    shown_default: str
    help: str
    many: bool = False  # can be repeated; the field is a tuple of all values
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
    """Declare a dataclass field as an option, named after the field with `_` replaced by `-`.

    `also` lists additional names, and `first` is the name that the help lists first.
    `shown_default` is the default as shown in the help; None shows the value itself. With `many`,
    the field is a tuple of all given values instead of the last value.

    `only` is "text" or "records" if the option applies only to this kind of training data. `file`
    is "reads" or "writes" if the value names a file or folder; an output must not also be an input.
    `saved` says how a checkpoint stores the option; it is None if the option does not affect the
    computation. `without` is for options that are missing from the old llama.cpp `finetune` or from
    older checkpoints: it is the value that reproduces the behaviour without the option.
    """
    made = dict(
        group=group, value=value, help=help, also=also, off=off, shown=shown_default, many=many,
        first=first, only=only, file=file, saved=saved, without=without,
    )  # fmt: skip
    return field(default=default, metadata={"option": made})


def table(kind: type) -> tuple[Option, ...]:
    """Return the options of a dataclass.

    The options of base classes come first, in the order of the bases.
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
                # the sort is stable, so only `first` moves
                tuple(sorted(names, key=lambda n: n != made["first"])),
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
    """Return all field names in order; `dataclasses.fields` would put the last base class first."""
    if not is_dataclass(kind):
        return []
    names = [name for base in kind.__bases__ for name in _field_names(base)]
    return [*names, *(f.name for f in fields(kind) if f.name not in names)]


class _Layout(argparse.RawDescriptionHelpFormatter):
    """The argparse help layout, but without line breaks at hyphens in option names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def help_text(
    prog: str, about: str, epilog: str, options: Sequence[Option], *, forms: Sequence[str] = ("",)
) -> str:
    """Return the help text in the argparse layout; for `forms`, see `parse_into`."""
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
    """Return the given values by field name, or only "help" or "version" if `argv` requests it.

    As in the old parser, a value may begin with `-` unless it is the name of an option. Raises
    `UsageError`.
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
                    f"{name}: '{shown(value)}' is not allowed, because the program computes in "
                    f"float32; use a number between {SMALLEST:.1e} and {LARGEST:.1e}"
                ) from None
            except BadValue as e:
                raise UsageError(f"{name}: {e}") from None
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
    """Return an option name as spelled in the table, replacing `_` with `-`."""
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
    """Create an instance of the dataclass `kind` from a command line without the program name.

    `prog` is the program's name in the help, unless the program was started as `nbllama VERB`.
    `familiar` maps names from other programs to hints (see `nbllama.options.unknown`). `forms`
    lists the positional arguments, such as "IN OUT", for the usage line. Raises `UsageError`.
    `--help` and `--version` print their text and raise `SystemExit(0)`.
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
    """Format the options as Markdown tables, one per group."""
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
