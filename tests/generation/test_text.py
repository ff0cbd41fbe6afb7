"""Text in, text out: `model.generate`, `generate_stream`, `generate_many`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from nbllama.adapter.savable import Adapter
from nbllama.data import Conversation, open_records, prompt_ids
from nbllama.data.chat import ChatReader
from nbllama.errors import DataError, GGUFError, NotEnoughMemory, UsageError
from nbllama.generation.model import Model
from nbllama.gguf_io import open_gguf
from nbllama.text import chat_template_for, find_layout
from tests.train.toy_runs import toy_adapter, toy_model

PROMPT = "the hen and her rat"
CHAT = [{"role": "user", "content": "say it"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    toy_model(folder)
    return nbllama.load_model(folder / "toy.gguf")


@pytest.fixture(scope="module")
def adapter(model: Model) -> Adapter:
    return Adapter.of(toy_adapter(model), model.hp)


def ids_of(model: Model, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return model.tokenizer.encode(prompt, add_special=True)
    with chat_template_for(model.tokenizer, find_layout("chatml").source) as template:
        return prompt_ids(model.tokenizer, template, prompt)


def wanted(model: Model, prompt: Any, adapter: Adapter | None, n: int) -> str:
    """The bytes of the most likely tokens, as text."""
    tokens = nbllama.generate(model, ids_of(model, prompt), n, adapter, exact=True)
    raw = b"".join(model.tokenizer.token_bytes(t, special=False) for t in tokens)
    return raw.decode("utf-8", "replace")


@pytest.mark.parametrize("prompt", [PROMPT, CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("with_adapter", [False, True])
def test_the_most_likely_text(
    model: Model, adapter: Adapter, prompt: Any, with_adapter: bool
) -> None:
    own = adapter if with_adapter else None
    text = wanted(model, prompt, own, 12)
    assert text
    kwargs: dict[str, Any] = {} if isinstance(prompt, str) else {"chat_template": "chatml"}
    assert model.generate(prompt, own, 12, exact=True, **kwargs) == text.removeprefix(
        " " if kwargs and model.tokenizer.add_space_prefix else "\0"
    )
    if with_adapter:
        assert text != wanted(model, prompt, None, 12)


def test_pieces_are_the_text(model: Model, adapter: Adapter) -> None:
    for seed in range(4):
        options: dict[str, Any] = dict(adapter=adapter, max_tokens=20, temperature=2.0, seed=seed)
        pieces = list(model.generate_stream(PROMPT, **options))
        assert "".join(pieces) == model.generate(PROMPT, **options)
        assert all(pieces) and len(pieces) > 1
    stream = model.generate_stream(PROMPT, max_tokens=10**6)
    assert next(stream)  # it can be left before its end
    assert model.generate(PROMPT, max_tokens=0) == ""


def test_many_prompts_are_answered_as_each_alone(model: Model, adapter: Adapter) -> None:
    prompts: list[Any] = [PROMPT, CHAT, "eat", [{"role": "user", "content": "x"}], PROMPT]
    for at_once in (1, 2, 16):
        found = model.generate_many(prompts, adapter, 8, chat_template="chatml", at_once=at_once)
        names = ["" if isinstance(p, str) else "chatml" for p in prompts]
        alone = [
            model.generate(p, adapter, 8, chat_template=name, exact=True)
            for p, name in zip(prompts, names, strict=True)
        ]
        assert found == alone
    assert model.generate_many([]) == []
    ids = [ids_of(model, p) for p in prompts[:2]]
    assert nbllama.generate_many(model, ids, 8, adapter) == [
        nbllama.generate(model, own, 8, adapter, exact=True) for own in ids
    ]


def test_draws(model: Model) -> None:
    options: dict[str, Any] = dict(max_tokens=12, temperature=1.5)
    draws = {seed: model.generate(PROMPT, **options, seed=seed) for seed in range(5)}
    assert len(set(draws.values())) > 1
    assert draws[3] == model.generate(PROMPT, **options, seed=np.int64(3))
    greedy = model.generate(PROMPT, max_tokens=12)
    assert model.generate(PROMPT, **options, top_k=1) == greedy
    assert model.generate(PROMPT, **options, top_p=0.0, seed=4) == greedy
    # without a seed each call takes its own; 8 equal texts are as good as impossible
    assert len({model.generate(PROMPT, max_tokens=12, temperature=5.0) for _ in range(8)}) > 1
    # a penalty changes the most likely text too
    assert model.generate(PROMPT, max_tokens=30, repeat_penalty=1e6) != model.generate(
        PROMPT, max_tokens=30
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temp": 1.0}, "unknown setting 'temp'; did you mean temperature"),
        ({"topk": 3}, "did you mean top_k"),
        ({"max_new_tokens": 3}, "unknown setting 'max_new_tokens'; did you mean max_tokens"),
        ({"temperature": "hot"}, "temperature: the text 'hot' is not allowed; use a number"),
        ({"temperature": float("nan")}, "temperature: 'nan'"),
        ({"top_k": 1.5}, "top_k: '1.5' is not allowed; use a whole number"),
        ({"seed": -1}, "seed: '-1' is not allowed"),
        ({"mirostat": 3}, "mirostat: '3'"),
        ({"repeat_penalty": 0}, "repeat_penalty: '0' is not allowed; use a number from 0.01 to"),
        ({"top_p": 95}, "top_p: '95' is not allowed; use a number from 0 to 1 (1 turns it off)"),
        ({"typical": -1}, "typical: '-1' is not allowed; use a number from 0 to 1"),
        ({"min_p": 2}, "min_p: '2' is not allowed; use a number from 0 to 1 (0 turns it off)"),
        ({"mirostat_ent": -5}, "mirostat_ent: '-5' is not allowed; use a number from 0 to 100"),
        ({"top_k": 2**40}, "top_k: '1099511627776' is not allowed; use a whole number"),
        ({"temperature": 1e-40}, "temperature: 1e-40 is not a normal float32"),
        ({"max_tokens": -1}, "max_tokens: '-1' is not allowed"),
        ({"max_tokens": True}, "max_tokens: 'True' is not allowed"),
    ],
)
def test_bad_settings(model: Model, options: dict[str, Any], message: str) -> None:
    for call in (model.generate, model.generate_stream):  # also before the first piece
        with pytest.raises(UsageError) as e:
            call(PROMPT, **options)
        assert message in str(e.value)


def test_a_weight_that_is_no_number_is_named_with_its_file(tmp_path: Path) -> None:
    toy_model(tmp_path)
    path, name = tmp_path / "toy.gguf", "blk.1.attn_q.weight"
    with open_gguf(path) as f:
        values = f.data(name).tobytes()
    path.write_bytes(path.read_bytes().replace(values, b"\xff" * len(values)))
    with pytest.raises(GGUFError, match=rf"toy\.gguf: tensor {name} .* is infinite or not"):
        nbllama.load_model(path).generate(PROMPT, max_tokens=1)


def test_bad_prompts(model: Model, tmp_path: Path) -> None:
    bad: Any
    for bad in (5, b"x", ["a text in a list"], {"role": "user"}):
        with pytest.raises(UsageError, match="a string, or a list of messages"):
            model.generate(bad)
    with pytest.raises(UsageError, match="no chat template"):
        model.generate(CHAT)
    with pytest.raises(UsageError, match="at_once"):
        model.generate_many([PROMPT], at_once=0)
    (tmp_path / "t.jinja").write_text("{{ raise_exception('not this') }}")
    with pytest.raises(DataError, match="not this"):
        model.generate(CHAT, chat_template=str(tmp_path / "t.jinja"))


def test_a_model_shows_what_it_is(model: Model) -> None:
    shown = repr(model)
    assert shown.startswith("<Model: llama, 2 layers, ") and shown.endswith("toy.gguf>")


def test_a_list_of_prompts_is_no_single_prompt(model: Model) -> None:
    bad: Any
    for bad in ("hello", None, 5, {"role": "user", "content": "x"}):
        with pytest.raises(UsageError, match=r"prompts: .* pass a list of prompts"):
            model.generate_many(bad)
    with pytest.raises(UsageError, match=r"prompts: a single chat .* pass a list of chats"):
        model.generate_many(CHAT)  # type: ignore[arg-type]
    one: Any = iter([PROMPT])  # any iterable
    assert model.generate_many(one, max_tokens=2) == model.generate_many([PROMPT], max_tokens=2)
    with pytest.raises(UsageError, match="at_once: the text '2' is not allowed"):
        model.generate_many([PROMPT], at_once="2")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["chatml", "nope"])
def test_a_template_is_for_messages(model: Model, name: str) -> None:
    for call in (model.generate, model.generate_stream):
        with pytest.raises(UsageError, match="chat_template: a prompt that is a string"):
            call(PROMPT, chat_template=name)
    with pytest.raises(UsageError, match="chat_template: a prompt that is a string"):
        model.generate_many([PROMPT, PROMPT], chat_template=name)
    bad: Any = 5
    with pytest.raises(UsageError, match="chat_template: '5'"):
        model.generate(CHAT, chat_template=bad)


def test_more_tokens_than_fit_in_memory(model: Model) -> None:
    with pytest.raises(UsageError, match="max_tokens: '1000000000000' is not allowed"):
        model.generate(PROMPT, max_tokens=10**12)
    most = 2**31 - 1
    for call in (
        lambda: model.generate(PROMPT, max_tokens=most),
        lambda: model.generate_many([PROMPT] * 16, max_tokens=most),
        lambda: nbllama.generate(model, [1], most),
        lambda: nbllama.generate_many(model, [[1]] * 16, most),
    ):
        with pytest.raises(NotEnoughMemory, match=f"a prompt and {most} new tokens: not enough"):
            call()
    two: Any = np.int64(2)
    assert model.generate(PROMPT, max_tokens=two) == model.generate(PROMPT, max_tokens=2)


CALL = {"function": {"name": "weigh", "arguments": '{"n": 4}'}}
USED = [*CHAT, {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "function", "name": "weigh", "content": "3 kg"}]  # fmt: skip
# accepts calls only as objects, and only in messages whose content is null
CALLS = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content is none %}{% for c in m.tool_calls %}"
    "{{ c.function.name }}{% for k, v in c.function.arguments.items() %} {{ k }} {{ v }}"
    "{% endfor %}{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize("template", ["chatml", CALLS], ids=["without calls", "with calls"])
@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "user", "content": [{"type": "text", "text": t} for t in ("say ", "it")]}],
        USED,
        [{"role": "user", "content": 4}, {"role": "gpt", "content": "x", "weight": 0}, *CHAT],
        np.array(CHAT, dtype=object),
    ],
    ids=["parts", "calls", "names", "an array"],
)  # fmt: skip
def test_the_prompt_is_that_of_training(
    model: Model, tmp_path: Path, template: str, turns: Any
) -> None:
    if template == CALLS:
        (tmp_path / "t.jinja").write_text(CALLS)
        template = str(tmp_path / "t.jinja")
    record = {"messages": [*turns, {"role": "assistant", "content": "yes"}]}
    with chat_template_for(model.tokenizer, find_layout(template).source) as rendering:
        ((_, chat),) = open_records([record], "records").samples
        assert isinstance(chat, Conversation)
        reader = ChatReader(model.tokenizer, rendering)
        row = reader.rows(reader.render([chat])[0])[-1]
    (*_, begin) = np.flatnonzero(np.diff(row.trained.astype(int)) == 1) + 1  # the last answer
    assert model._prompts([turns], template) == [row.ids[:begin].tolist()]


def test_roles_have_the_names_of_training(model: Model) -> None:
    """`tune` reads these names; another one is reported."""
    chat = [{"role": "system", "content": "be kind"}, *CHAT]
    answer = model.generate(chat, max_tokens=6, chat_template="chatml")
    for system, user in (("系统", "用户"), ("System", "Human"), ("system", "user")):
        renamed = [
            {"role": system, "content": "be kind"}, {"role": user, "content": CHAT[0]["content"]}
        ]  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert model.generate(renamed, max_tokens=6, chat_template="chatml") == answer
    usr = [{"role": "usr", "content": "say it"}]
    with pytest.warns(UserWarning, match="unknown roles: usr"):
        model.generate(usr, max_tokens=1, chat_template="chatml")
    with pytest.warns(UserWarning, match="unknown roles: usr"):
        model.generate_many([usr], max_tokens=1, chat_template="chatml")
    for wrong in ({"role": "user"}, {"messages": CHAT}, {"content": "say it"}):
        with pytest.raises(UsageError, match="message 2 of the prompt has no role or no content"):
            model.generate([*CHAT, wrong], chat_template="chatml")


def test_an_adapter_s_file_name_is_not_an_adapter(model: Model) -> None:
    with pytest.raises(UsageError, match=r"'lora.gguf' is not an adapter; pass nbllama.load_ada"):
        model.generate(PROMPT, adapter="lora.gguf")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="is not an adapter"):
        model.generate_many([PROMPT], adapter="lora.gguf")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the second argument must be a model"):
        nbllama.load_adapter(model, "lora.gguf")  # type: ignore[arg-type]


def test_a_prompt_beyond_what_the_model_knows_is_said(model: Model) -> None:
    with pytest.warns(UserWarning, match="trained with a context of 512") as found:
        model.generate("hen " * 300, max_tokens=1)
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(model.generate_stream(PROMPT, max_tokens=1000))


def test_an_adapter_saves_itself(model: Model, adapter: Adapter, tmp_path: Path) -> None:
    for name in ("a.gguf", "a.bin", "peft/"):
        path = f"{tmp_path}/{name}"
        notes = adapter.save(path)
        assert notes == nbllama.save_adapter(f"{tmp_path}/b{name}", adapter, model)
        loaded = nbllama.load_adapter(path, model)
        assert model.generate(PROMPT, loaded, 8) == model.generate(PROMPT, adapter, 8)
    nbllama.init_adapter(model, rank=2).save(tmp_path / "new.gguf")
    nbllama.load_adapter(tmp_path / "new.gguf", model).save(tmp_path / "again.gguf")
    assert (tmp_path / "new.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()
    with pytest.raises(UsageError, match=r"nbllama\.save_adapter"):
        Adapter(adapter.arch, 1.0, 1, adapter.pairs).save(tmp_path / "x.gguf")
    other = adapter.copy()
    next(iter(other.parameters().values()))[...] = 0
    assert np.abs(next(iter(adapter.parameters().values()))).max() > 0
