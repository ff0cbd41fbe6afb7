"""Allowed imports between parts, lazy imports, and names that only one place can use."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbllama
from nbllama.arch.rows import ARCHS
from tests.conftest import ROOT

PACKAGE = ROOT / "nbllama"

# The rooms of the package, from the bottom up. A module may import from its own room and from rooms
# above it in this list, never from one below.
ROOMS = (
    "errors",
    "arguments",  # what Python programs pass
    "system",  # the operating system
    "gguf_io", "arch",  # what is read: files, the model's sizes,
    "kernels", "quants",  # how weights become numbers,
    "text", "data",  # how text becomes batches
    "ops",  # operations, one per page
    "objectives",  # losses of preferences, and their derivatives
    "lora", "opt", "model", "checkpoint",  # what is trained and saved
    "adapter", "generation", "export", "evaluate",  # what is made of it
    "report", "options", "peek",  # what a run says and is asked
    "train",
    "inspect", "gradcheck",
    "cli",
    "api",
)  # fmt: skip
# The shells of the programs: a few lines, which import `cli` alone.
SHELLS = {
    "finetune", "main", "export_lora", "quantize", "convert", "convert_lora", "perplexity",
    "show_data", "verify",
}  # fmt: skip

# Names that users can import from nbllama: a change here is a change for them.
PUBLIC = [
    "AdamW",
    "Adapter",
    "Model",
    "NbllamaError",
    "__version__",
    "generate",
    "generate_many",
    "init_adapter",
    "load_adapter",
    "load_model",
    "logits",
    "loss_and_gradients",
    "save_adapter",
    "trace",
    "tune",
]

# Packages from elsewhere, and the rooms or modules that may import them. numpy is free for all.
OUTSIDE = {
    "compression": {"data"},
    "gguf": {"quants"},
    "jinja2": {"text"},
    "llvmlite": {"kernels", "quants", "checkpoint.environment"},
    "matplotlib": {"peek"},
    "numba": {"kernels", "quants", "ops", "checkpoint.environment", "train.run"},
    "psutil": {"kernels.cores", "system"},
    "pyarrow": {"data"},
    "rich": {"cli"},
    "sentencepiece": {"text"},
    "tensorboardX": {"train.run.board"},
    "ray": {"train.blocks.ray_pool"},
    "tokenizers": {"text"},
    "zstandard": {"data"},
    "xllamacpp": {"evaluate._llama_child"},
    "yaml": {"options"},
}

# Modules that must not import numpy, Numba and similar packages, so that `--help` is fast.
LIGHT = (
    "", "errors", "report", "report.log", "options.finetune.table", "options.chat", "options.merge",
    "options.verify", "options.data", "options.show_data", "options.adapters",
    "options.perplexity", "options.inspect", "options.peek", "options.gradcheck", "options.report",
    "options.familiar.finetune", "options.familiar.others", "cli.command", "__main__",
    "train.run.settings", "kernels.cores", "system.program", "export.file_types", *sorted(SHELLS),
    "inspect.__main__", "peek.__main__", "gradcheck.__main__", "report.__main__",
)  # fmt: skip


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    """ "nbllama.ops.rope" -> "ops"; "nbllama" -> ""."""
    return [*module.split("."), ""][1]


def within(module: str, places: set[str]) -> bool:
    """Whether a module is one of `places`, or lies in one."""
    short = module.removeprefix("nbllama.")
    return any(short == place or short.startswith(place + ".") for place in places)


def module_name(path: Path) -> str:
    words = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(words[:-1] if words[-1] == "__init__" else words)


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            for name in node.names:
                # `from nbllama import quants` is an import of nbllama.quants
                full = PACKAGE.parent.joinpath(*node.module.split("."), name.name)
                is_module = full.is_dir() or full.with_suffix(".py").is_file()
                yield f"{node.module}.{name.name}" if is_module else node.module


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_direction(path: Path) -> None:
    module = module_name(path)
    here = room_of(module)
    for other in imports(path):
        package = other.split(".")[0]
        if package == "nbllama":
            there = room_of(other)
            if here in SHELLS or module.endswith("__main__"):
                continue
            assert there not in SHELLS, f"{module} imports the program {other}"
            if here and there and here != there:
                assert ROOMS.index(there) < ROOMS.index(here), f"{module} imports {other}"
        elif package not in sys.stdlib_module_names and package != "numpy":
            assert package in OUTSIDE, f"{module} imports {package}: is it a dependency?"
            assert within(module, OUTSIDE[package]), f"{module} imports {package}"


def test_no_circle() -> None:
    """Also inside the rooms, and also by imports inside of functions."""
    left = {module_name(path): set(imports(path)) for path in sources()}
    del left["nbllama"]  # it imports its parts only for type checkers
    left = {m: {o for o in others if o in left and o != m} for m, others in left.items()}
    while left:
        ready = {module for module, others in left.items() if not others & left.keys()}
        assert ready, f"a circle among {sorted(left)}"
        left = {module: others for module, others in left.items() if module not in ready}


def test_what_lies_at_the_top() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders == {*ROOMS} - {"errors", "arguments", "api"}
    assert len(folders) <= 24
    loose = {p.name for p in PACKAGE.iterdir() if p.is_file()}
    programs = {f"{name}.py" for name in SHELLS}
    wanted = {"__init__.py", "__main__.py", "api.py", "arguments.py", "errors.py", "py.typed"}
    assert loose - programs == wanted
    for name in programs:
        assert len((PACKAGE / name).read_text(encoding="utf-8").splitlines()) <= 30, name


@pytest.mark.parametrize("part", LIGHT, ids=lambda part: part or "nbllama")
def test_light_parts_import_nothing_heavy(part: str) -> None:
    module = f"nbllama.{part}".rstrip(".")
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "nbllama" in loaded
    assert not loaded & {"numpy", *OUTSIDE}


def _code(path: Path) -> Iterator[ast.AST]:
    """All nodes of a file except its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docs.add(first.value)
    return (node for node in ast.walk(tree) if node not in docs)


def test_only_arch_names_an_architecture() -> None:
    """As a whole string, or as the head of a metadata key.

    `text` is left out: its names are those of vocabularies (`tokenizer.ggml.model` and `.pre`),
    of which some are spelled like an architecture.
    """
    names = {*ARCHS, "llama", "baichuan", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"}
    pattern = re.compile(rf"({'|'.join(sorted(names))})(\.(?!cpp)[a-z_.]+)?", re.IGNORECASE)
    for path in sources():
        if room_of(module_name(path)) in ("arch", "text"):
            continue
        for node in _code(path):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not pattern.fullmatch(node.value), f"{path}:{node.lineno}: {node.value!r}"


def test_only_jit_makes_kernels_and_nothing_is_made_from_text() -> None:
    for path in sources():
        for node in _code(path):
            word = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
            assert word not in ("exec", "eval", "guvectorize", "jitclass"), f"{path}: {word}"
            if path.name != "jit.py":
                assert word not in ("njit", "jit", "vectorize"), f"{path}: {word}"
                if isinstance(node, ast.keyword):
                    assert node.arg not in ("fastmath", "error_model"), f"{path}: {node.arg}"


def test_the_public_names() -> None:
    assert list(nbllama.__all__) == PUBLIC
    # importing a module with that name would replace the function
    assert not set(nbllama.__all__) & {*ROOMS, *SHELLS}
    for name in nbllama.__all__:
        assert hasattr(nbllama, name), name
    assert set(nbllama.__all__) <= set(dir(nbllama))
    with pytest.raises(AttributeError):
        nbllama.nothing_of_this_name  # noqa: B018
