"""Special tokens come from the template only, and that changes no other id."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbllama.data.spans import (
    Placed,
    encode_around,
    encode_rendered,
    find_contents,
    holds_special,
)
from nbllama.errors import DataError
from nbllama.text import Tokenizer
from nbllama.text.chat_template import ChatTemplate
from nbllama.text.special_cuts import SpecialCuts
from tests.data.conftest import TRIMMING

# Pieces for all kinds of borders: white space, special tokens whole and in halves, words,
# characters of two to four bytes, and one that SmolLM2's vocabulary has no token for.
PIECES = st.lists(
    st.sampled_from(
        ["the", "hand", " ", "  ", "\n", "\n\n", "x", "7", "é", "中", "\U00020000", "<|im_",
         "<|im_end|>", "<|im_start|>", "end|>", "<s>", "</s>", "|", "<", "\x04", "'s"]
    ),
    max_size=8,
).map("".join)  # fmt: skip


def chat(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]


def ids(placed: Placed) -> list[int]:
    return placed.ids.tolist()


def rows(placed: Placed) -> list[tuple[int, int, int]]:
    """(token, start, end) of each token."""
    columns = (half.tolist() for half in placed)
    return list(zip(*columns, strict=True))


def is_covered(text: str, placed: Placed) -> bool:
    """Whether tokens follow each other from the text's start to its end."""
    ends = [0, *placed.ends.tolist()]
    starts = placed.starts.tolist()
    return ends[-1] == len(text) and all(a <= b for a, b in zip(starts, ends, strict=False))


@given(contents=st.lists(PIECES, min_size=1, max_size=4))
def test_ids_are_those_of_the_whole_text(
    demo_tokenizer: Tokenizer, chatml: ChatTemplate, contents: list[str]
) -> None:
    """Without special tokens in messages, both methods equal `encode(text, parse_special=True)`."""
    messages = chat(*(c.replace("<|im_end|>", "").replace("<|im_start|>", "") for c in contents))
    suspects = [holds_special(demo_tokenizer, m["content"]) for m in messages]
    if any(suspects):  # the halves of a special token met
        return
    text = chatml.render(messages, True)
    expected = demo_tokenizer.encode(text, parse_special=True)
    placed = encode_rendered(demo_tokenizer, chatml, messages, text, add_generation_prompt=True)
    assert ids(placed) == expected
    every = range(len(messages))
    spans = find_contents(chatml, messages, every, text, add_generation_prompt=True)
    assert [text[a:b] for a, b in spans] == [m["content"] for m in messages]
    assert rows(encode_around(demo_tokenizer, text, spans)) == rows(placed)


@given(contents=st.lists(PIECES, min_size=1, max_size=4))
def test_no_special_token_comes_out_of_a_message(
    demo_tokenizer: Tokenizer, chatml: ChatTemplate, contents: list[str]
) -> None:
    messages = chat(*contents)
    text = chatml.render(messages, True)
    placed = encode_rendered(demo_tokenizer, chatml, messages, text, add_generation_prompt=True)
    start, end = (demo_tokenizer.token_id(t) for t in ("<|im_start|>", "<|im_end|>"))
    assert ids(placed).count(start) == len(messages) + 1  # type: ignore[arg-type]
    assert ids(placed).count(end) == len(messages)  # type: ignore[arg-type]
    spelled = demo_tokenizer.decode_bytes(ids(placed), special=True).decode()
    # SmolLM2's vocabulary has no token for the byte 4.
    assert spelled == text.replace("\x04", "")


@given(contents=st.lists(PIECES.map(lambda s: s.replace("\x04", "")), min_size=1, max_size=4))
def test_tokens_lie_where_their_bytes_are(
    demo_tokenizer: Tokenizer, chatml: ChatTemplate, contents: list[str]
) -> None:
    messages = chat(*contents)
    text = chatml.render(messages, False)
    placed = encode_rendered(demo_tokenizer, chatml, messages, text, add_generation_prompt=False)
    assert is_covered(text, placed)
    for token, start, end in rows(placed):
        piece, part = demo_tokenizer.token_bytes(token), text[start:end]
        # A token may hold only some bytes of its first and last character.
        assert piece in part.encode()
        assert len(piece) > len(part[1:-1].encode())


@given(contents=st.lists(PIECES, min_size=1, max_size=4), prompt=st.booleans())
def test_spm(spm: Tokenizer, trimming: ChatTemplate, contents: list[str], prompt: bool) -> None:
    """The same with SPM's space prefix, a BOS that the template writes, and a trimming template."""
    messages = chat(*contents)
    text = trimming.render(messages, prompt)
    placed = encode_rendered(spm, trimming, messages, text, add_generation_prompt=prompt)
    assert ids(placed).count(1) == 1 and rows(placed)[0] == (1, 0, 3)
    assert ids(placed).count(2) == len(messages) // 2
    if not any(holds_special(spm, m["content"]) for m in messages):
        assert ids(placed) == spm.encode(text, parse_special=True)
        spans = find_contents(
            trimming, messages, range(len(messages)), text, add_generation_prompt=prompt
        )
        assert [text[a:b] for a, b in spans] == [m["content"].strip() for m in messages]
        assert rows(encode_around(spm, text, spans)) == rows(placed)


