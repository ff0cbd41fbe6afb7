"""Write a random model of a real model's size, for measurements of speed and memory.

The weights of a tensor are blocks drawn from a pool: a normal sample of the usual scale (1 /
sqrt(n_in)), quantised by this package. So logits are finite and as large as in a real model. A
mixture of experts also has embeddings of size 1 and small block outputs: its tokens remain
different, so its router spreads them over the experts, as a trained one does. The file is streamed:
memory stays under 100 MB for any size. All matrices have one type, or with `--mix` the types that
llama.cpp's quantiser chooses. `--sparse` omits the weights (a hole in the file, which reads as
zeros), if only names and sizes matter. The same arguments write the same bytes.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # so that it runs from any folder

from examples.toy_models import add_tokenizer  # noqa: E402
from nbllama.arch import ARCHS, ROPE_FACTORS  # noqa: E402
from nbllama.arch.experts import Experts, block_rows  # noqa: E402
from nbllama.errors import UsageError  # noqa: E402
from nbllama.export.file_types import file_type, fitting, tensor_types  # noqa: E402
from nbllama.quants import nbytes  # noqa: E402
from nbllama.quants.encode import QUANTISED, quantise  # noqa: E402

PIECE = 1 << 24  # bytes written at once
POOL = 1 << 20  # weights in the pool from which blocks are drawn


class Shape(NamedTuple):
    """Sizes of a model, with GGUF's names."""

    n_embd: int
    n_layer: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_vocab: int = 32000
    rope_freq_base: float = 10000.0
    head_dim: int = 0  # 0: n_embd / n_head
    n_expert: int = 0  # 0: no mixture of experts
    n_expert_used: int = 0
    n_ff_exp: int = 0
    arch: str = "llama"

    @property
    def head(self) -> int:
        """Size of a head."""
        return self.head_dim or self.n_embd // self.n_head

    def experts(self, arch: str) -> Experts | None:
        """Return the experts, which are in every block, without a shared expert."""
        row = ARCHS[arch].experts
        if not self.n_expert or row is None:
            return None
        sizes = (self.n_expert, self.n_expert_used, self.n_ff_exp, 0, 0)
        return Experts(*sizes, row.gating, row.normed, 1.0, row.kind)


