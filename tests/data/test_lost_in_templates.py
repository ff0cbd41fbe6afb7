"""What a template cuts, drops or changes in a chat is refused or reported, never silent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nbllama.data import Conversation
from nbllama.data.chat import ChatReader
from nbllama.errors import DataError
from nbllama.text import CHATML, Tokenizer, chat_template_for

TEMPLATES = Path(__file__).parent / "cases" / "chats" / "templates"
OPENS, CLOSED, STRIPS = (
    (TEMPLATES / f"{name}.jinja").read_text("utf-8")
    for name in (
        "prompt-opens-a-thought",
        "prompt-holds-a-closed-thought",
        "strips-earlier-thoughts",
    )
)
Q = {"role": "user", "content": "q"}
END = "<|im_end|>"
SENTENCE, QUOTED = "use </think> to close. 56", "Write `</think>` to close a thought."
CUT = "message 2: it contains '</think>', at which the chat template cuts the text"
CLOSES = "message 2: it contains a thought, but the chat template closes the thought before"


def a(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def read(
    tokenizer: Tokenizer, source: str, *messages: dict[str, Any], **more: Any
) -> tuple[list[list[str]], list[str]]:
    """The trained texts of each sample, and the notices."""
    with chat_template_for(tokenizer, source) as template:
        reader = ChatReader(tokenizer, template, **more)
        rows = reader.rows(reader.render([Conversation(list(messages))])[0])
        texts = [[row.text[start:end] for start, end in row.characters()] for row in rows]
        return texts, reader.notes(1, len(rows))


@pytest.mark.parametrize(
    ("source", "content", "expected"),
    [
        (OPENS, "seven\n</think>\n\n56", "seven\n</think>\n\n56"),
        (OPENS, "seven</think>56", "seven\n</think>\n\n56"),
        (OPENS, "seven.</think> 56", "seven.\n</think>\n\n 56"),
        (OPENS, "seven </think>\n\n56", "seven\n</think>\n\n56"),
        (STRIPS, "seven\n</think>\n\n56", "<think>\nseven\n</think>\n\n56"),
        (CHATML, "seven\n</think>\n\n56", "seven\n</think>\n\n56"),
        (CHATML, SENTENCE, SENTENCE),
        (CHATML, QUOTED, QUOTED),
        (CLOSED, SENTENCE, SENTENCE),
        (CHATML, "I see. <think>seven</think>56", "I see. <think>seven</think>56"),
    ],
)
def test_a_thought_without_an_opening_mark(
    demo_tokenizer: Tokenizer, source: str, content: str, expected: str
) -> None:
    """As R1's output is logged, because the prompt contains the opening mark."""
    assert read(demo_tokenizer, source, Q, a(content)) == ([[expected + END]], [])


@pytest.mark.parametrize(
    ("source", "content", "expected"),
    [
        (CHATML, "<think>\nseven", "<think>\nseven"),
        (OPENS, "<think>\nseven", "seven"),
        (STRIPS, "<think>seven", "<think>\n\n</think>\n\n<think>seven"),
        (CHATML, "[THINK]seven", "[THINK]seven"),
    ],
)
def test_a_thought_that_is_cut_off_is_reported(
    demo_tokenizer: Tokenizer, source: str, content: str, expected: str
) -> None:
    """The only notice, because others about the same answer would mislead."""
    texts, (notice,) = read(demo_tokenizer, source, Q, a(content))
    assert texts == [[expected + END]]
    assert notice.startswith("1 answer contains a thought that is not closed; the model learns to ")


@pytest.mark.parametrize("content", ["<think>\nseven", "[THINK]seven"])
def test_a_thought_that_is_cut_off_after_a_closed_thought(
    demo_tokenizer: Tokenizer, content: str
) -> None:
    """Whether or not the template also shows the closed thought in the history."""
    keeps = CLOSED.replace("m.content", "('<think>\\n\\n</think>\\n\\n' if m.role == 'assistant'"
                           " else '') + m.content")  # fmt: skip
    for source in (CLOSED, keeps):
        assert read(demo_tokenizer, source, Q, a("56")) == ([["56" + END]], [])
        with pytest.raises(DataError, match=CLOSES):
            read(demo_tokenizer, source, Q, a(content))


def test_an_opening_mark_in_a_sentence_is_no_thought(demo_tokenizer: Tokenizer) -> None:
    words = "<think> opens a thought."
    for source in (CHATML, CLOSED):
        assert read(demo_tokenizer, source, Q, a(words)) == ([[words + END]], [])


def test_thoughts_without_opening_marks_in_two_turns(demo_tokenizer: Tokenizer) -> None:
    chat = [Q, a("seven\n</think>\n\n56"), Q, a("six\n</think>\n\n50")]
    texts, _ = read(demo_tokenizer, OPENS, *chat)
    assert texts == [[f"seven\n</think>\n\n56{END}"], [f"six\n</think>\n\n50{END}"]]


