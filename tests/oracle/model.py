"""Whole models on llama.cpp's CPU path: logits of every position, adapters, greedy text."""

from __future__ import annotations

import ctypes as C
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tests.oracle.lib import (
    EVAL_CALLBACK,
    Batch,
    ContextParams,
    Tensor,
    context_default_params,
    function,
    model_default_params,
)
from tests.oracle.ops import read_strided
from tests.oracle.vocab import OpenModel, Vocab, get_vocab

_P = C.c_void_p

_new_context = function("llama_init_from_model", _P, _P, ContextParams)
_free_context = function("llama_free", None, _P)
_decode = function("llama_decode", C.c_int32, _P, Batch)
_get_logits = function("llama_get_logits", C.POINTER(C.c_float), _P)
_batch_init = function("llama_batch_init", Batch, C.c_int32, C.c_int32, C.c_int32)
_batch_free = function("llama_batch_free", None, Batch)
_adapter_init = function("llama_adapter_lora_init", _P, _P, C.c_char_p)
_adapter_free = function("llama_adapter_lora_free", None, _P)
_get_memory = function("llama_get_memory", _P, _P)
_seq_rm = function("llama_memory_seq_rm", C.c_bool, _P, C.c_int32, C.c_int32, C.c_int32)
_seq_add = function("llama_memory_seq_add", None, _P, C.c_int32, C.c_int32, C.c_int32, C.c_int32)
_set_adapters = function("llama_set_adapters_lora", C.c_int32, _P, _P, C.c_size_t, _P)

Lora = Sequence[tuple["str | os.PathLike[str]", float]]


class LlamaModel(OpenModel):
    """A GGUF file in llama.cpp: no flash attention, float32 KV cache, no repacked weights.

    llama.cpp rounds activations to the weights' companion type (Q8_0, Q8_K, F16, BF16) in every
    product with a weight that is not F32; compare with a file of F32 weights for tight bounds.
    Every call makes its own context, so nothing is carried from one call to the next.
    Raises RuntimeError when llama.cpp cannot load the file.
    """

    def __init__(self, path: str | os.PathLike[str], n_ctx: int = 512, n_threads: int = 1) -> None:
        params = model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = False
        super().__init__(path, params)
        self.vocab = Vocab(get_vocab(self._model))
        self.n_ctx, self.n_threads = n_ctx, n_threads

    def logits(self, tokens: Sequence[int], lora: Lora = ()) -> np.ndarray:
        """float32 [N, V]: logits of all positions of one sequence.

        `lora` is a list of (adapter GGUF path, scale); today's llama.cpp multiplies the pair's
        product by scale * adapter.lora.alpha / rank.
        """
        with self._context(lora) as context:
            return self._run(context, tokens, 0)

    def greedy(self, tokens: Sequence[int], n: int, lora: Lora = ()) -> list[int]:
        """The `n` most likely next tokens, one at a time (fewer if a generation ends)."""
        out: list[int] = []
        with self._context(lora) as context:
            new, start = list(tokens), 0
            while len(out) < n:
                best = int(self._run(context, new, start)[-1].argmax())
                if best in self.vocab.eog:
                    break
                out.append(best)
                new, start = [best], start + len(new)
        return out

    def greedy_logits(self, tokens: Sequence[int], n: int, lora: Lora = ()) -> Iterator[np.ndarray]:
        """float32 [V] before each token of `greedy`, that of the generation's end excepted."""
        with self._context(lora) as context:
            new, start = list(tokens), 0
            for _ in range(n):
                row = self._run(context, new, start)[-1]
                best = int(row.argmax())
                if best in self.vocab.eog:
                    return
                yield row
                new, start = [best], start + len(new)

    def nodes(self, tokens: Sequence[int], wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
        """float32 arrays that a pass computes, by the names that llama.cpp gives its nodes, for
        the names in `wanted`. A name that is used more than once has its last array:
        "Qcur-0" is after RoPE.

        They are taken by `cb_eval`, which llama.cpp calls before each node (to ask whether its
        data is wanted) and after it. Shapes are numpy's, leading dimensions of 1 left out.
        """
        found: dict[str, np.ndarray] = {}
        wrong: list[BaseException] = []

        def seen(address: int, ask: bool, _: object) -> bool:
            try:
                tensor = C.cast(address, C.POINTER(Tensor))
                name = tensor.contents.name.decode()
                if not ask and wanted(name):
                    found[name] = read_strided(tensor)
                return wanted(name) or not ask
            except BaseException as error:  # nothing may leave through C
                wrong.append(error)
                return False

        callback = EVAL_CALLBACK(seen)
        with self._context((), callback) as context:
            self._run(context, tokens, 0)
        if wrong:
            raise wrong[0]
        return found

    def shifted_logits(
        self, tokens: Sequence[int], at: int, count: int, more: Sequence[int]
    ) -> np.ndarray:
        """float32 [N, V] of `more` after `tokens` of which `count` from `at` on were taken out of
        the context, and those after them moved down, like llama.cpp's context shift.
        """
        with self._context(()) as context:
            self._run(context, tokens, 0)
            memory = _get_memory(context)
            if not _seq_rm(memory, 0, at, at + count):
                raise RuntimeError("llama_memory_seq_rm failed")
            _seq_add(memory, 0, at + count, len(tokens), -count)
            return self._run(context, more, len(tokens) - count)

    def _run(self, context: int, tokens: Sequence[int], start: int) -> np.ndarray:
        n = len(tokens)
        if not 0 < n <= self.n_ctx - start:
            raise ValueError(f"{n} tokens at position {start} do not fit n_ctx {self.n_ctx}")
        if min(tokens) < 0 or max(tokens) >= self.vocab.n_tokens:
            raise ValueError(f"a token is not in 0..{self.vocab.n_tokens - 1}")
        batch = _batch_init(n, 0, 1)
        try:
            batch.n_tokens = n
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i] = int(token), start + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = 1
            if status := _decode(context, batch):
                raise RuntimeError(f"llama_decode returned {status}")
        finally:
            _batch_free(batch)
        n_vocab = self.vocab.n_tokens
        return np.ctypeslib.as_array(_get_logits(context), shape=(n, n_vocab)).copy()

    @contextmanager
    def _context(self, lora: Lora, eval_callback: Any = None) -> Iterator[int]:
        params = context_default_params()
        if eval_callback is not None:
            params.cb_eval = C.cast(eval_callback, _P)
        params.n_ctx = params.n_batch = self.n_ctx
        params.n_ubatch = min(512, self.n_ctx)
        params.n_threads = params.n_threads_batch = self.n_threads
        params.flash_attn_type = 0
        params.type_k = params.type_v = 0
        # llama.cpp sizes the compute graph of a context by the adapters that exist by then.
        adapters = []
        context = None
        try:
            for path, _ in lora:
                adapter = _adapter_init(self._model, os.fsencode(path))
                if not adapter:
                    raise RuntimeError(f"llama.cpp cannot load the adapter {os.fspath(path)}")
                adapters.append(adapter)
            context = _new_context(self._model, params)
            if not context:
                raise RuntimeError("llama_init_from_model failed")
            if adapters:
                handles = (_P * len(adapters))(*adapters)
                scales = (C.c_float * len(adapters))(*[scale for _, scale in lora])
                if status := _set_adapters(context, handles, len(adapters), scales):
                    raise RuntimeError(f"llama_set_adapters_lora returned {status}")
            yield context
        finally:
            if context:
                _free_context(context)
            for adapter in adapters:
                _adapter_free(adapter)
