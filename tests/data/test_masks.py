"""The trained tokens, to the character, for every layout of the package.

The expected tokens are computed only from the rendered text and the messages: each answer with the
token that ends its turn, in the vocabulary of the layout's family.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllama.data import Continuation, Conversation, Samples, load_dataset, prompt_ids
from nbllama.data.chat import ChatReader
from nbllama.data.encoding import encode_chat, encode_continuation
from nbllama.data.row import Encoded, Row
from nbllama.errors import DataError
from nbllama.gguf_io import open_gguf
from nbllama.text import LAYOUTS, ChatTemplate, Tokenizer, chat_template_for, tokenizer_from_gguf
from tests.text.vocabs import train_bpe, train_spm, write_vocab

Case = tuple[Tokenizer, ChatTemplate]

# layout -> (kind of vocabulary, its control tokens, the text that ends an answer)
FAMILIES = {
    "alpaca": ("spm", (), "</s>"),
    "baichuan": ("spm", ("<reserved_106>", "<reserved_107>"), "</s>"),
    "chatml": ("bpe", ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "llama-2": ("spm", (), " </s>"),
    "llama-3": (
        "bpe",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
    ),
}
TRIMS = ("llama-2", "llama-3")
CONTROL = 3


def spm_file(path: Path, control: tuple[str, ...]) -> Path:
    tokens, scores, types = train_spm(control=control)
    keys = {"add_bos_token": True, "bos_token_id": 1, "eos_token_id": 2}
    return write_vocab(path, "llama", tokens, scores=scores, types=types, keys=keys)


def bpe_file(path: Path, control: tuple[str, ...]) -> Path:
    tokens, types, merges = train_bpe()
    new = [t for t in control if t not in tokens]
    tokens, types = tokens + new, types + [CONTROL] * len(new)
    ids = {t: i for i, t in enumerate(tokens)}
    keys = {"bos_token_id": ids[control[0]], "eos_token_id": ids[control[-1]]}
    return write_vocab(path, "gpt2", tokens, types=types, merges=merges, pre="llama-bpe", keys=keys)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    made: dict[str, Case] = {}
    for name, (kind, control, _) in FAMILIES.items():
        path = tmp_path_factory.mktemp("vocabs") / f"{name}.gguf"
        with open_gguf({"spm": spm_file, "bpe": bpe_file}[kind](path, control)) as f:
            tokenizer = tokenizer_from_gguf(f)
        made[name] = tokenizer, chat_template_for(tokenizer, LAYOUTS[name].source)
    yield made
    for _, template in made.values():
        template.close()


def special(tokenizer: Tokenizer) -> set[int]:
    def shown(i: int, special: bool) -> bytes:
        return tokenizer.token_bytes(i, special=special)

    return {i for i in range(tokenizer.n_vocab) if shown(i, True) and not shown(i, False)}


def stretches(tokenizer: Tokenizer, encoded: Encoded | Row) -> list[bytes]:
    """The bytes of each unbroken stretch of trained tokens."""
    edges = np.flatnonzero(np.diff(encoded.trained, prepend=False, append=False))
    parts = [encoded.ids[a:b].tolist() for a, b in edges.reshape(-1, 2)]
    return [b"".join(map(tokenizer.token_bytes, part)) for part in parts]


WORDS = st.lists(
    st.sampled_from(
        ["the", " ", "x", "7", "é", "天地", "\U0001f600", "\n", "<|im_end|>", "</s>", "<s>",
         "<reserved_106>", "<reserved_107>", "<|eot_id|>", "<|start_header_id|>", "[/INST]",
         "### Response:\n", "<|im_start|>user\n"]
    ),
    min_size=1,
    max_size=6,
).map("".join)  # fmt: skip
# Answers here begin with a letter, so that no token crosses their first border.
ANSWERS = WORDS.map(lambda s: "a" + s + ".")


def chat(texts: list[str]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def test_every_layout_is_tested() -> None:
    assert FAMILIES.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("name", FAMILIES)
@given(turns=st.lists(st.tuples(WORDS, ANSWERS), min_size=1, max_size=3), system=st.booleans())
def test_answers_and_their_ends_are_trained(
    cases: dict[str, Case], name: str, turns: list[tuple[str, str]], system: bool
) -> None:
    tokenizer, template = cases[name]
    messages = chat([text for turn in turns for text in turn])
    if system:
        messages = [{"role": "system", "content": "Be the </s> brief."}, *messages]
    encoded = encode_chat(tokenizer, template, messages)
    found = stretches(tokenizer, encoded)
    end = FAMILIES[name][2]
    # Llama 2's answers begin with a space; SPM inserts one after a special token.
    lead = b" " if name in ("llama-2", "baichuan") else b""
    assert found == [lead + (answer + end).encode() for _, answer in turns]
    # Only the template's own special tokens are there: as many as with harmless messages.
    harmless = [m | {"content": "the"} for m in messages]
    plain = encode_chat(tokenizer, template, harmless)
    marks = special(tokenizer)
    assert [i for i in encoded.ids.tolist() if i in marks] == [
        i for i in plain.ids.tolist() if i in marks
    ]
    # The context before an answer is the prompt at inference.
    asked = prompt_ids(tokenizer, template, messages[:-1])
    before = encoded.ids[: np.flatnonzero(encoded.trained)[-1] + 1].tolist()
    assert before[: len(asked)] == asked


@pytest.mark.parametrize("name", FAMILIES)
def test_an_ordinary_chat_has_llama_cpps_ids(cases: dict[str, Case], name: str) -> None:
    """Without special tokens in messages the ids are those of the whole text, BOS once."""
    tokenizer, template = cases[name]
    messages = chat(["Who is it?", "The hand 天.", "And?", "No one."])
    text = template.render(messages, False)
    ids = tokenizer.encode(text, parse_special=True)
    if tokenizer.add_bos and ids[0] != tokenizer.bos_id:
        assert tokenizer.bos_id is not None
        ids = [tokenizer.bos_id, *ids]
    found = encode_chat(tokenizer, template, messages).ids.tolist()
    assert found == ids[: len(found)]
    # The rest is the template's white space after the end of the turn.
    assert not tokenizer.decode(ids[len(found) :]).strip()


def test_silent_answers_and_a_batch_of_chats(cases: dict[str, Case]) -> None:
    tokenizer, template = cases["chatml"]
    messages = chat(["q", "one", "q", "two"])
    reader = ChatReader(tokenizer, template)
    chats = [
        Conversation(messages),
        Conversation(messages, frozenset([1])),
        Conversation(messages, frozenset([3])),
        Conversation(messages[1:2]),
    ]
    *good, bad = reader.render(chats)
    (first,), (second,), (third,) = (reader.rows(one) for one in good)
    assert first.ids.tolist() == second.ids.tolist()
    assert stretches(tokenizer, first) == [b"one<|im_end|>", b"two<|im_end|>"]
    assert stretches(tokenizer, second) == [b"two<|im_end|>"]
    assert stretches(tokenizer, third) == [b"one<|im_end|>"]
    assert third.ids.tolist() == first.ids[: len(third.ids)].tolist()
    assert first.text == template.render(messages, False).removesuffix("\n")
    with pytest.raises(
        DataError, match="no answer to train on: the only answer is the first message"
    ):
        reader.rows(bad)


def test_a_prompt_and_what_follows(cases: dict[str, Case]) -> None:
    spm, bpe = cases["alpaca"][0], cases["llama-3"][0]
    found = encode_continuation(spm, Continuation("the </s>", " hand"))
    assert found.ids.tolist() == [1, *spm.encode("the </s> hand"), 2]
    assert found.ids.tolist().count(2) == 1
    assert stretches(spm, found) == [b" hand</s>"]
    # All of a document is trained except for the BOS before it.
    assert encode_continuation(spm, Continuation("", "hand")).trained.tolist()[:2] == [False, True]
    found = encode_continuation(bpe, Continuation("the", "<|eot_id|> hand"))
    assert bpe.bos_id is not None and bpe.add_bos == (found.ids[0] == bpe.bos_id)
    assert stretches(bpe, found) == [b"<|eot_id|> hand<|eot_id|>"]
    assert found.ids.tolist().count(bpe.eos_id) == 1


def load(path: Path, case: Case, n_ctx: int, **options: Any) -> Samples:
    data = load_dataset(path, case[0], n_ctx, template=case[1], **options)
    assert isinstance(data, Samples)
    return data


def lines(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def test_train_on_prompt(cases: dict[str, Case], tmp_path: Path) -> None:
    path = lines(tmp_path / "x", {"messages": chat(["q", "a"])}, {"messages": chat(["r", "b"])})
    some, every = (
        load(path, cases["chatml"], 99),
        load(path, cases["chatml"], 99, train_on_prompt=True),
    )
    for i in range(2):
        assert every.n_trained(i) == every.n_tokens(i) >= some.n_tokens(i) > some.n_trained(i)
        batch = every.batch([i])
        assert batch.targets[:-1].tolist() == batch.tokens[1:].tolist()
    assert some.fingerprint != every.fingerprint
    tokens, trained = some.lengths()
    assert tokens.tolist() == [some.n_tokens(i) for i in range(2)]
    assert trained.tolist() == [some.n_trained(i) for i in range(2)]


def test_train_on_prompt_contradicts_a_mask(cases: dict[str, Case], tmp_path: Path) -> None:
    masked: list[dict[str, Any]] = [*chat(["q", "a", "r", "b"])]
    masked[1]["loss"] = False
    path = lines(tmp_path / "x", {"messages": chat(["q", "a"])}, {"messages": masked})
    assert load(path, cases["chatml"], 99).n_trained(1) == 2
    with pytest.raises(DataError, match="line 2: message 2: it is excluded from training, but"):
        load(path, cases["chatml"], 99, train_on_prompt=True)
    assert load(path, cases["chatml"], 99, train_on_prompt=True, skip_bad=True).n_bad == 1
    prompt = {
        "prompt": chat(["q", "a", "r"]),
        "completion": [{"role": "assistant", "content": "b"}],
    }
    path = lines(tmp_path / "y", prompt)  # only the format excludes an answer, so all is trained
    every = load(path, cases["chatml"], 99, train_on_prompt=True)
    assert every.n_trained(0) == every.n_tokens(0)


def test_long_samples(cases: dict[str, Case], tmp_path: Path) -> None:
    spm = cases["alpaca"]
    path = lines(tmp_path / "x", {"text": "the hand"}, {"text": "x " * 40}, {"text": "the"})
    cut, skipped = load(path, spm, 20), load(path, spm, 20, on_long="skip")
    assert [cut.n_tokens(i) for i in range(3)][1] == 20 and cut.n_cut == 1
    assert skipped.lines.tolist() == [1, 3] and skipped.n_long == 1
    assert skipped.notes[0] == "1 of 3 samples were skipped because they are longer than 20 tokens"
    with pytest.raises(DataError, match=r"x, line 2: \d+ tokens exceed the context of 20"):
        load(path, spm, 20, on_long="refuse")
    with pytest.raises(ValueError, match="on_long 'x' is not one of cut, refuse, skip"):
        load(path, spm, 20, on_long="x")


def test_records_that_the_template_refuses_are_bad_ones(
    cases: dict[str, Case], tmp_path: Path
) -> None:
    tool = [*chat(["q", "a"]), {"role": "tool", "content": "t"}, *chat(["q", "a"])]
    good = {"messages": chat(["q", "a"])}
    path = lines(tmp_path / "x", good, {"messages": tool}, {"messages": [{}]}, good)
    with pytest.raises(DataError, match=r"x, line 3: message 1: the key \"role\" is missing"):
        load(path, cases["llama-2"], 99)
    found = load(path, cases["llama-2"], 99, skip_bad=True)
    assert found.lines.tolist() == [1, 4] and found.n_bad == 2
    assert found.notes[0] == (
        "2 of 4 records are bad and were skipped; first: line 2: the given chat template "
        "rejects the messages: llama-2 has no role tool"
    )
    lines(path, good, {"messages": tool})
    with pytest.raises(DataError, match=r"x, line 2: .* llama-2 has no role tool"):
        load(path, cases["llama-2"], 99)
    lines(path, {"messages": tool})
    with pytest.raises(DataError, match=r"x contains nothing to train on; line 1: .*no role tool"):
        load(path, cases["llama-2"], 99, skip_bad=True)


def test_documents_need_no_template(cases: dict[str, Case], tmp_path: Path) -> None:
    tokenizer, _ = cases["alpaca"]
    read = partial(load_dataset, tokenizer=tokenizer, n_ctx=50, template=None)
    assert read(lines(tmp_path / "x", {"text": "the"})).n_samples == 1
    with pytest.raises(DataError, match="x contains chats, but the model has no chat template"):
        read(lines(tmp_path / "x", {"messages": chat(["q", "a"])}))


def test_progress_is_told(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbllama.data.encoding._REPORT_SECONDS", 0.0)
    said: list[str] = []
    path = lines(tmp_path / "x", *({"text": f"the {i}"} for i in range(130)))
    data = load(path, cases["alpaca"], 50, progress=said.append)
    assert data.n_samples == 130
    assert [s.rpartition(",")[0] for s in said] == [
        f"[{bar}] tokenised {n} of 130 records"
        for n, bar in ((64, "#" * 9 + "." * 11), (128, "#" * 19 + "."), (130, "#" * 20))
    ]
