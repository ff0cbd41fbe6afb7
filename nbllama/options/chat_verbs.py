"""The command lines of `nbllama chat` and `nbllama generate`.

Both accept the same options as `nbllama.main`; the verb selects conversation or completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nbllama.errors import UsageError
from nbllama.options.chat import Main, MainOptions, parse_main
from nbllama.options.parser import option

_EXITS = """exit codes: 0 success, 1 failure, 2 bad usage or bad file, 4 out of memory, 5 adapter
does not fit, 130 interrupted by Ctrl-C"""
_CHAT = """Chat with a model using its own chat template, with any number of LoRA adapters."""
_CHAT_END = f"""-p TEXT is the first message; with -st it is the only one. Ctrl-C stops the answer;
a second Ctrl-C, or Ctrl-D, ends the program. /help lists the commands. `nbllama generate` completes
a prompt instead.

{_EXITS}"""
_GENERATE = """Complete a prompt, with any number of LoRA adapters."""
_GENERATE_END = f"""Pass the prompt with -p or -f. Ctrl-C stops the program. `nbllama chat` starts
a conversation instead.

{_EXITS}"""


def _conversation(default: str) -> Any:
    return option(
        "Interactive and chat", None, None, "chat using the chat template", also=["-cnv"],
        off=["-no-cnv", "--no-conversation"], shown_default=default,
    )  # fmt: skip


@dataclass(frozen=True)
class ChatOptions(MainOptions):
    """The options of `nbllama chat`, except for the adapters."""

    conversation: bool | None = _conversation("on")


@dataclass(frozen=True)
class GenerateOptions(MainOptions):
    """The options of `nbllama generate`, except for the adapters."""

    conversation: bool | None = _conversation("off")


def parse_chat(argv: Sequence[str]) -> Main:
    """Parse like `nbllama.options.chat.parse_main`, with conversation as the default."""
    return parse_main(argv, ChatOptions, about=_CHAT, epilog=_CHAT_END, conversation=True)


def parse_generate(argv: Sequence[str]) -> Main:
    """Parse like `nbllama.options.chat.parse_main`, with completion as the default.

    Also raises `UsageError` if there is no text to complete.
    """
    main = parse_main(
        argv, GenerateOptions, about=_GENERATE, epilog=_GENERATE_END, conversation=False
    )
    o = main.options
    if main.mode == "predict" and not (o.prompt or o.file or o.dry_run):
        raise UsageError(
            "there is no text to complete; pass -p TEXT or -f FILE, or use nbllama chat for a "
            "conversation"
        )
    return main
