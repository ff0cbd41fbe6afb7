"""Damaged and hostile chat templates, in the sandbox of the program.

The program starts a new process after each failed template. Here the process is kept as long as it
answers, so that a template takes only a millisecond.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from nbllama.text.chat_template import ChatTemplate
from nbllama.text.sandbox import TemplateFailed, TemplateSandbox
from nbllama.text.templates import LAYOUTS, find_layout

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "the hen"}, {"role": "assistant", "content": " eat\n"}],
    [
        {"role": "system", "content": "你好 {{ 1 }} <b>"},
        {"role": "user", "content": "{% raw %}"},
    ],
]
CANARY = "nbllama-fuzz-canary"  # a file that no template must be able to create
PIECES = [
    "{% for m in messages %}", "{% endfor %}", "{% if messages[0] %}", "{% else %}", "{% endif %}",
    "{{ messages }}", "{{ bos_token + eos_token }}", "{{ messages | tojson(indent=2) }}",
    "{% set ns = namespace(x=1) %}", "{% set ns.x = ns.x + 1 %}", "{{ ns.x }}", "{% break %}",
    "{% generation %}", "{% endgeneration %}", "{{ raise_exception('no\\n\\x1b[31m') }}",
    "{{ strftime_now('%Y') }}", "{{ '%*d' % (9, 9) }}", "{{ 'x' * 99999 }}", "{{ 7 ** 7 ** 3 }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ messages.append(1) }}",
    "{{ ''.__class__.__mro__ }}", "{{ messages|attr('__class__') }}", "{{ [].__class__ }}",
    f"{{{{ cycler.__init__.__globals__.os.popen('touch {CANARY}').read() }}}}",
    f"{{{{ lipsum.__globals__['os'].system('touch {CANARY}') }}}}",
    f"{{{{ joiner.__init__.__globals__.__builtins__.open('{CANARY}', 'w') }}}}",
    f"{{% include '{CANARY}' %}}", "{% import 'os' as os %}", "{% extends 'x' %}", "{{ self }}",
    "{{ messages | map(attribute='content.__class__') | list }}", "{{ '{0.__class__}'.format(1) }}",
    "{{ range(9) | list }}", "{{ dict(a=1) | items | list }}", "{{ (1).__add__ }}", "{#", "#}",
    "{%", "%}", "{{", "}}", "-", "\0", "\ud7ff", "'", '"', "(" * 200, "|trim", "[0]", ".content",
]  # fmt: skip
SLOW = [  # each of these reaches the limit of time or memory
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 999999999 }}",
    "{{ range(999999) | list | string * 999 }}",
]


class Kept(TemplateSandbox):
    """A sandbox whose process keeps running after an answer."""

    def compile(self, source: str) -> None:
        """Compile another template."""
        self._source = source
        with self._lock:
            if self._child is None or not self._child.running:
                self._start()
            else:
                self._ask({"op": "compile", "source": source}, self._compile_seconds, "compiling")

    def close(self) -> None:
        """Do nothing unless the process is stuck or has ended: it is reused."""

    def _wait(self, seconds: float, doing: str) -> Any:
        try:
            return super()._wait(seconds, doing)
        except TemplateFailed as e:
            if e.kind in ("time", "died", "memory", "size"):
                super().close()
            raise


class Templates:
    """Reads templates; the first one starts the process."""

    def __init__(self) -> None:
        self._template: ChatTemplate | None = None

    def read(self, path: Path) -> None:
        """Compile a file's template and render two chats with it.

        Raises NbllamaError if it is refused, AssertionError if it could run a program.
        """
        source = find_layout(str(path)).source
        if self._template is None:
            self._template = ChatTemplate(LAYOUTS["chatml"].source, "<s>", "</s>")
            self._template._sandbox.close()
            self._template._sandbox = Kept(
                source, render_seconds=0.8, compile_seconds=0.8, memory_bytes=64 << 20
            )
        sandbox = self._template._sandbox
        assert isinstance(sandbox, Kept)
        try:
            sandbox.compile(source)
        except TemplateFailed as e:
            raise self._template._refusal(e) from None
        try:
            for chat in CHATS:
                assert isinstance(self._template.render(chat, True), str)
        finally:
            assert not Path(CANARY).exists(), "a template ran a program"


def make(folder: Path) -> Path:
    """Write a template with every kind of statement, from which the damaged ones are made."""
    path = folder / "t.jinja"
    path.write_text("\n".join(x.source for x in LAYOUTS.values()), encoding="utf-8")
    return path


def spoil(path: Path, whole: bytes, rng: random.Random) -> None:
    """Write one of the layouts with pieces inserted, removed or moved."""
    text = rng.choice(list(LAYOUTS.values())).source
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(text) + 1)
        if rng.random() < 0.5:  # between two statements
            at = max(text.rfind("}", 0, at) + 1, 0)
        match rng.randrange(5):
            case 0:
                text = text[:at] + text[at + rng.choice((1, 2, 8)) :]
            case 1:
                text = text[:at] + text[at // 2 : at] + text[at:]
            case _:
                text = text[:at] + rng.choice(SLOW if rng.random() < 5e-4 else PIECES) + text[at:]
    raw = text.encode()
    if rng.random() < 0.05:
        at = rng.randrange(len(raw))
        raw = raw[:at] + rng.randbytes(2) + raw[at:]
    path.write_bytes(raw)
