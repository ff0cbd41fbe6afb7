"""Create the tokenizer for the kind of vocabulary in a GGUF file."""

from __future__ import annotations

from nbllama.gguf_io import GGUFFile
from nbllama.text.bpe import BpeTokenizer
from nbllama.text.spaced_bpe import SpacedBpeTokenizer
from nbllama.text.spm import SpmTokenizer
from nbllama.text.tokenizer import Tokenizer
from nbllama.text.vocab import read_vocab


def tokenizer_from_gguf(f: GGUFFile, pre: str | None = None) -> Tokenizer:
    """Return the tokenizer for `f`.

    It uses SentencePiece if `tokenizer.ggml.model` is "llama", and BPE otherwise. `pre` overrides
    the pre-tokenizer name in the file. Raises GGUFError if the vocabulary is damaged or not
    supported, and UsageError if `pre` is invalid (see `read_vocab`).
    """
    vocab = read_vocab(f, pre)
    if vocab.model == "llama":
        return SpmTokenizer(vocab)
    if vocab.model == "gemma4":
        return SpacedBpeTokenizer(vocab)
    return BpeTokenizer(vocab)
