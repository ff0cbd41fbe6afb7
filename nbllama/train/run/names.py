"""The output names of a run, and a check that no output is also an input."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping

from nbllama.adapter.file import FOLDER_FILES
from nbllama.checkpoint.names import output_name
from nbllama.data.splits import input_files
from nbllama.errors import UsageError, shown
from nbllama.options.config import is_own_config
from nbllama.options.finetune.table import OPTIONS, Options
from nbllama.system.part_names import files_of

BEST = "BEST"
# The only output that may also be an input, because a run can resume from its own checkpoint.
_SAME = ("--checkpoint-out", "--checkpoint-in")


class Names:
    """All files or folders whose names match an output's `pattern`.

    `mark` is the placeholder for the iteration number, or "" if the name contains none. In the name
    of the newest file, the placeholder is replaced by `newest`. `folder` says whether the output is
    a folder that contains an adapter for PEFT.
    """

    def __init__(
        self, pattern: str, mark: str = "", newest: str = "", *, folder: bool = False
    ) -> None:
        self.pattern, self.mark, self.folder = pattern, mark, folder
        self.latest = output_name(pattern, newest, mark) if mark else pattern
        base = os.path.basename(pattern)
        before, found, after = base.partition(mark) if mark else (base, "", "")
        number = f"(?:[0-9]+|{re.escape(newest)}|{BEST})" if found else ""
        self.shape = re.compile(re.escape(before) + number + re.escape(after))

    def may_be(self, name: str) -> bool:
        """Return whether `name` refers to one of these files, directly or through links."""
        for spelling in (name, os.path.realpath(name)):
            if self._parent == _parent(spelling) and self.shape.fullmatch(_base(spelling)):
                return True
        if not os.path.exists(name):
            return False
        return any(os.path.samefile(own, name) for own in self.existing())

    def files(self) -> Iterator[str]:
        """Yield the existing files, or the existing folders that contain an adapter."""
        for name in self.existing():
            inside = (os.path.join(name, file) for file in FOLDER_FILES)
            if any(map(os.path.exists, inside)) if self.folder else os.path.isfile(name):
                yield name

    @property
    def _parent(self) -> str:
        return _parent(self.pattern)

    def existing(self) -> Iterator[str]:
        """Yield the existing files and folders with these names.

        Names that differ only in case also match, because the file system may be case-insensitive.
        """
        folder = os.path.dirname(self.pattern) or os.curdir
        same = re.compile(self.shape.pattern, re.IGNORECASE)
        entries = os.listdir(folder) if os.path.isdir(folder) else []
        for base in entries:
            if same.fullmatch(base):
                path = os.path.join(folder, base)
                files = [os.path.join(path, file) for file in FOLDER_FILES] if self.folder else []
                yield from filter(os.path.exists, [path, *files])


def check_outputs(options: Options, outputs: Mapping[str, Iterable[Names]]) -> None:
    """Raise `UsageError` if an output is also an input, or if two outputs are the same file.

    `outputs` maps options to all the files that the run writes. The inputs are all files that
    the run reads, including files inside folders.
    """
    for option, own in outputs.items():
        for names in own:
            for other, name in [*_inputs(options), *_latest(outputs)]:
                if (
                    other == "--config"
                    and option == "the run's options file"
                    and is_own_config(name)
                ):
                    continue
                if other != option and (option, other) != _SAME and names.may_be(name):
                    raise UsageError(
                        f"{option} and {other} are the same file {shown(name, 400)}; choose a "
                        "different name for the output"
                    )


def _inputs(options: Options) -> Iterator[tuple[str, str]]:
    """Yield an (option, file) pair for each input file."""
    if ".py:" in options.reward:
        yield "--reward", options.reward.rpartition(":")[0]
    for o in OPTIONS:
        name = getattr(options, o.dest) if o.file == "reads" else ""
        if not name:
            continue
        yield from ((o.names[0], file) for file in files_of(name))
        if o.dest in ("train_data", "val_data"):
            yield from ((o.names[0], file) for file in input_files(name))
        elif os.path.isdir(name):
            inside = (os.path.join(name, file) for file in FOLDER_FILES)
            yield from ((o.names[0], file) for file in inside if os.path.exists(file))


def _latest(outputs: Mapping[str, Iterable[Names]]) -> Iterator[tuple[str, str]]:
    return ((option, names.latest) for option, own in outputs.items() for names in own)


def _parent(path: str) -> str:
    return os.path.realpath(os.path.dirname(bare(path)) or os.curdir)


def _base(path: str) -> str:
    return os.path.basename(bare(path))


def bare(name: str) -> str:
    """Return the name of a folder without a trailing separator."""
    return name.rstrip("/" + os.sep) or name
