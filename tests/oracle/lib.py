"""The C library itself: ctypes structures and signatures of llama.cpp in xllamacpp 2026.10.11549.

Structures follow `llama.h` and `ggml.h` of that build. They change between llama.cpp versions, so
`check_layout` compares the library's own default parameters with known values: another version
of the wheel fails there with a plain message instead of reading wrong memory.
"""

from __future__ import annotations

import ctypes as C
from typing import Any

import pytest

xllamacpp = pytest.importorskip("xllamacpp", reason="the oracle is llama.cpp from xllamacpp")

LIB = C.CDLL(xllamacpp.xllamacpp.__file__)

MAX_DIMS, MAX_OP_PARAMS, MAX_SRC, MAX_NAME = 4, 64, 10, 64

LOG_CALLBACK = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)
EVAL_CALLBACK = C.CFUNCTYPE(C.c_bool, C.c_void_p, C.c_bool, C.c_void_p)
TO_FLOAT = C.CFUNCTYPE(None, C.c_void_p, C.c_void_p, C.c_int64)


class InitParams(C.Structure):
    """`ggml_init_params`."""

    _fields_ = [("mem_size", C.c_size_t), ("mem_buffer", C.c_void_p), ("no_alloc", C.c_bool)]


class TypeTraits(C.Structure):
    """`ggml_type_traits`."""

    _fields_ = [
        ("type_name", C.c_char_p),
        ("blck_size", C.c_int64),
        ("blck_size_interleave", C.c_int64),
        ("type_size", C.c_size_t),
        ("is_quantized", C.c_bool),
        ("to_float", C.c_void_p),
        ("from_float_ref", C.c_void_p),
    ]


