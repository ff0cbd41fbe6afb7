"""The command line of `main`: the table, the modes, contradictions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from nbllama.errors import UsageError
from nbllama.generation.sampling.params import SamplingParams
from nbllama.options.chat import MainOptions, options_page, parse_main, read_escapes
from nbllama.options.parser import table
from nbllama.options.values import Real, Text
from tests.conftest import ROOT

OPTIONS = table(MainOptions)


def parse(*argv: str) -> MainOptions:
    return parse_main(["-m", "m", *argv]).options


def mode(*argv: str) -> str:
    return parse_main(["-m", "m", *argv]).mode


def refused(*argv: str) -> str:
    with pytest.raises(UsageError) as e:
        parse_main(argv)
    return str(e.value)


def test_the_docs_list_the_options() -> None:
    page = (ROOT / "docs" / "main-options.md").read_text(encoding="utf-8")
    assert page == options_page()


def test_help_is_quick_and_lists_every_option() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nbllama.main", "--help"],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"COLUMNS": "80"}, check=True,
    )  # fmt: skip
    words = set(re.findall(r"--?[a-z][a-z0-9-]*", done.stdout))
    for o in OPTIONS:
        assert {*o.names, *o.off} <= words, o.names
    assert done.stderr == ""


def test_every_default_is_a_value_of_its_option() -> None:
    for o in OPTIONS:
        if o.value is not None and o.default is not None and not o.many:
            assert o.value.parse(str(o.default)) == o.default, o.names
        assert o.shown_default not in ("None", "", "()"), o.names


def test_each_value_lands_in_its_own_field() -> None:
    base = parse()
    for o in OPTIONS:
        if o.dest in ("lora", "lora_scaled", "model", "chat_template", "system_prompt"):
            continue
        if o.dest == "template_vars":
            assert parse("-cnv", "--template-vars", "a=1").template_vars == "a=1"
            with pytest.raises(UsageError, match="--template-vars applies only to chats"):
                parse("-p", "x", "--template-vars", "a=1")
            continue
        for name in (*o.names, *o.off):
            if o.value is None:
                got = parse("-p", "x", name) if o.dest != "single_turn" else parse(name)
                want: object = name in o.names
            elif isinstance(o.value, Text):
                got, want = parse(name, "1"), ("1",) if o.many else "1"
            else:
                text = "0.5" if isinstance(o.value, Real) else "2"
                text = "0" if o.dest == "n_gpu_layers" else text
                got, want = parse(name, text), o.value.parse(text)
            assert getattr(got, o.dest) == want, name
            left = {f.name for f in fields(MainOptions)} - {"prompt", o.dest}
            assert all(getattr(got, f) == getattr(base, f) for f in left), name


def test_samplers_take_their_settings_and_defaults() -> None:
    assert parse().sampling(seed=5) == SamplingParams(seed=5)
    got = parse(
        *"--temp 0.1 --top-k 3 --top-p 0.4 --min-p 0.2 --typical 0.6 --repeat-last-n 9".split(),
        *"--repeat-penalty 1.3 --frequency-penalty 0.5 --presence-penalty 0.25".split(),
        *"--mirostat 2 --mirostat-lr 0.2 --mirostat-ent 4 -s 77".split(),
    )
    assert got.sampling(seed=5) == SamplingParams(
        77, 0.1, 3, 0.4, 0.2, 0.6, 9, 1.3, 0.5, 0.25, 2, 0.2, 4.0
    )


def test_modes() -> None:
    assert mode() == mode("-cnv") == mode("-cnv", "-p", "x") == mode("-cnv", "-i") == "chat"
    assert mode("-p", "x") == mode("-f", "x") == mode("-no-cnv") == "predict"
    assert mode("-i") == mode("-if") == mode("-ins") == mode("-i", "-p", "x") == "interactive"
    assert mode("-cnv", "--in-prefix", "Q:") == mode("--in-suffix", "A:") == "interactive"


def test_adapters_are_taken_in_order() -> None:
    got = parse_main(
        "-m m --lora a,b -p text --lora-scaled c 0.5 --lora-scaled d:2,e:-1 --lora=f".split()
    )
    assert got.adapters == [("a", 1), ("b", 1), ("c", 0.5), ("d", 2), ("e", -1), ("f", 1)]
    assert got.options.prompt == "text"
    # the value of another option is not an option
    assert parse_main(["-m", "m", "-p", "--lorax", "-r", "a", "-r", "b"]).options.reverse_prompt


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("-p x", "--model FILE is missing"),
        ("-m m -p x -f y", "pass only one of them"),
        ("-m m -cnv -ins", "pass only one of them"),
        ("-m m -p x --system-prompt y", "--system-prompt applies only to chats"),
        ("-m m -i --chat-template y", "--chat-template applies only to chats"),
        ("-m m -ngl 20", "runs on the CPU only"),
        ("-m m --temp hot", "--temp: 'hot' is not allowed; use a number"),
        ("-m m --mirostat 3", "from 0 to 2"),
        ("-m m --top-p 95", "--top-p: '95' is not allowed; use a number from 0 to 1 (1 turns"),
        ("-m m --top-p -1", "--top-p: '-1' is not allowed; use a number from 0 to 1"),
        ("-m m --min-p 2", "--min-p: '2' is not allowed; use a number from 0 to 1 (0 turns"),
        ("-m m --typical -1", "--typical: '-1' is not allowed"),
        ("-m m --repeat-penalty 1e-30", "use a number from 0.01 to 1e+06 (1 turns it off)"),
        ("-m m --mirostat-ent -5", "use a number from 0 to 100"),
        ("-m m --mirostat-lr -1", "use a number from 0 to 10"),
        ("-m m --repeat-penalty 0", "from 0.01"),
        ("-m m --seed 4294967296", "from -1 to 4294967295"),
        ("-m m --lora-scaled a", "the scale is missing"),
        ("-m m --lora-scaled a much", "scale 'much' is not a number"),
        ("-m m --lora-scaled a:1,b", "each item must be FILE:SCALE"),
        ("-m m --grammar x", "unknown option '--grammar'"),
        ("-m", "-m requires a value"),
    ],
)
def test_what_cannot_be(argv: str, said: str) -> None:
    line = refused(*argv.split())
    assert said in line and "\n" not in line


def test_escapes_are_read_when_asked_for() -> None:
    assert read_escapes(parse(), r"a\n", "-p") == r"a\n"
    assert read_escapes(parse("-e"), r"a\n\x41", "-p") == "a\nA"
    with pytest.raises(UsageError, match=r"--prompt 'a\\xff' is not UTF-8"):
        read_escapes(parse("-e"), r"a\xff", "--prompt")
