"""Every program that reads a model, with wrong input.

One line on standard error says what, where and what to do, with the exit code of `nbllama.errors`;
existing files are not changed. Refusals that are in each program's own test file are not
repeated here.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter

import nbllama
from examples.toy_models import make_llama
from nbllama import convert_lora, export_lora, main, perplexity, quantize, verify
from tests.export.merge_models import adapter_for

PROGRAMS = {
    "main": (main.main, ["-t", "1", "-n", "2", "--temp", "0"]),
    "export_lora": (export_lora.main, ["-t", "1"]),
    "quantize": (quantize.main, ["-t", "1"]),
    "perplexity": (perplexity.main, ["-t", "1"]),
    "verify": (verify.main, ["-t", "1", "--no-llama"]),
    "convert_lora": (convert_lora.main, []),
}
TEMPLATES = {
    "import": "{% import 'os' as os %}{{ os }}",
    "extends": "{% extends 'other' %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "nothing": "{{ nothing.at.all }}",
    "range": "{% for i in range(10**9) %}x{% endfor %}",
}


def odd_adapter(path: Path, *, alpha: float = 4.0, arch: str = "llama", **parts: int) -> None:
    """A GGUF adapter with these parts of pairs of `attn_q`: `lora_a` or `lora_b` and the block."""
    w = GGUFWriter(path, arch)
    w.add_string("general.type", "adapter")
    w.add_string("adapter.type", "lora")
    w.add_float32("adapter.lora.alpha", alpha)
    for part, layer in parts.items():
        shape = (2, 64) if part == "lora_a" else (64, 2)
        w.add_tensor(f"blk.{layer}.attn_q.weight.{part}", np.ones(shape, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, adapters, texts and templates, most of them bad."""
    folder = tmp_path_factory.mktemp("hostile")
    make_llama(folder / "base.gguf", n_ctx_train=256)
    make_llama(folder / "silent.gguf", tokenizer="none")
    model = nbllama.load_model(folder / "base.gguf")
    made = adapter_for(folder / "base.gguf", rank=3, alpha=4.0)
    for name in ("a.gguf", "a.bin", "peft/"):
        nbllama.save_adapter(f"{folder}/{name}", made, model)
    (folder / "empty").touch()
    (folder / "folder").mkdir()
    (folder / "junk").write_bytes(bytes(range(256)) * 9)
    for name in ("a.gguf", "a.bin"):
        (folder / f"cut-{name}").write_bytes((folder / name).read_bytes()[:500])
    odd_adapter(folder / "no-pair.gguf")
    odd_adapter(folder / "nan-alpha.gguf", alpha=float("nan"), lora_a=0, lora_b=0)
    odd_adapter(folder / "half.gguf", lora_a=0)
    odd_adapter(folder / "deep.gguf", lora_a=99, lora_b=99)
    odd_adapter(folder / "qwen2.gguf", arch="qwen2", lora_a=0, lora_b=0)
    (folder / "text.txt").write_text("the hen and her rat eat on thin reed " * 9, encoding="utf-8")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    for name, source in TEMPLATES.items():
        (folder / f"{name}.jinja").write_text(source, encoding="utf-8")
    return folder


def digests(folder: Path) -> dict[str, str]:
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


