"""The micro-kernel's inner loop compiled for other CPUs: its sums stay in registers.

Compiled, not run: LLVM generates code for other CPUs. A sum that does not fit into
the registers would be stored to the stack and loaded again in every iteration of the loop.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

MAKE_ASSEMBLY = r"""
import re
import sys
import llvmlite.binding as llvm
import numba
from numba import types
from nbllama.kernels import lanes
from nbllama.kernels.simd import fma_tile

def product(a, row, step, b, n, c, ld):
    fma_tile(a, 0, row, step, b, 0, lanes.PANEL, n, c, 0, ld, False)

f32, i64 = types.float32[::1], types.int64
compiled = numba.njit(product)
compiled.compile((f32, i64, i64, f32, i64, f32, i64))
(signature,) = compiled.signatures
triple, cpu, features, layout = sys.argv[1:]
# The function alone: what Numba puts around it calls instructions of this machine.
parts = compiled.inspect_llvm(signature).split("\ndefine ")
bodies = ["define " + part[: part.index("\n}") + 3] for part in parts[1:]]
body = next(x for x in bodies if "fmuladd" in x and "llvm.x86" not in x)
vector = f"<{lanes.VL} x float>"
declared = f"declare {vector} @llvm.fmuladd.v{lanes.VL}f32({vector}, {vector}, {vector})"
body = re.sub(r"(#\d+|, *!\w[\w.]* *!\d+|comdat(\(.*?\))?|personality .*? (?=\{))", "", body)
text = body + declared + "\n"
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
module = llvm.parse_assembly(text)
module.triple, module.data_layout = triple, layout
target = llvm.Target.from_triple(triple)
machine = target.create_target_machine(cpu=cpu, features=features, opt=3)
print("VL", lanes.VL)
print(machine.emit_assembly(module))
"""


class Machine(NamedTuple):
    """A target CPU, and the expected form of the inner loop."""

    triple: str
    cpu: str
    features: str
    layout: str
    numba_features: str  # decides the vector length
    multiply_add: str
    per_step: int
    stack: str


X86_LAYOUT = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-n8:16:32:64-S128"
MACHINES = {
    "skylake-avx512": Machine(
        "x86_64-unknown-linux-gnu", "skylake-avx512", "", X86_LAYOUT,
        "+avx512f,+avx2,+fma", r"vfmadd\d+ps.*%zmm", 12, "%rsp",
    ),
    "haswell": Machine(
        "x86_64-unknown-linux-gnu", "haswell", "", X86_LAYOUT,
        "+avx2,+fma", r"vfmadd\d+ps.*%ymm", 12, "%rsp",
    ),
    "aarch64": Machine(
        "aarch64-unknown-linux-gnu", "cortex-a72", "",
        "e-m:e-i8:8:32-i16:16:32-i64:64-i128:128-n32:64-S128",
        "+avx2,+fma", r"fmla\s+v\d+\.4s", 24, "[sp",
    ),
}  # fmt: skip


def inner_loop(assembly: str, multiply_add: str) -> list[str]:
    """The lines from the last label before the first multiply-add to the jump back to it."""
    lines = assembly.splitlines()
    first = next(i for i, line in enumerate(lines) if re.search(multiply_add, line))
    start = max(i for i in range(first) if re.match(r"\.?L\w+:", lines[i]))
    label = lines[start].split(":")[0]
    jump = re.compile(rf"\s+[a-z][a-z.]+\s+(.*,\s*)?{re.escape(label)}$")
    end = next(i for i in range(first, len(lines)) if jump.match(lines[i]))
    return lines[start + 1 : end + 1]


@pytest.mark.parametrize("name", MACHINES)
def test_inner_loop_keeps_its_sums_in_registers(name: str, tmp_path: Path) -> None:
    m = MACHINES[name]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "NBLLAMA_KERNELS"))}
    env |= {"NBLLAMA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    env |= {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": m.numba_features}
    words = [sys.executable, "-c", MAKE_ASSEMBLY, m.triple, m.cpu, m.features, m.layout]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "VL 16" if m.per_step == 12 and "zmm" in m.multiply_add else "VL 8"
    )
    loop = inner_loop(done.stdout, m.multiply_add)
    found = sum(bool(re.search(m.multiply_add, line)) for line in loop)
    assert found and found % m.per_step == 0, "\n".join(loop)
    assert not [line for line in loop if m.stack in line], "\n".join(loop)
