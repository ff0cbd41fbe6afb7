"""The program `python -m nbllama.convert baichuan-to-llama IN OUT`.

It rewrites a model to use the keys of a different architecture that performs the same computation
(`ArchRow.same_as`). Tensors are copied byte for byte, so quantised models lose no precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from nbllama.errors import UsageError, shown
from nbllama.options.common import debug_option
from nbllama.options.parser import parse_into, table
from nbllama.options.words import take_words
from nbllama.system.program import run_program

if TYPE_CHECKING:
    from nbllama.arch import Hparams
    from nbllama.gguf_io import GGUFFile, ValueType

PROG = "python -m nbllama.convert"
ABOUT = """Rewrite a GGUF model under a different architecture name, for programs that support only
that architecture. The baichuan-to-llama conversion is for Baichuan 7B, which has the same blocks as
llama. Keys are renamed, and tensors are copied byte for byte. nbllama can train Baichuan without
this conversion."""
EPILOG = """exit codes: 0 success, 1 failure, 2 bad usage or model cannot be converted, 3 output
cannot be written, 130 interrupted by Ctrl-C"""


@dataclass(frozen=True)
class Options:
    """The parsed options, except for the three positional arguments."""

    debug: bool = debug_option("Options")


def parse(argv: Sequence[str]) -> tuple[str, str, str, Options]:
    """Parse the command line into the conversion, IN, OUT and the options.

    Raises `UsageError`. `--help` and `--version` print their text and raise `SystemExit(0)`.
    """
    words, rest = take_words(argv, table(Options))
    options = parse_into(
        Options, rest, prog=PROG, about=ABOUT, epilog=EPILOG, forms=["CONVERSION IN OUT"]
    )
    if len(words) != 3 or not all(words):
        raise UsageError("expected three arguments: pass CONVERSION IN OUT; see --help")
    return words[0], words[1], words[2], options


def pair_of(conversion: str) -> tuple[str, str]:
    """Return the old and the new architecture in a conversion's name. Raises `UsageError`."""
    from nbllama.arch import ARCHS

    known = {f"{a.name}-to-{a.same_as}": (a.name, a.same_as) for a in ARCHS.values() if a.same_as}
    if conversion not in known:
        raise UsageError(f"unknown conversion '{shown(conversion)}'; use {' or '.join(known)}")
    return known[conversion]


def check(f: GGUFFile, hp: Hparams, old: str, new: str) -> None:
    """Raise `GGUFError` unless model `f` is equivalent to a model of architecture `new`."""
    if hp.arch != old:
        raise f.error(
            "key 'general.architecture'",
            f"the architecture is '{hp.arch}', but this conversion is for {old}",
        )
    if hp.alibi_max_bias:
        raise f.error(
            f"key '{old}.block_count'",
            f"{hp.n_layer} layers: this variant of {old} uses ALiBi (a bias on the attention scores"
            f" that decreases with distance), but {new} uses RoPE and has no key for ALiBi; use the"
            " model without conversion",
        )
    theirs = next((key for key in f.metadata if key.startswith(f"{new}.")), None)
    if theirs is not None:
        raise f.error(
            f"key '{shown(theirs)}'", f"is a key of {new}, but the model is a {old} model"
        )


def renamed(f: GGUFFile, old: str, new: str) -> list[tuple[str, object, ValueType]]:
    """Return all keys of `f` in the form that `write_gguf` accepts, renaming `OLD.x` to `NEW.x`."""
    out = []
    for key, value, kind in f.entries():
        if key == "general.architecture":
            value = new
        elif key.startswith(f"{old}."):
            key = new + key.removeprefix(old)
        out.append((key, value, kind))
    return out


def _run(words: list[str]) -> None:
    conversion, source, target, _ = parse(words)
    _convert(source, target, *pair_of(conversion))


def _convert(source: str, target: str, old: str, new: str) -> None:
    from nbllama.arch import hparams_from_gguf
    from nbllama.cli.merge import Progress, note_parts, prepare_model, print_result
    from nbllama.export.rewrite import rewrite
    from nbllama.gguf_io import open_gguf

    with open_gguf(source) as f:
        check(f, hparams_from_gguf(f), old, new)
        prepare_model(target, [source])
        note_parts(f, target)
        with Progress() as progress:
            changes = rewrite(f, target, {}, {}, metadata=renamed(f, old, new), progress=progress)
    print_result(target, changes, progress.seconds)


main = partial(run_program, _run)
