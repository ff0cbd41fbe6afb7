"""The command `nbllama VERB ...`: every verb, and the answer to an unknown word."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import nbllama
from nbllama.cli.command import main
from nbllama.cli.verbs import ALSO, VERBS
from nbllama.options.chat import MainOptions
from nbllama.options.chat_verbs import parse_chat, parse_generate
from tests.conftest import ROOT

# For each verb: the module that is a program too, and words that name a file that does not exist.
PROGRAMS = {
    "finetune": ("finetune", "--model-base none.gguf --train-data none.txt"),
    "show-data": ("show_data", "-m none.gguf --train-data none.txt"),
    "report": ("report", "none.jsonl page.html"),
    "chat": (None, "-m none.gguf"),
    "generate": (None, "-m none.gguf -p text"),
    "verify": ("verify", "-m none.gguf --lora none.gguf"),
    "perplexity": ("perplexity", "-m none.gguf -f none.txt"),
    "export-lora": ("export_lora", "-m none.gguf --lora none.gguf -o out.gguf"),
    "quantize": ("quantize", "none.gguf out.gguf q8_0"),
    "convert-lora": ("convert_lora", "none.gguf out.bin"),
    "convert": ("convert", "baichuan-to-llama none.gguf out.gguf"),
    "inspect": ("inspect", "none.gguf"),
    "peek": ("peek", "none.gguf"),
    "gradcheck": ("gradcheck", "-m none.gguf"),
}
HEAVY = {"numba", "llvmlite", "numpy", "gguf", "jinja2", "tokenizers", "sentencepiece", "rich"}


def test_every_verb_is_tested_and_described_in_one_line() -> None:
    assert list(PROGRAMS) == list(VERBS)
    for verb, (module, what) in VERBS.items():
        assert callable(import_module(module).main), verb
        assert 5 < len(what) < 60 and "\n" not in what, verb


def fresh(code: str, *words: str) -> tuple[str, set[str], float]:
    """The output of a new interpreter, its loaded packages, and its processor time."""
    start = os.times()
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('\\0', *sys.modules)", *words],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "80"}, check=True,
    )  # fmt: skip
    end = os.times()
    out, _, modules = done.stdout.partition("\0")
    assert done.stderr == ""
    seconds = end.children_user - start.children_user + end.children_system - start.children_system
    return out, {name.split(".")[0] for name in modules.split()}, seconds


COMMAND = "from nbllama.cli.command import main\nassert main() == 0"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_is_light_and_names_it(verb: str) -> None:
    out, loaded, seconds = fresh(COMMAND, verb, "--help")
    assert out.startswith(f"usage: nbllama {verb} ")
    assert "--debug" in out and "--version" in out
    assert "python -m" not in out
    assert not loaded & HEAVY
    assert seconds < 0.6


def test_help_of_the_command_lists_the_verbs_in_order() -> None:
    for words in (["--help"], ["-h"], ["help"], []):
        out, loaded, seconds = fresh(COMMAND, *words)
        lines = [line.split() for line in out.splitlines() if line.startswith("  ")]
        assert [line[0] for line in lines] == list(VERBS)
        assert not loaded & HEAVY
        assert seconds < 0.6
    assert fresh(COMMAND, "help", "peek")[0] == fresh(COMMAND, "peek", "--help")[0]


@pytest.mark.parametrize(
    ("module", "words", "name"),
    [
        ("nbllama", ["inspect"], "python -m nbllama inspect FILE"),
        ("nbllama.inspect", [], "python -m nbllama.inspect FILE"),
        ("nbllama.main", [], "python -m nbllama.main"),
        ("nbllama.convert", [], "python -m nbllama.convert CONVERSION IN OUT"),
    ],
)
def test_help_says_how_the_program_was_started(module: str, words: list[str], name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *words, "--help"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(f"usage: {name} [options]\n")


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    return code, *capsys.readouterr()


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_ends_alike(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    version = f"nbllama {nbllama.__version__}\n"
    assert run(capsys, verb, "--version") == (0, version, "")
    assert run(capsys, verb.replace("-", "_"), "--version") == (0, version, "")
    program, words = PROGRAMS[verb]
    for bad in (["--qqqqqqqq"], [*words.split(), "--qqqqqqqq"]):
        code, out, err = run(capsys, verb, *bad)
        assert (code, out) == (2, "")
        assert err == "error: unknown option '--qqqqqqqq'; --help lists them all\n"
    code, _, err = run(capsys, verb, *words.split())
    assert code == 2, err
    assert "none." in err.splitlines()[-1] and "Traceback" not in err
    code, out, err = run(capsys, verb)
    assert code == 2 and out == "" and err.count("\n") == 1, err
    if program is not None:
        package = ROOT / "nbllama" / program
        name = f"nbllama.{program}" + (".__main__" if package.is_dir() else "")
        assert import_module(name).main.module == VERBS[verb][0]


@pytest.mark.parametrize(
    ("word", "verb"),
    [
        ("finetun", "finetune"), ("fine-tune", "finetune"), ("llama-finetune", "finetune"),
        ("train", "finetune"), ("lora", "finetune"), ("sft", "finetune"),
        ("llama-cli", "chat"), ("chta", "chat"), ("run", "chat"), ("main", "generate"),
        ("generat", "generate"), ("llama-export-lora", "export-lora"), ("fuse", "export-lora"),
        ("merge", "export-lora"), ("llama_quantize", "quantize"), ("quantise", "quantize"),
        ("convert_lora_to_gguf.py", "convert-lora"), ("llama-perplexity", "perplexity"),
        ("evaluate", "perplexity"), ("showdata", "show-data"), ("gguf_dump.py", "inspect"),
    ],
)  # fmt: skip
def test_an_unknown_verb_gets_the_nearest(
    word: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = f"error: unknown verb '{word}'; did you mean `nbllama {verb}`?\n"
    assert run(capsys, word, "-m", "model.gguf") == (2, "", said)


def test_what_is_no_verb_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    said = "error: unknown verb 'xyzzy'; nbllama --help lists the verbs\n"
    assert run(capsys, "xyzzy") == (2, "", said)
    said = "error: unknown verb '--model'; the verb comes first; nbllama --help lists the verbs\n"
    assert run(capsys, "--model", "m") == (2, "", said)
    assert run(capsys, "a\x1b[2J")[2].startswith(r"error: unknown verb 'a\x1b[2J'")


def test_other_names_of_verbs_lead_to_verbs() -> None:
    assert set(ALSO.values()) <= set(VERBS)
    assert not set(ALSO) & set(VERBS)


def test_chat_is_a_conversation_unless_it_is_said_otherwise() -> None:
    for words in ("", "-p hello", "-st -p hello", "--system-prompt x", "-i", "--lora a.gguf"):
        assert parse_chat(["-m", "m", *words.split()]).mode == "chat", words
    assert parse_chat(["-m", "m", "-no-cnv", "-p", "x"]).mode == "predict"
    assert parse_chat(["-m", "m", "-ins"]).mode == "interactive"


def test_generate_completes_unless_it_is_said_otherwise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in ("-p hello", "-f file", "--dry-run"):
        assert parse_generate(["-m", "m", *words.split()]).mode == "predict", words
    assert parse_generate(["-m", "m", "-cnv"]).mode == "chat"
    assert parse_generate(["-m", "m", "-if"]).mode == "interactive"
    code, _, err = run(capsys, "generate", "-m", "m")
    assert code == 2 and "pass -p TEXT or -f FILE, or use nbllama chat" in err


def test_the_verbs_have_the_options_of_main() -> None:
    from nbllama.options.chat_verbs import ChatOptions, GenerateOptions
    from nbllama.options.parser import table

    plain = table(MainOptions)
    for kind in (ChatOptions, GenerateOptions):
        for ours, theirs in zip(table(kind), plain, strict=True):
            assert (ours.names, ours.off, ours.default) == (
                theirs.names,
                theirs.off,
                theirs.default,
            )