SHAPES = {
    "110m": Shape(768, 12, 12, 12, 2048),
    "1.1b": Shape(2048, 22, 32, 4, 5632),
    "3b": Shape(3072, 28, 24, 8, 8192, 128256, 500000.0),
    "7b": Shape(4096, 32, 32, 32, 11008),
    "13b": Shape(5120, 40, 40, 40, 13824),
    "70b": Shape(8192, 80, 64, 8, 28672),
    "baichuan2-7b": Shape(4096, 32, 32, 32, 11008, 125696, arch="baichuan"),
    "baichuan2-13b": Shape(5120, 40, 40, 40, 13696, 125696, arch="baichuan"),
    "smollm3-3b": Shape(2048, 36, 16, 4, 11008, 128256, 5e6, arch="smollm3"),
    "gemma-2b": Shape(2048, 18, 8, 1, 16384, 256000, arch="gemma"),
    "exaone4-1.2b": Shape(2048, 30, 32, 8, 4096, 102400, 1e6, arch="exaone4"),
    "starcoder2-3b": Shape(3072, 30, 24, 2, 12288, 49152, 1e6, arch="starcoder2"),
    "olmo2-7b": Shape(4096, 32, 32, 32, 11008, 100352, 5e5, arch="olmo2"),
    "glm4-9b": Shape(4096, 40, 32, 2, 13696, 151552, arch="glm4"),
    "qwen3-30b-a3b": Shape(2048, 48, 32, 4, 6144, 151936, 1e6, 128, 128, 8, 768, arch="qwen3moe"),
    "gpt-oss-20b": Shape(2880, 24, 64, 8, 2880, 201088, 150000.0, 64, 32, 4, 2880, arch="gpt-oss"),
    "cohere2-7b": Shape(4096, 32, 32, 8, 14336, 256000, 5e4, arch="cohere2"),
    "lfm2-1.2b": Shape(2048, 16, 32, 8, 8192, 65536, 1e6, arch="lfm2"),
    "qwen3.5-0.8b": Shape(1024, 24, 8, 2, 3584, 248320, 1e7, 256, arch="qwen35"),
    "gemma-4-e2b": Shape(1536, 35, 8, 1, 6144, 262144, 1e6, 512, arch="gemma4"),
}
TAPS = ("shortconv.conv.weight", "ssm_conv1d.weight")  # float32 in any file
# Gemma 4: the last of every `period` blocks has no window; those after the first `own` ones use
# the keys of earlier blocks, and their feed-forward layer is twice as wide.
GEMMA4 = {"period": 5, "own": 15, "window_head": 256, "n_per_layer": 256, "rotated": 64}
DELTA = {"heads": 16, "size": 128, "taps": 4}
QKV = ("attn_q", "attn_k", "attn_v")
XIELU = {"alpha_p": 0.8, "alpha_n": 0.8, "beta": 0.5, "eps": -1e-6}
UNGATED = (*QKV, "attn_output", "ffn_up", "ffn_down")
BIASES = {"qwen2": QKV, "qwen2vl": QKV, "seed_oss": QKV, "phi2": UNGATED}
# Required keys of these architectures, after "ARCH." except for those of xIELU.
KEYS: dict[str, dict[str, Any]] = {
    "apertus": {f"xielu.{k}": v for k, v in XIELU.items()},
    "granite": {"logit_scale": 1.0},
    "gpt-oss": {"attention.sliding_window": 128},
    "cohere2": {"attention.sliding_window": 4096, "logit_scale": 0.25},
    "qwen2vl": {"rope.dimension_sections": [16, 24, 24, 0]},
    "qwen3vl": {"rope.dimension_sections": [24, 20, 20, 0]},
    "lfm2": {"shortconv.l_cache": 3},
    "qwen35": {
        "rope.dimension_sections": [11, 11, 10, 0],
        "ssm.conv_kernel": DELTA["taps"],
        "ssm.inner_size": DELTA["heads"] * DELTA["size"],
        "ssm.state_size": DELTA["size"],
        "ssm.time_step_rank": DELTA["heads"],
        "ssm.group_count": DELTA["heads"],
    },
}
N_ROT = {"qwen35": 64}
ORDER = (
    *("token_embd", "output", "attn_qkv", "attn_q", "attn_k", "attn_v", "attn_output"),
    *("attn_gate", "ssm_alpha", "ssm_beta", "ssm_out"),
    *("shortconv.in_proj", "shortconv.out_proj"),
    *("ffn_gate", "ffn_up", "ffn_down"),
    *("per_layer_token_embd", "per_layer_model_proj", "inp_gate", "proj"),
    *("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
)


def mixer_at(arch: str, layer: int) -> str:
    """Return the kind of a block's mixer: every third, or fourth, block has attention."""
    period = {"conv": 3, "delta": 4}.get(kind := ARCHS[arch].mixer, 1)
    return "attention" if (layer + 1) % period == 0 else kind


def has_window(layer: int) -> bool:
    """Return whether a block of Gemma 4 has a window."""
    return (layer + 1) % GEMMA4["period"] != 0


def wide(s: Shape, layer: int) -> int:
    """Return the width of a block's feed-forward layer in Gemma 4."""
    return s.n_ff * (1 + (layer >= GEMMA4["own"]))


def varying(s: Shape, arch: str, layer: int) -> dict[str, int]:
    """Return the sizes of a block that differ from those of other blocks."""
    if not ARCHS[arch].varied:
        return {}
    d = GEMMA4["window_head"] if has_window(layer) else s.head
    n_q, n_kv = d * s.n_head, d * s.n_head_kv
    return {"head_dim": d, "n_q": n_q, "n_kv": n_kv, "n_ff": wide(s, layer)}


def keys_of(s: Shape, arch: str) -> dict[str, Any]:
    """Return keys of an architecture, after "ARCH."."""
    if not ARCHS[arch].varied:
        return KEYS.get(arch, {})
    return {
        "attention.sliding_window": 512,
        "attention.sliding_window_pattern": [has_window(i) for i in range(s.n_layer)],
        "attention.shared_kv_layers": max(0, s.n_layer - GEMMA4["own"]),
        "attention.key_length_swa": GEMMA4["window_head"],
        "attention.value_length_swa": GEMMA4["window_head"],
        "rope.dimension_count_swa": GEMMA4["window_head"],
        "rope.freq_base_swa": 10000.0,
        "embedding_length_per_layer_input": GEMMA4["n_per_layer"],
        "final_logit_softcapping": 30.0,
    }


def tensors(s: Shape, arch: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of the required tensors of an architecture, and its usual biases."""
    d, experts = s.head, s.experts(arch)
    values = DELTA["heads"] * DELTA["size"]
    sizes = {
        "n_vocab": s.n_vocab,
        "n_embd": s.n_embd,
        "n_q": d * s.n_head,
        "n_q_gate": 2 * d * s.n_head,
        "n_conv_in": 3 * s.n_embd,
        "conv_taps": 3,
        "delta_qkv": 3 * values,
        "delta_values": values,
        **{f"delta_{name}": size for name, size in DELTA.items()},
        "n_kv": d * s.n_head_kv,
        "n_qkv": d * (s.n_head + 2 * s.n_head_kv),
        "n_head": s.n_head,
        "n_expert": s.n_expert,
        "n_ff_exp": s.n_ff_exp,
        "head_dim": d,
        "n_ff": s.n_ff,
        "n_gate_up": 2 * s.n_ff,
        "n_rot_half": s.head // 2,
        "n_per_layer": GEMMA4["n_per_layer"],
        "n_per_layer_all": GEMMA4["n_per_layer"] * s.n_layer,
        "one": 1,
    }
    usual = {f"{name}.bias" for name in BIASES.get(arch, ())} | {"output.weight"}
    usual |= {"attn_v.weight", "layer_output_scale.weight"}
    row = ARCHS[arch]
    named = [(t.name, t, sizes) for t in row.tensors]
    for i in range(s.n_layer):
        own, of = block_rows(row.block, row.experts, experts, i), sizes | varying(s, arch, i)
        if row.varied and i >= GEMMA4["own"]:
            own = tuple(t for t in own if not t.name.startswith(("attn_k", "attn_v")))
        kinds = ("", "per_layer", mixer_at(arch, i))
        named += [(f"blk.{i}.{t.name}", t, of) for t in own if t.mixer in kinds]
    for name, t, of in named:
        if t.required or t.name in usual:
            yield name, tuple(of[size] for size in t.shape)


def matrices(s: Shape, arch: str, tied: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every matrix, without ".weight", in the order of the file."""

    def place(name: str) -> tuple[int, int]:
        block, _, tensor = name.removeprefix("blk.").partition(".")
        return (int(block), ORDER.index(tensor)) if tensor else (-1, ORDER.index(name))

    every = {n: x for n, x in tensors(s, arch) if len(x) > 1 and n.endswith(".weight")}
    found = {n.removesuffix(".weight"): x for n, x in every.items() if not n.endswith(TAPS)}
    for name in sorted(found, key=place):
        if not (tied and name == "output"):
            yield name, found[name]


def vectors(s: Shape, arch: str) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """Yield name, shape and mean of every vector, of all experts' biases, and of taps."""
    for name, shape in tensors(s, arch):
        if name.endswith(TAPS):
            yield name, shape, 1 / shape[1]
        elif name.endswith("ssm_a"):
            yield name, shape, -0.5
        elif len(shape) == 1 or name.endswith(".bias"):
            yield name, shape, 1.0 if name.endswith(("norm.weight", "scale.weight")) else 0.0


class Blocks:
    """Random blocks of a weight type, scaled by the length of a row."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.sample = rng.standard_normal(POOL).astype(np.float32)
        self.pools: dict[tuple[int, float], np.ndarray] = {}

    def pool(self, kind: int, spread: float) -> np.ndarray:
        """Return the pool as uint8 `[blocks, bytes of 256 weights]`."""
        if (kind, spread) not in self.pools:
            raw = quantise(kind, self.sample * np.float32(spread))
            self.pools[kind, spread] = raw.reshape(POOL // 256, -1)
        return self.pools[kind, spread]

    def pieces(self, kind: int, shape: tuple[int, ...], spread: float) -> Iterator[np.ndarray]:
        """Yield the bytes of a tensor, one piece at a time."""
        pool, left = self.pool(kind, spread), nbytes(kind, math.prod(shape))
        at_once = PIECE // pool.shape[1]
        while left > 0:
            raw = pool[self.rng.integers(0, len(pool), at_once)].reshape(-1)[:left]
            left -= raw.size
            yield raw


def spread_of(name: str, shape: tuple[int, ...], s: Shape, tied: bool) -> float:
    """Return the standard deviation of a matrix's weights."""
    usual = 1 / math.sqrt(shape[-1])
    if not s.n_expert or tied:
        return usual
    if name == "token_embd":
        return 1.0
    last = name.endswith(("attn_output", "ffn_down", "ffn_down_exps"))
    return usual / math.sqrt(2 * s.n_layer) if last else usual


def types_of(s: Shape, arch: str, kind: str, tied: bool, mix: bool) -> dict[str, str]:
    """Return weight types by tensor; llama.cpp's substitute if a row is not whole blocks."""
    shapes = {f"{name}.weight": shape for name, shape in matrices(s, arch, tied)}
    if mix:
        types = tensor_types(
            file_type(kind), shapes, n_layer=s.n_layer, n_head=s.n_head, n_head_kv=s.n_head_kv
        )
        return dict.fromkeys(shapes, "F32") | types
    types = {name: fitting(kind, shape[-1]) for name, shape in shapes.items()}
    return types | {name: "F32" for name in types if "ffn_gate_inp" in name}


def write(
    path: str, s: Shape, arch: str, types: dict[str, str], *, tied: bool, seed: int, sparse: bool
) -> int:
    """Write the model; return the bytes of the file."""
    rng = np.random.default_rng(seed)
    w = GGUFWriter(None, arch)
    # llama.cpp expects tokens of Phi-3 in a model with that name
    w.add_name("random" if arch == "phi3" else f"random {arch}")
    w.add_block_count(s.n_layer)
    w.add_context_length(4096)
    w.add_embedding_length(s.n_embd)
    varied = ARCHS[arch].varied
    w.add_feed_forward_length([wide(s, i) for i in range(s.n_layer)] if varied else s.n_ff)
    w.add_head_count(s.n_head)
    if ARCHS[arch].mixer == "conv":
        kinds = (mixer_at(arch, i) for i in range(s.n_layer))
        w.add_head_count_kv([s.n_head_kv if kind == "attention" else 0 for kind in kinds])
    else:
        w.add_head_count_kv(s.n_head_kv)
    if ARCHS[arch].norm == "layer":
        w.add_layer_norm_eps(1e-5)
    else:
        w.add_layer_norm_rms_eps(1e-5)
    for key, value in keys_of(s, arch).items():
        full = key if key.startswith("xielu.") else f"{arch}.{key}"
        plain = GGUFValueType.UINT32 if isinstance(value, int) else GGUFValueType.get_type(value)
        w.add_key_value(full, value, plain)
    if s.n_expert:
        w.add_expert_count(s.n_expert)
        w.add_expert_used_count(s.n_expert_used)
        w.add_expert_feed_forward_length(s.n_ff_exp)
    if s.head_dim:
        w.add_key_length(s.head_dim)
        w.add_value_length(s.head_dim)
    w.add_rope_dimension_count(N_ROT.get(arch, s.head))
    w.add_rope_freq_base(s.rope_freq_base)
    w.add_vocab_size(s.n_vocab)
    add_tokenizer(w, "spm", s.n_vocab)
    bodies: list[tuple[int, Iterator[np.ndarray]]] = []
    blocks = Blocks(rng)
    for name, own, mean in vectors(s, arch):
        x = (mean + 0.1 * rng.standard_normal(own)).astype(np.float32)
        if name == ROPE_FACTORS:  # the first pairs of numbers rotate, the others do not
            x = np.where(np.arange(len(x)) < GEMMA4["rotated"], 1, 1e30).astype(np.float32)
        w.add_tensor_info(name, x.shape, x.dtype, x.nbytes)
        bodies.append((x.nbytes, iter([x.reshape(-1).view(np.uint8)])))
    for name, shape in matrices(s, arch, tied):
        kind = GGMLQuantizationType[types[f"{name}.weight"]]
        row = nbytes(int(kind), shape[-1])
        size = math.prod(shape[:-1]) * row
        w.add_tensor_info(
            f"{name}.weight", (*shape[:-1], row), np.dtype(np.uint8), size, raw_dtype=kind
        )
        spread = spread_of(name, shape, s, tied)
        bodies.append((size, iter(()) if sparse else blocks.pieces(int(kind), shape, spread)))
    unfinished = f"{path}.unfinished"
    try:
        w.write_header_to_file(unfinished)
        w.write_kv_data_to_file()
        w.write_ti_data_to_file()
        w.close()
        with open(unfinished, "r+b") as file:
            at = file.seek(0, os.SEEK_END)
            for size, body in bodies:
                at += -at % w.data_alignment
                file.seek(at)
                for piece in body:
                    file.write(piece.data)
                at += size
            file.truncate(at + -at % w.data_alignment)
        os.replace(unfinished, path)
    finally:
        if os.path.exists(unfinished):
            os.remove(unfinished)
    return os.path.getsize(path)


def options() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("out", metavar="OUT.gguf")
    p.add_argument("--arch", choices=sorted(ARCHS), help="the shape's own unless passed")
    p.add_argument("--shape", choices=SHAPES, default="1.1b", help="sizes of a known model")
    p.add_argument("--type", choices=QUANTISED, default="Q4_K", help="type of all matrices")
    p.add_argument(
        "--mix",
        action="store_true",
        help="more bits for some matrices, as llama-quantize does for TYPE",
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--tied", action="store_true", help="token_embd also computes the logits")
    p.add_argument(
        "--sparse",
        action="store_true",
        help="write no weights: a hole in the file that reads as zeros",
    )
    for name in (n for n in Shape._fields if n != "arch"):
        kind = float if name == "rope_freq_base" else int
        p.add_argument("--" + name.replace("_", "-"), type=kind, help="replaces the shape's value")
    return p


def main() -> None:
    p = options()
    given = p.parse_args()
    own = {n: getattr(given, n) for n in Shape._fields if getattr(given, n) is not None}
    s = SHAPES[given.shape]._replace(**own)
    given.arch = s.arch
    mixed = s.n_expert > 0
    if mixed != (s.experts(given.arch) is not None) or not 0 <= s.n_expert_used <= s.n_expert:
        p.error(f"--n-expert {s.n_expert} does not work with --arch {given.arch}")
    whole = s.head_dim or s.n_embd % s.n_head == 0
    if min(s[:7]) < 1 or not whole or s.n_head % s.n_head_kv or s.head % 2:
        p.error(f"these sizes are not valid: {s._asdict()}")
    try:
        types = types_of(s, given.arch, given.type, given.tied, given.mix)
        size = write(
            given.out, s, given.arch, types, tied=given.tied, seed=given.seed, sparse=given.sparse
        )
    except (ValueError, OSError, UsageError) as e:
        sys.exit(f"error: {e}")
    parameters = sum(math.prod(x) for _, x in matrices(s, given.arch, given.tied))
    kind = f"{given.type} mix" if given.mix else given.type
    print(f"{given.out}: {parameters / 1e9:.2f}e9 weights {kind}, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
