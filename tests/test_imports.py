"""Who may import whom, what stays lazy, and what one place alone may know."""

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

# Each part of the package with what it may import of the package. A new part needs a row here.
KERNELS = {"errors", "_jit", "lanes", "simd", "threads"}
MODEL = KERNELS | {
    "own_cores",
    "gguf_io",
    "arch",
    "quants",
    "ops",
    "lora",
    "activations",
    "text",
    "data",
}
STATE = {"errors", "files", "gguf_io", "arch", "quants", "slots", "lora", "opt", "identity"}
SCREEN = {
    "errors",
    "progress",
    "cli.parser",
    "cli.data_options",
    "cli.options",
    "cli.settings",
    "cli.run",
    "cli.ui",
}
SAVED = {"train_state", "checkpoint", "moment_order", "convergence"}
TRAIN = MODEL | STATE | {"bound", "block", "model", "progress"}
RUN = TRAIN | {"adapter", "checkpoint", "train", "forecast", "system_memory"}
MAIN = MODEL | {"model", "generation", "sampling", "predictor", "adapter"}
MERGE = {"errors", "gguf_io", "arch", "mixes", "rewrite", "merging"}
MAIN |= {
    "peek",
    "progress",
    "session_memory",
    "system_memory",
    "cli.settings",
    "cli.main_options",
    "cli.console",
    "cli.output_file",
    "cli.talk",
}
MERGE |= {"cli.run", "cli.cores", "cli.merge_options", "cli.merge", "cli.output_file"}
TABLE = {"errors", "cli.parser", "cli.values", "cli.common_options"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "progress": {"errors"},
    "_jit": set(),
    "lanes": set(),
    "plain": {"_jit", "lanes"},
    "simd": {"_jit", "lanes", "plain"},
    "threads": {"_jit"},
    "own_cores": {"_jit"},
    "gguf_io": {"errors", "files"},
    "quants": KERNELS | {"gguf_io"},
    "ops": KERNELS | {"quants"},
    "arch": {"errors", "gguf_io"},
    "text": {"errors", "gguf_io"},
    "data": {"errors", "text"},
    "opt": {"errors", "_jit"},
    "slots": set(),
    "lora": {"errors", "arch", "slots"},
    "identity": {"errors", "_jit", "gguf_io", "arch"},
    "activations": {"arch", "ops"},
    "formats": STATE | {"quants"},
    "adapter": STATE | {"formats"},
    "train_state": STATE,
    "old_checkpoint": STATE | {"train_state", "data"},
    "checkpoint": STATE | {"train_state", "old_checkpoint"},
    "moment_order": STATE | {"train_state"},
    "convergence": set(),
    "watching": {"data"},
    "weights": MODEL | {"watching"},
    "bound": MODEL | {"weights"},
    "block": MODEL | {"weights", "bound"},
    "model": MODEL | {"weights", "bound", "block"},
    "gradients": MODEL | {"bound", "model"},
    "reference": MODEL | {"model"},
    "token_program": MODEL | {"weights", "bound", "block"},
    "generation": MODEL | {"bound", "block", "model", "token_program"},
    "generation_many": MODEL | {"bound", "block", "model"},
    "sampling": {"errors", "data"},
    "predictor": MODEL | {"model", "generation", "sampling"},
    "validation": {"data"},
    "train": TRAIN | {"validation"},
    "system_memory": set(),
    "forecast": TRAIN | {"train", "system_memory"},
    "session_memory": MODEL | {"weights", "model"},
    "cli": {""},
    "cli.values": {"steps"},
    "cli.parser": {"", "errors", "cli.values"},
    "cli.common_options": {"cli.parser", "cli.values"},
    "steps": set(),
    "gradcheck": TRAIN
    | TABLE
    | {"gradients", "reference", "adapter", "system_memory"}
    | {"cli.layers", "cli.run", "cli.cores"},
    "peek": STATE
    | TRAIN
    | {"", "adapter", "formats", "checkpoint", "old_checkpoint", "train", "steps"}
    | TABLE
    | {"cli.run", "cli.words"},
    "cli.escapes": {"errors"},
    "cli.data_options": {"cli.parser", "cli.values"},
    "cli.layers": {"errors"},
    "report": {"", "errors", "files", "progress", "cli.run"},
    "cli.prompts": TRAIN | {"generation", "cli.options", "cli.values"},
    "cli.card": {"errors", "files"},
    "cli.board": {"errors", "progress"},
    "cli.story": {"", "forecast", "system_memory", "cli.session"},
    "cli.config": {"errors", "cli.parser", "cli.values"},
    "cli.finetune_options": TABLE | {"cli.data_options"},
    "cli.options": TABLE
    | {"cli.config", "cli.data_options", "cli.escapes", "cli.finetune_options"},
    "cli.cores": set(),
    "cli.defaults": {"errors", "cli.data_options", "cli.options"},
    "cli.settings": {"errors", "progress", "cli.layers", "cli.defaults", "cli.options"},
    "cli.run": {"errors"},
    "cli.archs": {"arch"},
    "cli.ui": {"progress"},
    "cli.outputs": STATE | {"adapter", "checkpoint", "train_state", "cli.options"},
    "cli.lora_in": {"errors", "slots", "lora", "model", "adapter", "cli.layers", "cli.options"},
    "cli.data": TRAIN
    | {"train_state", "cli.data_options", "cli.options", "cli.defaults", "cli.values"},
    "cli.resume": TRAIN | {"train_state", "cli.options", "cli.settings"},
    "cli.export": TRAIN | {"adapter", "checkpoint", "cli.options", "cli.outputs", "cli.ui"},
    "cli.stop": {"errors", "train"},
    "cli.session": RUN
    | SAVED
    | SCREEN
    | {
        "cli.data",
        "cli.layers",
        "cli.lora_in",
        "cli.prompts",
        "cli.outputs",
        "cli.resume",
        "cli.stop",
        "peek",
    },
    "cli.words": {"cli.parser"},
    "inspect": STATE
    | TABLE
    | {"", "adapter", "formats", "text", "checkpoint", "old_checkpoint", "train_state"}
    | {"cli.run", "cli.words", "cli.options", "cli.defaults", "cli.settings", "progress"},
    "cli.show_options": TABLE | {"cli.data_options"},
    "cli.show_data": TRAIN | {"cli.data", "cli.defaults", "cli.show_options"},
    "show_data": {"cli.run", "cli.show_options", "cli.show_data"},
    "convert_lora": TABLE | {"adapter", "formats", "arch", "gguf_io", "cli.run"},
    "cli.loop": RUN
    | SAVED
    | SCREEN
    | {
        "",
        "validation",
        "report",
        "cli.card",
        "cli.config",
        "cli.prompts",
        "cli.session",
        "cli.story",
    },
    "finetune": SCREEN
    | {
        "cli.archs",
        "cli.board",
        "cli.cores",
        "cli.export",
        "cli.loop",
        "cli.outputs",
        "cli.stop",
        "cli.session",
    },
    "quantise": KERNELS | {"quants"},
    "mixes": {"errors"},
    "rewrite": {"gguf_io", "lora", "mixes", "quants", "quantise"},
    "merging": {"arch", "gguf_io", "lora", "mixes", "rewrite"},
    "cli.lora_options": {"errors", "cli.parser", "cli.values"},
    "cli.lora_files": {"errors", "arch", "adapter", "lora"},
    "cli.main_options": TABLE | {"sampling", "cli.escapes", "cli.lora_options"},
    "cli.console": {"errors"},
    "cli.talk": {"errors", "data", "text", "predictor", "cli.console", "cli.main_options"},
    "cli.interact": {"cli.main_options", "cli.talk"},
    "cli.chat": {"errors", "data", "text", "predictor", "cli.main_options", "cli.talk"},
    "cli.main_run": MAIN | {"cli.chat", "cli.interact", "cli.lora_files"},
    "main": {"cli.main_options", "cli.main_run", "cli.run", "cli.cores"},
    "cli.merge_options": TABLE | {"mixes", "cli.lora_options"},
    "cli.merge": {"errors", "rewrite"},
    "cli.output_file": {"errors", "files"},
    "export_lora": MERGE | {"cli.lora_files", "cli.merge_sample", "cli.scoring"},
    "quantize": MERGE,
    "convert": MERGE | TABLE,
    "cli.eval_options": TABLE | {"cli.lora_options"},
    "evaluate": MODEL | {"bound", "model"},
    "cli.scoring": MODEL | {"model", "progress", "evaluate", "cli.eval_options", "cli.lora_files"},
    "perplexity": {"cli.eval_options", "cli.run", "cli.cores", "cli.scoring"},
    "sample_text": MODEL | {"model", "generation", "evaluate"},
    "llama_cpp": {"errors"},
    "_llama_child": set(),
    "cli.merge_sample": {"errors", "lora", "model", "evaluate", "merging", "sample_text"},
    "cli.verify_options": TABLE | {"cli.lora_options"},
    "cli.checks": MODEL
    | {"adapter", "model", "evaluate", "sample_text", "progress", "mixes", "rewrite", "merging"}
    | {"llama_cpp", "cli.merge_sample", "cli.scoring", "cli.verify_options", "cli.lora_files"},
    "verify": {"cli.verify_options", "cli.run", "cli.cores", "cli.checks"},
    "api": MODEL | {"slots", "bound", "model", "gradients", "adapter"},
    "": {"errors", "api", "generation", "lora", "model", "opt"},
}

