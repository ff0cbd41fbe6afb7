from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllama.data import Samples, load_dataset, prompt_ids
from nbllama.data.encoding import encode_chat
from nbllama.errors import DataError, GGUFError
from nbllama.text import Tokenizer
from nbllama.text.chat_template import ChatTemplate

Lines = Callable[..., Path]
U, A, S = "user", "assistant", "system"


def load_chat(path: Path, tokenizer: Tokenizer, n_ctx: int, template: ChatTemplate) -> Samples:
    data = load_dataset(path, tokenizer, n_ctx, template=template, data_format="chat")
    assert isinstance(data, Samples)
    return data


def trained_text(tokenizer: Tokenizer, data: Samples, i: int) -> list[str]:
    """Text of each unbroken stretch of trained targets of sample i."""
    batch = data.batch([i])
    stretches: list[list[int]] = [[]]
    for target in batch.targets.tolist():
        if target >= 0:
            stretches[-1].append(target)
        elif stretches[-1]:
            stretches.append([])
    return [tokenizer.decode(s, special=True) for s in stretches if s]


def test_one_turn(bpe: Tokenizer, chatml: ChatTemplate, write_lines: Lines) -> None:
    """Computed by hand: ids 3 + byte, 1 <|im_start|>, 2 <|im_end|>, and the merges of the toy."""
    data = load_chat(write_lines([(U, "q"), (A, "x!")]), bpe, 64, chatml)
    batch = data.batch([0])
    user, assistant = bpe.encode("user\nq"), bpe.encode("assistant\n")
    x, bang, newline = 3 + ord("x"), 3 + ord("!"), 3 + ord("\n")
    assert batch.tokens.tolist() == [1, *user, 2, newline, 1, *assistant, x, bang]
    n_prompt = len(user) + len(assistant) + 4
    assert batch.targets.tolist() == [-1] * (n_prompt - 1) + [x, bang, 2]
    assert batch.positions.tolist() == list(range(n_prompt + 2))
    assert batch.seq_offsets.tolist() == [0, n_prompt + 2]
    assert (data.kind, data.n_samples, data.notes) == ("chat", 1, ())
    assert data.n_tokens(0) == n_prompt + 2
    assert data.n_trained(0) == batch.n_trained == 3
    assert (data.n_cut, data.n_dropped) == (0, 0)


def test_turns_and_system(bpe: Tokenizer, chatml: ChatTemplate, write_lines: Lines) -> None:
    chats = (
        [(S, "be kind"), (U, "one"), (A, "first"), (U, "two"), (A, "second"), (U, "three")],
        [(A, "hello"), (U, "you"), (A, "there")],
        [(U, "a"), (A, "b"), (A, "c")],
    )
    data = load_chat(write_lines(*chats), bpe, 512, chatml)
    texts = [trained_text(bpe, data, i) for i in range(3)]
    assert texts == [
        ["first<|im_end|>", "second<|im_end|>"],
        ["there<|im_end|>"],
        ["b<|im_end|>", "c<|im_end|>"],
    ]
    whole = data.batch([0, 1, 2])
    assert whole.n_sequences == 3
    assert np.diff(whole.seq_offsets).tolist() == [data.n_tokens(i) for i in range(3)]
    assert whole.n_trained == sum(data.n_trained(i) for i in range(3))
    parts = [data.batch([i]) for i in range(3)]
    for name in ("tokens", "targets", "positions"):
        joined = np.concatenate([getattr(p, name) for p in parts])
        assert getattr(whole, name).tolist() == joined.tolist()
    assert data.batch([2, 0]).tokens.tolist() == [*parts[2].tokens, *parts[0].tokens]


def test_the_sequence_is_the_whole_text(
    demo_tokenizer: Tokenizer, demo_template: ChatTemplate, write_lines: Lines
) -> None:
    """Tokens and last target spell the rendered chat, up to the last answer."""
    chat = [(U, "Who?\n"), (A, " Odette, née 中  "), (U, "\nAnd?"), (A, "No \U00020000 one.")]
    data = load_chat(write_lines(chat), demo_tokenizer, 512, demo_template)
    batch = data.batch([0])
    text = demo_template.render([{"role": r, "content": c} for r, c in chat], False)
    expected = demo_tokenizer.encode(text, parse_special=True)
    assert [*batch.tokens.tolist(), batch.targets[-1]] == expected[:-1]  # without the last "\n"
    assert demo_tokenizer.decode(expected[-1:]) == "\n"
    shifted = expected[1:-1]
    assert all(t in (-1, s) for t, s in zip(batch.targets.tolist(), shifted, strict=True))
    assert trained_text(demo_tokenizer, data, 0) == [
        " Odette, née 中  <|im_end|>",
        "No \U00020000 one.<|im_end|>",
    ]


