"""Signatures: few positional arguments, and type annotations outside compiled code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "nbllama"
MOST = 4  # arguments by position of a public function
COMPILERS = {"njit", "kernel", "overload", "intrinsic", "jit"}
# Types of Numba and LLVM have no stubs; these folders hold functions that Numba compiles.
KERNELS = ("kernels", "ops", "quants")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def names_in(node: ast.AST) -> set[str]:
    """Names and attributes anywhere in an expression."""
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return found | {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    """The functions of a module and the methods of its classes, with their dotted names."""
    for node in tree.body:
        if isinstance(node, Function):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, Function):
                    yield f"{node.name}.{inner.name}", inner


def by_position(function: Function) -> int:
    """How many arguments can be given by position, without `self`."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def compiled(tree: ast.Module) -> set[str]:
    """Names of the functions that Numba compiles or replaces."""
    found = set()
    for _, node in functions(tree):
        for decorator in node.decorator_list:
            if names_in(decorator) & COMPILERS:
                found |= {node.name} | names_in(decorator)  # `overload` has the stub's name
    return found


def is_public(name: str) -> bool:
    return not any(p.startswith("_") and p != "__init__" for p in name.split("."))


def too_many(source: str) -> list[str]:
    """Public functions that take more than `MOST` arguments by position."""
    tree = ast.parse(source)
    left_out = compiled(tree)
    return [
        name
        for name, node in functions(tree)
        if is_public(name) and node.name not in left_out and by_position(node) > MOST
    ]


def without_types(source: str) -> list[str]:
    """Functions that are not compiled and have an argument or a result without a type."""
    tree = ast.parse(source)
    left_out = compiled(tree)
    found = []
    for name, node in functions(tree):
        a = node.args
        arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
        typed = all(x is None or x.annotation or x.arg in ("self", "cls") for x in arguments)
        if node.name not in left_out and not (typed and node.returns):
            found.append(name)
    return found


def sources(*folders: str) -> list[Path]:
    return sorted(p for f in folders for p in (PACKAGE / f).rglob("*.py"))


def test_public_functions_take_few_arguments_by_position() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): names
        for path in sources("")
        if (names := too_many(path.read_text(encoding="utf-8")))
    }
    assert not found, f"more than {MOST} arguments by position: put the rest after `*,`"


def test_only_kernels_go_without_types() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): names
        for path in sources(*KERNELS)
        if (names := without_types(path.read_text(encoding="utf-8")))
    }
    assert not found, "annotate what Numba does not compile"


@pytest.mark.parametrize(
    ("source", "many", "untyped"),
    [
        ("def f(a, b, c, d, e): ...", ["f"], ["f"]),
        ("def f(a, b, c, d, *, e): ...", [], ["f"]),
        ("def _f(a, b, c, d, e): ...", [], ["_f"]),
        ("@njit\ndef f(a, b, c, d, e): ...", [], []),
        ("@jit.kernel(fast=True)\ndef f(a, b, c, d, e): ...", [], []),
        ("def f(a, b, c, d, e): ...\n@overload(f)\ndef g(a, b, c, d, e): ...", [], []),
        ("class C:\n def __init__(self, a, b, c, d, e): ...", ["C.__init__"], ["C.__init__"]),
        ("class C:\n def m(self, a: int, b: int) -> int: ...", [], []),
        ("class _C:\n def m(self, a, b, c, d, e): ...", [], ["_C.m"]),
    ],
)
def test_what_is_found(source: str, many: list[str], untyped: list[str]) -> None:
    assert (too_many(source), without_types(source)) == (many, untyped)
