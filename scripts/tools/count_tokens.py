"""Count a text's tokens in the vocabularies of GGUF files, as lines of a Markdown table.

Ids are compared with llama.cpp's before they are counted. "in bytes" counts tokens that are a
single byte of a character, which replace characters that are missing in a vocabulary.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nbllama.gguf_io import open_gguf
from nbllama.text.from_gguf import tokenizer_from_gguf
from tests.oracle import LlamaVocab


def row(name: str, text: str) -> str:
    """Return `| file | kind | vocabulary size | tokens | characters per token | in bytes |`."""
    with open_gguf(name) as f:
        tokenizer = tokenizer_from_gguf(f)
        kind = {"llama": "SentencePiece", "gpt2": "BPE"}[f.get("tokenizer.ggml.model", "str")]
        if kind == "BPE":
            kind += f" `{f.get('tokenizer.ggml.pre', 'str', 'default')}`"
    ids = tokenizer.encode(text)
    with LlamaVocab(name) as theirs:
        if theirs.tokenize(text) != ids:
            raise SystemExit(f"error: {name}: the ids differ from llama.cpp's")
    pieces = (tokenizer.token_bytes(i) for i in ids)
    single = sum(len(piece) == 1 and piece[0] >= 0x80 for piece in pieces)
    size, each = f"{tokenizer.n_vocab:,}", f"{len(text) / len(ids):.2f}"
    return f"| `{Path(name).name}` | {kind} | {size} | {len(ids):,} | {each} | {single:,} |"


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("text", metavar="TEXT", help="a file in UTF-8")
    p.add_argument("models", metavar="MODEL.gguf", nargs="+", help="models or vocabulary files")
    given = p.parse_args()
    text = Path(given.text).read_text(encoding="utf-8")
    print(f"{len(text):,} characters, {len(text.encode()):,} bytes\n")
    print("| file | tokenizer | vocabulary | tokens | characters per token | in bytes |")
    print("|---|---|---|---|---|---|")
    for name in given.models:
        print(row(name, text))


if __name__ == "__main__":
    main()