@given(
    question=st.text(st.sampled_from("ab \n<|>?é"), max_size=12),
    answer=st.text(st.sampled_from("ab .é7\n"), min_size=1, max_size=12).filter(str.strip),
)
def test_training_sees_what_generation_sees(
    demo_tokenizer: Tokenizer, demo_template: ChatTemplate, question: str, answer: str
) -> None:
    """The tokens before the first trained target are the prompt that asks for the answer.

    (Unless the answer begins with white space that makes a token with the prompt's last "\\n".)
    """
    messages = [{"role": U, "content": question}, {"role": A, "content": answer}]
    prompt = prompt_ids(demo_tokenizer, demo_template, messages[:1])
    encoded = encode_chat(demo_tokenizer, demo_template, messages)
    first = int(np.flatnonzero(encoded.trained)[0])
    assert encoded.ids[:first].tolist() == prompt
    # The tokens of the answer and its end of turn, nothing after it.
    assert encoded.trained[first:].all()
    spelled = demo_tokenizer.decode(encoded.ids[first:].tolist(), special=True)
    assert spelled == answer + "<|im_end|>"


@pytest.mark.parametrize("answer", [" 7 boxes", "\n\nPage two.", "  two", "\n one"])
def test_no_token_reaches_across_the_border(
    demo_tokenizer: Tokenizer, demo_template: ChatTemplate, answer: str
) -> None:
    """In one text the template's "\n" and the answer's white space would make one token, which
    inference never sees: it has the prompt's tokens, and continues with the answer's.
    """
    messages = [{"role": U, "content": "q"}, {"role": A, "content": answer}]
    encoded = encode_chat(demo_tokenizer, demo_template, messages)
    prompt = prompt_ids(demo_tokenizer, demo_template, messages[:1])
    alone = demo_tokenizer.encode(answer + "<|im_end|>", parse_special=True)
    assert encoded.ids.tolist() == prompt + alone
    assert encoded.trained.tolist() == [False] * len(prompt) + [True] * len(alone)
    whole = demo_tokenizer.encode(demo_template.render(messages, False), parse_special=True)
    assert whole[: len(prompt)] != prompt


def test_special_tokens_in_messages_are_words(
    demo_tokenizer: Tokenizer, demo_template: ChatTemplate, write_lines: Lines
) -> None:
    chat = [(U, "Say <|im_end|>"), (A, "<|im_end|>\n<|im_start|>user\nhi<|im_end|>")]
    data = load_chat(write_lines(chat), demo_tokenizer, 512, demo_template)
    batch = data.batch([0])
    start, end = 1, 2
    assert batch.tokens.tolist().count(start) == 3  # system (the template's own), user, assistant
    assert batch.tokens.tolist().count(end) == 2
    assert batch.targets.tolist().count(end) == 1 and batch.targets[-1] == end
    assert trained_text(demo_tokenizer, data, 0) == [chat[1][1] + "<|im_end|>"]
    asked = prompt_ids(demo_tokenizer, demo_template, [{"role": U, "content": chat[0][1]}])
    assert asked.count(end) == 2 and batch.tokens.tolist()[: len(asked)] == asked


def test_spm_with_a_trimming_template(
    spm: Tokenizer, trimming: ChatTemplate, write_lines: Lines
) -> None:
    data = load_chat(
        write_lines([(U, " the "), (A, " hand "), (U, "a"), (A, "b")]), spm, 99, trimming
    )
    batch = data.batch([0])
    text = "<s>[INST] the [/INST] hand </s>[INST] a [/INST] b </s>"
    assert [*batch.tokens.tolist(), batch.targets[-1]] == spm.encode(text, parse_special=True)
    targets = batch.targets[batch.targets >= 0].tolist()
    assert spm.decode_bytes(targets, special=True) == b"hand </s> b </s>"
    assert targets.count(2) == 2 and batch.tokens.tolist().count(1) == 1


def test_bos_that_the_template_does_not_write(
    spm: Tokenizer, chatml: ChatTemplate, write_lines: Lines
) -> None:
    data = load_chat(write_lines([(U, "a"), (A, "b")]), spm, 512, chatml)
    assert data.batch([0]).tokens.tolist()[:2] == [1, spm.encode("<|im_start|>")[0]]
    assert prompt_ids(spm, chatml, [{"role": U, "content": "a"}])[0] == 1


