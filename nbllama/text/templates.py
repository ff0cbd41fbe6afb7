"""Named chat templates, for model files whose template is missing or unsuitable.

Each template is a Jinja version of the layout published for a model family: the text around the
messages, and the tokens that end a turn. In all templates, an answer is followed by the token that
ends it, so that a trained model learns to stop.
"""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from nbllama.errors import UsageError, shown
from nbllama.system.regular import read_whole
from nbllama.text.sandbox import MAX_SOURCE_BYTES


class Layout(NamedTuple):
    """A chat template, with rules for combining an instruction and an input (Alpaca data).

    The input follows the instruction, separated by `joint`. `with_input` is the system message
    to add to a chat that has an input but no system message, or "" for none.
    """

    source: str
    joint: str = "\n\n"
    with_input: str = ""


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# The system message is part of the first question.
_LLAMA_2 = (
    "{% set ns = namespace(system='') %}"
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}"
    "{% set ns.system = '<<SYS>>\\n' + m['content'] | trim + '\\n<</SYS>>\\n\\n' %}"
    "{% elif m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ns.system + m['content'] | trim + ' [/INST]' }}"
    "{% set ns.system = '' %}"
    "{% elif m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] | trim + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('llama-2 has no role ' + m['role']) }}"
    "{% endif %}{% endfor %}"
)

_LLAMA_3 = (
    "{{ bos_token }}"
    "{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{% endif %}"
)

_TASK = "Below is an instruction that describes a task"
_COMPLETE = "Write a response that appropriately completes the request."

_ALPACA = (
    "{% if not messages or messages[0]['role'] != 'system' %}"
    f"{{{{ '{_TASK}. {_COMPLETE}\\n\\n' }}}}"
    "{% endif %}"
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] + '\\n\\n' }}"
    "{% elif m['role'] == 'user' %}{{ '### Instruction:\\n' + m['content'] + '\\n\\n' }}"
    "{% elif m['role'] == 'assistant' %}"
    "{{ '### Response:\\n' + m['content'] + eos_token + '\\n\\n' }}"
    "{% else %}{{ raise_exception('alpaca has no role ' + m['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)

# Two reserved tokens in Baichuan's vocabulary mark the role.
_BAICHUAN = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<reserved_106>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<reserved_107>' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('baichuan has no role ' + m['role']) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<reserved_107>' }}{% endif %}"
)

LAYOUTS: dict[str, Layout] = {
    "alpaca": Layout(
        _ALPACA,
        "\n\n### Input:\n",
        f"{_TASK}, paired with an input that provides further context. {_COMPLETE}",
    ),
    "baichuan": Layout(_BAICHUAN),
    "chatml": Layout(CHATML),
    "llama-2": Layout(_LLAMA_2),
    "llama-3": Layout(_LLAMA_3),
}


def find_layout(name: str) -> Layout:
    """Return the layout `name` from `LAYOUTS` (hyphens are optional) or from a template file.

    The file can also be JSON with the template under "chat_template" (tokenizer_config.json).

    Raises `UsageError` if there is no such layout or file, or if the file cannot be read, is not
    UTF-8, is too large for a template, or is JSON without a template.
    """
    for known, layout in LAYOUTS.items():
        if name.lower().replace("-", "") == known.replace("-", ""):
            return layout
    what = f"--chat-template {shown(name)}"
    if not os.path.exists(name):
        raise UsageError(f"{what}: neither a file nor one of {', '.join(LAYOUTS)}")
    try:
        content = read_whole(name, MAX_SOURCE_BYTES)
        return Layout(_template_in(content.decode("utf-8").removeprefix("\ufeff"), what))
    except UnicodeDecodeError as e:
        raise UsageError(f"{what}: not UTF-8 at offset {e.start}") from e
    except OSError as e:
        raise UsageError(f"{what}: {e.strerror or e}") from e
    except ValueError as e:
        raise UsageError(f"{what}: {e}") from e


def _template_in(text: str, what: str) -> str:
    """Return the template in the text of a file; raises `UsageError` for JSON without one."""
    try:
        config = json.loads(text) if text.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return text
    if not isinstance(config, dict):
        return text
    found = config.get("chat_template")
    if isinstance(found, list):  # templates with names, as in older files
        by_name = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = by_name.get("default")
    if not isinstance(found, str):
        raise UsageError(
            f'{what}: the file is JSON without a template under "chat_template"; pass a file that '
            "contains the template itself"
        )
    return found
