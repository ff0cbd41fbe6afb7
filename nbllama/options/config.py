"""`--config`: read options from a YAML file, and write the options of a run to a YAML file.

A key is the name of an option without the leading dashes; `_` and `-` are equivalent. Values are
parsed by the options, not by YAML. As a result, `1e-4`, which is a string in YAML 1.1, is read as a
number if the option expects a number, and `no`, which is a boolean in YAML 1.1, is read as text if
the option expects text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from nbllama.errors import UsageError, shown
from nbllama.options.file_names import File, check_name
from nbllama.options.parser import Option, read
from nbllama.options.unknown import unknown
from nbllama.options.values import Text
from nbllama.system.regular import read_whole

MAX_BYTES = 1 << 20
"""Size limit in bytes. Parsing a larger file takes seconds, and options need much less space."""

_MARK = "# The options of a run of nbllama"
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


def config_words(path: str, options: Sequence[Option], familiar: Mapping[str, str]) -> list[str]:
    """Return the options in a config file as command-line arguments.

    Raises `UsageError` if the file is not a flat mapping, a key is unknown or repeated, or a value
    is not valid for its option. The message names the file and the line.
    """
    import yaml

    root = _root(path)
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"--config {shown(path)}: expected lines of the form `name: value`")
    by_name = {name: o for o in options for name in (*o.names, *o.off)}
    words: list[str] = []
    seen: dict[str, str] = {}
    for key, value in root.value:
        where = f"--config {shown(path)}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"{where}: the key must be the name of an option")
        bare = key.value.removeprefix("-").removeprefix("-")  # dashes are allowed
        name = "--" + bare.replace("_", "-")
        if name not in by_name and "-" + bare in by_name:
            name = "-" + bare
        found = by_name.get(name)
        if found is None:
            raise UsageError(f"{where}: {unknown(name, list(by_name), familiar)}")
        if found.dest == "config":
            raise UsageError(
                f"{where}: an options file cannot refer to another options file; remove the line"
            )
        if found.dest in seen:
            raise UsageError(f"{where}: {key.value} was already given as {seen[found.dest]}")
        new = _words(where, name, found, value)
        try:
            read(options, new, familiar)
        except UsageError as e:
            raise UsageError(f"{where}: {e}") from None
        seen[found.dest] = key.value
        words += new
    return words


def _root(path: str) -> Any:
    """Return the root node of a YAML or JSON file; None for an empty file. Raises `UsageError`."""
    import yaml

    try:
        text = read_whole(path, MAX_BYTES).decode("utf-8-sig")
        return yaml.compose(_without_tabs(text), Loader=yaml.SafeLoader)
    except OSError as e:
        raise UsageError(f"--config {shown(path)}: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise UsageError(f"--config {shown(path)}: not UTF-8") from e
    except RecursionError:
        raise UsageError(f"--config {shown(path)}: nested too deeply") from None
    except ValueError as e:
        raise UsageError(f"--config {shown(path)}: {e}") from e
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UsageError(
            f"--config {shown(path)}{where}: not YAML: {shown(getattr(e, 'problem', None) or e)}"
        ) from e


def _without_tabs(text: str) -> str:
    """Return JSON with spaces instead of tabs, and any other text unchanged.

    In valid JSON, tabs occur only between tokens. YAML is otherwise a superset of JSON, but does
    not allow tabs as indentation.
    """
    if "\t" in text and text.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):
            json.loads(text)
            return text.replace("\t", " ")
    return text


def _words(where: str, name: str, found: Option, value: Any) -> list[str]:
    """Return the command-line arguments for one key, or an empty list for an unset switch."""
    import yaml

    if isinstance(value, yaml.SequenceNode):
        lists = isinstance(found.value, Text) and found.value.metavar.endswith(",...")
        if not (lists or found.many) or not all(
            isinstance(x, yaml.ScalarNode) for x in value.value
        ):
            raise UsageError(f"{where}: {name} takes one value, not a list")
        texts = [_text(f"{where}: {name}", found, item) for item in value.value]
        return [f"{name}={text}" for text in (texts if found.many else [",".join(texts)])]
    if not isinstance(value, yaml.ScalarNode):
        raise UsageError(f"{where}: {name} takes one value")
    if value.tag == "tag:yaml.org,2002:null":
        raise UsageError(f'{where}: {name} has no value; remove the line, or write "" for none')
    if found.value is not None:
        return [f"{name}={_text(f'{where}: {name}', found, value)}"]
    text = value.value.lower()
    if text not in _TRUE + _FALSE:
        raise UsageError(f"{where}: {name} is a switch; use true or false")
    if (text in _TRUE) == (name not in found.off):
        return [found.names[0]]
    return [found.off[0]] if found.off else []


def _text(where: str, found: Option, node: Any) -> str:
    r"""Return the text of a scalar node.

    A character above U+FFFF may be written as two escapes (`\ud83d\ude00`), which PyYAML does not
    join. Raises `UsageError` for an unpaired escape, and for control characters in a file name, as
    in `"C:\temp"` or a block of several lines.
    """
    try:
        text = str(node.value).encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise UsageError(
            f"{where}: '{shown(node.value)}' contains half of a surrogate pair; "
            "write the character itself"
        ) from None
    if not isinstance(found.value, File):
        return text
    name = text.rstrip("\n") if node.style in ("|", ">") else text
    check_name(where, name)
    return name


def _is_allowed(o: Option, value: Any) -> bool:
    if o.value is None:
        return isinstance(value, bool)
    try:
        o.value.parse(str(value))
    except ValueError:
        return False
    return True


def _is_default(options: Any) -> bool:
    """Return whether `--checkpoint-in` is its default, the newest `--checkpoint-out` file."""
    newest = options.checkpoint_out.replace(options.pattern_fn_it, options.fn_latest, 1)
    return bool(newest) and options.checkpoint_in == newest


# Options that do not affect the adapter, or that apply to one run only.
_NOT_OF_THE_RUN = {
    "config", "debug", "dry_run", "dump", "dump_out", "escape", "force", "live", "only_write_lora",
}  # fmt: skip


def taken_options(table: Sequence[Option], options: Any, settings: Any) -> dict[str, Any]:
    """Return a mapping from option names to the values used in a run, including defaults.

    `table` contains all options. `settings` is a `nbllama.train.run.settings.Settings`.
    """
    taken = {
        "lora_alpha": settings.alpha,
        "adam_iter": settings.n_iter,
        "epochs": 0,
        **{f"rank_{slot}": rank for slot, rank in settings.ranks.items()},
    }
    rows = {}
    for o in table:
        if o.dest in _NOT_OF_THE_RUN or (o.dest == "checkpoint_in" and _is_default(options)):
            continue
        value = taken[o.dest] if o.dest in taken else settings.value(o.dest)
        if value is None or not _is_allowed(o, value):
            value = getattr(options, o.dest)  # the settings have a different value for "none"
        if value is not None:
            rows[o.dest.replace("_", "-")] = value
    return rows


def config_text(rows: Mapping[str, Any], version: str) -> str:
    """Return the text of a file that `--config` can read; `rows` comes from `taken_options`."""
    import yaml

    body = yaml.safe_dump(dict(rows), allow_unicode=True, sort_keys=False, width=1000)
    return f"{_MARK} {version}; read with --config\n{body}"


def is_own_config(path: str) -> bool:
    """Return whether the file was written by a run rather than by a person."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().startswith(_MARK)
    except OSError:
        return False
