"""The pages' code runs, prints the shown output, and draws the shown figures."""

from __future__ import annotations

import re
from codeop import CommandCompiler
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.pages import (
    FIGURES,
    near,
    number,
    python_blocks,
    run_page,
    same,
    same_figure,
    walkthrough,
)

WALKTHROUGH = walkthrough()
# One page watches a run in a browser: its pictures are made by scripts/tools/live_pictures.
PAGES = [page for page in WALKTHROUGH if "```python" in page.read_text(encoding="utf-8")]
MINUTES = {"0", "4", "7", "9"}  # pages that train
TRAIN = {"README", "python", "preferences"}  # other ones that do
OTHERS = [
    page
    for page in (
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "examples").rglob("*.md")),
    )
    if page not in WALKTHROUGH and "```python" in page.read_text(encoding="utf-8")
]
FENCE = re.compile(r"^ *```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
HTML_IMAGE = re.compile(r'<img src="([^"]+)" alt="([^"]+)"')


def images(page: Path) -> list[tuple[str, str]]:
    """Texts and targets of a page's pictures."""
    text = page.read_text(encoding="utf-8")
    return IMAGE.findall(text) + [(alt, src) for src, alt in HTML_IMAGE.findall(text)]


def test_the_map_names_every_page() -> None:
    first, *others = WALKTHROUGH
    assert len(others) > 5
    for page in others:
        assert f"({page.name})" in first.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if number(page) in MINUTES else (), id=page.stem)
        for page in PAGES
    ],
)
def test_a_page_runs_and_prints_what_it_shows(
    page: Path, demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the programs that pages start
    printed = run_page(page, tmp_path)
    assert printed, "nothing ran"
    for p in printed:
        assert same(p.text, p.got), (
            f"{page.name}, line {p.line}: the page shows\n{p.text}\nbut this was printed\n{p.got}\n"
            f"(scripts/walkthrough {number(page)} writes it again)"
        )
    text = page.read_text(encoding="utf-8")
    drawn = {figure.name for figure in tmp_path.glob("*.svg")}
    assert drawn == {Path(target).name for _, target in IMAGE.findall(text)}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.stem in TRAIN else (), id=page.stem)
        for page in OTHERS
    ],
)
def test_python_on_other_pages_runs(page: Path, demo_model: Path, tmp_path: Path) -> None:
    """A folder with a model, chats and preferences, with the names that the pages use."""
    pytest.importorskip("matplotlib")
    (tmp_path / "model.gguf").symlink_to(demo_model)
    (tmp_path / "train.jsonl").symlink_to(ROOT / "examples" / "demo" / "train.jsonl")
    (tmp_path / "pairs.jsonl").symlink_to(ROOT / "examples" / "preferences" / "pairs.jsonl")
    run_page(page, tmp_path)


def test_no_python_is_exempt() -> None:
    """Every block marked as Python runs; a block that does not run has no language (a
    command, a formula, an excerpt of a kernel) or another.
    """
    for page in (*PAGES, *OTHERS):
        text = page.read_text(encoding="utf-8")
        languages = [found[1].split()[0] for found in FENCE.finditer(text) if found[1].strip()]
        assert set(languages) <= {"python", "text", "yaml", "json", "sh", "bash"}, page.name
        assert python_blocks(page) == languages.count("python") > 0, page.name
    assert {"data", "matmul", "ops", "peek"} <= {page.stem for page in OTHERS}


def typed(code: str) -> str | None:
    """The line that Python's interactive console refuses when a block is pasted into it, and an
    empty line after it; or None.
    """
    compiled = CommandCompiler()
    statement: list[str] = []
    for line in (*code.splitlines(), ""):
        if not statement and not line.strip():
            continue
        statement.append(line)
        try:
            if compiled("\n".join(statement), "<page>", "single") is not None:
                statement = []
        except SyntaxError:
            return line
    return "the end" if statement else None


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.stem)
def test_every_block_can_be_typed_into_python(page: Path) -> None:
    """Before 3.13 the console needs an empty line after an indented part, and none within one."""
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if language.split() == ["python"]:
            refused = typed(text)
            assert refused is None, (page.name, refused)


