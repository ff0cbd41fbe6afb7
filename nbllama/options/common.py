"""Options that nearly all programs share, with the same help texts everywhere."""

from __future__ import annotations

from typing import Any

from nbllama.options.file_names import File
from nbllama.options.parser import option
from nbllama.options.values import Whole

THREADS = Whole(1, 4096)


def model_option(what: str, *also: str) -> Any:
    """Declare the field for a model; `also` lists its other names.

    `what` describes the model in the help, for example as "base model".
    """
    return option(
        "Files", File(), "", f"{what}, a GGUF file", also=also, shown_default="none; required"
    )


def threads_option(group: str = "Run") -> Any:
    """Declare the field `threads`."""
    text = "CPU threads"
    return option(group, THREADS, None, text, also=["-t"], shown_default="physical cores")


def debug_option(group: str = "Run") -> Any:
    """Declare the field `debug`."""
    return option(group, None, False, "show the traceback of an error")
