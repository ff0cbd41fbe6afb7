"""llama.cpp's own chat templates: trained by the rule, with prompts as its server has them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from examples.toy_models import make_llama
from nbllama.data import Conversation
from nbllama.data.chat import ChatReader
from nbllama.data.formats import FORMATS, Style
from nbllama.errors import NbllamaError
from nbllama.gguf_io import open_gguf
from nbllama.text import Tokenizer, chat_template_for, tokenizer_from_gguf
from nbllama.text.calls import NONE
from nbllama.text.traits import Traits
from tests.data.rule.chats import chats
from tests.data.rule.matrix import RIGHT, cells, page
from tests.data.rule.templates import PACKAGE, llama_templates

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "results" / "chat-templates.md"
MINI = Path(__file__).parent / "cases" / "chats" / "templates"
# Families whose prompts are compared with those of llama.cpp's server.
SERVED = (
    "Qwen-Qwen3-0.6B", "Qwen-Qwen2.5", "meta-llama", "gemma", "mistralai", "Mistral-Small",
    "microsoft-Phi-3.5", "DeepSeek-R1", "openai-gpt-oss", "SmolLM3", "granite",
)  # fmt: skip


@pytest.fixture(scope="module")
def templates() -> dict[str, str]:
    found = llama_templates()
    if not found:
        pytest.skip(f"{PACKAGE} cannot be downloaded, which has the templates")
    return found


def test_matrix(templates: dict[str, str], tmp_path: Path) -> None:
    """Of the cells that a template renders, at least 98 % are trained exactly by the rule (or
    refused as it says), the others are refused by name, and none is trained otherwise.
    """
    found = [c for name, source in templates.items() for c in cells(tmp_path, name, source)]
    marks = Counter(c.mark for c in found)
    assert marks["D"] == 0, [c for c in found if c.mark == "D"]
    rendered = len(found) - marks["x"]
    assert sum(marks[m] for m in RIGHT) >= 0.98 * rendered, [c for c in found if c.mark == "R"]
    assert PAGE.read_text(encoding="utf-8") == page(found)


class Server:
    """llama.cpp's server with a chat template; the model does not matter."""

    def __init__(self, model: Path, template: str) -> None:
        xllamacpp: Any = pytest.importorskip("xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path, params.chat_template = str(model), template
        params.use_jinja, params.n_ctx, params.n_parallel, params.warmup = True, 256, 1, False
        params.prefill_assistant = False  # a prompt may end with an answer
        self._server = xllamacpp.Server(params)

    def prompt(self, messages: list[Any], tools: Any) -> str | None:
        """The rendered messages; None if it refuses them."""
        body = {"messages": messages, **({"tools": tools} if tools else {})}
        request = urllib.request.Request(
            self._server.listening_address + "/apply-template",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return str(json.loads(answer.read())["prompt"])
        except urllib.error.HTTPError:
            return None


def served(
    tokenizer: Tokenizer, model: Path, source: str, left_out: str = ""
) -> tuple[int, list[str]]:
    """(prompts that were compared, those that differ). `left_out`: see `KNOWN`."""
    today = datetime.now()
    server = Server(model, source)
    # Further variables that the server passes to a template.
    variables: dict[str, Any] = {"date_string": today.strftime("%d %b %Y")}
    with chat_template_for(tokenizer, source) as plain:
        if Traits(plain).asks_to_think:
            variables["enable_thinking"] = True
    n, wrong = 0, []
    with chat_template_for(tokenizer, source, now=today, variables=variables) as template:
        reader = ChatReader(tokenizer, template)
        traits = Traits(template)
        form = traits.form_of_calls
        kinds = {k: c for k, c in chats().items() if not left_out or left_out not in k}
        if not traits.knows_system:  # the server puts it into the first question
            kinds = {k: c for k, c in kinds.items() if c["messages"][0]["role"] != "system"}
        for kind, record in kinds.items():
            try:
                chat = FORMATS["chat"].read(record, Style())
                assert isinstance(chat, Conversation)
                (rendered,) = reader.render([chat])
                if isinstance(rendered, NbllamaError):
                    raise rendered
            except NbllamaError:
                continue
            prepared, texts = rendered
            for number, mine in zip(prepared.numbers, texts[::2], strict=True):
                before = [_as_sent(m) for m in record["messages"][:number]]
                # If a template has no calls, the server has none (ours are in Hermes form);
                # nor calls that a template writes only if the content is null.
                called = any("tool_calls" in m for m in before)
                if called and (form.arguments == NONE or form.null or left_out == RESULTS):
                    continue
                theirs = server.prompt(before, record.get("tools"))
                if theirs is None:
                    continue
                ids = [
                    tokenizer.encode(t.removeprefix("<|endoftext|>"), parse_special=True)
                    for t in (mine, theirs)
                ]
                n += 1
                if ids[0] != ids[1]:
                    wrong.append(f"{kind}: {mine[-300:]!r}, the server: {theirs[-300:]!r}")
    return n, wrong


def _as_sent(message: dict[str, Any]) -> dict[str, Any]:
    """As a client sends it: the arguments of calls are text."""
    calls = []
    for call in message.get("tool_calls") or []:
        arguments = call["function"]["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        calls.append({**call, "function": {**call["function"], "arguments": text}})
    return message | ({"tool_calls": calls} if calls else {})


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer]:
    path = tmp_path_factory.mktemp("toy") / "toy.gguf"
    make_llama(path, n_layer=1, tokenizer="bpe")
    with open_gguf(path) as f:
        return path, tokenizer_from_gguf(f)


@pytest.mark.parametrize("name", sorted(p.name for p in MINI.glob("*.jinja")))
def test_prompts_of_small_templates_are_the_servers(toy: tuple[Path, Tokenizer], name: str) -> None:
    n, wrong = served(toy[1], toy[0], (MINI / name).read_text(encoding="utf-8"))
    assert not wrong, wrong
    assert n >= 7


def test_prompts_are_the_servers(
    toy: tuple[Path, Tokenizer], demo_tokenizer: Tokenizer, templates: dict[str, str]
) -> None:
    sources = {k: v for k, v in templates.items() if any(part in k for part in SERVED)}
    sources["SmolLM2"] = str(demo_tokenizer.chat_template)
    assert len(sources) >= 18
    for name, source in sources.items():
        n, wrong = served(toy[1], toy[0], source, KNOWN.get(name, ""))
        assert not wrong, (name, wrong)
        assert n >= 9, (name, n)


RESULTS = "results of tools"
# Not compared: Ministral, where the server sends thoughts as parts of a content (a list). Gemma 4
# in its older form: the server rewrites results of tools before it renders.
KNOWN = {
    "mistralai-Ministral-3-14B-Reasoning-2512": "in a key",
    "google-gemma-4-31B-it-interleaved": RESULTS,
}
