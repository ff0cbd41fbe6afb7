"""Small templates, one mechanism each, with all kinds of chats: trained tokens and messages.

`cases/chats/truth.json` has the correct samples; the record files next to it are forms of chats
that are easily misread.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbllama.data import Samples, load_dataset
from nbllama.errors import DataError
from nbllama.show_data import main
from nbllama.text import Tokenizer
from nbllama.text.chat_template import chat_template_for

FOLDER = Path(__file__).parent / "cases" / "chats"
TRUTH: dict[str, Any] = json.loads((FOLDER / "truth.json").read_text(encoding="utf-8"))
FOLDED = "samples_if_system_is_folded_into_the_question"


def read(
    tokenizer: Tokenizer, name: str, template: str = "", variables: Any = None, **options: Any
) -> Samples:
    source = (FOLDER / "templates" / template).read_text(encoding="utf-8") if template else None
    with chat_template_for(tokenizer, source, variables=variables) as made:
        data = load_dataset(
            FOLDER / name, tokenizer, 4096, template=made, keep_texts=True, **options
        )
    assert isinstance(data, Samples)
    return data


def found(data: Samples) -> list[dict[str, Any]]:
    return [{"text": t.text, "trained": [list(p) for p in t.trained]} for t in data.texts]


def is_apart(tokenizer: Tokenizer, data: Samples) -> bool:
    """Whether every prompt and every answer has the same ids as alone."""
    for i, (text, trained) in enumerate(data.texts):
        part = slice(int(data.offsets[i]), int(data.offsets[i + 1]))
        expected: list[int] = []
        at = 0
        for start, end in trained:
            alone = tokenizer.encode(text[:start], parse_special=True)
            if alone[: len(expected)] != expected:
                return False
            expected = alone + tokenizer.encode(text[start:end], parse_special=True)
            at = end
        if at != len(text) or data.ids[part].tolist() != expected:
            return False
    return True


@pytest.mark.parametrize(
    "case", TRUTH["cases"], ids=lambda c: f"{c['template'].removesuffix('.jinja')}-{c['data']}"
)
def test_truth(demo_tokenizer: Tokenizer, case: dict[str, Any]) -> None:
    def once(**options: Any) -> Samples:
        return read(
            demo_tokenizer, case["data"], case["template"], case.get("template_kwargs"), **options
        )

    if "refused" in case:
        with pytest.raises(DataError, match=case["refused"].partition(": ")[2]) as e:
            once()
        assert ("--system-as-user" in str(e.value)) == (FOLDED in case)
    elif "refused_or_told" in case:
        try:
            data = once()
        except DataError:
            return
        assert any("call" in note or "thought" in note for note in data.notes)
    else:
        data = once()
        expected = [{k: s[k] for k in ("text", "trained")} for s in case["samples"]]
        assert found(data) == expected
        assert is_apart(demo_tokenizer, data)
        assert bool(data.notes) or "must_be_told" not in case
        if len(expected) > 1:
            start = f"1 record, {len(expected)} samples: "
            assert data.notes[0].startswith(start) and "earlier answers" in data.notes[0]
    if FOLDED in case:
        data = once(system_as_user=True)
        assert found(data) == [{k: s[k] for k in ("text", "trained")} for s in case[FOLDED]]
        assert "prepended to the first question" in data.notes[0]


def answers(data: Samples) -> list[str]:
    return [text[a:b] for text, trained in data.texts for a, b in trained]


HERMES = '<tool_call>\n{"name": "weigh", "arguments": %s}\n</tool_call><|im_end|>'
SECOND = ["Second.<|im_end|>"]
THOUGHT = "1 answer has a thought (reasoning_content or <think>) that the chat template omits"
RECORDS: list[tuple[str, list[str], str]] = [
    ("answer-begins-with-breaks.jsonl", ["\n\nPage two.<|im_end|>"], ""),
    (
        "legacy-function-call.jsonl",
        ["One moment.\n" + HERMES % '{"n": 4}', "3 kg.<|im_end|>"],
        "Hermes format",
    ),
    ("call-parameters.jsonl", [HERMES % '{"n": 4}', "3 kg.<|im_end|>"], "Hermes format"),
    ("call-empty-arguments.jsonl", [HERMES % "{}", "3 kg.<|im_end|>"], "Hermes format"),
    ("call-encoded-twice.jsonl", [HERMES % '{"n": 4}', "3 kg.<|im_end|>"], "Hermes format"),
    ("sharegpt-tools.jsonl", [HERMES % '{"n": 4}', "3 kg.<|im_end|>"], "template omits"),
    *[
        (f"{name}.jsonl", SECOND, "")
        for name in (
            "loss-false", "train-false", "masked-true", "loss-zero", "weight-false",
            "sharegpt-weight", "sharegpt-loss", "sharegpt-trainable",
        )
    ],
    ("answer-first.jsonl", ["At the window.<|im_end|>"], "context and not trained"),
    ("reasoning-content.jsonl", ["42<|im_end|>"], THOUGHT),
    ("thinking.jsonl", ["42<|im_end|>"], THOUGHT),
]  # fmt: skip


@pytest.mark.parametrize(("name", "expected", "note"), RECORDS)
def test_records(demo_tokenizer: Tokenizer, name: str, expected: list[str], note: str) -> None:
    data = read(demo_tokenizer, name)
    assert answers(data) == expected
    assert is_apart(demo_tokenizer, data)
    assert any(note in line for line in data.notes) if note else data.notes == ()


def test_a_key_that_asks_to_train_a_question(demo_tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match='line 1: message 1: "loss" marks a message with the'):
        read(demo_tokenizer, "user-trained.jsonl")


def test_roles_that_a_template_does_not_know(demo_tokenizer: Tokenizer) -> None:
    data = read(demo_tokenizer, "developer-role.jsonl", "drops-unknown-roles.jinja")
    assert data.texts[0].text.startswith("<|im_start|>system\nAnswer in rhyme.<|im_end|>\n")
    assert "1 message has the role developer" in data.notes[0]
    data = read(demo_tokenizer, "tool-result-dropped.jsonl", "drops-unknown-roles.jinja")
    assert data.notes == (
        "1 message with the role tool in 1 record is not in the rendered text, because the chat "
        "template leaves it out (first: line 1)",
    )


def test_a_message_without_an_answer_is_reported(demo_tokenizer: Tokenizer) -> None:
    data = read(demo_tokenizer, "three-turns-ends-with-user.jsonl")
    ends = "chat ends with an unanswered message, which is not used (first: line 1)"
    assert data.notes == (f"1 {ends}",)
    assert read(demo_tokenizer, "two-turns.jsonl").notes == ()


def test_an_empty_thought_is_said_with_the_switch(demo_tokenizer: Tokenizer) -> None:
    name, template = "two-turns.jsonl", "strips-earlier-thoughts.jinja"
    data = read(demo_tokenizer, name, template)
    assert data.notes[1] == (
        "2 of 2 answers begin with an empty thought, which is trained on: the model will learn "
        "not to think; --template-vars enable_thinking=false keeps the thought in the prompt"
    )
    data = read(demo_tokenizer, name, template, {"enable_thinking": False})
    assert not any("empty thought" in note for note in data.notes)
    data = read(demo_tokenizer, name, template, {"enable_thinkin": False})
    assert data.notes[-1] == "the chat template has no variable enable_thinkin"


def test_variables_of_a_record(demo_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """They replace those of the command line for this record."""
    line = json.loads((FOLDER / "two-turns.jsonl").read_text(encoding="utf-8"))
    path = tmp_path / "x.jsonl"
    lines = [line | {"chat_template_kwargs": {"enable_thinking": v}} for v in (False, True)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    data = read(
        demo_tokenizer, str(path), "strips-earlier-thoughts.jinja", {"enable_thinking": True}
    )
    assert data.lines.tolist() == [1, 1, 2, 2] and data.records.tolist() == [0, 0, 1, 1]  # type: ignore[union-attr]
    assert data.notes == read(demo_tokenizer, str(path), "strips-earlier-thoughts.jinja").notes
    thought = "<think>\n\n</think>\n\n"
    assert [a.startswith(thought) for a in answers(data)] == [False, False, True, True]


@pytest.mark.parametrize("name", ["two-turns", "tools"])
def test_json_of_the_program(
    demo_tokenizer: Tokenizer, demo_model: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Standard output has the objects only, and all of them; the notices are on standard error."""
    template = FOLDER / "templates" / "other-closer-on-the-last-answer.jinja"
    words = [
        "-m", str(demo_model), "--train-data", str(FOLDER / f"{name}.jsonl"),
        "--chat-template", str(template), "--json",
    ]  # fmt: skip
    assert main(words) == 0
    out, err = capsys.readouterr()
    objects = [json.loads(line) for line in out.splitlines()]
    assert [o["line"] for o in objects] == [1, 1]
    assert "1 record, 2 samples: earlier answers are rendered differently in later prompts" in err
    for o in objects:
        assert set(o) == {"line", "text", "trained", "ids", "trained_ids"}
        ((start, end),), ((first, after),) = o["trained"], o["trained_ids"]
        prompt = demo_tokenizer.encode(o["text"][:start], parse_special=True)
        answer = demo_tokenizer.encode(o["text"][start:end], parse_special=True)
        assert o["ids"] == prompt + answer
        assert (first, after) == (len(prompt), len(o["ids"])) and end == len(o["text"])
    assert main([*words, "-n", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
