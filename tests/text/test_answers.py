"""The text that a model must write after a prompt, for all differences of templates."""

from __future__ import annotations

from typing import Any

import pytest

from nbllama.errors import DataError
from nbllama.text.answers import split_answer, words_end
from nbllama.text.calls import Form, form_of_calls, missing_in, with_arguments
from nbllama.text.thoughts import at_end, first_thought, opening, thought_of, visible

U = "<u>q<e><a>"
Q: dict[str, Any] = {"role": "user", "content": "q"}


def answer(prompt: str, through: str, content: str = "yes", closer: str = "", **more: Any) -> str:
    messages = [Q, {"role": "assistant", "content": content, **more}]
    return split_answer(prompt, through, messages, 1, closer=closer).text(through)


@pytest.mark.parametrize(
    ("prompt", "through", "expected"),
    [
        (U, U + "yes<e>\n", "yes<e>\n"),
        (U, U + "<think>\n\n</think>\n\nyes<e>", "<think>\n\n</think>\n\nyes<e>"),
        # white space in the prompt that is missing in the history
        (U + "\n", U + "yes<e>", "yes<e>"),
        # the prompt opens a thought
        (U + "<think>\n", U + "yes<e>", "\n</think>\n\nyes<e>"),
        (U + "<think>\n", U + "<think></think>yes<e>", "</think>yes<e>"),
        (U + "<think>", U + "</think>yes<e>", "</think>yes<e>"),
        (U + "<think>\n", U + "<think>\n\n</think>\nyes<e>", "\n</think>\nyes<e>"),
        (U + "<|START_THINKING|>", U + "yes<e>", "<|END_THINKING|>yes<e>"),
        (U + "[THINK]", U + "yes<e>", "[/THINK]yes<e>"),
        # the prompt contains a closed one
        (U + "<think>\n\n</think>\n\n", U + "yes<e>", "yes<e>"),
        (U + "<think></think>", U + "</think>yes<e>", "yes<e>"),
        (U + "<think>\n\n</think>\n\n", U + "<think></think>yes<e>", "yes<e>"),
        (U + "<|channel>thought\n<channel|>", U + "yes<e>", "yes<e>"),
        # the system message is only in the last question
        ("[INST]s\n\nq[/INST]", "[INST]q[/INST] yes<e>", " yes<e>"),
        ("[INST]s\n\nq[/INST]<think>\n", "[INST]q[/INST]yes<e>", "\n</think>\n\nyes<e>"),
    ],
)
def test_answers_without_a_thought(prompt: str, through: str, expected: str) -> None:
    assert answer(prompt, through) == expected


@pytest.mark.parametrize(
    ("prompt", "through", "expected"),
    [
        (U, U + "<think>\nT\n</think>\n\nyes<e>", "<think>\nT\n</think>\n\nyes<e>"),
        (U + "<think>\n", U + "<think>\nT\n</think>\n\nyes<e>", "T\n</think>\n\nyes<e>"),
        (U + "<think>\n", U + "<think>T</think>yes<e>", "T</think>yes<e>"),
        (U + "<think>\n", U + "yes<e>", "T\n</think>\n\nyes<e>"),
        (U + "<think>\n", U + "T\n</think>\n\nyes<e>", "T\n</think>\n\nyes<e>"),
    ],
)
def test_answers_with_a_thought(prompt: str, through: str, expected: str) -> None:
    """In a key, and in marks within the content."""
    assert answer(prompt, through, reasoning_content="T") == expected
    assert answer(prompt, through, "<think>\nT\n</think>\n\nyes") == expected


def test_the_closer_is_the_templates_own() -> None:
    assert answer(U + "<think>\n", U + "yes<e>", closer="</think>\n[A]") == "</think>\nyes<e>"


