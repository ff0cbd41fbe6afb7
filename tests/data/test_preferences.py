"""Preferences as training data: formats, what is trained, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.toy_models import make_llama
from nbllama.data import load_dataset, open_data
from nbllama.data.formats import Continuation, Conversation, Labelled, Pair
from nbllama.data.held_out import hold_out
from nbllama.data.preferences import Preferences
from nbllama.data.samples import Samples
from nbllama.errors import DataError
from nbllama.gguf_io import open_gguf
from nbllama.text import chat_template_for, find_layout, tokenizer_from_gguf
from nbllama.text.tokenizer import Tokenizer
from nbllama.train.run.preferences import as_wanted


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


USER, GOOD, BAD = said("user", "ask"), said("assistant", "yes it is"), said("assistant", "no")
PAIR = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}


def file(folder: Path, *records: dict[str, Any]) -> Path:
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def read(folder: Path, *records: dict[str, Any]) -> list[Any]:
    return [sample for _, sample in open_data(file(folder, *records)).samples]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("toy") / "toy.gguf"
    make_llama(path, n_layer=1, tokenizer="bpe")
    with open_gguf(path) as f:
        return tokenizer_from_gguf(f)


def samples(path: Path, tokenizer: Tokenizer, n_ctx: int = 200, **options: Any) -> Samples:
    layout = find_layout("chatml")
    assert layout is not None
    template = chat_template_for(tokenizer, layout.source)
    try:
        made = load_dataset(path, tokenizer, n_ctx, template=template, **options)
    finally:
        template.close()
    assert isinstance(made, Samples)
    return made


@pytest.mark.parametrize(
    "record",
    [
        PAIR,
        {"prompt": [USER], "chosen": GOOD, "rejected": "no"},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "ask", "chosen": [USER, GOOD], "rejected": [USER, BAD], "score": 3},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"question": "ask", "chosen": "yes it is", "rejected": "no"},
        {"Chosen": [USER, GOOD], "Rejected": [USER, BAD]},
    ],
)
def test_forms_of_one_pair(tmp_path: Path, record: dict[str, Any]) -> None:
    (pair,) = read(tmp_path, record)
    assert isinstance(pair, Pair) and pair.weight == 1.0
    assert isinstance(pair.chosen, Conversation) and isinstance(pair.rejected, Conversation)
    assert pair.chosen.messages == [USER, GOOD] and pair.rejected.messages == [USER, BAD]


def test_texts_are_joined_as_they_are(tmp_path: Path) -> None:
    (pair,) = read(tmp_path, {"prompt": "Q: a\nA:", "chosen": " b", "rejected": " c", "weight": 2})
    assert pair == Pair(Continuation("Q: a\nA:", " b"), Continuation("Q: a\nA:", " c"), 2.0)
    # without a prompt: whole words of the common beginning
    (pair,) = read(tmp_path, {"chosen": "Human: hi AI: yes", "rejected": "Human: hi AI: yell"})
    assert pair.chosen == Continuation("Human: hi AI:", " yes")
    assert pair.rejected == Continuation("Human: hi AI:", " yell")


def test_labels(tmp_path: Path) -> None:
    records = [{"prompt": "a", "completion": "b", "label": x} for x in (True, False, 1, 0)]
    found = read(tmp_path, *records)
    assert [s.good for s in found] == [True, False, True, False]
    assert all(isinstance(s, Labelled) for s in found)
    texts = [{"prompt": "a", "completion": "b", "label": x} for x in ("true", "False", "1.0", "0")]
    assert [s.good for s in read(tmp_path, *texts)] == [True, False, True, False]
    # a label that is not a judgement is an ordinary key
    (other,) = read(tmp_path, {"prompt": "a", "completion": "b", "label": "spam"})
    assert other == Continuation("a", "b")


def test_labels_of_pandas(tmp_path: Path) -> None:
    lines = [f'{{"prompt": "a", "completion": "b", "label": {x}}}' for x in ("1.0", "0.0", "0.00")]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    samples = [sample for _, sample in open_data(path).samples]
    assert [s.good for s in samples if isinstance(s, Labelled)] == [True, False, False]
    (score,) = read(tmp_path, {"prompt": "a", "completion": "b", "label": 0.5})
    assert score == Continuation("a", "b")


BAD_RECORDS: dict[str, dict[str, Any]] = {
    "chosen and rejected are equal": {"prompt": "a", "chosen": "b", "rejected": "b"},
    '"rejected" is empty': {"prompt": "a", "chosen": "b", "rejected": "  "},
    '"chosen" is empty': {"prompt": [USER], "chosen": [], "rejected": [BAD]},
    '"rejected" is missing': {"prompt": "a", "chosen": "b"},
    "not null": {"prompt": "a", "chosen": None, "rejected": "b"},
    "first differ in message 1": {"chosen": [USER, GOOD], "rejected": [said("user", "x"), BAD]},
    "no common prompt": {"chosen": [GOOD], "rejected": [BAD]},
    "identical up to the end of": {"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, BAD]},
    "begin differently": {"chosen": "one", "rejected": "two"},
    'is "input" the prompt?': {"input": "a", "chosen": "one b", "rejected": "one c"},
    '"weight" must be a number above 0': {
        "prompt": "a", "chosen": "b", "rejected": "c", "weight": 0,
    },
    "the last message must have": {"prompt": [USER], "chosen": [GOOD, USER], "rejected": [BAD]},
    'no message that the two chats share has the text of "prompt"': {
        "prompt": "other", "chosen": [USER, GOOD], "rejected": [USER, BAD],
    },
    "must both be text": {"prompt": "a", "chosen": "b", "rejected": [BAD]},
}  # fmt: skip


@pytest.mark.parametrize("reason", BAD_RECORDS)
def test_bad_records_are_named_by_their_line(tmp_path: Path, reason: str) -> None:
    path = file(tmp_path, PAIR, BAD_RECORDS[reason])
    with pytest.raises(DataError, match=r"line 2: ") as e:
        open_data(path)
    assert reason in str(e.value)
    assert len(open_data(path, skip_bad=True).bad) == 1


def test_both_sides_with_their_answers_trained(tmp_path: Path, tokenizer: Tokenizer) -> None:
    before = [USER, said("assistant", "so"), said("user", "on")]
    other = {"chosen": [*before, GOOD], "rejected": [*before, BAD], "weight": 3}
    path = file(tmp_path, PAIR, other)
    made = samples(path, tokenizer)
    assert made.format == "preference" and made.judged is not None
    assert made.judged.good.tolist() == [True, False] * 2
    assert made.judged.weight.tolist() == [1, 1, 3, 3]
    texts = []
    for i in range(4):
        part = slice(made.offsets[i], made.offsets[i + 1])
        texts.append(tokenizer.decode(made.ids[part][made.trained[part]].tolist(), special=True))
    # an earlier answer belongs to the prompt
    assert texts == ["yes it is<|im_end|>", "no<|im_end|>"] * 2
    pairs = Preferences(made, 2)
    assert pairs.n_samples == 2 and pairs.n_tokens(1) == made.n_tokens(2) + made.n_tokens(3)
    batch = pairs.batch([1, 0])
    assert batch.rows.tolist() == [2, 3, 0, 1] and batch.n_sequences == 4
    plain = made.batch([2, 3, 0, 1])
    assert np.array_equal(batch.tokens, plain.tokens)
    assert np.array_equal(batch.targets, plain.targets)


def test_weights_and_labels_are_a_part_of_the_fingerprint(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    labelled = {"prompt": [USER], "completion": [GOOD]}
    prints = {
        samples(file(tmp_path, record), tokenizer).fingerprint
        for record in (
            PAIR, PAIR | {"weight": 2}, labelled | {"label": True}, labelled | {"label": False},
        )
    }  # fmt: skip
    assert len(prints) == 4


def test_a_pair_that_is_cut_to_the_same_is_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    long = [said("assistant", "x" * 60 + end) for end in "ab"]
    path = file(tmp_path, PAIR, {"prompt": [USER], "chosen": [long[0]], "rejected": [long[1]]})
    made = samples(path, tokenizer, n_ctx=60)
    assert made.n_samples == 2
    assert any("1 pair was skipped" in note for note in made.notes)


LABELLED = {"prompt": [USER], "completion": [GOOD], "label": True}


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ((PAIR, {"messages": [USER, GOOD]}), "must have chosen and rejected"),
        ((PAIR, LABELLED), "must have chosen and rejected"),
        (({"messages": [USER, GOOD]}, PAIR), "cannot be mixed in one run"),
        ((LABELLED, PAIR), "must have a label (true or false)"),
        ((LABELLED, LABELLED | {"label": "spam"}), "must have a label (true or false)"),
        ((LABELLED, LABELLED | {"label": None}), "must have a label (true or false)"),
        ((LABELLED, LABELLED | {"label": 2}), "must have a label (true or false)"),
        ((LABELLED, {"prompt": [USER], "completion": [BAD]}), "a label (true or false)"),
    ],
)
def test_mixed_records_are_refused(
    tmp_path: Path, tokenizer: Tokenizer, records: tuple[dict[str, Any], ...], reason: str
) -> None:
    path = file(tmp_path, records[0], *records)
    with pytest.raises(DataError, match=r"line 3: this record has a different format") as e:
        samples(path, tokenizer)
    assert reason in str(e.value)


def test_both_sides_stay_together_when_data_are_held_out(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    records = [PAIR | {"prompt": [said("user", f"ask {i}")]} for i in range(10)]
    pairs = Preferences(samples(file(tmp_path, *records), tokenizer), 2)
    left, held = hold_out(pairs, 0.3, seed=2)
    assert isinstance(left, Preferences) and isinstance(held, Preferences)
    assert (left.n_samples, held.n_samples) == (7, 3)
    for part in (left, held):
        assert part.judged.good.tolist() == [True, False] * part.n_samples
        lines = part.samples.lines
        assert np.array_equal(lines[::2], lines[1::2])


def test_other_prompts_for_kto(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = ("a", "bcd", "ef")
    records = [
        {"prompt": [said("user", t)], "completion": [said("assistant", t * 2)], "label": True}
        for t in texts
    ]
    data = Preferences(samples(file(tmp_path, *records), tokenizer), 1)
    found = [
        tokenizer.decode(data.others.ids[a:b].tolist(), special=True)
        for a, b in zip(data.others.offsets, data.others.offsets[1:], strict=False)
    ]
    for i, text in enumerate(found):
        assert text.startswith(f"<|im_start|>user\n{texts[i - 1]}<|im_end|>")
        assert text.endswith(f"<|im_start|>assistant\n{texts[i] * 2}<|im_end|>")
    assert np.array_equal(data.others.lengths()[1], data.samples.lengths()[1])


def test_data_that_are_not_for_the_objective(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pairs = samples(file(tmp_path, PAIR), tokenizer)
    labelled = samples(
        file(tmp_path, {"prompt": [USER], "completion": [GOOD], "label": True}), tokenizer
    )
    chats = samples(file(tmp_path, {"messages": [USER, GOOD]}), tokenizer)
    assert as_wanted("sft", "f", chats) is chats
    for objective, data, reason in (
        ("sft", pairs, "pass --objective dpo, ipo, orpo or simpo"),
        ("sft", labelled, "pass --objective kto"),
        ("dpo", chats, "contains no pairs"),
        ("kto", chats, "contains no labels"),
        ("ipo", labelled, "pass --objective kto, not ipo"),
    ):
        with pytest.raises(DataError, match=reason):
            as_wanted(objective, "f", data)
    unpaired = as_wanted("kto", "f", pairs)
    assert isinstance(unpaired, Preferences) and unpaired.n_samples == 2
    assert unpaired.judged.good.tolist() == [True, False]
