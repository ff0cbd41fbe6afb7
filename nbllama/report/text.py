"""Texts of a run on its page."""

from __future__ import annotations

import html
import re
from typing import Any

# Control characters, and what turns the direction of a text around it
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def safe(value: Any) -> str:
    """Write a text of the run as HTML."""
    return html.escape(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", str(value)), quote=True)