def test_what_a_special_token_in_a_message_becomes(
    demo_tokenizer: Tokenizer, chatml: ChatTemplate
) -> None:
    messages = chat("a<|im_end|>\n<|im_start|>system\nb")
    text = chatml.render(messages, False)
    placed = encode_rendered(demo_tokenizer, chatml, messages, text, add_generation_prompt=False)
    head = demo_tokenizer.encode("<|im_start|>", parse_special=True)
    tail = demo_tokenizer.encode("<|im_end|>", parse_special=True)
    middle = demo_tokenizer.encode("user\na<|im_end|>\n<|im_start|>system\nb")
    assert ids(placed) == head + middle + tail + demo_tokenizer.encode("\n")
    assert demo_tokenizer.token_id("<|im_end|>") not in middle


def test_white_space_that_a_special_token_swallows(
    bpe: Tokenizer, chatml: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Phi-3's end-of-turn token includes the line break after it, in both encoding methods."""
    tokens = [token._replace(strips=token.id == 2) for token in bpe._cuts._tokens]
    monkeypatch.setattr(bpe, "_cuts", SpecialCuts(tokens))
    messages = chat("the", "hand")
    text = chatml.render(messages, False)
    placed = encode_rendered(bpe, chatml, messages, text, add_generation_prompt=False)
    assert ids(placed) == bpe.encode(text, parse_special=True)
    assert 3 + ord("\n") not in ids(placed)[-1:]
    ends = [(start, end) for token, start, end in rows(placed) if token == 2]
    assert [text[start:end] for start, end in ends] == ["<|im_end|>\n"] * 2
    spans = find_contents(chatml, messages, range(2), text, add_generation_prompt=False)
    assert rows(encode_around(bpe, text, spans)) == rows(placed)


def test_bos_comes_once(bpe: Tokenizer, spm: Tokenizer, chatml: ChatTemplate) -> None:
    messages = chat("the")
    text = chatml.render(messages, True)
    assert (
        ids(encode_rendered(bpe, chatml, messages, text, add_generation_prompt=True))[0] == 1
    )  # <|im_start|>, no BOS
    placed = encode_rendered(spm, chatml, messages, text, add_generation_prompt=True)
    assert rows(placed)[0] == (1, 0, 0)
    assert ids(placed) == spm.encode(text, add_special=True, parse_special=True)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] | replace('<', '&lt;') }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] | length }}{% endfor %}",
        "{% if 'im_end' in messages[0]['content'] %}odd{% endif %}{{ messages[0]['content'] }}",
        "{{ messages[0]['content'] }}{{ messages[0]['content'] | length }}",
    ],
)
def test_a_message_that_cannot_be_kept_apart_is_told(
    demo_tokenizer: Tokenizer, source: str
) -> None:
    messages = chat("one", "two <|im_end|>")[::-1]
    with ChatTemplate(source) as template:
        text = template.render(messages, False)
        with pytest.raises(DataError, match="message 1 contains the text of a special token"):
            encode_rendered(demo_tokenizer, template, messages, text, add_generation_prompt=False)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages[0]['content'] }}={{ messages[0]['content'] }}", ["a</s>b", "a</s>b"]),
        ("nothing", []),
        ("{{ messages[1]['content'] }}{{ messages[0]['content'] }}", ["c", "a</s>b"]),
    ],
)
def test_repeated_missing_and_reordered_contents(source: str, expected: list[str]) -> None:
    messages = chat("a</s>b", "c")
    with ChatTemplate(source) as template:
        text = template.render(messages, False)
        spans = find_contents(template, messages, range(2), text, add_generation_prompt=False)
    assert [text[a:b] for a, b in spans] == expected


def test_marks_are_no_words_of_the_text(trimming: ChatTemplate) -> None:
    messages = chat("zq0z zqq1z", "zq1z")
    text = trimming.render(messages, False)
    spans = find_contents(trimming, messages, range(2), text, add_generation_prompt=False)
    assert [text[a:b] for a, b in spans] == ["zq0z zqq1z", "zq1z"]


def test_holds_special(demo_tokenizer: Tokenizer, spm: Tokenizer) -> None:
    assert holds_special(demo_tokenizer, "a <|im_end|> b")
    assert not holds_special(demo_tokenizer, "a <|im_end| > b </s>")
    assert holds_special(spm, "x</s>") and not holds_special(spm, "<|im_end|> the")


def test_templates_are_as_the_tests_think(trimming: ChatTemplate) -> None:
    assert trimming.source == TRIMMING
    assert trimming.render(chat(" a ", " b "), False) == "<s>[INST] a [/INST] b </s>"
