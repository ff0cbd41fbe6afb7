"""Chats in the layouts of families whose templates are not in llama.cpp's tests.

The templates here are only as long as the layout needs; other features of the families (tools,
checks of roles) is in the templates of `test_templates_of_llama_cpp.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.rule.matrix import cells

_BEGIN, _USER, _ANSWER = (f"<\uff5chy_{x}\uff5c>" for x in ("begin", "User", "Assistant"))
_END, _AFTER_SYSTEM = (f"<\uff5chy_place_{n}\uff5c>" for n in (2, 3))
_EACH = "{% for m in messages %}"
_PROMPT = "{% endfor %}{% if add_generation_prompt %}"


def _by_role(system: str, user: str, assistant: str) -> str:
    """One line of a loop; the content is written `@`."""
    system, user, assistant = (
        "'" + text.replace("@", "' + m['content'] + '").replace("\n", "\\n") + "'"
        for text in (system, user, assistant)
    )
    return (
        f"{_EACH}{{% if m['role'] == 'system' %}}{{{{ {system} }}}}{{% elif m['role'] == 'user' %}}"
        f"{{{{ {user} }}}}{{% else %}}{{{{ {assistant} }}}}{{% endif %}}{_PROMPT}"
    )


LAYOUTS = {
    "chatml (arcee, qwen2vl, qwen3vl, olmo2: OLMo 3)": _EACH
    + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    + _PROMPT
    + "{{ '<|im_start|>assistant\n' }}{% endif %}",
    "olmo2: OLMo 2": "{{ bos_token }}" + _EACH + "{{ '<|' + m['role'] + '|>\n' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if m['role'] != 'assistant' or not loop.last %}{{ '\n' }}{% endif %}"
    + _PROMPT
    + "{{ '<|assistant|>\n' }}{% endif %}",
    "exaone4": _EACH
    + "{{ '[|' + m['role'] + '|]\n' + m['content'] + '[|endofturn|]\n' }}"
    + _PROMPT
    + "{{ '[|assistant|]\n<think>\n\n</think>\n\n' }}{% endif %}",
    "glm4": "[gMASK]<sop>"
    + _EACH
    + "{{ '<|' + m['role'] + '|>\n' + m['content'] }}"
    + _PROMPT
    + "{{ '<|assistant|>\n' }}{% endif %}",
    "hunyuan-dense": _by_role(f"{_BEGIN}@{_AFTER_SYSTEM}", f"{_USER}@", f"{_ANSWER}@{_END}")
    + f"{{{{ '{_ANSWER}' }}}}{{% endif %}}",
    "gemma": "{{ bos_token }}"
    + _EACH
    + "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n'"
    " + m['content'] | trim + '<end_of_turn>\n' }}"
    + _PROMPT
    + "{{ '<start_of_turn>model\n' }}{% endif %}",
    "ernie4_5": "<|begin_of_sentence|>"
    + _by_role("@\n", "User: @\n", "Assistant: @<|end_of_sentence|>")
    + "{{ 'Assistant: ' }}{% endif %}",
    "nemotron": "<extra_id_0>System"
    + _by_role("\n@\n\n", "<extra_id_1>User\n@\n", "<extra_id_1>Assistant\n@\n")
    + "{{ '<extra_id_1>Assistant\n' }}{% endif %}",
    "stablelm": _EACH
    + "{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    + _PROMPT
    + "{{ '<|assistant|>\n' }}{% endif %}",
    "starcoder2": "{{ bos_token }}"
    + _by_role("@\n\n", "### Instruction\n@\n\n", "### Response\n@</s>")
    + "{{ '### Response\n' }}{% endif %}",
}
# OLMo 2 writes the newest answer without the line break that follows earlier ones, so of two
# answers in a row the first looks different in the prompt of the second; the reference leaves it.
UNDECIDED = {("olmo2: OLMo 2", "assistant twice")}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str, tmp_path: Path) -> None:
    """Trained by the rule, or without a part that does not fit the layout, which is reported."""
    found = list(cells(tmp_path, name, LAYOUTS[name]))
    wrong = [c for c in found if c.mark not in "=~rc" and (name, c.kind) not in UNDECIDED]
    assert not wrong, wrong
    assert sum(c.mark == "=" for c in found) >= 8