def test_what_the_console_refuses_is_found() -> None:
    assert typed("for i in range(3):\n    print(i)\n\nprint(4)\n") is None
    assert typed("x = [\n    1,\n\n    2,\n]\nprint(x)\n") is None
    assert typed("for i in range(3):\n    print(i)\nprint(4)\n") == "print(4)"
    assert typed("def f():\n    x = 3\n\n    return x\n") == "    return x"


def test_excerpts_of_kernels_are_of_the_source() -> None:
    """A block without a language that begins with a decorator is an excerpt of the package."""
    sources = "\n".join(p.read_text("utf-8") for p in sorted((ROOT / "nbllama").rglob("*.py")))
    lines = {line.partition("  # type:")[0].strip() for line in sources.splitlines()}
    found = 0
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if not language and text.startswith("@kernel"):
                found += 1
                wrong = [line for line in text.splitlines() if line.strip() not in lines]
                assert not wrong, (page.name, wrong)
    assert found >= 2


@pytest.mark.parametrize("page", WALKTHROUGH, ids=[page.stem for page in WALKTHROUGH])
def test_figures_have_texts_and_are_small(page: Path) -> None:
    found = images(page)
    assert found or number(page) == "7"
    for text, target in found:
        assert len(text) > 30, f"{target} has no text for those who do not see it"
        figure = page.parent / target
        assert figure.parent == FIGURES
        assert figure.stat().st_size < 150_000, target
        if page in PAGES:
            assert "prefers-color-scheme: dark" in figure.read_text(encoding="utf-8"), (
                f"{target}: make it with scripts/walkthrough"
            )
        else:
            assert figure.read_bytes().startswith(b"\x89PNG"), target


def test_no_figure_is_left_over() -> None:
    used = {Path(target).name for page in WALKTHROUGH for _, target in images(page)}
    assert {figure.name for figure in FIGURES.iterdir()} == used


def test_what_counts_as_the_same_output() -> None:
    assert same("loss 2.31, 12 steps, error 3e-07\n", "loss 2.33, 12 steps,  error 9e-07")
    for other in (
        "loss 2.45, 12 steps, error 3e-07",
        "loss 2.31, 13 steps, error 3e-07",
        "loss 2.31, 12 steps, error 3e-05",
        "loss 2.31, 12 steps, error 0.1",
        "loss nan, 12 steps, error 3e-07",
        "Loss 2.31, 12 steps, error 3e-07",
    ):
        assert not same("loss 2.31, 12 steps, error 3e-07", other), other
    assert near("0.000", "0.001") and not near("0.000", "0.003")


def test_what_counts_as_the_same_figure() -> None:
    svg = (
        '<path d="M 44.15 112.95 L 500.99 18.88" style="stroke: #1f2328" clip-path="url(#p462e)"/>'
    )
    assert same_figure(svg, svg.replace("112.95", "112.90"))
    for other in ("M 44.15 114.1 L", "M 44.15 112.95 20 30 L", "M 44.15 nan L"):
        assert not same_figure(svg, svg.replace("M 44.15 112.95 L", other)), other
    assert not same_figure(svg, svg.replace("#1f2328", "#1f2329"))
    assert not same_figure(svg, svg.replace("p462e", "p464e"))


def test_a_page_that_prints_something_else_is_found(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 3\nprint(x)\n```\n\n```text\n4\n```\n\n```python\nprint(x + 1)\n```\n"
    )
    (tmp_path / "run").mkdir()
    first, second = run_page(page, tmp_path / "run")
    assert (first.text, first.got) == ("4\n", "3\n")
    assert (second.text, second.got) == ("", "4\n")  # one namespace; nothing shown below


def test_a_block_that_raises_is_not_swallowed(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = tmp_path / "page.md"
    page.write_text("```python\nassert 1 == 2\n```\n")
    (tmp_path / "run").mkdir()
    with pytest.raises(AssertionError):
        run_page(page, tmp_path / "run")
