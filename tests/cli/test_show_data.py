"""`python -m nbllama.show_data`: marked tokens, statistics, one line for an error."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from examples.toy_models import make_llama
from nbllama.cli.samples import show
from nbllama.options.data import FORMATS
from nbllama.options.show_data import parse
from nbllama.show_data import main
from tests.train.toy_runs import toy_text

Show = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_llama(tmp_path / "toy.gguf", n_layer=1, tokenizer="bpe")
    monkeypatch.chdir(tmp_path)
    rows = [("one\ttwo", "the 天 hand"), ("x" * 30, "yes<|im_end|>"), ("q", "a" * 120)]
    chats = [[("user", question), ("assistant", answer)] for question, answer in rows]
    lines = (
        json.dumps({"messages": [{"role": r, "content": c} for r, c in chat]}) for chat in chats
    )
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n{}\n", encoding="utf-8")
    return tmp_path


def shown(*more: str, colours: bool = False) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream, width=100, highlight=False, force_terminal=colours,
        color_system="truecolor" if colours else None,
    )  # fmt: skip
    show(parse(["-m", "toy.gguf", "--train-data", ".", *more]), console)
    return stream.getvalue()


def test_marked_tokens_and_statistics(folder: Path) -> None:
    out = shown("--skip-bad", "-n", "2", "-c", "100", "-b", "2")
    assert out.startswith("train.jsonl: records, format chat\nread: messages\n")
    parts = out.split("─ sample ")
    assert len(parts) == 3
    assert parts[1].startswith("1 of 3: line 1, ") and parts[2].startswith("2 of 3: line 2, ")
    text = parts[1].split("─\n")[1]
    # Byte tokens: a Chinese character is three of them, shown together.
    assert text.startswith(
        "<|im_start|>user⏎\none\\ttwo<|im_end|>⏎\n<|im_start|>assistant⏎\n«the 天 hand<|im_end|>»\n"
    )
    assert "«yes<|im_end|><|im_end|>»" in parts[2]
    for line in (
        '1 of 4 records are bad and were skipped; first: line 4: the key "messages" is missing',
        "1 of 4 samples are longer than 100 tokens and were truncated",
    ):
        assert line in out.replace("\n", " ")
    assert "\nsamples     3\n" in out
    assert "(nbllama itself never pads rows)" in out
    bars = [line for line in out.splitlines() if " .. " in line]
    assert sum(int(line.split()[3]) for line in bars) == 3


def test_colours(folder: Path) -> None:
    out = shown("--skip-bad", "-n", "1", colours=True)
    assert "«" not in out
    assert "\x1b[1;4;32m" in out or "\x1b[1;4;92m" in out  # bold, underlined, green: trained
    assert "\x1b[35m<|im_start|>" in out  # a special token that is given
    assert "\x1b[1;4;35m<|im_end|>" in out  # and one that is trained


def test_plain_text_is_trained_whole(folder: Path) -> None:
    toy_text(folder / "text.txt", 300)
    out = shown("--train-data", "text.txt", "-n", "1", "-c", "16")
    assert "text.txt: plain text" in out
    text = out.split("─\n")[1]
    assert text.startswith("<|endoftext|>«") and text.rstrip("─\n").endswith("»")


def test_records_and_samples(folder: Path) -> None:
    """How many samples the records give, and why some give more than one."""
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if not loop.last or m.role != 'assistant' %} !{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (folder / "own.jinja").write_text(source, encoding="utf-8")
    chat = [{"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "a"))] * 2
    lines = [json.dumps({"messages": m}) for m in (chat, chat[:2], chat)]
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    out = shown("--chat-template", "own.jinja", "-n", "9").replace("\n", " ")
    assert "3 records, 5 samples: earlier answers are rendered differently in later prompts" in out
    assert "sample 2 of 5: line 1, " in out and "sample 5 of 5: line 3, " in out
    assert "sample 6" not in out
    assert " samples     5 " in out


def test_plain_text_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sample has no line there."""
    toy_text(folder / "text.txt", 300)
    assert main(["-m", "toy.gguf", "--train-data", "text.txt", "-c", "16", "--json"]) == 0
    out, err = capsys.readouterr()
    objects = [json.loads(line) for line in out.splitlines()]
    assert len(objects) > 5 and "plain text" in err
    for o in objects:
        assert o["line"] is None and o["trained_ids"] == [[1, len(o["ids"])]]
        ((start, end),) = o["trained"]
        assert o["text"][:start] == "<|endoftext|>" and end == len(o["text"])


