"""Merge adapters into a model file, and choose the types of the merged tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from nbllama.arch import Hparams
from nbllama.export.file_types import FileType, tensor_types
from nbllama.export.rewrite import IDS, Changes, Deltas, Whole, kept_types, metadata_for, rewrite
from nbllama.gguf_io import GGUFFile
from nbllama.lora.pairs import Adapter, Pair

Parts = Sequence[tuple[Adapter, float]]


def deltas_of(parts: Parts) -> Deltas:
    """Return the deltas of scaled adapters by tensor name, in the form expected by `rewrite`."""
    deltas: dict[str, list[tuple[float, Pair]]] = {}
    for adapter, scale in parts:
        for name, pair in adapter.pairs.items():
            deltas.setdefault(name, []).append((scale * adapter.scale, pair))
    return deltas


def merged_types(
    f: GGUFFile, hp: Hparams, parts: Parts, kind: FileType | None
) -> tuple[dict[str, int], list[str]]:
    """Return type ids by tensor name for file type `kind`.

    If `kind` is None, merged tensors keep their types where possible (see `kept_types`). Also
    returns one line for each of these types that cannot be written.
    """
    if kind is None:
        return kept_types(f, deltas_of(parts))
    shapes = {name: info.shape for name, info in f.tensors.items()}
    names = tensor_types(kind, shapes, n_layer=hp.n_layer, n_head=hp.n_head, n_head_kv=hp.n_head_kv)
    return {name: IDS[chosen] for name, chosen in names.items()}, []


def merge(
    f: GGUFFile,
    path: str | os.PathLike[str],
    parts: Parts,
    types: Mapping[str, int],
    *,
    kind: FileType | None,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
    whole: Whole | None = None,
) -> Changes:
    """Write `f` with merged adapters; `types` is returned by `merged_types`.

    Raises the same errors as `rewrite`.
    """
    metadata = metadata_for(f, kind.id if kind else None)
    return rewrite(
        f, path, types, deltas_of(parts), metadata=metadata, progress=progress, whole=whole
    )
