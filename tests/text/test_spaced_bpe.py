"""BPE with spaces as U+2581 and bytes for unknown characters: ids equal to llama.cpp's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nbllama.errors import GGUFError, UsageError
from nbllama.gguf_io import open_gguf
from nbllama.text import Tokenizer, tokenizer_from_gguf
from nbllama.text.spaced_bpe import SpacedBpeTokenizer
from tests.oracle import LlamaVocab
from tests.text.conftest import load
from tests.text.strings import CHINESE, CODE, ENGLISH, test_strings
from tests.text.vocabs import write_vocab

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPECIAL = {
    "<pad>": CONTROL,
    "<eos>": CONTROL,
    "<bos>": CONTROL,
    "<unk>": UNKNOWN,
    "<|turn>": CONTROL,
    "<turn|>": CONTROL,
    "<|tool_response>": USER_DEFINED,
    "<|channel>": USER_DEFINED,
    "</s>": NORMAL,
}
BYTES = [f"<0x{b:02X}>" for b in range(256)]
RUNS = ["\n", "\n\n", "\n\n\n\n"]  # of line feeds: three are no token
Parts = tuple[list[str], list[int], list[str]]


@pytest.fixture(scope="module")
def parts() -> Parts:
    """Tokens, types and merges of a vocabulary that was trained on whole lines."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    trainer = trainers.BpeTrainer(
        vocab_size=1500, show_progress=False, limit_alphabet=300, max_token_length=12
    )
    texts = [ENGLISH, CHINESE, CODE, *test_strings(2000, [], seed=3)]
    lines = [t.replace(" ", "\u2581").replace("\0", "") for t in texts]
    library.train_from_iterator(lines, trainer)
    model = json.loads(library.to_str())["model"]
    learnt = [t for t in sorted(model["vocab"], key=model["vocab"].get) if t not in SPECIAL]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    tokens = [*SPECIAL, *BYTES, *RUNS, *learnt]
    types = [*SPECIAL.values(), *[BYTE] * 256, *[NORMAL] * (len(RUNS) + len(learnt))]
    return tokens, types, merges


def write(path: Path, parts: Parts, **keys: object) -> Path:
    tokens, types, merges = parts
    ids = {"bos_token_id": 2, "eos_token_id": 1, "padding_token_id": 0, "unknown_token_id": 3}
    return write_vocab(path, "gemma4", tokens, types=types, merges=merges, keys=ids | keys)


@pytest.fixture(scope="module")
def path(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma4")
    return write(folder / "v.gguf", parts, add_bos_token=True, add_space_prefix=False)


def strings(n: int) -> list[str]:
    own = [
        "",
        "a\nb",
        " a  b   c",
        "\n\n\n",
        "x\n\n\n\n\ny\n",
        "\u2581 \u2581a",
        "\U0001f600\u20ac<0x0A>",
        "a\r\nb\t\tc",
        "<|turn>user\nHi<turn|>\n</s>",
        "<|channel>thought\n<|tool_response>",
    ]
    return own + test_strings(n, list(SPECIAL), seed=4, size=9)


def test_ids(path: Path) -> None:
    tokenizer = load(path)
    assert isinstance(tokenizer, SpacedBpeTokenizer)
    with LlamaVocab(path) as llama:
        assert (tokenizer.bos_id, tokenizer.eos_id) == (llama.bos, llama.eos)
        assert (tokenizer.add_bos, tokenizer.eog_ids) == (llama.add_bos, llama.eog)
        for s in strings(600):
            for parse in (False, True):
                ids = tokenizer.encode(s, add_special=True, parse_special=parse)
                assert ids == llama.tokenize(s, True, parse), s
                pieces = b"".join(llama.token_to_piece(i) for i in ids)
                assert tokenizer.decode_bytes(ids) == pieces
        for i in range(tokenizer.n_vocab):
            assert tokenizer.token_bytes(i) == llama.token_to_piece(i, True), i


def test_starts(path: Path) -> None:
    """Each token begins where its text is, or with its character if it is a byte of one."""
    tokenizer = load(path)
    for s in strings(100):
        ids, starts = tokenizer.encode_with_starts(s, parse_special=True)
        assert ids == tokenizer.encode(s, parse_special=True)
        assert starts == sorted(starts)
        for i, start in zip(ids, starts, strict=True):
            piece = tokenizer.token_bytes(i)
            if tokenizer.token_text(i) in BYTES and not s.startswith("<0x", start):
                assert piece in s[start].encode()
            elif "\u2581" not in s:
                assert s[start:].encode().startswith(piece), (s, start)


def test_cuts_change_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load(path)
    text = "".join(s + "\n" for s in strings(200))
    whole = tokenizer.encode(text)
    monkeypatch.setattr(Tokenizer, "CHUNK", 1)
    cut = list(tokenizer.encode_parts(text))
    assert len(cut) > 100
    assert [i for part in cut for i in part] == whole


def test_bos_whatever_the_key_says(parts: Parts, tmp_path: Path) -> None:
    path = write(tmp_path / "v.gguf", parts, add_bos_token=False)
    with LlamaVocab(path) as llama:
        assert llama.add_bos
        assert load(path).encode("a", add_special=True) == llama.tokenize("a", True, False)


def test_refusals(parts: Parts, path: Path, tmp_path: Path) -> None:
    tokens, types, merges = parts
    at = tokens.index("<0x41>")
    less = [*tokens[:at], "missing", *tokens[at + 1 :]], [*types[:at], 1, *types[at + 1 :]], merges
    with pytest.raises(GGUFError, match="'<0x41>' is missing, but gemma4 requires it"):
        load(write(tmp_path / "v.gguf", less))
    with open_gguf(path) as f, pytest.raises(UsageError, match="gemma4 vocabulary has no pre-tok"):
        tokenizer_from_gguf(f, "gpt-2")