def test_the_program(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "toy.gguf", "--train-data", "train.jsonl", "--skip-bad"]) == 0
    assert "trained " in capsys.readouterr().out
    for words, line in (
        ([], "pass --model-base FILE"),
        (["-m", "toy.gguf"], "pass --train-data FILE"),
        (["-m", "toy.gguf", "--train-data", "train.jsonl"], "train.jsonl, line 4: the key"),
        (["-m", "none.gguf", "--train-data", "train.jsonl"], "none.gguf"),
        (["-m", "toy.gguf", "--train-data", "x", "--data-format", "y"], FORMATS[0]),
    ):
        assert main(words) == 2
        (told,) = capsys.readouterr().err.splitlines()
        assert told.startswith("error: ") and line in told


def headings(out: str) -> list[str]:
    lines = [line for line in out.splitlines() if line.startswith("─") and "sample " in line]
    return [re.sub(r"(;|: line).*", "", line.strip("─ ")) for line in lines]


def test_samples_of_different_kinds(folder: Path) -> None:
    def chat(question: str, answer: str, *more: dict[str, str]) -> dict[str, object]:
        ends = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": [*more, *ends]}

    def written(*records: object, more: tuple[str, ...] = ()) -> list[str]:
        lines = (json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
        return headings(shown("-c", "1000", *more))

    english, chinese = chat("Who?", "The keeper."), chat("谁是灯塔的看守人?", "看守人。")
    long = chat("Who keeps it?", "The keeper keeps it. " * 9)
    system = chat("Who?", "He is.", {"role": "system", "content": "Be brief."})
    first = ["sample 1 of 5", "sample 2 of 5", "sample 3 of 5"]
    assert written(*[english] * 5) == first
    records = [english, english, long, english, chinese, english, system]
    assert written(*records) == [
        "sample 1 of 7: the first", "sample 3 of 7: the longest",
        "sample 5 of 7: in Chinese characters",
    ]  # fmt: skip
    assert written(*records, more=("-n", "2")) == ["sample 1 of 7", "sample 2 of 7"]
    assert written(long, *[english] * 3, system) == [
        "sample 1 of 5: the first and the longest", "sample 2 of 5",
        "sample 5 of 5: with a system message",
    ]  # fmt: skip
    pairs = [{"prompt": "a", "chosen": "b" * n, "rejected": "c"} for n in (1, 1, 1, 9, 40)]
    assert written(*pairs) == [
        "sample 1 of 10: the first", "sample 2 of 10: the first", "sample 3 of 10",
        "sample 4 of 10", "sample 9 of 10: the longest", "sample 10 of 10: the longest",
    ]  # fmt: skip


def test_columns_that_were_read(folder: Path) -> None:
    (folder / "t.tsv").write_text("\ufeff回答\t问题 \t来源\na\tq\tx\n", encoding="utf-8")
    out = shown("--train-data", "t.tsv", "-c", "200")
    assert out.startswith(
        "t.tsv: records, format alpaca\n"
        "read: 问题 as instruction, 回答 as output (with the chat template)\n"
    )
    assert out.count("read: ") == 1 and "keys not used for training: 来源 (1)" in out
    columns = "prompt=问题,completion=回答"
    out = shown("--train-data", "t.tsv", "-c", "200", "--data-columns", columns)
    assert "read: 问题 as prompt, 回答 as completion (concatenated as is)\n" in out


def test_both_sides_of_a_pair(folder: Path) -> None:
    pair = {
        "prompt": [{"role": "user", "content": "ask"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
        "weight": 2,
    }
    text = "".join(json.dumps(pair | {"weight": w}) + "\n" for w in (2, 1))
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    out = shown("-n", "1", "-c", "200")
    assert out.startswith("train.jsonl: records, format preference\n")
    assert "sample 1 of 4: line 1, chosen, weight 2, " in out
    assert "sample 2 of 4: line 1, rejected, weight 2, " in out and "sample 3" not in out
    assert "«yes<|im_end|>»" in out and "«no<|im_end|>»" in out
