"""Small random models in GGUF files that llama.cpp can load.

The `gguf` package writes the files and llama.cpp quantises the weights, so the models that test
nbllama do not depend on nbllama.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, TokenType

RopeScaling = tuple[str, float] | tuple[str, float, int]
ATTENTION_BIASES = ("attn_q", "attn_k", "attn_v", "attn_output")
LETTERS = "etaoinshrdlucmfwypvbgkqjxz"
# Each word consists of two earlier tokens, so that merging can produce it.
MERGES = "th he in er an ou re on at en ing and the her you hat".split()


def make_llama(
    path: str | os.PathLike[str],
    *,
    n_layer: int = 2,
    n_embd: int = 64,
    n_head: int = 4,
    n_head_kv: int = 2,
    head_dim: int | None = None,
    n_rot: int | None = None,
    n_ff: int = 96,
    n_vocab: int = 320,
    n_ctx_train: int = 512,
    tied: bool = False,
    types: str | Mapping[str, str] = "F32",
    biases: bool | Sequence[str] = False,
    rope_freq_base: float = 10000.0,
    rope_scaling: RopeScaling | None = None,
    rope_factors: bool = False,
    rms_eps: float = 1e-5,
    seed: int = 0,
    tokenizer: str = "spm",
    arch: str = "llama",
    keys: Mapping[str, Any] | None = None,
    pre_norms: bool = True,
    second_norm: str = "ffn_norm",
    qk_norm: bool | str = False,
    post_norms: bool = False,
    fused: bool | str = False,
    gated: bool = True,
    layer_norm: bool = False,
    norm_biases: bool = False,
    output_bias: bool = False,
    down_size: float = 1.0,
    experts: Mapping[str, Any] | None = None,
) -> None:
    """Write a random model of the llama architecture, or of another one with the same tensors.

    The same arguments always write the same bytes. Every row of a matrix must consist of whole
    blocks of its type; a row has `n_embd` numbers, or `n_head * head_dim` in attn_output, or `n_ff`
    in ffn_down.

    Parameters
    ----------
    types : str or mapping
        The type of all matrices, such as "Q4_0", or a mapping from tensor ("attn_q", "token_embd",
        ...) to type, with "*" for all other matrices (F32 if it is missing).
    biases : bool or sequence of str
        True for biases on the four attention projections, or the linear layers with a bias.
    rope_scaling : tuple, optional
        ("linear", factor) or ("yarn", factor, original context).
    rope_factors : bool
        Whether to write a `rope_freqs.weight`, as in Llama 3.
    tokenizer : str
        "spm", "bpe" (GPT-2 bytes; requires n_vocab >= 259) or "none". "spm" has byte tokens if
        n_vocab is at least 259; without them, llama.cpp ends the process when a text has no tokens.
    keys : mapping, optional
        More metadata keys, without the prefix "ARCH." (keys of xIELU never have it).
    pre_norms, post_norms : bool
        Whether there are norms before and after attention and feed-forward.
    second_norm : str
        Name of the norm before feed-forward, or "" if there is none.
    qk_norm : bool or str
        Whether queries and keys are normalised; "whole" normalises all heads together.
    fused : bool or str
        Whether queries, keys and values share one matrix, and gate and up another; "up" fuses only
        gate and up.
    gated : bool
        Whether feed-forward has a gate.
    layer_norm : bool
        Whether to store `rms_eps` as the eps of LayerNorm.
    norm_biases, output_bias : bool
        Whether the norms and the logits have biases.
    down_size : float
        Factor for the values in ffn_down.
    experts : mapping, optional
        Options of `add_experts`. The blocks from number "first" on have experts instead of a
        feed-forward layer.

    Raises
    ------
    ValueError
        If a row does not consist of whole blocks.
    """
    rng = np.random.default_rng(seed)
    head_dim = head_dim or n_embd // n_head
    w = GGUFWriter(os.fspath(path), arch)
    w.add_name("toy")
    w.add_block_count(n_layer)
    w.add_context_length(n_ctx_train)
    w.add_embedding_length(n_embd)
    w.add_feed_forward_length(n_ff)
    w.add_head_count(n_head)
    w.add_head_count_kv(n_head_kv)
    if layer_norm:
        w.add_layer_norm_eps(rms_eps)
    else:
        w.add_layer_norm_rms_eps(rms_eps)
    w.add_rope_dimension_count(n_rot or head_dim)
    w.add_rope_freq_base(rope_freq_base)
    w.add_vocab_size(n_vocab)
    if head_dim * n_head != n_embd:
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    if rope_scaling:
        w.add_rope_scaling_type(RopeScalingType(rope_scaling[0]))
        w.add_rope_scaling_factor(rope_scaling[1])
        if len(rope_scaling) > 2:
            w.add_rope_scaling_orig_ctx_len(int(rope_scaling[2]))
    for key, value in (keys or {}).items():
        full = key if key.startswith("xielu.") else f"{arch}.{key}"
        if isinstance(value, bool):
            w.add_bool(full, value)
        elif isinstance(value, float):
            w.add_float32(full, value)
        elif isinstance(value, list):
            w.add_array(full, value)
        elif isinstance(value, str):
            w.add_string(full, value)
        else:
            w.add_uint32(full, value)
    add_tokenizer(w, tokenizer, n_vocab)

    linears = {
        "attn_q": (n_head * head_dim, n_embd),
        "attn_k": (n_head_kv * head_dim, n_embd),
        "attn_v": (n_head_kv * head_dim, n_embd),
        "attn_output": (n_embd, n_head * head_dim),
        "ffn_gate": (n_ff, n_embd),
        "ffn_up": (n_ff, n_embd),
        "ffn_down": (n_embd, n_ff),
    }
    if fused is True:
        linears = {
            "attn_qkv": ((n_head + 2 * n_head_kv) * head_dim, n_embd),
            "attn_output": linears["attn_output"],
            "ffn_up": (2 * n_ff, n_embd),
            "ffn_down": linears["ffn_down"],
        }
    elif fused == "up":
        linears["ffn_up"] = (2 * n_ff, n_embd)
    if fused or not gated:
        linears.pop("ffn_gate", None)
    with_bias = ATTENTION_BIASES if biases is True else tuple(biases or ())

    def matrix(name: str, shape: tuple[int, int], std: float) -> None:
        add_matrix(w, name, (rng.standard_normal(shape) * std).astype(np.float32), types)

    def vector(name: str, size: int, mean: float) -> None:
        w.add_tensor(name, (mean + 0.1 * rng.standard_normal(size)).astype(np.float32))

    def norm(name: str) -> None:
        vector(f"{name}.weight", n_embd, 1.0)
        if norm_biases:
            vector(f"{name}.bias", n_embd, 0.0)

    # A tied matrix also computes the logits, so it is scaled like an output matrix.
    matrix("token_embd.weight", (n_vocab, n_embd), 2 / np.sqrt(n_embd) if tied else 1.0)
    norm("output_norm")
    if output_bias:
        vector("output.bias", n_vocab, 0.0)
    if not tied:
        matrix("output.weight", (n_vocab, n_embd), 1 / np.sqrt(n_embd))
    if rope_factors:
        w.add_tensor("rope_freqs.weight", np.geomspace(1, 8, head_dim // 2, dtype=np.float32))
    for i in range(n_layer):
        if pre_norms:
            norm(f"blk.{i}.attn_norm")
            if second_norm:
                norm(f"blk.{i}.{second_norm}")
        if qk_norm:
            heads = (n_head, n_head_kv) if qk_norm == "whole" else (1, 1)
            vector(f"blk.{i}.attn_q_norm.weight", heads[0] * head_dim, 1.0)
            vector(f"blk.{i}.attn_k_norm.weight", heads[1] * head_dim, 1.0)
        if post_norms:
            vector(f"blk.{i}.post_attention_norm.weight", n_embd, 1.0)
            # ggml's GELU is a step function; small weights reduce the effect of different steps.
            size = 0.05 + 0.01 * rng.standard_normal(n_embd)
            w.add_tensor(f"blk.{i}.post_ffw_norm.weight", size.astype(np.float32))
        mixed = experts is not None and i >= experts.get("first", 0)
        for slot, shape in linears.items():
            if mixed and slot.startswith("ffn_"):
                continue
            factor = down_size if slot == "ffn_down" else 1.0
            matrix(f"blk.{i}.{slot}.weight", shape, factor / np.sqrt(shape[1]))
            if slot in with_bias:
                vector(f"blk.{i}.{slot}.bias", shape[0], 0.0)
        if mixed and experts is not None:
            add_experts(w, f"blk.{i}", n_embd, experts, rng, types)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def add_experts(
    w: GGUFWriter,
    block: str,
    n_embd: int,
    experts: Mapping[str, Any],
    rng: np.random.Generator,
    types: str | Mapping[str, str],
) -> None:
    """Add a block's router and experts.

    `experts` contains the number of experts ("count") and their width ("n_ff"). Optional keys are
    the width of a shared expert ("shared"), whether a vector determines the shared expert's weight
    ("shared_weight"), whether a bias affects the selection of experts ("select"), whether the
    router and all expert matrices have biases ("biases"), and the number of attention heads if
    each head has a sink ("sinks").
    """
    n, n_ff = experts["count"], experts["n_ff"]

    def matrix(name: str, *shape: int) -> None:
        values = rng.standard_normal(shape) / np.sqrt(shape[-1])
        add_matrix(w, f"{block}.{name}.weight", values.astype(np.float32), types)

    def vector(name: str, *shape: int) -> None:
        w.add_tensor(f"{block}.{name}", (0.1 * rng.standard_normal(shape)).astype(np.float32))

    router = 2 * rng.standard_normal((n, n_embd)) / np.sqrt(n_embd)
    w.add_tensor(f"{block}.ffn_gate_inp.weight", router.astype(np.float32))
    matrix("ffn_gate_exps", n, n_ff, n_embd)
    matrix("ffn_down_exps", n, n_embd, n_ff)
    matrix("ffn_up_exps", n, n_ff, n_embd)
    if shared := experts.get("shared"):
        matrix("ffn_gate_shexp", shared, n_embd)
        matrix("ffn_down_shexp", n_embd, shared)
        matrix("ffn_up_shexp", shared, n_embd)
    if experts.get("shared_weight"):
        vector("ffn_gate_inp_shexp.weight", n_embd)
    if experts.get("select"):
        vector("exp_probs_b.bias", n)
    if sinks := experts.get("sinks"):
        w.add_tensor(f"{block}.attn_sinks.weight", rng.standard_normal(sinks).astype(np.float32))
    if experts.get("biases"):
        vector("ffn_gate_inp.bias", n)
        vector("ffn_gate_exps.bias", n, n_ff)
        vector("ffn_down_exps.bias", n, n_embd)
        vector("ffn_up_exps.bias", n, n_ff)


def decode_to_f32(src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> None:
    """Write a copy of a model in float32, with all metadata.

    This calls `tests.oracle.gguf_file.decode_to_f32`.
    """
    from tests.oracle import gguf_file

    gguf_file.decode_to_f32(src, dst)


def add_matrix(
    w: GGUFWriter, name: str, values: np.ndarray, types: str | Mapping[str, str]
) -> None:
    """Add a matrix in the type that `types` (see `make_llama`) specifies for its name."""
    slot = name.split(".")[-2]
    kind = types if isinstance(types, str) else types.get(slot, types.get("*", "F32"))
    if kind == "F32":
        w.add_tensor(name, values)
        return
    from tests.oracle import quantize

    type_id = GGMLQuantizationType[kind]
    rows = values.reshape(-1, values.shape[-1])
    raw = np.frombuffer(quantize(type_id, rows), dtype=np.uint8)
    w.add_tensor(name, raw.reshape(*values.shape[:-1], -1), raw_dtype=type_id)


def add_tokenizer(w: GGUFWriter, kind: str, n_vocab: int) -> None:
    """Add the keys of a tokenizer with `n_vocab` tokens; `make_llama` describes the kinds."""
    if kind == "none":
        w.add_tokenizer_model("none")
        return
    make = {"spm": _spm_tokens, "bpe": _bpe_tokens}[kind]
    tokens, types, extra = make(n_vocab)
    w.add_tokenizer_model("llama" if kind == "spm" else "gpt2")
    w.add_token_list(tokens)
    w.add_token_types([int(t) for t in types])
    if kind == "spm":
        w.add_token_scores(extra["scores"])
        w.add_unk_token_id(0)
        w.add_add_bos_token(True)
    else:
        w.add_tokenizer_pre("gpt-2")
        w.add_token_merges(extra["merges"])
        w.add_add_bos_token(False)
    w.add_bos_token_id(extra["bos"])
    w.add_eos_token_id(extra["eos"])
    w.add_add_eos_token(False)


def _filler(n: int) -> list[str]:
    """Return `n` tokens that occur in no text and only fill up the vocabulary."""
    return [f"<filler{i}>" for i in range(n)]


def _spm_tokens(n_vocab: int) -> tuple[list[str], list[TokenType], dict[str, Any]]:
    tokens = ["<unk>", "<s>", "</s>"]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    if n_vocab >= len(tokens) + 256:
        tokens += [f"<0x{b:02X}>" for b in range(256)]
        types += [TokenType.BYTE] * 256
    words = ["\u2581", *LETTERS, *MERGES, "\u2581the", "\u2581and"]
    tokens = (tokens + words)[:n_vocab]
    types = (types + [TokenType.NORMAL] * len(words))[:n_vocab]
    first_word = len(types) - types.count(TokenType.NORMAL)
    rest = _filler(n_vocab - len(tokens))
    types += [TokenType.UNUSED] * len(rest)
    # Earlier words merge first, as in a SentencePiece BPE model.
    scores = [0.0 if i < first_word else float(first_word - 1 - i) for i in range(n_vocab)]
    return tokens + rest, types, {"scores": scores, "bos": 1, "eos": 2}


def _bpe_tokens(n_vocab: int) -> tuple[list[str], list[TokenType], dict[str, Any]]:
    if n_vocab < 259:
        raise ValueError(f"a byte-level vocabulary needs 259 tokens, not {n_vocab}")
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_byte_letters()]
    types = [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * 256
    merges = []
    for word in [*MERGES, "\u0120the", "\u0120and"][: n_vocab - len(tokens)]:
        cut = max(i for i in range(1, len(word)) if word[:i] in tokens and word[i:] in tokens)
        merges.append(f"{word[:cut]} {word[cut:]}")
        tokens.append(word)
        types.append(TokenType.NORMAL)
    rest = _filler(n_vocab - len(tokens))
    types += [TokenType.UNUSED] * len(rest)
    return tokens + rest, types, {"merges": merges, "bos": 0, "eos": 0}


def _byte_letters() -> list[str]:
    """Return the printable character that GPT-2 uses for each byte, in byte order."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]