# What users may import from nbllama itself: a change here is a change for them.
PUBLIC = [
    "AdamW",
    "Adapter",
    "Model",
    "NbllamaError",
    "__version__",
    "generate",
    "init_adapter",
    "load_adapter",
    "load_model",
    "logits",
    "loss_and_gradients",
    "save_adapter",
    "trace",
]

# Packages from elsewhere, and the only parts that may import them. numpy is free for all.
OUTSIDE = {
    "gguf": {"quants"},
    "jinja2": {"text"},
    "llvmlite": {"lanes", "simd", "threads", "quants", "quantise", "identity"},
    "numba": {
        "_jit",
        "own_cores",
        "lanes",
        "simd",
        "threads",
        "quants",
        "quantise",
        "ops",
        "identity",
        "cli.session",
        "cli.cores",
    },
    "psutil": {"system_memory", "cli.cores"},
    "rich": {"cli.show_data", "cli.ui"},
    "tensorboardX": {"cli.board"},
    "xllamacpp": {"_llama_child"},
    "matplotlib": {"peek"},
    "yaml": {"cli.config"},
    "sentencepiece": {"text"},
    "tokenizers": {"text"},
}

# Light parts that must come without numpy, numba and the like.
LIGHT = (
    "", "errors", "report", "progress", "cli.options", "cli.cores", "cli.settings", "cli.run",
    "finetune", "convert", "convert_lora",
    "mixes", "cli.lora_options", "cli.merge_options", "export_lora", "quantize", "cli.main_options",
    "cli.verify_options", "verify",
    "main", "cli.data_options", "show_data", "cli.eval_options", "perplexity", "inspect.__main__",
    "peek.__main__",
    "gradcheck.__main__",
)  # fmt: skip


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    """ "nbllama.ops.rope" -> "ops"; "nbllama.cli.ui" -> "cli.ui"; "nbllama" -> ""."""
    words = module.split(".")[1:]
    return ".".join(words[:2] if words[:1] == ["cli"] else words[:1])


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
    here = part_of(module_name(path))
    assert here in MAY_IMPORT, f"say in MAY_IMPORT what {here} may import"
    for module in imports(path):
        package = module.split(".")[0]
        if package == "nbllama":
            part = part_of(module)
            assert part == here or part in MAY_IMPORT[here], f"{here} imports {module}"
        elif package not in sys.stdlib_module_names and package != "numpy":
            assert package in OUTSIDE, f"{here} imports {package}: is it a dependency?"
            assert here in OUTSIDE[package], f"{here} imports {package}"


