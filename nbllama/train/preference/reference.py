"""Reference log-probabilities for training on preferences, computed once and stored in a file.

The reference is the base model, with or without an adapter. The file name contains a digest of
everything that the values depend on: the base model, the adapter, and the data with its template
and --ctx. A resumed run, or any other run in the same folder, can therefore reuse the file.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nbllama.data.preferences import Preferences
from nbllama.data.samples import Samples
from nbllama.data.text_file import sha256_parts
from nbllama.errors import NOT_A_NUMBER, NbllamaError, OutputError, shown
from nbllama.model.bound import Bound
from nbllama.report.log import duration
from nbllama.system.files import atomic_write
from nbllama.train.preference.answers import Check, of_preferences, of_samples

if TYPE_CHECKING:
    from nbllama.lora.pairs import Adapter
    from nbllama.train.objective import Passes

_MAGIC = b"nbllama reference 1\n"


@dataclass
class Reference:
    """The reference for the answers in the data sets `sets`.

    `adapter` is applied to the base model, unless it is None. `base` is the fingerprint of the base
    model. `others` says whether each answer is also evaluated with a different prompt. `folder` is
    the folder for the file, or None to store nothing. `path` is the file that was read or written.
    """

    adapter: Adapter | None
    base: str
    sets: Sequence[Preferences]
    others: bool
    folder: str | None
    path: str = field(default="", init=False)

    @property
    def name(self) -> str:
        """Return the name that checkpoints store for this reference."""
        return "base" if self.adapter is None else f"adapter {adapter_digest(self.adapter)[:16]}"

    @property
    def key(self) -> str:
        """Return the hex sha256 of everything that the log-probabilities depend on."""
        of = "" if self.adapter is None else adapter_digest(self.adapter)
        return sha256_parts("reference", self.base, of, *(s.fingerprint for s in self._samples()))

    def _samples(self) -> list[Samples]:
        found = []
        for one in self.sets:
            found.append(one.samples)
            if self.others:
                found.append(one.others)
        return found

    @property
    def file(self) -> str:
        """Return the path of the file for the log-probabilities, or "" to store nothing."""
        if self.folder is None:
            return ""
        return os.path.join(self.folder, f"reference-{self.key[:16]}.logp")

    def prepare(self, trainer: Passes, check: Check, say: Callable[[str], None]) -> None:
        """Read the log-probabilities for the data sets from the file, or compute them.

        Raises `NbllamaError` if any value is not finite.
        """
        n = sum(s.n_samples for s in self._samples())
        found = read(self.file, self.key, n, say) if self.file else None
        if found is None:
            say(f"computing reference log-probabilities for {n} answers ...")
            start = time.perf_counter()
            found = self._compute(trainer, check)
            say(f"computed reference log-probabilities in {duration(time.perf_counter() - start)}")
            if not np.isfinite(found).all():
                raise NbllamaError(f"reference log-probabilities: {NOT_A_NUMBER}")
            if self.file:
                self._keep(found, say)
        else:
            self.path = self.file
            say(f"using reference log-probabilities stored in {shown(self.file, 400)}")
        at = 0
        for one in self.sets:
            one.reference = found[at : at + one.samples.n_samples]
            at += one.samples.n_samples
            if self.others:
                one.others_reference = found[at : at + one.samples.n_samples]
                at += one.samples.n_samples

    def _compute(self, trainer: Passes, check: Check) -> np.ndarray:
        model, most = trainer.model, trainer.limits
        bound = Bound(model, self.adapter)
        acts, buffers = trainer.acts, trainer.buffers
        if self.adapter is not None and not same_sizes(self.adapter, trainer.adapter):
            acts = model.activations(self.adapter, most.computed, most.trained, checkpointing=True)
            buffers = model.loss_buffers(self.adapter, most.trained)
        parts: list[np.ndarray] = []
        for one in self.sets:
            parts += of_preferences(trainer, bound, acts, buffers, data=one, check=check)
            if self.others:
                parts += of_samples(
                    model, bound, acts, buffers, samples=one.others,
                    rows=np.arange(one.others.n_samples), most=most, check=check,
                )  # fmt: skip
        return np.concatenate(parts)

    def _keep(self, values: np.ndarray, say: Callable[[str], None]) -> None:
        try:
            write(self.file, self.key, values)
            self.path = self.file
        except OutputError as e:
            say(
                f"reference log-probabilities were not saved: {e}; a resumed run will compute "
                "them again"
            )


def same_sizes(a: Adapter, b: Adapter) -> bool:
    """Return whether two adapters contain the same pairs with the same ranks."""
    sizes = [{name: pair.rank for name, pair in x.pairs.items()} for x in (a, b)]
    return sizes[0] == sizes[1]


def adapter_digest(adapter: Adapter) -> str:
    """Return the hex sha256 of an adapter's values and scale."""
    parts: list[bytes | str | int] = [repr(float(adapter.scale))]
    for name, values in sorted(adapter.parameters().items()):
        parts += [name, repr(values.shape), values.tobytes()]
    return sha256_parts("adapter", *parts)


def write(path: str, key: str, values: np.ndarray) -> None:
    """Write a float64 array `[n]` of log-probabilities to a file.

    Raises `OutputError` if the file cannot be written or if it would replace a file of a different
    kind.
    """
    if os.path.lexists(path) and _begins(path) != _MAGIC:
        raise OutputError(
            f"{shown(path, 400)}: the file was not written by nbllama, so it is not replaced"
        )
    content = np.ascontiguousarray(values, "<f8").tobytes()
    head = f"{key}\n{hashlib.sha256(content).hexdigest()}\n".encode()
    with atomic_write(path) as out:
        out.write(_MAGIC + head + content)


def _begins(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(len(_MAGIC))
    except OSError:
        return b""


def read(path: str, key: str, n: int, say: Callable[[str], None]) -> np.ndarray | None:
    """Read a float64 array `[n]` of log-probabilities; return None if they must be computed.

    If the file is damaged or has a different key, `say` is called with a warning.
    """
    head = len(_MAGIC) + 2 * 65
    try:
        if os.path.getsize(path) != head + 8 * n:
            raise ValueError("its size is wrong")
        with open(path, "rb") as file:
            whole = file.read(head + 8 * n)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        say(f"warning: {shown(path, 400)} cannot be used: {e}")
        return None
    sums = whole[len(_MAGIC) : head].decode("ascii", "replace").split("\n")
    content = whole[head:]
    if not whole.startswith(_MAGIC) or sums[:2] != [key, hashlib.sha256(content).hexdigest()]:
        say(f"warning: {shown(path, 400)} is damaged; recomputing reference log-probabilities")
        return None
    return np.frombuffer(content, "<f8").astype(np.float64)
