"""Every case of the registry against the reference and llama.cpp, and no kernel without a case."""

from __future__ import annotations

from collections import Counter
from importlib import import_module

import numpy as np
import pytest

from nbllama.ops import OPS
from nbllama.quants import QUANTS
from nbllama.quants.encode import QUANTISED
from tests.conftest import ROOT
from tests.differences import record
from tests.kernels.case import SIZES, Case, differences, llama
from tests.kernels.registry import CASES, GROUPS, NO_CASE, public_functions
from tests.oracle import QUANT_TYPES
from tests.rare import rare

BY_NAME = {case.name: case for case in CASES}


def check(case: Case, size: str) -> None:
    own, theirs = differences(case, size)
    record(case.name, own, case.bound)
    if theirs is not None:
        record(f"{case.name}, to llama.cpp", theirs, case.llama_bound)


@pytest.mark.parametrize("size", SIZES[:2])
@pytest.mark.parametrize("name", [rare(name) for name in BY_NAME])
def test_kernel_reference_and_llama_cpp_agree(name: str, size: str) -> None:
    check(BY_NAME[name], size)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_they_agree_in_the_size_that_is_timed(name: str) -> None:
    check(BY_NAME[name], "large")


def test_every_public_function_has_a_case_or_a_reason() -> None:
    covered = {f"{f.__module__}.{f.__name__}" for case in CASES for f in case.functions}
    public = public_functions()
    assert len(public) > 40
    for name in public:
        excused = name in NO_CASE or name.rpartition(".")[0] in NO_CASE
        assert (name in covered) != excused, f"{name} needs a case, or a reason in NO_CASE"


def test_every_excuse_is_of_something_that_is_there() -> None:
    public = public_functions()
    for name, why in NO_CASE.items():
        assert why
        if name not in public:
            import_module(name)


def test_every_weight_type_has_all_cases() -> None:
    assert set(QUANT_TYPES.values()) == set(QUANTS)  # all of ggml's that it can write and read
    for t in QUANTS.values():
        for name in ("decode {}", "matmul {}", "matmul {}, gradient", "one token {}"):
            assert name.format(t.name) in BY_NAME
    for name in QUANTISED:
        assert f"quantise {name}" in BY_NAME


def test_every_op_of_the_sweep_is_here() -> None:
    """`OPS` is what gradients are checked for; its pages are the registry's."""
    pages = {case.page for case in CASES}
    elsewhere = {f"nbllama.ops.attention.{page}" for page in ("grad", "tree")}
    assert {op.forward_ref.__module__ for op in OPS} - pages <= elsewhere


def test_names_are_different_and_groups_are_known() -> None:
    assert max(Counter(case.name for case in CASES).values()) == 1
    assert {case.group for case in CASES} == set(GROUPS)


def test_what_has_no_op_says_why() -> None:
    for case in CASES:
        missing = case.make("one").theirs is None
        assert missing == case.llama.startswith("none: "), case.name
        assert case.functions and case.shape


def test_a_wrong_number_is_found() -> None:
    """The comparison can fail: with one number of a reference wrong by 1e-4 of the largest."""
    for name in ("rms_norm", "matmul Q4_K, gradient", "attention, gradient", "decode IQ3_S"):
        case = BY_NAME[name]
        right = case.make("odd")

        def reference(run=right, **inputs):
            found = run.reference(**inputs)
            first = next(iter(found.values()))
            first.flat[-1] += 1e-4 * np.abs(first).max()
            return found

        wrong = Case(**{**vars(case), "make": lambda size, r=reference, run=right: _with(run, r)})
        with pytest.raises(AssertionError, match="is over"):
            check(wrong, "odd")


def _with(run, reference):
    return type(run)(**{**vars(run), "reference": reference})


def test_a_graph_of_ggml_runs_any_number_of_times() -> None:
    """A timed call gives the same result again, and memory does not grow."""
    run = BY_NAME["attention, soft-cap"].make("odd")
    with llama(run, 2) as theirs:
        found = []
        for _ in range(3):
            theirs.run()
            found.append(theirs.read()["o"])
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()
    assert np.abs(found[0]).max() > 0


def test_the_page_has_every_case() -> None:
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    for case in CASES:
        assert f"| {case.name} |" in page, (
            f"docs/kernels.md: scripts/tools/kernel_tables '{case.name}'"
        )
    for name in NO_CASE:
        assert f"`{name.removeprefix('nbllama.')}`" in page, f"docs/kernels.md has no {name}"
