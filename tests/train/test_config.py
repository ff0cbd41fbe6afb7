"""`--config`: a file of options, and the file that a run writes next to its adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from examples.toy_models import make_llama
from nbllama.errors import UsageError
from nbllama.options.finetune.table import parse
from tests.train.runs import Run, logged, refused
from tests.train.toy_runs import file_bits


def test_a_config_file_is_a_command_line_that_comes_first(folder: Path, run: Run) -> None:
    config = folder / "run.yaml"
    config.write_text(
        f"""# a comment
model-base: {folder / "toy.gguf"}
train_data: {folder / "text.txt"}
checkpoint-in: ""
lora-out: {folder / "a-ITERATION.gguf"}
checkpoint-out: ""
lr: 1e-4          # YAML 1.1 takes this for a text
ctx: 16
batch: 2
adam-iter: 7
warmup: 0
use-checkpointing: no
lora-layers: [0, 1]
seed: 11
threads: 1
""",
        encoding="utf-8",
    )
    done = run(["--config", str(config), "--adam-iter", "3"])
    assert done.code == 0, done
    for part in ("3 iterations of 2 x 1", "0.0001, warm-up 0", "checkpointing  off"):
        assert part in done.out, part
    # the effective options are next to the adapter, and repeat the same run
    saved = folder / "a-LATEST.config.yaml"
    text = saved.read_text(encoding="utf-8")
    for line in ("adam-iter: 3", "seed: 11", "lora-r: 4", "adam-alpha: 0.0001", "lora-layers: all"):
        assert f"\n{line}\n" in text, line
    first = file_bits(folder / "a-3.gguf")
    (folder / "a-3.gguf").unlink()
    again = folder / "again.yaml"
    shutil.copy(saved, again)
    refused(run(["--config", str(again)]), 2, "already exists")
    assert run(["--config", str(again), "--force"]).code == 0
    assert file_bits(folder / "a-3.gguf") == first
    assert saved.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "learning-rat: 1",
            "line 1: unknown option '--learning-rat'; did you mean --learning-rate?",
        ),
        ("ctx: 16\nctx: 17", "line 2: ctx was already given as ctx"),
        ("lr: 1\nadam_alpha: 2", "line 2: adam_alpha was already given as lr"),
        ("ctx: many", "line 1: --ctx: 'many' is not allowed"),
        ("ctx:", "line 1: --ctx has no value"),
        ("ctx: [1, 2]", "--ctx takes one value, not a list"),
        ("ctx: {a: 1}", "--ctx takes one value"),
        ("dry-run: maybe", "--dry-run is a switch; use true or false"),
        ("log: off", """line 1: --log: 'off' is not allowed; use "" for no file, or ./off for a"""),
        ("\nreport: true", "line 2: --report: 'true' is not allowed; use"),
        ("lora-out: no", "--lora-out: 'no' is not allowed"),
        ('lora-out: "null"', "--lora-out: 'null' is not allowed"),
        ("checkpoint_out: None", "--checkpoint-out: 'None' is not allowed"),
        ('{"checkpoint-in": false}', "--checkpoint-in: 'false' is not allowed"),
        ("log: |\n  a\n  b", "--log: 'a\\nb' contains a control character; write the name on one"),
        ('report: "C:\\temp"', "--report: 'C:\\temp' contains a control character"),
        ('sample-start: "\\ud83d"', "--sample-start: '\\ud83d' contains half of a surrogate pair"),
        ('{\n\t"ctx": 1,\n\t"ctx": 2\n}', "line 3: ctx was already given as ctx"),
        ('{\n\t"ctx": 1,,\n}', "line 2: not YAML"),
        ("lr: [1, 2]", "--lr takes one value, not a list"),
        ("dump: [[1]]", "--dump takes one value, not a list"),
        ("dump: [x]", "--dump: 'x' is not allowed"),
        ("--lrr: 1", "unknown option '--lrr'"),
        ("batch: 1\nb: 2", "line 2: b was already given as batch"),
        ("config: other.yaml", "cannot refer to another"),
        ("- a\n- b", "expected lines of the form `name: value`"),
        ("a: [", "not YAML"),
        ("? [a]\n: b", "the key must be the name of an option"),
    ],
)
def test_bad_config_files(folder: Path, run: Run, text: str, told: str) -> None:
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    done = run(logged(folder, 1, "--config", "c.yaml"))
    assert done.code == 2 and told in done.err and "c.yaml" in done.err, done
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("log: |\n  x.log\n", "log", "x.log"),
        ("log: >-\n  x.log\n", "log", "x.log"),
        ("log: ./off", "log", "./off"),
        ('log: ""', "log", ""),
        ('{\n\t"log":\t"a.jsonl"\n}\n', "log", "a.jsonl"),
        ('{"sample-start": "\\ud83d\\ude00 \\/"}', "sample_start", "\U0001f600 /"),
        ("sample-start: no", "sample_start", "no"),
        ("--lr: 0.5", "adam_alpha", 0.5),
        ("-b: 3", "batch", 3),
        ("b: 3", "batch", 3),
        ('dump: ["1:*", "2:loss"]', "dump", ("1:*", "2:loss")),
        ("activation-memory: 4 GiB", "activation_memory", 4 << 30),
    ],
)
def test_values_that_are_read_as_meant(tmp_path: Path, text: str, name: str, value: object) -> None:
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    options = parse(["--config", str(tmp_path / "c.yaml"), "--model-base", "m"])
    assert getattr(options, name) == value


def test_config_files_that_are_none(folder: Path, run: Run) -> None:
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe\x00ctx")
    for name, told in (("none.yaml", "No such file"), ("bytes.yaml", "not")):
        done = run(logged(folder, 1, "--config", name))
        assert done.code == 2 and told in done.err, done


def test_the_example_is_a_run_that_can_be_made(folder: Path, run: Run) -> None:
    """All keys are options, and a short run with it follows them."""
    from nbllama.options.finetune.table import parse
    from tests.conftest import ROOT

    example = str(ROOT / "examples" / "config.yaml")
    options = parse(["--config", example])
    assert (options.adam_alpha, options.val_split, options.early_stop) == (2e-4, 0.1, 5)
    make_llama(folder / "chat.gguf", tokenizer="bpe")
    data = str(ROOT / "examples" / "demo" / "train.jsonl")
    more = ["--model-base", "chat.gguf", "--train-data", data, "--ctx", "400", "--adam-iter", "2"]
    more += ["--batch", "2"]
    done = run(["--config", example, *more, "--threads", "1"])
    assert done.code == 0, done
    for name in ("adapter-LATEST.gguf", "adapter-BEST.gguf", "checkpoint-LATEST.gguf"):
        assert (folder / name).exists(), name
    assert (folder / "adapter-LATEST.config.yaml").exists()


def test_a_file_that_is_too_deep_or_too_large(tmp_path: Path) -> None:
    for name, text in (
        ("deep.yaml", "ctx: " + "[" * 1000),
        ("maps.yaml", "ctx: " + "{a: " * 1000),
        ("blocks.yaml", "".join(" " * i + "- \n" for i in range(1000))),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match=f"--config .*{name}.*: "):
            parse(["--config", str(tmp_path / name)])
    (tmp_path / "large.yaml").write_text("ctx: " + "1" * (1 << 20))
    for path, why in ((tmp_path / "large.yaml", "the limit"), ("/dev/zero", "a character device")):
        with pytest.raises(UsageError, match=why):
            parse(["--config", str(path)])