@pytest.mark.parametrize(
    ("source", "content", "reason"),
    [
        (CLOSED, "seven\n</think>\n\n56", CLOSES),
        (OPENS, SENTENCE, CUT),
        (OPENS, QUOTED, CUT),
        (STRIPS, SENTENCE, CUT),
        (STRIPS, QUOTED, CUT),
        (OPENS, "I see. <think>seven</think>56", CUT),
        (OPENS, "<think>a</think>b<think>c</think>56", CUT),
    ],
)
def test_a_mark_that_cuts_an_answer(
    demo_tokenizer: Tokenizer, source: str, content: str, reason: str
) -> None:
    with pytest.raises(DataError, match=re.escape(reason)):
        read(demo_tokenizer, source, Q, a(content))


def test_a_second_thought_that_is_lost(demo_tokenizer: Tokenizer) -> None:
    chat = [Q, a("<think>seven</think>56", reasoning_content="eight")]
    _, (note,) = read(demo_tokenizer, OPENS, *chat)
    assert note.startswith("1 answer has a thought (reasoning_content or <think>) that the chat")
    chat = [Q, a("<think>seven</think>56", reasoning_content="seven")]
    assert read(demo_tokenizer, OPENS, *chat)[1] == []


@pytest.mark.parametrize("content", ["<think>\nseven\n</think>\n\n56", "seven\n</think>\n\n56"])
def test_a_thought_after_an_empty_thought(demo_tokenizer: Tokenizer, content: str) -> None:
    """The template takes thoughts only from a key (Kimi-K2-Thinking), so the text has two."""
    thought = "('<think></think>' if message['role'] == 'assistant' else '')"
    source = CHATML.replace("message['content']", f"{thought} + message['content']")
    texts, (note,) = read(demo_tokenizer, source, Q, a(content))
    assert texts == [[f"<think></think>{content}{END}"]]
    assert note.startswith("1 of 1 answer begins with an empty thought, which is trained on")


TYPED = (  # SmolVLM
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SELECTS = (  # LLaVA
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FIRST_PART = CHATML.replace("message['content']", "message['content'][0]['text']")
EITHER = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content is string %}"
    "{{ m.content }}{% else %}{{ m.content[0].text + '!' }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("source", [TYPED, SELECTS, FIRST_PART, EITHER])
def test_templates_that_take_parts(demo_tokenizer: Tokenizer, source: str) -> None:
    """They receive each content as one part, as from llama.cpp's server; others receive text."""
    chat = [{"role": "system", "content": "s"}, Q, a("56"), Q, a("<|im_end|> is 50")]
    expected = read(demo_tokenizer, CHATML, *chat)
    assert expected == ([[f"56{END}", f"<|im_end|> is 50{END}"]], [])
    assert read(demo_tokenizer, source, *chat) == expected


@pytest.mark.parametrize("answer", ["I", "56", "...", "Yes, both."])
def test_an_answer_without_its_words(demo_tokenizer: Tokenizer, answer: str) -> None:
    """The end token alone would be trained."""
    source = CHATML.replace(
        "message['content']", "(message['content'] if message['role'] == 'user' else '')"
    )
    with pytest.raises(DataError, match="message 2: the chat template leaves this answer out"):
        read(demo_tokenizer, source, Q, a(answer))


def test_an_answer_of_which_one_character_is_left(demo_tokenizer: Tokenizer) -> None:
    source = CHATML.replace("message['content']", "message['content'][:1]")
    with pytest.raises(DataError, match="message 2: no word of this answer is in the rendered"):
        read(demo_tokenizer, source, Q, a("Yes, both."))


S = {"role": "system", "content": "be brief"}
FIRST_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' or loop.first %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SYSTEM = "(message['content']{} if message['role'] == 'system' else message['content'])"
CHANGED = "1 message does not appear verbatim in the rendered text, because the chat template"


def test_a_later_system_message_that_is_left_out(demo_tokenizer: Tokenizer) -> None:
    _, (note,) = read(demo_tokenizer, FIRST_SYSTEM, S, Q, a("56"), S, Q, a("50"))
    assert note == (
        "1 message with the role system in 1 record is not in the rendered text, because the chat "
        "template leaves it out (first: line 1)"
    )


@pytest.mark.parametrize("change", [".upper()", "[:1]", "[-2:]"])
def test_a_system_message_that_is_changed(demo_tokenizer: Tokenizer, change: str) -> None:
    source = CHATML.replace("message['content']", SYSTEM.format(change))
    _, (note,) = read(demo_tokenizer, source, S, Q, a("56"))
    assert note.startswith(CHANGED)


NO_SYSTEM = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}"
NO_SYSTEM += "{% endif %}{% endfor %}" + CHATML


@pytest.mark.parametrize(
    ("chat", "as_user", "hint"),
    [
        ([S, Q], False, "none; --system-as-user puts a system message in front of the first"),
        ([S, S, Q], True, "none; --system-as-user applies only to a system message that is the"),
        ([S, a("hello"), Q], True, "none; --system-as-user applies only to a system message that"),
        ([Q, S], True, "none; --system-as-user applies only to a system message that is the first"),
        ([Q, S], False, "none$"),
    ],
)
def test_system_messages_that_are_not_folded(
    demo_tokenizer: Tokenizer, chat: list[Any], as_user: bool, hint: str
) -> None:
    with pytest.raises(DataError, match=hint):
        read(demo_tokenizer, NO_SYSTEM, *chat, a("56"), system_as_user=as_user)
