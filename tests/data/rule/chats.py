"""The chats with which every template is tested."""

from __future__ import annotations

import copy
import json
from typing import Any

Chat = dict[str, Any]


def _m(role: str, content: str, **more: Any) -> Chat:
    return {"role": role, "content": content, **more}


Q1, A1 = _m("user", "How deep is the old well?"), _m("assistant", "Nine metres.")
Q2, A2 = _m("user", "And how wide is it?"), _m("assistant", "One metre across.")
S = _m("system", "Reply as a patient guide.")
_ID = "abcdefghi"
_TOOL = {
    "type": "function",
    "function": {
        "name": "platform",
        "description": "Whether a platform is free",
        "parameters": {
            "type": "object",
            "properties": {
                "number": {"type": "integer", "description": "of the platform"},
                "day": {"type": "string", "description": "of the week"},
            },
            "required": ["number"],
        },
    },
}
_ARGUMENTS = {"number": 3, "day": "Tuesday"}


def _with_call(arguments: Any) -> list[Chat]:
    function = {"name": "platform", "arguments": arguments}
    return [
        _m("user", "Is platform 3 free on Tuesday?"),
        _m("assistant", "", tool_calls=[{"id": _ID, "type": "function", "function": function}]),
        _m("tool", '{"free": true}', tool_call_id=_ID, name="platform"),
        _m("assistant", "Yes, you may use it."),
    ]


def _thinking(message: Chat, thought: str) -> Chat:
    return {**message, "reasoning_content": thought}


def _in_text(message: Chat, thought: str) -> Chat:
    return {**message, "content": f"<think>\n{thought}\n</think>\n\n{message['content']}"}


T1, T2 = "The plan of the yard says it.", "It was measured last year."
KINDS: dict[str, Chat] = {
    "one turn": {"messages": [Q1, A1]},
    "two turns": {"messages": [Q1, A1, Q2, A2]},
    "system, one turn": {"messages": [S, Q1, A1]},
    "system, two turns": {"messages": [S, Q1, A1, Q2, A2]},
    "tools, object": {"messages": _with_call(_ARGUMENTS), "tools": [_TOOL]},
    "tools, text": {"messages": _with_call(json.dumps(_ARGUMENTS)), "tools": [_TOOL]},
    "calls without tools": {"messages": _with_call(_ARGUMENTS)},
    "thought in a key": {"messages": [Q1, _thinking(A1, T1)]},
    "thoughts in a key": {"messages": [Q1, _thinking(A1, T1), Q2, _thinking(A2, T2)]},
    "thoughts in the text": {"messages": [Q1, _in_text(A1, T1), Q2, _in_text(A2, T2)]},
    "user twice": {"messages": [Q1, Q2, A2]},
    "assistant twice": {"messages": [Q1, A1, A2]},
    "ends with user": {"messages": [Q1, A1, Q2]},
    "empty answer": {"messages": [Q1, _m("assistant", "")]},
    "Chinese": {
        "messages": [
            _m("system", "请像一位耐心的向导那样回答。"),
            _m("user", "老井有多深？"),
            _m("assistant", "九米。"),
            _m("user", "有多宽？"),
            _m("assistant", "宽一米。"),
        ]
    },
}


def chats() -> dict[str, Chat]:
    """The chats by their kind; they may be changed."""
    return copy.deepcopy(KINDS)
