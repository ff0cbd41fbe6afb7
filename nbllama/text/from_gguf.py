"""The tokenizer of a GGUF file, by the kind of its vocabulary."""

from __future__ import annotations

from nbllama.gguf_io import GGUFFile
from nbllama.text.bpe import BpeTokenizer
from nbllama.text.spaced_bpe import SpacedBpeTokenizer
from nbllama.text.spm import SpmTokenizer
from nbllama.text.tokenizer import Tokenizer
from nbllama.text.vocab import read_vocab


def tokenizer_from_gguf(f: GGUFFile, pre: str | None = None) -> Tokenizer:
    """Return the tokenizer of `f`: SentencePiece for the model "llama", BPE for the others.

    The model is the value of `tokenizer.ggml.model`. `pre`: the pre-tokenizer's name instead of the
    file's. Raises GGUFError for a vocabulary that is damaged or not supported, and UsageError for
    an invalid `pre` (see `read_vocab`).
    """
    vocab = read_vocab(f, pre)
    if vocab.model == "llama":
        return SpmTokenizer(vocab)
    if vocab.model == "gemma4":
        return SpacedBpeTokenizer(vocab)
    return BpeTokenizer(vocab)
