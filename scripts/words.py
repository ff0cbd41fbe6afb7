"""Find phrases to replace (scripts/tools/phrases.txt) in the documentation and the package.

Without arguments it checks every file of PAGES, otherwise the given files. It searches only prose:
in Markdown, everything outside fenced blocks and code spans; in Python, comments and strings.
It prints one line per phrase (file, line, phrase, what to write) and exits with 1 if there are any.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PHRASES = ROOT / "scripts" / "tools" / "phrases.txt"
PAGES = ("*.md", "requirements/*.md", "docs/**/*.md", "examples/**/*.md", "nbllama/**/*.py")
# Programs generate these pages from their help texts and titles.
GENERATED = {"docs/options.md", "docs/main-options.md"}
GENERATED_FOLDER = "docs/results/"
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`[^`\n]*`")


class Found(NamedTuple):
    """A phrase in a text: its first line (from 1), the phrase, and what to write instead."""

    line: int
    phrase: str
    instead: str


def read_phrases(path: Path = PHRASES) -> dict[str, str]:
    """Return a dict from lower-case phrase to replacement; ValueError for a malformed line."""
    phrases: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        phrase, arrow, instead = (part.strip() for part in line.partition(" -> "))
        if not (phrase and arrow and instead):
            raise ValueError(f"{path.name}, line {number}: not `phrase -> replacement`")
        if phrase.lower() in phrases:
            raise ValueError(f"{path.name}, line {number}: {phrase!r} is there twice")
        phrases[phrase.lower()] = instead
    return phrases


def prose(path: Path) -> str:
    """Return the text of a file with spaces instead of code; line numbers do not change."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return _comments_and_strings(text)
    return SPAN.sub(_blank, FENCE.sub(_blank, text))


def _blank(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found[0])


def _comments_and_strings(text: str) -> str:
    lines = text.splitlines()
    kept = [[" "] * len(line) for line in lines]
    # An f-string is one STRING before Python 3.12, and its parts are FSTRING_MIDDLE since then.
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in kinds:
            continue
        for number in range(token.start[0], token.end[0] + 1):
            line = lines[number - 1]
            begin = token.start[1] if number == token.start[0] else 0
            end = token.end[1] if number == token.end[0] else len(line)
            kept[number - 1][begin:end] = line[begin:end]
    return "\n".join("".join(line) for line in kept)


def find(text: str, phrases: dict[str, str]) -> Iterator[Found]:
    """Yield all phrases in a text, in order; their words can be separated by line breaks."""
    one = "|".join(
        r"\s+".join(re.escape(word) for word in phrase.split())
        for phrase in sorted(phrases, key=len, reverse=True)
    )
    for match in re.finditer(rf"(?<![\w-])(?:{one})(?![\w-])", text, re.IGNORECASE):
        phrase = " ".join(match[0].lower().split())
        yield Found(text.count("\n", 0, match.start()) + 1, phrase, phrases[phrase])


def pages() -> list[Path]:
    """Return the files that are checked by default."""
    found = sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})
    names = {path: path.relative_to(ROOT).as_posix() for path in found}
    return [
        path
        for path in found
        if names[path] not in GENERATED and not names[path].startswith(GENERATED_FOLDER)
    ]


def main(arguments: list[str]) -> int:
    phrases = read_phrases()
    count = 0
    for path in [Path(name) for name in arguments] or pages():
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        for found in find(prose(path), phrases):
            print(f"{shown}:{found.line}: {found.phrase!r}; write: {found.instead}")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
