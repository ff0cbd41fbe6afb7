"""The parser with a small table of options."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nbllama.errors import UsageError
from nbllama.options.parser import markdown, option, parse_into, table
from nbllama.options.values import Real, Size, Text, Whole


@dataclass(frozen=True)
class Small:
    base_file: str = option("A", Text(), "x.gguf", "a file")
    count: int = option("A", Whole(1, 16), 4, "how many", also=["-n", "--rank-ffn-gate"])
    rate: float = option("B", Real(0, 1, above=True, below=True), 0.5, "how fast")
    fast: bool = option("B", None, False, "go fast", off=["--slow"])
    zero: int = option("B", Whole(-1), 0, "often 0")


def parse(*argv: str) -> Small:
    return parse_into(Small, argv, prog="small", about="About", familiar={"--lr": "--rate"})


def refused(*argv: str) -> str:
    with pytest.raises(UsageError) as e:
        parse(*argv)
    line = str(e.value)
    assert "\n" not in line
    assert e.value.exit_code == 2
    return line


def test_defaults() -> None:
    assert parse() == Small("x.gguf", 4, 0.5, False, 0)


def test_every_form_of_an_option() -> None:
    assert parse("--base-file", "a") == parse("--base_file", "a") == parse("--base-file=a")
    assert parse("--base_file=a_b=c").base_file == "a_b=c"
    assert parse("-n", "7").count == parse("-n=7").count == parse("--count", "7").count == 7
    assert parse("--rank-ffn_gate", "7").count == parse("--rank_ffn-gate=7").count == 7
    assert parse("--rate", "1e-3").rate == 1e-3


def test_the_last_one_wins() -> None:
    assert parse("-n", "1", "--count=2", "-n", "3").count == 3
    assert parse("--fast").fast is True
    assert parse("--fast", "--slow").fast is False
    assert parse("--slow", "--fast").fast is True


def test_an_option_for_many_values() -> None:
    @dataclass(frozen=True)
    class Many:
        words: tuple[str, ...] = option("A", Text(), (), "words", also=["-r"], many=True)

    assert parse_into(Many, [], prog="many", about="About") == Many(())
    argv = ["-r", "a", "--words=b,c", "-r", ""]
    assert parse_into(Many, argv, prog="many", about="About") == Many(("a", "b,c", ""))


@pytest.mark.parametrize(
    "value", ["-x.gguf", "--", "-1e-3", "", "a b", "--nothing", "模型.gguf", "%s"]
)
def test_any_text_is_a_value(value: str) -> None:
    assert parse("--base-file", value).base_file == value
    assert parse(f"--base-file={value}").base_file == value


def test_a_value_with_an_options_name_needs_an_equals_sign() -> None:
    assert "--base-file requires a value" in refused("--base-file", "--count", "3")
    assert parse("--base-file=--count").base_file == "--count"


def test_negative_numbers_are_values() -> None:
    assert parse("--zero", "-1").zero == -1
    assert "'-2' is not allowed" in refused("--zero", "-2")
    assert "'-1e-3' is not allowed" in refused("--rate", "-1e-3")


@pytest.mark.parametrize(
    ("argv", "nearest"),
    [
        (["--base-fiel", "a"], "--base-file"),
        (["--cuont=3"], "--count"),
        (["--basefile", "a"], "--base-file"),
        (["--lr", "3"], "--rate"),
        (["--sloww"], "--slow"),
        (["--coun"], "--count"),  # no abbreviations
    ],
)
def test_an_unknown_option_gets_the_nearest(argv: list[str], nearest: str) -> None:
    line = refused(*argv)
    assert line.startswith(f"unknown option '{argv[0].split('=')[0]}'")
    assert line.endswith(f"did you mean {nearest}?")


def test_what_resembles_nothing() -> None:
    assert refused("--qqqqqqqq") == "unknown option '--qqqqqqqq'; --help lists them all"
    assert refused("-n7") == "unknown option '-n7'; did you mean -n?"
    assert refused("file") == "'file' is not an option; --help lists them all"
    assert refused("") == "'' is not an option; --help lists them all"


def test_control_characters_are_escaped() -> None:
    assert refused("--a\x1b[2J\n") == r"unknown option '--a\x1b[2J\n'; --help lists them all"
    assert r"'a\nb'" in refused("-n", "a\nb")


@pytest.mark.parametrize("value", ["0", "17", "x", "", "1.0", "1e1", "12abc", "0x4", "9" * 5000])
def test_whole_numbers(value: str) -> None:
    line = refused(f"--count={value}")
    assert line.startswith("--count: '")
    assert line.endswith("' is not allowed; use a whole number from 1 to 16")
    assert len(line) < 250


@pytest.mark.parametrize("value", ["0", "1", "nan", "inf", "-inf", "x", "0.5x", ""])
def test_real_numbers(value: str) -> None:
    line = refused(f"--rate={value}")
    assert line == f"--rate: '{value}' is not allowed; use a number above 0 and below 1"


def test_ends_of_the_ranges() -> None:
    assert (parse("-n", "1").count, parse("-n", "16").count) == (1, 16)
    assert Real(0, 1).parse("0") == 0.0
    assert Real(0, 1).parse("1") == 1.0
    assert Real(1).allowed() == "a number, 1 or more"
    sizes = {"750M": 750 * 10**6, "1.5g": 15 * 10**8, "2k": 2000, "123": 123, "4GB": 4 * 10**9}
    sizes |= {"4GiB": 4 << 30, "1 KiB": 1024, "2Mi": 2 << 20, "1T": 10**12, "7b": 7, "1e9": 10**9}
    assert {text: Size().parse(text) for text in sizes} == sizes
    for bad in ("", "M", "0", "-1M", "1P", "4Bytes", "nan", "inf", "1e30G"):
        with pytest.raises(ValueError):
            Size().parse(bad)
    assert Real(0, 1).allowed() == "a number from 0 to 1"
    assert Whole(1).allowed() == "a whole number, 1 or more"
    assert Whole(-(2**31)).allowed() == "a whole number"


def test_missing_and_unwanted_values() -> None:
    assert refused("--count") == "--count requires a value: a whole number from 1 to 16"
    assert refused("--fast=yes") == "--fast takes no value, but got 'yes'"
    assert refused("--help=x") == "--help takes no value, but got 'x'"


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("--help", "-h"):
        with pytest.raises(SystemExit) as e:
            parse(word)
        assert e.value.code == 0
    out = capsys.readouterr().out
    for name in ("--base-file", "-n N", "--rank-ffn-gate", "--fast", "--slow", "--version"):
        assert name in out
    with pytest.raises(SystemExit) as e:
        parse("--version")
    assert e.value.code == 0
    assert capsys.readouterr().out.startswith("nbllama ")


def test_markdown() -> None:
    page = markdown(table(Small))
    assert page.count("## ") == 2
    assert (
        "| `--count`, `-n`, `--rank-ffn-gate` | a whole number from 1 to 16 | 4 | how many |"
        in page
    )
    assert "| `--fast` / `--slow` | switch | off | go fast |" in page
    assert "| `--zero` | a whole number, -1 or more | 0 | often 0 |" in page