@pytest.fixture
def untouched(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test runs in the folder of `files` and leaves it as it is."""
    monkeypatch.chdir(files)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    before = digests(files)
    yield
    assert digests(files) == before


M = "-m base.gguf"
MODELS = [
    ("folder", 2, "folder: a directory, not a regular file"),
    ("empty", 2, "empty: the file is empty"),
    ("junk", 2, "junk: magic: "),
    ("text.txt", 2, "text.txt: magic: b'the '"),
    (os.devnull, 2, "not a regular file"),
]
ADAPTERS = [
    ("folder", 5, "adapter_config.json: file: is missing"),
    ("empty", 5, "empty: the file is empty"),
    ("junk", 5, "junk: magic: "),
    ("cut-a.gguf", 5, "truncated?"),
    ("cut-a.bin", 5, "the file ends at 500"),
    ("no-pair.gguf", 5, "contains no pairs"),
    ("nan-alpha.gguf", 5, "nan, but must be above 0"),
    ("half.gguf", 5, "its pair has no lora_b"),
    ("deep.gguf", 5, "the base model has no such tensor"),
    ("qwen2.gguf", 5, "qwen2, but the base model is llama"),
]
SCALES = [
    ("nan", 2, "scale 'nan' is not a number"),
    ("-inf", 2, "scale '-inf' is not a number"),
    ("1e400", 2, "scale '1e400' is not a number"),
    ("1e39", 2, "scale '1e39' is too large for float32"),
    ("0x10", 2, "scale '0x10' is not a number"),
]
CASES = [
    *(("main", f"-m {name} -p x", code, said) for name, code, said in MODELS),
    *(("export_lora", f"-m {name} -o m.gguf -l a.gguf", *rest) for name, *rest in MODELS),
    *(("quantize", f"{name} q.gguf q8_0", *rest) for name, *rest in MODELS),
    *(("perplexity", f"-m {name} -f text.txt", *rest) for name, *rest in MODELS),
    *(("verify", f"-m {name} --lora a.gguf", *rest) for name, *rest in MODELS),
    *(("main", f"{M} -p x --lora {name}", *rest) for name, *rest in ADAPTERS),
    *(("export_lora", f"{M} -o m.gguf -l {name}", *rest) for name, *rest in ADAPTERS),
    *(("perplexity", f"{M} -f text.txt -c 16 --lora {name}", *rest) for name, *rest in ADAPTERS),
    *(("verify", f"{M} --lora {name}", *rest) for name, *rest in ADAPTERS),
    *(("main", f"{M} -p x --lora-scaled a.gguf {scale}", *rest) for scale, *rest in SCALES),
    *(("export_lora", f"{M} -o m.gguf -s a.gguf:{scale}", *rest) for scale, *rest in SCALES),
    *(("verify", f"{M} --lora-scaled a.gguf:{scale}", *rest) for scale, *rest in SCALES),
    ("main", f"{M} -p x --lora-scaled a.gguf:", 2, "scale '' is not a number"),
    ("main", f"{M} -p x --lora-scaled :1", 2, "must be FILE:SCALE"),
    # so large that the logits overflow
    ("main", f"{M} -p x --lora-scaled a.gguf 1e30", 1, "the adapters and their scales"),
    (
        "perplexity",
        f"{M} -f text.txt -c 16 --lora-scaled a.gguf 1e30",
        1,
        "the adapters and their scales",
    ),
    ("verify", f"{M} --lora-scaled a.gguf 1e30", 1, "the adapters and their scales"),
    # numbers
    ("main", f"{M} -p x -c -1", 2, "-c: '-1' is not allowed; use a whole number from 0"),
    ("main", f"{M} -p x -c 99999999999", 2, "use a whole number from 0 to 16777216"),
    ("main", f"{M} -p x -n -3", 2, "-n: '-3' is not allowed"),
    ("main", f"{M} -p x -n 1.5", 2, "-n: '1.5' is not allowed"),
    ("main", f"{M} -p x -b 0", 2, "-b: '0' is not allowed"),
    ("main", f"{M} -p x --temp nan", 2, "--temp: 'nan' is not allowed"),
    ("main", f"{M} -p x --repeat-penalty 0", 2, "use a number from 0.01"),
    ("main", f"{M} -p x --keep -2", 2, "-1 or more"),
    ("perplexity", f"{M} -f text.txt -c 0", 2, "-c: '0' is not allowed"),
    ("perplexity", f"{M} -f text.txt --chunks -1", 2, "0 or more"),
    ("verify", f"{M} --lora a.gguf -t 0", 2, "-t: '0' is not allowed"),
    # texts
    ("main", f"{M} -f folder", 2, "cannot read the prompt folder"),
    ("main", f"{M} -f empty", 2, "the prompt empty is empty"),
    ("main", f"{M} -f text.txt -c 16", 2, "a context of 16 tokens has room for only 12"),
    ("main", f"{M} -p \udcff", 2, "lone surrogate"),
    ("main", rf"{M} -p \xff -e", 2, "is not UTF-8"),
    ("main", f"{M} -p x -f text.txt", 2, "--prompt and --file: pass only one of them"),
    ("main", f"{M} -p x -r ", 2, "--reverse-prompt: the text is empty"),
    ("perplexity", f"{M} -f folder", 2, "folder: cannot be read: "),
    ("perplexity", f"{M} -f latin.txt", 2, "latin.txt is not UTF-8"),
    ("perplexity", f"{M} -f empty", 2, "empty: 1 tokens, but 1024 are required"),
    ("export_lora", f"{M} -o m.gguf -l a.gguf --sample folder", 2, "cannot be read: "),
    ("export_lora", f"{M} -o m.gguf -l a.gguf --sample latin.txt", 2, "is not UTF-8"),
    ("verify", f"{M} --lora a.gguf -f folder", 2, "folder: cannot be read: "),
    ("main", "-m silent.gguf -p x", 2, "tokenizer 'none' is not supported"),
    ("perplexity", "-m silent.gguf -f text.txt", 2, "tokenizer 'none' is not supported"),
    ("verify", "-m silent.gguf --lora a.gguf", 2, "tokenizer 'none' is not supported"),
    # templates
    (
        "main",
        f"{M} -cnv --chat-template import.jinja",
        2,
        "not allowed to do: loads another template",
    ),
    (
        "main",
        f"{M} -cnv --chat-template extends.jinja",
        2,
        "not allowed to do: loads another template",
    ),
    ("main", f"{M} -cnv --chat-template recursion.jinja", 2, "recurses too deeply"),
    ("main", f"{M} -cnv --chat-template nothing.jinja", 2, "'nothing' is undefined"),
    ("main", f"{M} -cnv --chat-template range.jinja", 2, "Range too big"),
    ("main", f"{M} -cnv --chat-template folder", 2, "--chat-template folder: "),
    # outputs
    ("main", f"{M} -p x --dump * --dump-out base.gguf", 2, "base.gguf: is also an input"),
    ("main", f"{M} -f text.txt --dump * --dump-out text.txt", 2, "text.txt: is also an input"),
    ("main", f"{M} -p x --dump * --dump-out no/x.npz", 3, "no/x.npz: cannot be written"),
    ("export_lora", f"{M} -o text.txt -l a.gguf --sample text.txt", 2, "is also an input"),
    ("export_lora", f"{M} -o peft/adapter_config.json -l peft", 2, "is also an input"),
    ("export_lora", f"{M} -o peft -l peft", 2, "peft: is also an input"),
    ("export_lora", f"{M} -o folder/ -l a.gguf", 3, "not a file name"),
    ("export_lora", f"{M} -o text.txt/m.gguf -l a.gguf", 3, "cannot be written"),
    ("export_lora", f"{M} -o {os.devnull} -l a.gguf", 3, "not a regular file"),
    ("export_lora", f"{M} -o {'x' * 300} -l a.gguf", 3, "too long"),
    ("convert_lora", "a.gguf base.gguf -m base.gguf", 2, "--model-base and OUT are the same"),
    ("convert_lora", "a.gguf ./a.gguf", 2, "IN and OUT are the same"),
    ("quantize", "base.gguf folder q8_0", 3, "folder: cannot be written"),
    ("quantize", f"base.gguf {os.devnull} q8_0", 3, "not a regular file"),
    ("quantize", "base.gguf ./base.gguf q8_0", 2, "is also an input"),
    ("quantize", "a.gguf q.gguf q8_0", 2, "a LoRA adapter, not a model"),
    ("quantize", "base.gguf q.gguf same", 2, "unknown type 'same'"),
    ("quantize", "base.gguf q.gguf q8_0 0", 2, "THREADS: '0' is not allowed"),
]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("program", "words", "code", "said"), CASES)
def test_one_line_and_the_exit_code(
    program: str, words: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, more = PROGRAMS[program]
    # if an option is given twice, the last value counts
    assert run([*more, *words.split(" ")]) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and said in lines[-1], lines
    assert not any("Warning" in line or "Traceback" in line for line in lines), lines


@pytest.mark.usefixtures("untouched")
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="/proc, as root")
def test_a_folder_that_takes_no_files(capsys: pytest.CaptureFixture[str]) -> None:
    """Also for root, whom permissions do not stop."""
    for run, words in (
        (export_lora.main, "-m base.gguf -o /proc/m.gguf -l a.gguf"),
        (quantize.main, "base.gguf /proc/q.gguf q8_0"),
        (main.main, "-m base.gguf -p x --dump * --dump-out /proc/d.npz"),
    ):
        assert run(words.split(" ")) == 3
        assert "cannot be written" in capsys.readouterr().err.splitlines()[-1]


def test_a_merge_that_cannot_be_compared_fails(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is complete, and the last line says that its logits are not numbers."""
    words = ["-m", files / "base.gguf", "-s", files / "a.gguf", "1e30", "-o", tmp_path / "m.gguf"]
    assert export_lora.main([*map(str, words), "-t", "1"]) == 1
    err = capsys.readouterr().err
    assert "the adapters and their scales" in err.splitlines()[-1] and "Warning" not in err
    assert nbllama.load_model(tmp_path / "m.gguf").hp.n_layer == 2
