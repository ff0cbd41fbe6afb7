"""`watch`, which copies intermediate results while the passes of a model run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from nbllama.data.batch import Batch, Tree
from nbllama.errors import NotEnoughMemory
from nbllama.lora.pairs import Adapter
from nbllama.model.bound import Bound
from nbllama.model.passes import Model
from nbllama.ops.attention.attention import attention_matrices
from nbllama.opt.optimiser import Optimiser
from nbllama.peek import names
from nbllama.peek.dump import Dump
from nbllama.peek.names import Patterns, node_name

MOST_BYTES = 4 << 30  # limit for the total size of copies; further arrays are skipped and reported


class Watcher:
    """A `nbllama.model.watching.Watcher` that copies arrays matching `patterns` into a `Dump`.

    `left_out` contains the names of the arrays that were not copied because of `most_bytes`.
    """

    def __init__(
        self, model: Model, patterns: Patterns, into: Dump, most_bytes: int = MOST_BYTES
    ) -> None:
        self.model, self.patterns, self.into = model, patterns, into
        self.left_out: list[str] = []
        self.bound: Bound | None = None
        self._tree: Tree | None = None
        self._room = most_bytes
        self._pass = -1

    # Called by the passes

    def begin(self, bound: Bound, batch: Batch) -> None:
        """Count a new pass and copy its batch, with shared tokens repeated in every sample."""
        self._pass += 1
        self.bound, self._tree = bound, batch.tree
        batch = batch.whole()
        parts = (batch.tokens, batch.targets, batch.positions, batch.seq_offsets)
        for name, x in zip(names.BATCH, parts, strict=True):
            self._keep(name, x)

    def wants(self, name: str, layer: int = -1) -> bool:
        """Return whether a pattern matches a node or its gradient (with `.grad` appended)."""
        bare, dot, rest = name.partition(".")
        return self.patterns(node_name(bare, layer) + dot + rest)

    def node(self, name: str, layer: int, x: np.ndarray) -> None:
        """Copy an activation if a pattern matches it.

        If several samples share a row, the copy contains it once per sample.
        """
        self._keep(node_name(name, layer), self._expanded(x))

    def gradient(self, name: str, layer: int, dx: np.ndarray) -> None:
        """Copy the gradient with respect to an activation if a pattern matches it.

        If several samples share a row, each copy contains the gradient summed over these samples.
        """
        self._keep(f"{node_name(name, layer)}.grad", self._expanded(dx))

    def _expanded(self, x: np.ndarray) -> np.ndarray:
        """Repeat the rows that several samples share, so that every sample is complete.

        Arrays that do not have one row per computed token are returned unchanged.
        """
        tree = self._tree
        if tree is None or len(x) != len(tree.starts) - 1:
            return x
        expanded: np.ndarray = x[tree.rows]
        return expanded

    def attention(
        self,
        layer: int,
        q: np.ndarray,
        k: np.ndarray,
        *,
        q_offsets: np.ndarray,
        k_offsets: np.ndarray,
    ) -> None:
        """Compute scores and probabilities in numpy, because kernels never store whole matrices.

        Both are `[H, N, Nk]` for the whole stream. Masked keys, including those in other
        sequences, have score -inf and probability 0.
        """
        scores, soft = node_name("kq", layer), node_name("kq_soft_max", layer)
        if not (self.patterns(scores) or self.patterns(soft)):
            return
        hp = self.model.hp
        if self._tree is not None:
            q_offsets = k_offsets = self._tree.samples.seq_offsets
            q, k = q[self._tree.rows], k[self._tree.rows]
        z, p = attention_matrices(
            q, k, q_offsets=q_offsets, k_offsets=k_offsets, scale=hp.attn_scale,
            slopes=self.model.slopes, window=hp.window_at(layer), cap=hp.attn_softcap,
            sinks=self.model.vectors.get(f"blk.{layer}.attn_sinks.weight"),
        )  # fmt: skip
        self._keep(scores, z)
        self._keep(soft, p)

    # Before and after the passes

    def take_weights(self) -> None:
        """Decode and store the base tensors."""
        for name, shape in self.model.shapes.items():
            if self.patterns(name) and self._fits(name, int(np.prod(shape)) * 4):
                self.into.arrays[name] = self.model.tensor(name)

    def take_parameters(self, adapter: Adapter | None, suffix: str = "") -> None:
        """Copy the adapter's current arrays."""
        self.take({} if adapter is None else adapter.parameters(), suffix)

    def take(self, arrays: Mapping[str, np.ndarray], suffix: str) -> None:
        """Copy the arrays whose name, with `suffix` appended, matches a pattern."""
        for name, x in arrays.items():
            full = name + suffix
            if self.patterns(full) and self._fits(full, x.nbytes):
                self.into.arrays[full] = x.copy()

    def finish(self, opt: Optimiser | None = None) -> None:
        """Copy the parameters' gradients from the last pass, and the moments in `opt`."""
        if self.bound is not None:
            self.take(self.bound.grads, ".grad")
        if opt is not None:
            self.take(opt.m, ".m")
            self.take(opt.v, ".v")

    def _keep(self, name: str, x: np.ndarray) -> None:
        if not (self.patterns(name) or (name in names.BATCH and x.size)):
            return
        full = f"{name}@{self._pass}" if self._pass > 0 else name
        if self._fits(full, x.nbytes):
            self.into.arrays[full] = x.copy()

    def _fits(self, name: str, nbytes: int) -> bool:
        if nbytes > self._room:
            self.left_out.append(name)
            return False
        self._room -= nbytes
        return True


def all_names(model: Model, adapter: Adapter | None) -> list[str]:
    """Return the names of all arrays that `watch` can copy for this model."""
    known = [*names.BATCH, *model.gguf.tensors, *names.activation_names(model.hp.n_layer)]
    if adapter is None:  # a later pass can bind an adapter
        parameters = [f"{name}.lora_{half}" for name in model.gguf.tensors for half in "ab"]
    else:
        parameters = list(adapter.parameters())
    return known + names.parameter_names(parameters, (".grad", ".m", ".v", ".after"))


@contextmanager
def watch(
    model: Model,
    *patterns: str,
    adapter: Adapter | None = None,
    opt: Optimiser | None = None,
    most_bytes: int = MOST_BYTES,
) -> Iterator[Dump]:
    """Copy intermediate results of the passes of `model` while the context is open.

    Every array whose name matches a pattern is copied into the `Dump` that the context yields. If
    several arrays are computed under the same name, the last one is kept.

    Weights are available immediately. Parameters of `adapter` are copied at the beginning and, as
    `NAME.after`, at the end. Gradients (`NAME.grad`) and the moments of `opt` are copied at the
    end. `nbllama.peek.names` lists the names.

    Raises `UsageError` for a pattern that matches nothing, `NotEnoughMemory` at the end if the
    copies did not fit in `most_bytes`, and `RuntimeError` if the model is already being watched.
    """
    if model.watch is not None:
        raise RuntimeError("the model is already being watched")
    wanted = Patterns(patterns)
    names.check(wanted, all_names(model, adapter))
    seen = Dump(about={"model": model.gguf.path})
    watcher = Watcher(model, wanted, seen, most_bytes)
    watcher.take_weights()
    watcher.take_parameters(adapter)
    model.watch = watcher
    try:
        yield seen
    finally:
        model.watch = None
        watcher.finish(opt)
        watcher.take_parameters(adapter, ".after")
    if watcher.left_out:
        raise NotEnoughMemory(
            f"{len(watcher.left_out)} arrays, such as {watcher.left_out[0]}, do not fit in "
            f"{most_bytes} bytes; use a narrower pattern"
        )
