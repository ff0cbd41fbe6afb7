"""scripts/words.py: the documentation has none of the phrases of scripts/tools/phrases.txt."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import words

PAGE = """# A title

The model goes
on with the text; `goes on` is code, and so is

```
beside it
```

Next to it, BESIDE it, besides it.
"""


def test_the_pages_are_free_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    status = words.main([])
    assert (status, capsys.readouterr().out) == (0, "")


def test_the_pages_are_there() -> None:
    names = {path.relative_to(words.ROOT).as_posix() for path in words.pages()}
    assert {"README.md", "CHANGELOG.md", "docs/index.md", "examples/demo/README.md"} <= names
    assert not any(name.startswith("docs/results/") for name in names)


def test_a_phrase_is_found_across_lines_and_not_in_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert words.main([str(page)]) == 1
    assert capsys.readouterr().out == (
        f"{page}:3: 'goes on with'; write: continues\n"
        f"{page}:10: 'beside'; write: next to, besides, as well as\n"
    )


def test_only_comments_and_strings_of_python_are_read(tmp_path: Path) -> None:
    source = tmp_path / "a.py"
    source.write_text(
        'told = 1  # what is told\n\n\ndef f():\n    """Line.\n\n    It tells it.\n    """\n'
        '    return f"goes on {told} beside"\n'
    )
    found = list(words.find(words.prose(source), words.read_phrases()))
    assert [(f.line, f.phrase) for f in found] == [
        (1, "told"), (7, "tells"), (9, "goes on"), *[(9, "told")] * ("f\"" in words.prose(source)),
        (9, "beside"),
    ]  # fmt: skip


def test_a_wrong_line_of_the_list_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "phrases.txt"
    path.write_text("# words\nbut for -> except for\n")
    assert words.read_phrases(path) == {"but for": "except for"}
    for wrong, message in (("one two\n", "line 1: not"), ("a -> b\nA -> c\n", "line 2: 'A' is")):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=message):
            words.read_phrases(path)
