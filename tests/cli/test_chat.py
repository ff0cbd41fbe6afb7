"""The program in use: pipes, a terminal, Ctrl-C, every refusal."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbllama
from examples.toy_models import make_llama
from nbllama import main
from nbllama.errors import shown
from nbllama.generation.predictor import Predictor
from nbllama.text import tokenizer_from_gguf
from nbllama.text.stream import whole_characters
from tests.cli.terminal import Terminal, run_main
from tests.export.merge_models import adapter_for, refusal

Ask = Callable[..., tuple[str, str]]
GREEDY = ["--temp", "0", "-t", "1"]
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<bot>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base.gguf with an adapter as all three formats, and a template."""
    folder = tmp_path_factory.mktemp("main")
    make_llama(folder / "base.gguf", n_ctx_train=256)
    model = nbllama.load_model(folder / "base.gguf")
    for name, seed, rank in (("a.gguf", 1, 3), ("b.bin", 2, 5), ("c/", 3, 2)):
        made = adapter_for(folder / "base.gguf", seed=seed, rank=rank, alpha=4.0)
        nbllama.save_adapter(f"{folder}/{name}", made, model)
    (folder / "plain.jinja").write_text(PLAIN)
    return folder


@pytest.fixture
def ask(folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Output and notes of a run that succeeds."""

    def run(*words: object, said: str | bytes = "") -> tuple[str, str]:
        data = said.encode() if isinstance(said, str) else said
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
        capfd.readouterr()
        argv = [str(w) for w in ("-m", folder / "base.gguf", *GREEDY, *words)]
        code = main.main(argv)
        out, err = capfd.readouterr()
        assert code == 0, err
        return out, err

    return run


def greedy(folder: Path, text: str, n: int, adapter: Any = None) -> str:
    """`text` and its continuation by the public functions."""
    model = nbllama.load_model(folder / "base.gguf")
    tokenizer = tokenizer_from_gguf(model.gguf)
    prompt = tokenizer.encode(text, add_special=True)
    return whole_characters(tokenizer, prompt[1:] + nbllama.generate(model, prompt, n, adapter))


def test_a_text_goes_on(folder: Path, ask: Ask) -> None:
    out, err = ask("-p", "the hen", "-n", "12")
    assert out == greedy(folder, "the hen", 12) + "\n"
    assert err.splitlines()[-1].startswith("read ")
    only, _ = ask("-p", "the hen", "-n", "12", "--no-display-prompt")
    assert only == out.removeprefix("the hen")
    (folder / "prompt.txt").write_text("the hen\n")
    assert ask("-f", folder / "prompt.txt", "-n", "12", "-b", "1")[0] == out
    assert ask("-p", r"the\x20hen", "-e", "-n", "12")[0] == out


def test_adapters_of_three_formats_are_mixed(folder: Path, ask: Ask) -> None:
    from nbllama.lora.mix import mix

    model = nbllama.load_model(folder / "base.gguf")
    parts = [
        (nbllama.load_adapter(f"{folder}/{name}", model), scale)
        for name, scale in (("a.gguf", 1.0), ("b.bin", 0.4), ("c", -0.8))
    ]
    wanted = greedy(folder, "the hen", 24, mix(parts))
    assert wanted != greedy(folder, "the hen", 24)
    out, err = ask(
        "-p", "the hen", "-n", "24", "--lora", folder / "a.gguf",
        "--lora-scaled", folder / "b.bin", "0.4", "--lora-scaled", f"{folder / 'c'}:-0.8",
    )  # fmt: skip
    assert out == wanted + "\n"
    assert f"{folder / 'b.bin'}: 14 pairs, scale 0.4\n" in err


def test_the_same_seed_says_the_same(folder: Path, ask: Ask) -> None:
    words = ["-p", "the", "-n", "20", "--temp", "1.5", "--top-k", "0", "--min-p", "0", "-s"]
    first, err = ask(*words, "7")
    assert "seed 7\n" in err
    assert ask(*words, "7")[0] == first != ask(*words, "8")[0]
    _, err = ask(*words, "-1")
    chosen = next(line for line in err.splitlines() if line.startswith("seed ")).split()[1]
    assert 0 <= int(chosen) < 2**31


def test_a_reverse_prompt_ends_a_text(folder: Path, ask: Ask) -> None:
    whole = greedy(folder, "the hen", 40)
    stop = whole[12:15]
    out, _ = ask("-p", "the hen", "-n", "40", "-r", stop, "-r", "never of all")
    assert out[:-1] == whole[: len(out) - 1]
    assert stop in out[-len(stop) - 3 :]
    assert len(out) < len(whole)
    assert ask("-p", "the hen", "-r", "hen")[0] == "the hen\n"


def test_contexts(folder: Path, ask: Ask) -> None:
    out, err = ask("-p", "the hen", "-c", "16", "--ignore-eos")
    assert out == greedy(folder, "the hen", 16 - len_ids(folder, "the hen")) + "\n"
    assert "the context of 16 tokens is full; pass a larger --ctx-size, or --context-shift" in err
    longer, err = ask("-p", "the hen", "-c", "16", "--context-shift", "-n", "60")
    assert longer.startswith(out.rstrip("\n")) and len(longer) > len(out)
    assert "full" not in err
    _, err = ask("-p", "the hen", "-c", "16", "--context-shift", "-n", "-2")
    assert "full" in err
    _, err = ask("-p", "the", "-c", "300", "-n", "2")
    assert "warning: context 300 is longer than the 256 tokens the model was trained with\n" in err
    _, err = ask("-p", "the", "-c", "2", "-n", "2")
    assert "using the minimum, 8" in err


def len_ids(folder: Path, text: str) -> int:
    model = nbllama.load_model(folder / "base.gguf")
    return len(model.tokenizer.encode(text, add_special=True))


CHAT = ["-cnv", "-n", "6", "--ignore-eos"]


def test_a_chat_by_pipes(folder: Path, ask: Ask) -> None:
    template = ["--chat-template", folder / "plain.jinja"]
    out, err = ask(*CHAT, *template, said="the\nand\n\nhen \\\nhat")
    answers = out.splitlines()
    assert len(answers) >= 3
    assert "read" in err
    # three messages, the last one of two lines; each turn is what the whole text would give
    text, found = "", []
    for said in ("the", "and", "hen \nhat"):
        text += f"<user>{said}"
        answer = greedy(folder, f"{text}<bot>", 6).removeprefix(f"{text}<bot>")
        found.append(answer)
        text += f"<assistant>{answer}"
    assert out == "".join(f"{answer}\n" for answer in found)
    first, _ = ask(*CHAT, *template, "-st", "-p", "the")
    assert first == f"> the\n{found[0]}\n"
    system, _ = ask(*CHAT, *template, "-st", "-sys", "rat", said="the")
    whole = greedy(folder, "<system>rat<user>the<bot>", 6)
    assert system == whole.removeprefix("<system>rat<user>the<bot>") + "\n"


def test_a_template_that_leaves_out_the_system_prompt(folder: Path, ask: Ask) -> None:
    (folder / "users.jinja").write_text(PLAIN.replace("messages", "messages[-1:]"))
    words = [*CHAT, "-st", "-sys", "rat", "--chat-template"]
    warning = "warning: the chat template leaves out the system prompt"
    assert warning in ask(*words, folder / "users.jinja", said="the")[1]
    assert warning not in ask(*words, folder / "plain.jinja", said="the")[1]


def test_a_chat_reads_only_what_is_new(folder: Path, ask: Ask) -> None:
    said = "the hen and her rat eat on thin reed\n" * 6
    words = [*CHAT, "--chat-template", folder / "plain.jinja", "-c", "2000"]
    _, err = ask(*words, said=said)
    read = int(err.splitlines()[-1].split()[1])
    # the last turn alone renders six messages; rendering all again each turn would be 21
    assert read < 8 * len_ids(folder, "<user>the hen and her rat eat on thin reed<bot>" + 9 * "x")


def test_layouts(folder: Path, ask: Ask) -> None:
    out, err = ask(*CHAT, "-st", said="the")
    assert "warning: the model has no chat template; using the Alpaca layout\n" in err
    assert ask(*CHAT, "-st", "--chat-template", "Alpaca", said="the")[0] == out
    other, err = ask(*CHAT, "-st", "--chat-template", "llama-2", said="the")
    assert "warning" not in err and other != out


def test_a_message_that_does_not_fit_is_left_out(folder: Path, ask: Ask) -> None:
    words = [*CHAT, "--chat-template", folder / "plain.jinja", "-c", "48", "-n", "3"]
    out, err = ask(*words, said="the\n" + "hen " * 100 + "\nand\n")
    assert out == ask(*words, said="the\nand\n")[0]
    assert "in the context of 48 tokens; pass a larger --ctx-size; the message was ignored\n" in err
    # and one that a model with a smaller context cannot go on from ends the chat
    out, err = ask(*words[:-2], "-n", "-1", said="the\nand\n")
    assert "the context of 48 tokens is full" in err


def test_turns_with_reverse_prompts(folder: Path, ask: Ask) -> None:
    """The user's turn comes with the reverse prompt that ends the prompt."""
    words = ["-i", "-r", "Q:", "--in-prefix", " ", "--in-suffix", "A:", "-n", "5"]
    out, _ = ask(*words, "-p", "the Q:", said="hen\nhat\n")
    assert out.startswith("the Q: A:")
    again, _ = ask("-if", *words[1:], "-p", "the Q:", said="hen\nhat\n")
    assert again == out
    free, _ = ask("-i", "-n", "5", "-p", "the", said="\n")
    assert free.replace("\n", "") == greedy(folder, "the", 10).replace("\n", "")


def test_instructions(folder: Path, ask: Ask) -> None:
    out, _ = ask("-ins", "-n", "5", "-p", "Do it.", said="the\nhen\n")
    assert out.startswith("Do it.\n") and len(out.splitlines()) >= 3
    text = "Do it.\n\n### Instruction:\n\n"
    model = nbllama.load_model(folder / "base.gguf")
    parts = [("Do it.", True), ("\n\n### Instruction:\n\n", False), ("the", False)]
    parts.append(("\n\n### Response:\n\n", False))
    ids = [i for t, bos in parts for i in model.tokenizer.encode(t, add_special=bos)]
    assert out.splitlines()[1] in model.tokenizer.decode(nbllama.generate(model, ids, 5)), text


def test_chinese_in_any_locale(folder: Path, ask: Ask) -> None:
    text = greedy(folder, "天地玄黄", 30)
    talk = [*GREEDY, *CHAT, "--chat-template", folder / "plain.jinja"]
    typed, _ = ask(*talk, said="天地\n")
    assert typed != ask(*talk, said="地天\n")[0]
    base = ["-m", folder / "base.gguf"]
    env = {"LC_ALL": "C", "PYTHONIOENCODING": "cp936"}
    done = run_main([*base, *GREEDY, "-p", "天地玄黄", "-n", "30"], **env)
    assert (done.returncode, done.stdout.decode("utf-8")) == (0, text + "\n")
    assert run_main([*base, *talk], "天地\n", **env).stdout.decode("utf-8") == typed


def test_a_character_cut_by_the_limit_is_not_shown(
    folder: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With -n 7, the third character (three tokens each) is cut."""
    tokenizer = nbllama.load_model(folder / "base.gguf").tokenizer
    ids = tokenizer.encode("天地玄黄")
    assert len(ids) == 12 or len(ids) == 13  # a space in front
    ids = ids[len(ids) - 12 :]
    monkeypatch.setattr(Predictor, "draw", lambda self, n, stop: iter(ids[:n]))
    assert ask("-p", "the", "-n", "7")[0] == "the天地\n"
    assert ask("-p", "the", "-n", "9")[0] == "the天地玄\n"


def test_input_that_is_not_utf_8_is_told(folder: Path, ask: Ask) -> None:
    out, err = ask(*CHAT, said="天\n".encode("cp936") + b"the\n")
    assert "error: the message is not UTF-8 and was ignored" in err
    assert out == ask(*CHAT, said=b"the\n")[0]


# A terminal


def test_a_chat_on_a_terminal(folder: Path, ask: Ask) -> None:
    words = ["-m", folder / "base.gguf", *GREEDY, "-cnv", "-n", "30", "--ignore-eos"]
    terminal = Terminal([*words, "--chat-template", folder / "plain.jinja"], folder, LC_ALL="C")
    terminal.wait_for(r"> $")
    terminal.type("天地 hen\n")
    answer = terminal.wait_for(r"\n> $")
    piped = ask(
        "-cnv", "-n", "30", "--ignore-eos", "--chat-template", folder / "plain.jinja",
        said="天地 hen\n",
    )[0]  # fmt: skip
    escaped = "".join(c if c in "\n\t" or c.isprintable() else shown(c) for c in piped)
    assert answer == f"天地 hen\n{escaped}> "
    terminal.type("\x04")  # Ctrl-D
    assert terminal.end() == 0
    assert "tokens/s" in terminal.seen


def test_commands_on_a_terminal(folder: Path, ask: Ask) -> None:
    options = ["-cnv", "-n", "8", "--ignore-eos", "--chat-template", folder / "plain.jinja"]
    terminal = Terminal(["-m", folder / "base.gguf", *GREEDY, *options], folder)
    assert "or a command: /clear starts" in terminal.wait_for(r"> $")

    def reply(text: str) -> str:
        terminal.type(f"{text}\n")
        return terminal.wait_for(r"\n> $").partition("\n")[2]

    first = reply("hen")
    assert reply("hat") != first  # the second message of a chat
    assert reply("/clear") == "started a new chat\n> "
    assert reply("hen") == first
    assert reply("/help").startswith("/clear starts a new chat; ")
    assert reply("/regen").startswith("error: /regen is not a command (/clear ")
    assert not reply("/usr/bin").startswith("error")  # a path is a message
    terminal.type("/exit\n")
    assert terminal.end() == 0
    # piped lines are messages, also if they look like commands
    assert len(ask(*options, said="/exit\nhen\n")[0].splitlines()) >= 2


def test_ctrl_c_stops_the_answer_then_the_program(folder: Path) -> None:
    words = ["-m", folder / "base.gguf", *GREEDY, "-cnv", "--ignore-eos", "--context-shift"]
    terminal = Terminal([*words, "--chat-template", folder / "plain.jinja"], folder)
    terminal.wait_for(r"> $")
    terminal.type("hen\n")
    terminal.wait_for(r"(?s)hen\n.{20}")  # an answer without end
    terminal.interrupt()
    terminal.wait_for(r"\n> $")
    terminal.type("hat\n")
    terminal.wait_for(r"(?s)hat\n.{20}")  # and the chat continues
    terminal.interrupt()
    terminal.wait_for(r"\n> $")
    assert terminal.process.poll() is None
    # Between writing the prompt and waiting for a key, readline does not see a signal: a moment
    # that no user can hit.
    time.sleep(0.5)
    terminal.interrupt()
    assert terminal.end() == 130
    assert terminal.seen.endswith("stopped by SIGINT\n")


def test_ctrl_c_ends_a_text(folder: Path) -> None:
    words = ["-m", folder / "base.gguf", *GREEDY, "-p", "hen", "--ignore-eos", "--context-shift"]
    terminal = Terminal(words, folder)
    terminal.wait_for(r"(?s)hen.{20}")
    terminal.interrupt()
    assert terminal.end() == 130
    assert terminal.seen.endswith("\nstopped by SIGINT\n")


def test_colours_and_what_would_steer_the_terminal(folder: Path, ask: Ask) -> None:
    words = ["-m", folder / "base.gguf", *GREEDY, "-n", "4", "--ignore-eos"]
    terminal = Terminal([*words, "-p", "a\x1b]0;title\x07b\tc", "--color"], folder)
    assert terminal.end() == 0
    assert "\x1b[33ma\\x1b]0;title\\x07b" in terminal.seen and "\x1b[0m" in terminal.seen
    assert "\x1b]" not in terminal.seen and "\x07" not in terminal.seen
    piped, _ = ask("-n", "4", "--ignore-eos", "-p", "a\x1bb")
    assert piped.startswith("a\x1bb")  # a file gets what was written


def test_exact_is_the_session_s(folder: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbllama.generation import predictor
    from nbllama.generation.session import Session

    seen = []

    def session(*args: Any, exact: bool = False, **more: Any) -> Session:
        seen.append(exact)
        return Session(*args, exact=exact, **more)

    monkeypatch.setattr(predictor, "Session", session)
    ask("-n", "2", "-p", "hen")
    ask("-n", "2", "-p", "hen", "--exact")
    assert seen == [False, True]


# Refusals


def test_bad_inputs_end_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, lora = folder / "base.gguf", folder / "a.gguf"
    other, broken = folder / "other.gguf", folder / "broken.gguf"
    make_llama(other, n_embd=96, n_ff=192)
    broken.write_bytes(base.read_bytes()[:5000])
    latin, utf16 = folder / "latin.txt", folder / "big.jinja"
    latin.write_bytes(b"caf\xe9")
    utf16.write_bytes(b"\xff\xfe")
    jinja = {
        "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "import": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "file": "{% include '/etc/passwd' %}",
        "syntax": "{% for m in messages %}",
        "memory": "{{ 'a' * 10**12 }}",
        "refuses": "{{ raise_exception('no users here') }}",
        "drops": "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}",
    }
    for name, source in jinja.items():
        (folder / f"{name}.jinja").write_text(source)
    good = ["-m", base, "-t", "1"]
    for words, code, said in (
        ([], 2, "--model FILE is missing"),
        (["-m", folder / "no.gguf", "-p", "x"], 2, "cannot be opened"),
        (["-m", broken, "-p", "x"], 2, "truncated"),
        (["-m", lora, "-p", "x"], 2, "adapter"),
        ([*good, "-p", "x", "--lora", folder / "no.gguf"], 2, "no such adapter file"),
        ([*good, "-p", "x", "--lora", base], 5, "cannot be used"),
        (["-m", other, "-p", "x", "--lora", lora], 5, "the base model has (96, 96)"),
        ([*good, "-p", "x", "--lora-scaled", lora, "much"], 2, "scale 'much' is not a number"),
        ([*good, "-f", folder / "no.txt"], 2, "cannot read the prompt"),
        ([*good, "-f", latin], 2, "latin.txt is not UTF-8"),
        ([*good, "-p", "x" * 600], 2, "the prompt has 602 tokens"),
        ([*good, "-p", "x", "-c", "300", "--strict"], 2, "longer than the 256"),
        ([*good, "-cnv", "--chat-template", "nonsense"], 2, "neither a file nor one of"),
        ([*good, "-cnv", "--chat-template", utf16], 2, "not UTF-8"),
        ([*good, "-cnv", "--chat-template", folder / "loop.jinja"], 2, "too slow"),
        ([*good, "-cnv", "--chat-template", folder / "import.jinja"], 2, "not allowed to do"),
        ([*good, "-cnv", "--chat-template", folder / "file.jinja"], 2, "the given chat template"),
        ([*good, "-cnv", "--chat-template", folder / "syntax.jinja"], 2, "cannot be compiled"),
        ([*good, "-cnv", "--chat-template", folder / "memory.jinja"], 2, "memory"),
        ([*good, "-cnv", "--chat-template", folder / "refuses.jinja"], 2, "no users here"),
        ([*good, "-cnv", "--chat-template", folder / "drops.jinja"], 2, "leaves out the questions"),
    ):
        got, line = refusal(main.main, words, capsys)
        assert (got, said in line) == (code, True), (words, got, line)