@pytest.mark.parametrize(
    ("prompt", "through", "more", "reason"),
    [
        (
            U + "<think></think>",
            U + "yes",
            {"thinking": "T"},
            "message 2: it contains a thought, but",
        ),
        (U + "Steps:\n", U + "yes", {}, r"ends with 'Steps:\\n', which"),
        ("<u>q<x>", "<v>q<y>yes", {}, "which the chat template does not write when"),
        (U + "<|START_THINKING|>", U + "<think>T</think>yes", {}, "its thought is marked with"),
    ],
)
def test_what_is_refused(prompt: str, through: str, more: dict[str, str], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        answer(prompt, through, **more)


def test_thoughts_in_texts() -> None:
    held = at_end("q<think>\n")
    assert held is not None and not held.closed and held.start == 1 and held.end == 9
    held = at_end("q<seed:think>a b</seed:think>\n\n")
    assert held is not None and held.closed and held.inner == "a b" and held.start == 1
    held = at_end("q</think>")
    assert held is not None and held.closed and held.opener == "" and held.start == 1
    assert at_end("what is <think>?<e><a>") is None
    assert at_end("<think>a</think>b") is None
    assert opening("x<think>") is None
    own = opening(" <think>a</think>b")
    assert own is not None and own.inner == "a"
    assert first_thought("a <b> c") is None
    message = {"content": "<think>\na\n</think>\n\nb"}
    assert (thought_of(message), visible(message)) == ("a", "b")
    assert visible({"content": "a</think> b"}) == "b"
    assert thought_of({"content": "x", "thinking": " t "}) == "t"


def test_where_the_words_end() -> None:
    message = {"content": "a", "thinking": "t a"}
    assert words_end("<t a>a<e>a", message) == len("<t a>a")
    call = {"function": {"name": "f", "arguments": {}}}
    assert words_end("x f{}<e>", {"content": "x", "tool_calls": [call]}) == 3


def render(text: str) -> Any:
    """A template that writes the answer's call by this format, with its arguments as they are."""

    def made(messages: list[Any], tools: Any) -> str | None:
        call = messages[-1]["tool_calls"][0]["function"]
        try:
            return "zqquestion" + text % {"n": call["name"], **call, **_keys(call["arguments"])}
        except (TypeError, KeyError):
            return None

    return made


def _keys(arguments: Any) -> dict[str, str]:
    if isinstance(arguments, str):
        return {"text": arguments}
    return {"pairs": " ".join(f"{k}={v}" for k, v in arguments.items())}


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("%(n)s %(pairs)s", Form("object")),
        ("%(n)s %(text)s", Form("text")),
        ("%(n)s %(arguments)s", Form("text")),  # an object would be printed as Python
        ("", Form("none")),
        ("%(missing)s", Form("object")),  # refused with the template's own words later on
    ],
)
def test_which_form_calls_have(text: str, form: Form) -> None:
    assert form_of_calls(render(text)) == form


def test_calls_only_where_the_content_is_null() -> None:
    def made(messages: list[Any], tools: Any) -> str | None:
        call = messages[-1]["tool_calls"][0]["function"]
        if messages[-1]["content"] is not None:
            return "zqquestion"
        if isinstance(call["arguments"], str):
            return None
        return f"zqquestion{call['name']}" + "".join(
            f"{k}{v}" for k, v in call["arguments"].items()
        )

    form = form_of_calls(made)
    assert form == Form("object", null=True)
    call = {"type": "function", "function": {"name": "f", "arguments": {"n": 4}, "text": '{"n":4}'}}
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    (found,) = with_arguments([message], form)
    assert found["content"] is None
    assert found["tool_calls"][0]["function"] == {"name": "f", "arguments": {"n": 4}}
    (found,) = with_arguments([message], Form("text"))
    assert found["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"n":4}'}
    (found,) = with_arguments([message], Form("none"))
    expected = '<tool_call>\n{"name": "f", "arguments": {"n": 4}}\n</tool_call>'
    assert found == {"role": "assistant", "content": expected}


def test_calls_that_are_missing() -> None:
    call = {"function": {"name": "f", "arguments": {"n": [4, {"x": 'a "b"'}], "on": True}}}
    message = {"tool_calls": [call]}
    assert missing_in('f(n=[4, {"x": "a \\"b\\""}], on=true)', message) == ""
    assert missing_in('f n 4 x a "b" on True', message) == ""
    assert missing_in('f n x a "b" on True', message) == "f"
    assert missing_in("4 n x", {}) == ""


def calls(*functions: tuple[str, Any], content: str = "") -> dict[str, Any]:
    calls = [{"function": {"name": name, "arguments": a}} for name, a in functions]
    return {"content": content, "tool_calls": calls}


@pytest.mark.parametrize(
    ("message", "text", "missing"),
    [
        (calls(("f", {"n": 14}), ("f", {"n": 4})), "f n=14; f n=4;", ""),
        (calls(("f", {"n": 14}), ("f", {"n": 4})), "f n=14;", "f"),
        (calls(("f", {"n": 4}), ("f", {"n": 4})), "f n=4;", "f"),
        (calls(("f", {"n": 4})), "f n=14", "f"),
        (calls(("f", {"n": -4})), 'f{"n":-4}', ""),
        (calls(("get", {}), ("get_all", {})), "get_all;", "get"),
        (calls(("get", {}), ("get_all", {})), "get; get_all;", ""),
        (calls(("f", {}), ("f", {}), content="I call f."), "I call f. f;", "f"),
        (calls(("f", {}), ("f", {}), content="I call f."), "f; f;", ""),
        (calls(("f", '{"n": 1.10}'), ("f", '{"n": 1e2}')), 'f {"n": 1.10} f {"n": 1e2}', ""),
    ],
)
def test_parallel_calls_that_are_missing(message: dict[str, Any], text: str, missing: str) -> None:
    """A template may write only the first of several calls."""
    assert missing_in(text, message) == missing