class Tensor(C.Structure):
    """`ggml_tensor`; `ne` and `nb` count the fastest dimension first."""

    _fields_ = [
        ("type", C.c_int),
        ("buffer", C.c_void_p),
        ("ne", C.c_int64 * MAX_DIMS),
        ("nb", C.c_size_t * MAX_DIMS),
        ("op", C.c_int),
        ("op_params", C.c_int32 * (MAX_OP_PARAMS // 4)),
        ("flags", C.c_int32),
        ("src", C.c_void_p * MAX_SRC),
        ("view_src", C.c_void_p),
        ("view_offs", C.c_size_t),
        ("data", C.c_void_p),
        ("name", C.c_char * MAX_NAME),
        ("extra", C.c_void_p),
        ("padding", C.c_char * 8),
    ]


class Plan(C.Structure):
    """`ggml_cplan`."""

    _fields_ = [
        ("work_size", C.c_size_t),
        ("work_data", C.c_void_p),
        ("n_threads", C.c_int),
        ("threadpool", C.c_void_p),
        ("abort_callback", C.c_void_p),
        ("abort_callback_data", C.c_void_p),
        ("use_ref", C.c_bool),
    ]


class ModelParams(C.Structure):
    """`llama_model_params`."""

    _fields_ = [
        ("devices", C.c_void_p),
        ("tensor_buft_overrides", C.c_void_p),
        ("n_gpu_layers", C.c_int32),
        ("split_mode", C.c_int),
        ("load_mode", C.c_int),
        ("lazy_mode", C.c_int),
        ("main_gpu", C.c_int32),
        ("tensor_split", C.c_void_p),
        ("progress_callback", C.c_void_p),
        ("progress_callback_user_data", C.c_void_p),
        ("kv_overrides", C.c_void_p),
        ("vocab_only", C.c_bool),
        ("check_tensors", C.c_bool),
        ("use_extra_bufts", C.c_bool),
        ("no_host", C.c_bool),
        ("no_alloc", C.c_bool),
        ("load_mtp", C.c_bool),
    ]


class ContextParams(C.Structure):
    """`llama_context_params`."""

    _fields_ = [
        ("n_ctx", C.c_uint32),
        ("n_batch", C.c_uint32),
        ("n_ubatch", C.c_uint32),
        ("n_seq_max", C.c_uint32),
        ("n_rs_seq", C.c_uint32),
        ("n_outputs_max", C.c_uint32),
        ("n_outputs_max_per_seq", C.c_uint32),
        ("n_threads", C.c_int32),
        ("n_threads_batch", C.c_int32),
        ("ctx_type", C.c_int),
        ("rope_scaling_type", C.c_int),
        ("pooling_type", C.c_int),
        ("attention_type", C.c_int),
        ("flash_attn_type", C.c_int),
        ("rope_freq_base", C.c_float),
        ("rope_freq_scale", C.c_float),
        ("yarn_ext_factor", C.c_float),
        ("yarn_attn_factor", C.c_float),
        ("yarn_beta_fast", C.c_float),
        ("yarn_beta_slow", C.c_float),
        ("yarn_orig_ctx", C.c_uint32),
        ("defrag_thold", C.c_float),
        ("cb_eval", C.c_void_p),
        ("cb_eval_user_data", C.c_void_p),
        ("type_k", C.c_int),
        ("type_v", C.c_int),
        ("moe_cache_size", C.c_size_t),
        ("abort_callback", C.c_void_p),
        ("abort_callback_data", C.c_void_p),
        ("embeddings", C.c_bool),
        ("offload_kqv", C.c_bool),
        ("no_perf", C.c_bool),
        ("op_offload", C.c_bool),
        ("swa_full", C.c_bool),
        ("kv_unified", C.c_bool),
        ("samplers", C.c_void_p),
        ("n_samplers", C.c_size_t),
        ("ctx_other", C.c_void_p),
    ]


class Batch(C.Structure):
    """`llama_batch`."""

    _fields_ = [
        ("n_tokens", C.c_int32),
        ("token", C.POINTER(C.c_int32)),
        ("embd", C.POINTER(C.c_float)),
        ("pos", C.POINTER(C.c_int32)),
        ("n_seq_id", C.POINTER(C.c_int32)),
        ("seq_id", C.POINTER(C.POINTER(C.c_int32))),
        ("logits", C.POINTER(C.c_int8)),
    ]


def function(name: str, result: Any, *arguments: Any) -> Any:
    """C function `name` with its ctypes result and argument types.

    Raises AttributeError when the library does not export it.
    """
    f = LIB[name]  # its own object: another caller may give other types
    f.restype, f.argtypes = result, list(arguments)
    return f


@LOG_CALLBACK
def _silent(level: int, text: bytes, user_data: object) -> None:
    pass


# The callback must outlive the library, hence the module-level name.
function("llama_log_set", None, LOG_CALLBACK, C.c_void_p)(_silent, None)
function("ggml_log_set", None, LOG_CALLBACK, C.c_void_p)(_silent, None)
function("ggml_cpu_init", None)()

model_default_params = function("llama_model_default_params", ModelParams)
context_default_params = function("llama_context_default_params", ContextParams)


def check_layout() -> None:
    """Compare default parameters, whose values are known, at both ends of the structures.

    Raises RuntimeError when the installed llama.cpp has other structures.
    """
    m, c = model_default_params(), context_default_params()
    seen = {
        "n_gpu_layers": m.n_gpu_layers,
        "vocab_only": m.vocab_only,
        "use_extra_bufts": m.use_extra_bufts,
        "n_ctx": c.n_ctx,
        "n_batch": c.n_batch,
        "n_ubatch": c.n_ubatch,
        "n_seq_max": c.n_seq_max,
        "rope_scaling_type": c.rope_scaling_type,
        "yarn_ext_factor": c.yarn_ext_factor,
        "defrag_thold": c.defrag_thold,
        "type_k": c.type_k,
        "type_v": c.type_v,
        "offload_kqv": c.offload_kqv,
        "n_samplers": c.n_samplers,
    }
    known = {
        "n_gpu_layers": -1,
        "vocab_only": False,
        "use_extra_bufts": True,
        "n_ctx": 512,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_seq_max": 1,
        "rope_scaling_type": -1,
        "yarn_ext_factor": -1.0,
        "defrag_thold": -1.0,
        "type_k": 1,
        "type_v": 1,
        "offload_kqv": True,
        "n_samplers": 0,
    }
    if seen != known:
        wrong = {k: (seen[k], known[k]) for k in known if seen[k] != known[k]}
        raise RuntimeError(f"unknown llama.cpp build: default parameters (seen, known) {wrong}")


check_layout()
