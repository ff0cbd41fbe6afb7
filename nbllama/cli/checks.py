"""The checks that `python -m nbllama.verify` performs. Each check prints its result.

A failed check raises `NbllamaError`, which sets the exit code to 1.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nbllama.adapter.file import save_adapter
from nbllama.cli.lora_files import load_adapters
from nbllama.cli.scores import read_utf8
from nbllama.errors import NbllamaError, shown
from nbllama.evaluate import llama_cpp
from nbllama.evaluate.llama_cpp import Candidates
from nbllama.evaluate.merge_sample import LOST, describe
from nbllama.evaluate.sample_text import Rows, compare, of_text, own_text, reader
from nbllama.evaluate.scores import Compared, Reader, log_softmax
from nbllama.export.file_types import FileType, file_type
from nbllama.export.merge import merge, merged_types
from nbllama.export.rewrite import IDS
from nbllama.gguf_io.types import TENSOR_TYPES
from nbllama.lora.mix import mix
from nbllama.lora.pairs import Adapter
from nbllama.model.passes import Model, load_model
from nbllama.options.verify import Verify
from nbllama.quants import nbytes
from nbllama.report.log import memory
from nbllama.system.regular import first_bytes

NOTHING = 1e-7  # nats per token; far below any visible effect on the text
ROUNDING = 1e-4  # nats per token; with quantised weights, llama.cpp rounds activations to 8 bits
OTHER_BASE = 0.1  # nats per token; above this value, the two programs do not compute the same model
_PLACES = 64  # number of positions to compare with llama.cpp, one token at a time

Parts = Sequence[tuple[Adapter, float]]


def verify(asked: Verify, threads: int) -> None:
    """Run all checks.

    Raises `NbllamaError` at once if the adapters have no effect, or at the end if a check failed.
    """
    o = asked.options
    kind = file_type(o.outtype) if o.outtype.lower() not in ("", "same") else None
    model = load_model(o.model)
    parts = load_adapters(asked.adapters, model.hp, model.shapes, print)
    adapter = mix(parts)
    if o.file:
        rows, source = of_text(model, read_utf8(o.file), shown(o.file, 400)), shown(o.file, 400)
    else:
        rows, source = own_text(model), "the model's own text"
    places = sum(len(row) - 1 for row in rows)
    print(f"sample: {places} tokens from {source}")
    effect = compare(reader(model, None, rows), reader(model, adapter, rows), rows)
    print(f"effect of the adapter: {describe(effect)}")
    if effect.kl.mean() < NOTHING:
        raise NbllamaError(f"no effect: {why_nothing(parts)}")
    problems = []
    if o.merge:
        problems += merged_check(
            model, parts, kind=kind, outtype=o.outtype, rows=rows, effect=effect
        )
    if o.llama and not llama_cpp.installed():
        print("llama.cpp: not compared because the xllamacpp package is not installed")
    elif o.llama:
        problems += llama_check(
            asked, model, parts, rows, effect=float(effect.kl.mean()), threads=threads
        )
    if problems:
        raise NbllamaError("; ".join(problems))


def why_nothing(parts: Parts) -> str:
    """Explain why the adapters have no effect."""
    if all(scale * adapter.scale == 0 for adapter, scale in parts):
        return "the scale is 0"
    pairs = [pair for adapter, _ in parts for pair in adapter.pairs.values()]
    if not any(pair.b.any() for pair in pairs):
        return "B is zero in every pair, as before the first training step"
    if not any(pair.a.any() for pair in pairs):
        return "A is zero in every pair"
    return f"KL divergence below {NOTHING:g} nats per token"


def merged_check(
    model: Model, parts: Parts, *, kind: FileType | None, outtype: str, rows: Rows, effect: Compared
) -> list[str]:
    """Merge as `export_lora` does, and compare the results; return a message if the check fails."""
    types, lines = merged_types(model.gguf, model.hp, parts, kind)
    if not outtype:
        types, lines = dict.fromkeys(types, IDS["F32"]), []
    for line in lines:
        print(line)
    size = _file_size(model, types)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:
        print(
            f"merged: not compared because {memory(size)} does not fit in {shown(folder, 400)} "
            f"({memory(free)} free); set TMPDIR to a different folder"
        )
        return []
    with tempfile.TemporaryDirectory(prefix="nbllama-") as folder:
        path = os.path.join(folder, "merged.gguf")
        merge(model.gguf, path, parts, types, kind=kind)
        unmerged = reader(model, mix(parts), rows)
        found = compare(unmerged, reader(load_model(path), None, rows), rows)
    print(f"merged against unmerged ({outtype or 'f32'}): {describe(found)}")
    lost = float(found.kl.mean())
    if lost > LOST * effect.kl.mean():
        return [f"merging loses {lost / effect.kl.mean():.0%} of the adapter's effect"]
    return []


def _file_size(model: Model, types: dict[str, int]) -> int:
    total = model.gguf.size
    for name, new in types.items():
        info = model.gguf.tensors[name]
        if TENSOR_TYPES[new] != TENSOR_TYPES[info.type_id]:
            total += nbytes(new, int(np.prod(info.shape))) - info.nbytes
    return total


class Peer(NamedTuple):
    """A comparison of llama.cpp with nbllama at `places` positions.

    `kl` is the mean divergence in nats per token, and `same` is the number of positions at which
    both programs predict the same most likely token.
    """

    kl: float
    same: int
    places: int

    def __str__(self) -> str:
        return f"KL divergence {self.kl:.3g}, same most likely token at {self.same}/{self.places}"


def llama_check(
    asked: Verify, model: Model, parts: Parts, rows: Rows, *, effect: float, threads: int
) -> list[str]:
    """Compare nbllama with llama.cpp, with and without the adapter; return a message on failure.

    Even without the adapter, the results differ because llama.cpp rounds activations. With the
    adapter, up to three times that difference plus a tenth of the adapter's effect is allowed.
    """
    few = _few(rows)
    path = model.gguf.path  # the first file of a split model
    try:
        letter = model.tokenizer.encode("a", add_special=False)[-1]
        there = llama_cpp.candidates(path, [], few, letter=letter, threads=threads)
        base = _peer(there, reader(model, None, few), few)
        with tempfile.TemporaryDirectory(prefix="nbllama-") as folder:
            files = _gguf_files(asked.adapters, parts, model, folder)
            there = llama_cpp.candidates(path, files, few, letter=letter, threads=threads)
        adapted = _peer(there, reader(model, mix(parts), few), few)
    except NbllamaError as e:
        return [str(e)]
    print(f"llama.cpp against nbllama, base: {base}")
    print(f"llama.cpp against nbllama, with the adapter: {adapted}")
    if base.kl > OTHER_BASE:
        return [
            "llama.cpp's predictions for the base model differ: KL divergence "
            f"{base.kl:.3g} "
            "nats per token"
        ]
    if adapted.kl > 3 * base.kl + LOST * effect + ROUNDING:
        return [
            f"the adapter has a different effect in llama.cpp: KL divergence {adapted.kl:.3g} nats "
            f"per token, and {base.kl:.3g} without the adapter"
        ]
    return []


def _few(rows: Rows) -> list[np.ndarray]:
    """Return the first tokens of each row, `_PLACES` tokens in total."""
    each = max(1, _PLACES // len(rows))
    return [row[:each] for row in rows][:_PLACES]


def _gguf_files(
    files: Sequence[tuple[str, float]], parts: Parts, model: Model, folder: str
) -> list[tuple[str, float]]:
    """Return the adapters as files for llama.cpp, converting them into `folder` if necessary."""
    out = []
    for i, ((path, scale), (adapter, _)) in enumerate(zip(files, parts, strict=True)):
        if not _is_gguf(path):
            name = os.path.join(folder, f"{i}.gguf")
            save_adapter(name, adapter, model.hp)
            print(f"{shown(path, 400)}: converted to GGUF for llama.cpp")
            path = name
        out.append((path, scale))
    return out


def _is_gguf(path: str) -> bool:
    return os.path.isfile(path) and first_bytes(path, 4) == b"GGUF"


def _peer(there: list[list[Candidates]], here: Reader, rows: Rows) -> Peer:
    """Compare nbllama's logits with llama.cpp's candidates after every token of the rows."""
    kl, same = [], 0
    for found, row in zip(there, rows, strict=True):
        logp = np.concatenate([log_softmax(z) for z in here.logits(row, 0, len(row))])
        for theirs, ours in zip(found, logp, strict=True):
            kl.append(divergence(theirs, ours))
            same += int(theirs.ids[0] == ours.argmax())
    return Peer(float(np.mean(kl)), same, len(kl))


def divergence(theirs: Candidates, ours: np.ndarray) -> float:
    """Compute a lower bound on KL(llama.cpp ‖ nbllama) at one position.

    All tokens that are not among llama.cpp's candidates are treated as a single token. `ours` is
    log p, float64 `[V]`.
    """
    p, q = np.exp(theirs.logp), np.exp(ours[theirs.ids])
    kl = float((p * (theirs.logp - ours[theirs.ids])).sum())
    p_rest, q_rest = 1 - p.sum(), 1 - q.sum()
    if p_rest > 1e-6 and q_rest > 0:  # smaller differences are due to float32 rounding
        kl += float(p_rest * np.log(p_rest / q_rest))
    return max(kl, 0.0)