def test_the_rules_have_no_cycle_and_no_dead_row() -> None:
    parts = {part_of(module_name(path)) for path in sources()}
    assert parts == set(MAY_IMPORT)
    done: set[str] = set()
    left = {part: allowed - {part, ""} for part, allowed in MAY_IMPORT.items() if part}
    while left:
        ready = {part for part, allowed in left.items() if allowed <= done}
        assert ready, f"a cycle among {sorted(left)}"
        done |= ready
        left = {part: allowed for part, allowed in left.items() if part not in ready}


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
    """All nodes of a file but its docstrings."""
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
        if part_of(module_name(path)) in ("arch", "text"):
            continue
        for node in _code(path):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not pattern.fullmatch(node.value), f"{path}:{node.lineno}: {node.value!r}"


def test_only_jit_makes_kernels_and_nothing_is_made_from_text() -> None:
    for path in sources():
        for node in _code(path):
            word = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
            assert word not in ("exec", "eval", "guvectorize", "jitclass"), f"{path}: {word}"
            if path.name != "_jit.py":
                assert word not in ("njit", "jit", "vectorize"), f"{path}: {word}"
                if isinstance(node, ast.keyword):
                    assert node.arg not in ("fastmath", "error_model"), f"{path}: {node.arg}"


def test_the_public_names() -> None:
    assert list(nbllama.__all__) == PUBLIC
    # importing a module of that name would put it in the function's place
    assert not set(nbllama.__all__) & {part_of(module_name(path)) for path in sources()}
    for name in nbllama.__all__:
        assert hasattr(nbllama, name), name
    assert set(nbllama.__all__) <= set(dir(nbllama))
    with pytest.raises(AttributeError):
        nbllama.nothing_of_this_name  # noqa: B018
