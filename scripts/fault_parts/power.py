"""A power cut: any writes that were not yet on the disk are lost (F04)."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.fault_parts.box import Box, fault
from scripts.fault_parts.calls import Call, recorded

N_ITER, SAVES = 6, ("--save-every", "2", "--keep-last", "2")


@dataclass
class Inode:
    """A file: its bytes on the disk, and the writes that may be lost."""

    durable: bytes = b""
    pending: list[bytes] = field(default_factory=list)

    def cut(self, rng: random.Random) -> bytes:
        """Return what a power cut leaves: some of the writes, with zeros for each lost one."""
        end = rng.randint(0, len(self.pending))
        kept = [x if rng.random() < 0.5 else bytes(len(x)) for x in self.pending[:end]]
        return self.durable + b"".join(kept)


class Disk:
    """A folder in which only synced changes are certain.

    `names` are on the disk. `changes` (new and removed names) are not yet, and each of them may be
    lost without the others.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._live: dict[str, Inode] = {}
        self.names: dict[str, Inode] = {}
        self.changes: list[tuple[str, Inode | None]] = []

    def _name(self, path: str) -> str | None:
        p = Path(path)
        return p.name if p.parent == self._folder else None

    def do(self, call: Call) -> None:
        """Apply a call of a recorded run."""
        if call.result.startswith("-1") or not call.paths:
            return
        if call.name == "fsync" and call.paths[0] == str(self._folder):
            self.names = dict(self._live)
            self.changes.clear()
            return
        name = self._name(call.paths[0])
        if name is None:
            return
        if call.name == "rename":
            target = self._name(call.paths[1])
            assert target
            inode = self._live.pop(name)
            self._live[target] = inode
            self.changes += [(name, None), (target, inode)]
        elif call.name == "unlink":
            self._live.pop(name, None)
            self.changes.append((name, None))
        elif call.name in ("write", "fsync"):
            if name not in self._live:  # a file appears with its first write
                self._live[name] = Inode()
                self.changes.append((name, self._live[name]))
            inode = self._live[name]
            if call.name == "write":
                inode.pending.append(call.data)
            else:
                inode.durable += b"".join(inode.pending)
                inode.pending.clear()

    def cut(self, rng: random.Random) -> dict[str, bytes]:
        """Return the files after a power cut: with any of the changed names, applied in order."""
        names = dict(self.names)
        for name, inode in self.changes:
            if rng.random() < 0.5:
                if inode is None:
                    names.pop(name, None)
                else:
                    names[name] = inode
        return {name: inode.cut(rng) for name, inode in names.items()}


def order(calls: Sequence[Call], folder: Path) -> str:
    """Check that files are synced, then renamed, then the folder synced; return what is wrong."""
    here = [
        c for c in calls
        if c.name in ("write", "fsync", "rename") and c.paths[0].startswith(str(folder))
        and not c.paths[0].endswith("log.jsonl")
    ]  # fmt: skip
    renames = 0
    for before, call, after in zip(here, here[1:], here[2:], strict=False):
        if call.name == "rename":
            renames += 1
            if before[0] != "fsync" or before.paths[0] != call.paths[0]:
                return f"{call.paths}: not synced before"
            if after[0] != "fsync" or after.paths[0] != str(folder):
                return f"{call.paths}: the folder is not synced after it"
    return "" if renames >= 4 * N_ITER // 2 else f"only {renames} renames"


@fault("F04", "power failure: unsynced writes and renames are lost or reordered")
def power(box: Box) -> Iterator[str]:
    """Replay a recorded run up to a random call, lose unsynced changes, check, and continue."""
    folder = box.copy()
    calls = recorded(box, folder, box.args(folder, N_ITER, *SAVES))
    yield order(calls, folder)
    first = next(i for i, c in enumerate(calls) if c.name == "rename")
    for seed in range(box.n(40, 200)):
        rng = random.Random(seed)
        disk = Disk(folder)
        crash = rng.randrange(first - 30, len(calls))
        for call in calls[:crash]:
            disk.do(call)
        there = box.copy()
        for name, raw in disk.cut(rng).items():
            (there / name).write_bytes(raw)
        certain = [n for n in disk.names if n.startswith("chk-") and "LATEST" not in n]
        changed = {name for name, _ in disk.changes}
        gone = [n for n in certain if n not in changed and not (there / n).exists()]
        wrong = f"{gone} lost" if gone else box.torn(there)
        if not wrong and seed % 10 == 0:
            wrong = box.resumed(there, N_ITER)
        yield wrong and f"seed {seed}: {wrong}"
        shutil.rmtree(there)
