"""Vocabulary-only GGUF files, made for the tests: SentencePiece and BPE, written by `gguf`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from tests.text.strings import CHINESE, CODE, ENGLISH, OTHER, test_strings

CONTROL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def write_vocab(
    path: Path,
    model: str,
    tokens: Sequence[str] | Sequence[bytes],
    *,
    types: Sequence[int] | None = None,
    scores: Sequence[float] | None = None,
    merges: Sequence[str] | None = None,
    pre: str | None = None,
    keys: dict[str, Any] | None = None,
) -> Path:
    """A GGUF with a vocabulary and no tensors. `keys`: more of `tokenizer.ggml.*` or full names;
    a value of None leaves a key out."""
    w = GGUFWriter(path, "llama")
    w.add_tokenizer_model(model)
    w.add_token_list(tokens)
    if types is not None:
        w.add_token_types(list(types))
    if scores is not None:
        w.add_token_scores(list(scores))
    if merges is not None:
        w.add_token_merges(list(merges))
    if pre is not None:
        w.add_tokenizer_pre(pre)
    for key, value in (keys or {}).items():
        name = key if "." in key else f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            w.add_bool(name, value)
        elif isinstance(value, int):
            w.add_uint32(name, value)
        elif isinstance(value, str):
            w.add_string(name, value)
        elif value is not None:
            w.add_array(name, value)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def train_spm(
    vocab_size: int = 900, user_defined: Sequence[str] = (), control: Sequence[str] = ()
) -> tuple[list[str], list[float], list[int]]:
    """Texts, scores and types of a SentencePiece BPE model with byte fallback."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2 as schema

    lines = (ENGLISH + CHINESE + CODE + OTHER) * 4
    lines += "\n".join(test_strings(400, [], seed=7)).replace("\0", "")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines.split("\n")),
        model_writer=model,
        model_type="bpe",
        byte_fallback=True,
        vocab_size=vocab_size,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=list(user_defined),
        control_symbols=list(control),
        minloglevel=2,
    )
    pieces = schema.ModelProto.FromString(model.getvalue()).pieces  # type: ignore[attr-defined]
    return [p.piece for p in pieces], [p.score for p in pieces], [p.type for p in pieces]


def train_bpe(vocab_size: int = 2400) -> tuple[list[str], list[int], list[str]]:
    """Tokens, types and merges of a byte-level BPE that was trained on whole lines.

    Its merges reach over every place where a pre-tokenizer may cut, so that a cut too many or too
    few changes the ids.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=12,
    )
    pieces = (s[i : i + 8] for s in test_strings(6000, [], seed=3) for i in range(0, len(s), 3))
    library.train_from_iterator(pieces, trainer)
    import json

    model = json.loads(library.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    types = [int(TokenType.NORMAL)] * len(tokens) + [int(TokenType.CONTROL)] * len(CONTROL)
    return tokens + list(CONTROL), types, merges
