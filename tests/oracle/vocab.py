"""llama.cpp's tokenizer of a GGUF file (loaded `vocab_only`, no weights are read)."""

from __future__ import annotations

import ctypes as C
import os
from collections.abc import Sequence
from typing import TypeVar

from tests.oracle.lib import ModelParams, function, model_default_params

_P = C.c_void_p
Opened = TypeVar("Opened", bound="OpenModel")

load_model = function("llama_model_load_from_file", _P, C.c_char_p, ModelParams)
free_model = function("llama_model_free", None, _P)
get_vocab = function("llama_model_get_vocab", _P, _P)
_tokenize = function(
    "llama_tokenize", C.c_int32, _P, C.c_char_p, C.c_int32, _P, C.c_int32, C.c_bool, C.c_bool
)
_to_piece = function(
    "llama_token_to_piece", C.c_int32, _P, C.c_int32, _P, C.c_int32, C.c_int32, C.c_bool
)
_detokenize = function(
    "llama_detokenize", C.c_int32, _P, _P, C.c_int32, _P, C.c_int32, C.c_bool, C.c_bool
)
_n_tokens = function("llama_vocab_n_tokens", C.c_int32, _P)
_is_eog = function("llama_vocab_is_eog", C.c_bool, _P, C.c_int32)
_add_bos = function("llama_vocab_get_add_bos", C.c_bool, _P)
_add_eos = function("llama_vocab_get_add_eos", C.c_bool, _P)
_SPECIAL = {
    name: function(f"llama_vocab_{name}", C.c_int32, _P) for name in ("bos", "eos", "eot", "pad")
}


class OpenModel:
    """A model that llama.cpp holds until `close` or the `with` ends.

    Raises RuntimeError when llama.cpp cannot load the file.
    """

    def __init__(self, path: str | os.PathLike[str], params: ModelParams) -> None:
        self._model = load_model(os.fsencode(path), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {os.fspath(path)}")

    def close(self) -> None:
        """Free the model; twice is harmless."""
        if self._model:
            free_model(self._model)
        self._model = None

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self.close()


class Vocab:
    """The vocabulary of a model that the caller keeps alive.

    Attributes: n_tokens, bos, eos, eot, pad (int or None), add_bos, add_eos (bool),
    eog (frozenset of the ids that end a generation).
    """

    def __init__(self, handle: int) -> None:
        self._vocab = handle
        self.n_tokens: int = _n_tokens(handle)
        ids = {name: f(handle) for name, f in _SPECIAL.items()}
        self.bos, self.eos, self.eot, self.pad = (
            ids[name] if ids[name] >= 0 else None for name in ("bos", "eos", "eot", "pad")
        )
        self.add_bos: bool = _add_bos(handle)
        self.add_eos: bool = _add_eos(handle)
        self.eog = frozenset(i for i in range(self.n_tokens) if _is_eog(handle, i))

    def tokenize(
        self, text: bytes | str, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """`llama_tokenize`: ids of `text` (str is encoded as UTF-8).

        Bytes that are not UTF-8 make llama.cpp throw on some vocabularies, which ends the process.
        """
        data = text.encode() if isinstance(text, str) else text
        ids = (C.c_int32 * (len(data) + 8))()
        n = _tokenize(self._vocab, data, len(data), ids, len(ids), add_special, parse_special)
        if n < 0:
            raise RuntimeError(f"llama_tokenize returned {n} for {len(data)} bytes")
        return list(ids[:n])

    def token_to_piece(self, token: int, special: bool = False) -> bytes:
        """`llama_token_to_piece`: bytes of one token; control tokens are empty unless `special`."""
        if not 0 <= token < self.n_tokens:
            raise ValueError(f"token {token} is not in 0..{self.n_tokens - 1}")
        buffer = C.create_string_buffer(256)
        n = _to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if n < 0:
            buffer = C.create_string_buffer(-n)
            n = _to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n]

    def detokenize(
        self, ids: Sequence[int], remove_special: bool = False, unparse_special: bool = False
    ) -> bytes:
        """`llama_detokenize`: bytes of many tokens (may drop the leading space SPM adds).

        `remove_special` drops BOS and EOS; `unparse_special` renders control tokens.
        """
        array = (C.c_int32 * max(1, len(ids)))(*ids)
        n, size = -256, 0
        while n < 0:
            size = -n
            buffer = C.create_string_buffer(size)
            n = _detokenize(
                self._vocab, array, len(ids), buffer, size, remove_special, unparse_special
            )
        return buffer.raw[:n]


class LlamaVocab(Vocab, OpenModel):
    """The vocabulary of a GGUF file; keeps the model handle until `close` or the `with` ends.

    Raises RuntimeError when llama.cpp cannot load the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        params = model_default_params()
        params.vocab_only = True
        OpenModel.__init__(self, path, params)
        Vocab.__init__(self, get_vocab(self._model))
