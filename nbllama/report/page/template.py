"""Assemble the page from its parts."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

SCRIPTS = ("values", "data", "charts", "heat", "tokens", "cards", "compare", "live", "main")

# Control characters, and characters that change the text direction. The script has the same list.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
# Characters that could end the element that contains the data.
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def safe(value: Any) -> str:
    """Escape a value from the run for HTML, and replace invisible characters."""
    return html.escape(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", str(value)), quote=True)


def json_text(value: Any) -> str:
    """Return ASCII JSON that is safe inside a script element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&]", lambda found: _ESCAPED[found[0]], text)


@cache
def _part(name: str) -> str:
    return files("nbllama.report.page").joinpath(name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    parts = "\n".join(_part(f"{name}.js") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}\n}})();\n'


@cache
def policy(served: bool) -> str:
    """Return the Content-Security-Policy; a `served` page may connect to its own server."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    connect = "'self'" if served else "'none'"
    return (
        f"default-src 'none'; script-src 'sha256-{digest(_script())}'; "
        f"style-src 'sha256-{digest(_part('page.css'))}'; img-src data:; connect-src {connect}; "
        "base-uri 'none'; form-action 'none'"
    )


def page(data: dict[str, Any]) -> str:
    """Return the page as HTML; `data` is a result of `nbllama.report.payload.payload`."""
    parts = {
        "POLICY": policy(bool(data["live"])),
        "TITLE": safe(data["title"]),
        "STYLE": _part("page.css"),
        "DATA": json_text(data),
        "SCRIPT": _script(),
    }
    return re.sub(r"@([A-Z]+)@", lambda found: parts[found[1]], _part("page.html"))