class TestLength:
    """A chat of 8 ids of prompt... cut at each possible length."""

    CHAT = ((U, "q"), (A, "xyx"), (U, "q"), (A, "!"))

    def test_every_n_ctx(self, bpe: Tokenizer, chatml: ChatTemplate, write_lines: Lines) -> None:
        path = write_lines(list(self.CHAT))
        whole = load_chat(path, bpe, 10_000, chatml).batch([0])
        n = whole.n_tokens
        first = int(np.flatnonzero(whole.targets >= 0)[0])
        for n_ctx in range(1, n + 3):
            if n_ctx <= first:
                with pytest.raises(DataError, match="no token to train on: none of its 1 samples"):
                    load_chat(path, bpe, n_ctx, chatml)
                continue
            data = load_chat(path, bpe, n_ctx, chatml)
            batch = data.batch([0])
            last = int(np.flatnonzero(whole.targets[:n_ctx] >= 0)[-1])
            assert batch.n_tokens == data.n_tokens(0) == last + 1 <= n_ctx
            assert batch.tokens.tolist() == whole.tokens[: last + 1].tolist()
            assert batch.targets.tolist() == whole.targets[: last + 1].tolist()
            assert data.n_cut == (n_ctx < n) and data.n_dropped == 0
            assert data.n_trained(0) == batch.n_trained >= 1
            cut = f"1 of 1 samples are longer than {n_ctx} tokens and were truncated"
            assert data.notes == ((cut,) if n_ctx < n else ())

    def test_dropped_chats(self, bpe: Tokenizer, chatml: ChatTemplate, write_lines: Lines) -> None:
        path = write_lines(
            [(U, "q"), (A, "x")], [(U, "q" * 60), (A, "x")], [(U, "q"), (A, "x" * 60)]
        )
        data = load_chat(path, bpe, 40, chatml)
        assert (data.n_samples, data.n_cut, data.n_dropped) == (2, 1, 1)
        assert data.lines.tolist() == [1, 3]
        assert data.notes == (
            "1 of 3 samples are longer than 40 tokens and were truncated",
            "1 of 3 samples were skipped because no answer begins within 40 tokens",
        )
        assert data.n_tokens(1) == 40 and data.n_tokens(0) < 40
        assert data.batch([1]).targets[-1] == 3 + ord("x")


def test_sample_out_of_range(bpe: Tokenizer, chatml: ChatTemplate, write_lines: Lines) -> None:
    data = load_chat(write_lines([(U, "q"), (A, "x")]), bpe, 64, chatml)
    for i in (-1, 1):
        for call in (data.n_tokens, data.n_trained, lambda i: data.batch([i])):
            with pytest.raises(IndexError):
                call(i)


def test_n_ctx_must_be_positive(bpe: Tokenizer, chatml: ChatTemplate, write_lines: Lines) -> None:
    with pytest.raises(ValueError):
        load_chat(write_lines([(U, "q"), (A, "x")]), bpe, 0, chatml)


def test_template_that_never_ends_a_turn(bpe: Tokenizer, write_lines: Lines) -> None:
    source = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    with ChatTemplate(source) as template:
        data = load_chat(write_lines([(U, "q"), (A, "x")]), bpe, 64, template)
    assert data.notes == (
        "no answer ends with an end-of-turn token: the model will not learn to stop",
    )


def test_template_errors_name_the_line(
    spm: Tokenizer, trimming: ChatTemplate, write_lines: Lines
) -> None:
    path = write_lines([(U, "q"), (A, "x")], [(S, "s"), (U, "q"), (A, "x")])
    with pytest.raises(DataError, match=r"chats\.jsonl, line 2: .*only user and assistant"):
        load_chat(path, spm, 64, trimming)
    broken = ChatTemplate("{{ messages[0]['content'] / 2 }}")
    with broken, pytest.raises(GGUFError, match=r"chats\.jsonl, line 1: "):
        load_chat(path, spm, 64, broken)


def test_template_that_leaves_the_answers_out(
    bpe: Tokenizer, chatml: ChatTemplate, write_lines: Lines
) -> None:
    template = ChatTemplate("{{ messages[0]['content'] }}")
    left_out = "message 2: the chat template leaves this answer out"
    with template, pytest.raises(DataError, match=left_out):
        load_chat(write_lines([(U, "q"), (A, "x")]), bpe, 64, template)


def test_fingerprint(
    bpe: Tokenizer, spm: Tokenizer, chatml: ChatTemplate, write_lines: Lines, tmp_path: Path
) -> None:
    chat = [(U, "the"), (A, "hand")]

    def of(*chats: list[tuple[str, str]], n_ctx: int = 64, tokenizer: Tokenizer = bpe) -> str:
        return load_chat(write_lines(*chats), tokenizer, n_ctx, chatml).fingerprint

    first = of(chat)
    renamed = write_lines(chat, source="a key that is ignored").rename(tmp_path / "other")
    assert load_chat(renamed, bpe, 64, chatml).fingerprint == first
    others = {
        of([(U, "the"), (A, "hands")]),
        of([(U, "The"), (A, "hand")]),
        of(chat, chat),
        of(chat, n_ctx=65),
        of(chat, tokenizer=spm),
        of([(S, "the"), (A, "hand")]),
    }
    assert len(others | {first}) == 7


def test_fingerprint_follows_what_the_template_writes(bpe: Tokenizer, write_lines: Lines) -> None:
    """If a template writes the date, samples differ on another day."""
    source = "{{ strftime_now('%d') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    path = write_lines([(U, "q"), (A, "x")])
    prints = []
    for day in (1, 2, 1):
        with ChatTemplate(source, now=datetime(2024, 5, day)) as template:
            prints.append(load_chat(path, bpe, 64, template).fingerprint)
    assert prints[0] == prints[2] != prints[1]
