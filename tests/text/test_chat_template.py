"""Chat templates: rendering, the places of answers, and hostile templates."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from nbllama.errors import DataError, GGUFError, UsageError
from nbllama.text import CHATML, ChatTemplate, Tokenizer, chat_template_for
from tests.text.conftest import load
from tests.text.vocabs import write_vocab

CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello 天地 😀 <b>"},
    {"role": "assistant", "content": " Hi! \n"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "天"},
]
LLAMA3 = (
    "{{- bos_token }}{% for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}"
    "{% elif m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)


@pytest.fixture
def hostile() -> Iterator[list[ChatTemplate]]:
    """Templates to be closed at the end."""
    made: list[ChatTemplate] = []
    yield made
    for template in made:
        template.close()


def test_chatml() -> None:
    with ChatTemplate(CHATML) as t:
        assert t.render(CHAT[:2], True) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\nHello 天地 😀 <b><|im_end|>\n<|im_start|>assistant\n"
        )
        assert t.render([], False) == ""


def test_cuts_of_many_chats() -> None:
    """Each cut equals the result of `render`; a refused chat does not affect the others."""
    with ChatTemplate(LLAMA2, "<s>", "</s>") as t:
        cuts = [(1, True), (2, False), (1, True)]
        good, bad, more = t.render_chats(
            [(CHAT[1:3], cuts, {}), (CHAT, cuts, {}), (CHAT[1:3], cuts[:1], {"x": 1})]
        )
        assert good == [t.render(CHAT[1 : 1 + n], prompt) for n, prompt in cuts]
        assert isinstance(bad, DataError) and "Only user and assistant roles" in str(bad)
        assert more == good[:1]


def test_variables() -> None:
    """Those of the template, of one chat, and tools, which are undefined where there are none."""
    source = (
        "{{ enable_thinking }}|{{ x }}|{% for t in tools %}{{ t.name }}{% endfor %}|"
        "{{ tools is defined }}"
    )
    with ChatTemplate(source, variables={"enable_thinking": False, "x": "a"}) as t:
        assert t.render([], True) == "False|a||False"
        assert t.render([], True, tools=[]) == "False|a||False"
        assert t.render([], True, tools=[{"name": "f"}], variables={"x": "b"}) == "False|b|f|True"


def test_environment() -> None:
    """Features of templates: trimmed blocks, loop controls, tojson, generation marks, the date."""
    source = (
        "  {% if true %}\nx\n  {% endif %}\n"
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}"
        "{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        "{{ {'b': '天<&>', 'a': [1, none]} | tojson }}{{ {'a': 1} | tojson(indent=2) }}"
        "{% generation %}[{{ messages[0].content }}]{% set n = 1 %}{% endgeneration %}"
        "{{ n }}{{ strftime_now('%d %b %Y') }}{{ tools is defined }}{{ bos_token }}"
    )
    now = datetime.datetime(2024, 7, 26)
    with ChatTemplate(source, "<s>", "", now=now) as t:
        assert t.render([{"role": "user", "content": "c"}], False) == (
            'x\n02{"b": "天<&>", "a": [1, null]}{\n  "a": 1\n}[c]126 Jul 2024False<s>'
        )


def test_template_refuses_messages() -> None:
    with ChatTemplate(LLAMA2) as t:
        with pytest.raises(DataError, match="rejects the messages: Only user and assistant roles"):
            t.render(CHAT, False)
        assert t.render(CHAT[1:2], False) == "[INST] Hello 天地 😀 <b> [/INST]"


ATTACKS = {
    "cycler": (
        "{{ cycler.__init__.__globals__.os.popen('touch HIT').read() }}", "not allowed to do"
    ),
    "lipsum": ("{{ lipsum.__globals__['os'].popen('touch HIT').read() }}", "not allowed to do"),
    "namespace": ("{{ namespace.__init__.__globals__ }}", "not allowed to do"),
    "classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "not allowed to do"),
    "format": ("{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}", "not allowed to do"),
    "strftime": ("{{ strftime_now.__globals__.os }}", "not allowed to do"),
    "mutation": ("{{ messages.append(1) }}", "not allowed to do"),
    "include": ("{% include '/etc/passwd' %}", "not allowed to do: loads another template"),
    "import": ("{% import 'os' as os %}{{ os }}", "not allowed to do: loads another template"),
    "range": ("{{ range(10 ** 9) | list }}", "Range too big"),
    "loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "too slow: rendering took more than 0.5 s",
    ),
    "power": ("{% set x = messages | length + 5 %}{{ x ** (x ** x) }}", "too slow"),
    "string": ("{% set n = 3000000000 %}{{ 'a' * (n + messages | length) }}", "memory limit"),
    "doubling": (
        "{% set ns = namespace(x='aaaaaaaa') %}"
        "{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "memory limit",
    ),
    "padding": ("{{ '%1000000000d' % (messages | length) }}", "memory limit"),
    "list": ("{% set x = [0] * (10 ** 9 + messages | length) %}", "memory limit"),
    "output": ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "more than 16777216"),
    "recursion": ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recurses too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: list[ChatTemplate]
) -> None:
    """Refused in one line while rendering; the time limit is 0.5 s, for the others 20 s are kept
    as this machine may be busy."""
    monkeypatch.chdir(tmp_path)
    source, message = ATTACKS[name]
    limit = 0.5 if "slow" in message else 20.0
    start = time.monotonic()
    with pytest.raises(GGUFError, match=message) as e:
        # constant expressions are computed when the template is compiled
        hostile.append(ChatTemplate(source, where="m.gguf: t", render_seconds=limit))
        hostile[0].render(CHAT, True)
    line = str(e.value)
    assert line.startswith("m.gguf: t: ") and line.isprintable() and len(line) < 400
    assert not (tmp_path / "HIT").exists()
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for x in", r"cannot be compiled: line 1: "),
        ("a\n{{ x | nofilter }}", r"cannot be compiled: line 2: No filter named 'nofilter'"),
        ("{% generation %}", "cannot be compiled"),
        ("{{ 9 ** (9 ** 9) }}", "too slow: compiling took more than 0.5 s"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recurses too deeply"),
        ("x" * (256 * 1024 + 1), "too large: 262145 bytes, but the limit is 262144"),
        ("天" * 100_000, "too large: 300000 bytes"),
    ],
)
def test_bad_sources(source: str, message: str) -> None:
    with pytest.raises(GGUFError, match=message) as e:
        ChatTemplate(source, compile_seconds=0.5 if "slow" in message else 20.0)
    assert str(e.value).isprintable()


def test_a_source_of_256_kb_is_accepted() -> None:
    with ChatTemplate("x" * (256 * 1024), compile_seconds=20.0) as t:
        assert len(t.render(CHAT, False)) == 256 * 1024


def test_rendering_goes_on_after_a_limit() -> None:
    """The child is started again; a refusal of messages does not need that."""
    source = (
        "{% if messages[0].content == 'loop' %}"
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        "{% elif messages[0].content == 'no' %}{{ raise_exception('no') }}{% endif %}ok"
    )
    with ChatTemplate(source, render_seconds=0.5, compile_seconds=20.0) as t:
        for content in ("a", "loop", "a", "no", "a"):
            messages = [{"role": "user", "content": content}]
            if content == "loop":
                with pytest.raises(GGUFError, match="too slow"):
                    t.render(messages, False)
            elif content == "no":
                with pytest.raises(DataError):
                    t.render(messages, False)
            else:
                assert t.render(messages, False) == "ok"


def children() -> list[psutil.Process]:
    found = []
    for p in psutil.Process().children():
        try:
            if any(a.endswith("_template_child.py") for a in p.cmdline()):
                found.append(p)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            pass
    return found


def test_child_ends_with_its_template() -> None:
    before = children()
    t = ChatTemplate(CHATML)
    assert len(children()) == len(before) + 1
    t.close()
    t.close()
    assert children() == before
    t = ChatTemplate(CHATML)
    del t
    assert children() == before


def test_a_killed_child_is_started_again() -> None:
    before = children()
    with ChatTemplate(CHATML) as t:
        (child,) = [c for c in children() if c not in before]
        child.kill()
        child.wait(20)
        assert t.render([], True) == "<|im_start|>assistant\n"


def test_child_ends_with_its_parent() -> None:
    """Even while it is in an endless loop, when the parent is killed."""
    code = (
        "import sys, threading, time\n"
        "from nbllama.text import ChatTemplate\n"
        "t = ChatTemplate('{{ x }}', render_seconds=1, compile_seconds=1)\n"
        "print(t._sandbox._child._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    child.wait(20)
    assert not child.is_running()


def test_a_child_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(GGUFError, match="process cannot be started: No such file"):
        ChatTemplate(CHATML)


def test_child_sees_little_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBLLAMA_TEST_SECRET", "x")
    before = children()
    with ChatTemplate(CHATML):
        (child,) = [c for c in children() if c not in before]
        assert "NBLLAMA_TEST_SECRET" not in child.environ()
        assert "PATH" in child.environ() or "PATH" not in os.environ


def spm_file(path: Path, *texts: str, template: str | None = None) -> Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", "a", *texts]
    return load(
        write_vocab(
            path,
            "llama",
            tokens,
            scores=[0.0] * len(tokens),
            types=[2, 3, 3, 1] + [3] * len(texts),
            keys={"tokenizer.chat_template": template},
        )
    )


def test_which_template(tmp_path: Path) -> None:
    message = [{"role": "user", "content": "c"}]
    own = spm_file(
        tmp_path / "own.gguf", template="{{ bos_token }}own{{ eos_token }}{# messages #}"
    )
    with chat_template_for(own) as t:
        assert t.render(message, False) == "<s>own</s>"
    with chat_template_for(own, "given{# messages #}") as t:
        assert t.render(message, False) == "given"
    chatml = spm_file(tmp_path / "chatml.gguf", "<|im_start|>", "<|im_end|>")
    with chat_template_for(chatml) as t:
        assert t.source == CHATML
        assert t.render(CHAT, False)
    for texts, template in ((), None), (("<|im_end|>",), None), ((), ""):
        none = spm_file(tmp_path / "none.gguf", *texts, template=template)
        with pytest.raises(UsageError, match=r"none.gguf: no chat template, .* pass a template$"):
            chat_template_for(none)


def test_whose_template_is_bad(tmp_path: Path) -> None:
    bad = spm_file(tmp_path / "bad.gguf", template="{% if")
    with pytest.raises(GGUFError, match=r"bad.gguf: tokenizer.chat_template: cannot be compiled"):
        chat_template_for(bad)
    with pytest.raises(UsageError, match=r"^the given chat template: cannot be compiled"):
        chat_template_for(bad, "{% if")


@pytest.mark.parametrize("source", ["", "### Instruction:\n{instruction}\n### Response:\n"])
def test_a_template_without_messages(tmp_path: Path, source: str) -> None:
    own = spm_file(tmp_path / "own.gguf", template="{{ prompt }}")
    with pytest.raises(GGUFError, match=r"own.gguf: tokenizer.chat_template: does not use `mess"):
        chat_template_for(own)
    with pytest.raises(UsageError, match=r"^the given chat template: does not use `messages`, so"):
        chat_template_for(own, source)
