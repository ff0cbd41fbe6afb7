"""An adapter as stored in a file, in which every pair has its own alpha."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from nbllama.arch import ARCHS, HF_MODULES, ArchRow, DeltaNet, Hparams
from nbllama.checkpoint.stored import ALPHAS
from nbllama.errors import CheckpointError, UsageError, shown
from nbllama.lora.pairs import Adapter, Pair
from nbllama.lora.slots import pair_shape, slot_of
from nbllama.opt.arrays import check_finite

MAX_RANK = 65536  # same limit as for `--lora-r`


class Base(NamedTuple):
    """The known properties of an adapter's base model; unknown values are None."""

    arch: str | None = None
    head_dim: int | None = None
    n_layer: int | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None  # numpy shapes of all tensors
    delta: DeltaNet | None = None  # sizes of the delta nets; also None if there are none

    @classmethod
    def of(cls, hp: Hparams, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Base:
        """Return the properties of a base model, given `hp` and the numpy shapes of its tensors."""
        return cls(hp.arch, hp.head_dim, hp.n_layer, shapes, hp.delta)

    def or_else(self, other: Base) -> Base:
        """Return these properties, with unknown values filled in from `other`."""
        return Base(
            **{k: x for b in (other, self) for k, x in b._asdict().items() if x is not None}
        )

    @property
    def interleaved(self) -> bool:
        """Whether GGUF files and Hugging Face order the rows of attn_q and attn_k differently.

        This is the case if RoPE rotates neighbouring elements of a head in GGUF's order, but the
        two halves of a head in Hugging Face's (see `hf_names`).
        """
        return self._row.rope_pairing == "interleaved" and self._row.hf_turned

    @property
    def hf_modules(self) -> Mapping[str, str]:
        """Hugging Face module names in a block, by GGUF tensor.

        If the architecture is not known, the usual names are returned. Raises `UsageError` for an
        architecture whose modules have a different structure.
        """
        if self.arch is None:
            return HF_MODULES
        if not self._row.hf_modules:
            raise UsageError(
                f"{self.arch} models have different matrices in Hugging Face's format than in GGUF "
                "files, so a PEFT folder cannot store this adapter; use .gguf or .bin"
            )
        return self._row.hf_modules

    @property
    def _row(self) -> ArchRow:
        if self.arch is None:
            raise UsageError("the architecture is unknown: pass --model-base FILE")
        if self.arch not in ARCHS:
            raise UsageError(f"architecture '{shown(self.arch)}' is not supported")
        return ARCHS[self.arch]


class Scaled(NamedTuple):
    """The matrix B (n_out, rank) of a pair, adapted to the scale that a reader uses.

    `exact` is False if values were rounded.
    """

    b: np.ndarray
    exact: bool


@dataclass(frozen=True)
class Stored:
    """All pairs in an adapter file.

    Each pair adds `alphas[name] / rank · B A` to its base tensor (see `nbllama.lora.pairs`). A run
    that starts from the file uses the scale alpha / lora_r for all pairs instead.
    """

    alpha: float
    lora_r: int
    pairs: dict[str, Pair]  # by base tensor name
    alphas: dict[str, float]  # by base tensor name
    base: Base
    notes: tuple[str, ...] = ()  # about ignored parts of the file

    @classmethod
    def of(cls, adapter: Adapter, base: Base) -> Stored:
        """Return `adapter` in the form in which files store it.

        Raises `ValueError` for an adapter that no reader accepts: one without pairs, with a
        non-positive alpha, or with NaN values.
        """
        alpha, r = adapter.alpha, adapter.lora_r
        if not adapter.pairs or not ALPHAS[0] < alpha < ALPHAS[1] or r < 1:
            raise ValueError(f"{len(adapter.pairs)} pairs, alpha {alpha}, lora_r {r}")
        if bad := check_finite(adapter.parameters()):
            raise ValueError(f"{bad} is not finite")
        alphas = {name: alpha * pair.rank / r for name, pair in adapter.pairs.items()}
        return cls(alpha, r, adapter.pairs, alphas, base)

    def known(self, base: Base) -> Stored:
        """Return the same adapter, updating the properties of its base model from `base`."""
        return replace(self, base=base.or_else(self.base))

    def scaled(self, name: str, alpha: float) -> Scaled:
        """Return B for a reader that scales the pair by `alpha / rank`.

        Raises `OverflowError` if B is not finite in float32.
        """
        b = self.pairs[name].b
        factor = np.float32(self.alphas[name] / alpha)
        if factor == 1:
            return Scaled(b, True)
        with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
            out = b * factor
            if check_finite({name: out}):
                raise OverflowError(name)
            exact = math.frexp(factor)[0] == 0.5 and np.array_equal(out / factor, b)
        return Scaled(out, bool(exact))

    def with_one_scale(self) -> Stored:
        """Return an equivalent adapter with the scale alpha / lora_r for as many pairs as possible.

        Pairs whose B would be rounded or overflow are unchanged. For files written by nbllama,
        this undoes `scaled`.
        """
        pairs, alphas = dict(self.pairs), dict(self.alphas)
        for name, pair in self.pairs.items():
            alpha = self.alpha * pair.rank / self.lora_r
            try:
                b, exact = self.scaled(name, alpha)
            except OverflowError:
                continue
            if exact:
                pairs[name], alphas[name] = Pair(pair.a, b), alpha
        return replace(self, pairs=pairs, alphas=alphas)

    def adapter(self) -> Adapter:
        """Return the adapter with one scale for all pairs, as training requires.

        Raises `OverflowError` for values that are not finite in float32.
        """
        pairs = {}
        for name, pair in self.pairs.items():
            b = self.scaled(name, self.alpha * pair.rank / self.lora_r).b
            pairs[name] = Pair(pair.a, np.ascontiguousarray(b))
        return Adapter(self.base.arch or "", self.alpha, self.lora_r, pairs)


class MissingAdapter(CheckpointError, FileNotFoundError):
    """Raised if an adapter does not exist; a `FileNotFoundError`, as Python programs expect."""

    def __init__(self, path: object) -> None:
        super().__init__(f"{shown(path, 400)}: no such file or folder; pass the name of an adapter")


def refuse(path: object, where: str, what: str) -> CheckpointError:
    """Return a one-line error about a file that cannot be used."""
    return CheckpointError(f"{shown(path, 400)}: {where}: {what}; the adapter cannot be used")


def fitting(path: object, stored: Stored, base: Base) -> Stored:
    """Check that each pair matches the base model; return `stored` with the known values of `base`.

    Raises `CheckpointError` for a pair that does not match.
    """
    mine = stored.base
    if None not in (mine.arch, base.arch) and mine.arch != base.arch:
        problem = f"trained for {shown(mine.arch)}, but the base model is {shown(base.arch)}"
        raise refuse(path, "architecture", problem)
    if base.shapes is not None:
        for name, pair in stored.pairs.items():
            where = f"tensor '{shown(name)}'"
            if name not in base.shapes:
                raise refuse(path, where, "has a pair, but the base model has no such tensor")
            if pair.shape != (wanted := pair_shape(base.shapes[name])):
                problem = f"its pair is for a {pair.shape} matrix, but the base model has {wanted}"
                raise refuse(path, where, problem)
    return stored.known(base)


def joined(path: object, name: str, a: np.ndarray | None, b: np.ndarray | None) -> Pair:
    """Join the halves, (rank, n_in) and (n_out, rank), of the pair for base tensor `name`.

    For a tensor with experts, both halves have the expert as an additional first dimension.

    Raises `CheckpointError` for a tensor that cannot have a pair, a missing half, or mismatched
    ranks.
    """
    where = f"tensor '{shown(name)}'"
    if (found := slot_of(name)) is None:
        raise refuse(
            path, where, "has a LoRA pair, but no model has a trainable tensor of this name"
        )
    if a is None or b is None:
        raise refuse(path, where, f"its pair has no {'lora_a' if a is None else 'lora_b'}")
    if found[0].kind != "experts" and (most := max(a.ndim, b.ndim)) > 2:
        raise refuse(path, where, f"its pair has {most} dimensions, but must be 2")
    if a.ndim != b.ndim or a.shape[:-2] != b.shape[:-2]:
        raise refuse(path, where, f"lora_a {a.shape} and lora_b {b.shape} are not a pair")
    if a.shape[-2] != b.shape[-1]:
        raise refuse(path, where, f"ranks of lora_a {a.shape} and lora_b {b.shape} differ")
    if not 1 <= a.shape[-2] <= MAX_RANK:
        raise refuse(path, where, f"rank {a.shape[-2]}, but must be from 1 to {MAX_RANK}")
    return Pair(np.ascontiguousarray(a), np.ascontiguousarray(b))


def rounded(names: Iterable[str], why: str) -> list[str]:
    """Return a line about pairs whose B was rounded when it was multiplied by a factor."""
    changed = list(names)
    if not changed:
        return []
    return [
        f"{why}: lora_b of {len(changed)} pairs, such as {changed[0]}, was rescaled to "
        "compensate, which rounded its values (relative error at most 1.2e-7)"
    ]
