"""The only module that sets Numba options.

Every kernel is created by `kernel`. Never use `fastmath=True`: it assumes that NaNs and infinities
do not occur, so `isnan` is always false, and a broken loss goes unnoticed.

- `kernel()`: strict IEEE arithmetic, which makes the decoders bit-identical to numpy.
- `kernel(fast=True)`: LLVM's flags `contract, reassoc, nsz, arcp`, so that sums can be vectorised.
  The order of such a sum depends on the vector width, not on the number of threads.
- `kernel(parallel=True)`: `prange` over the output, never a reduction across threads.

When one kernel calls another, the callee is inlined into the caller's machine code (`forceinline`).
A real call would be slower. It would also run whichever version the process loaded first, which may
add in a different order, so a process that compiles its kernels and a process that loads them from
the cache could get results that differ in the last bits.

Compiled kernels are stored in a folder whose name contains a hash of all kernel sources
(`nbllama.kernels.cache`), because editing a kernel also changes all its callers. A source folder
that is not used in training (`own="quants/encode"`) has a separate cache folder, so that editing it
does not invalidate the training kernels. Numba's own settings and caches are left alone.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core.ccallback import CFunc
from numba.core.registry import CPUDispatcher
from numba.core.sigutils import normalize_signature

from nbllama import errors
from nbllama.kernels.cache import KernelCache
from nbllama.kernels.folder import KernelFolder, kernel_folder
from nbllama.kernels.threading_layer import at_large, launch
from nbllama.kernels.turns import FORK, LOCK, refuse

PLAIN = os.environ.get("NBLLAMA_KERNELS") == "plain"
"""Whether plain loops replace the vector code (checked in `quants.base`)."""
FAST = {"contract", "reassoc", "nsz", "arcp"}
_PACKAGE = Path(errors.__file__).resolve().parent

FOLDERS = ("kernels", "ops", "quants")
"""Folders of the package whose modules can define kernels."""
OWN_FOLDERS = ("quants/encode",)
"""Subfolders with a separate cache (`own`)."""


def kernel_sources(own: str = "") -> list[Path]:
    """Return all source files that affect the kernels' results, in a fixed order."""
    found = {p for folder in FOLDERS for p in (_PACKAGE / folder).rglob("*.py")}
    apart = {
        p for folder in OWN_FOLDERS if folder != own for p in (_PACKAGE / folder).rglob("*.py")
    }
    return sorted(found - apart)


@cache
def kernel_hash(own: str = "") -> str:
    """Return a hash of the kernel sources and compiler versions, as 16 hex digits."""
    kernel_set = os.environ.get("NBLLAMA_KERNELS", "")
    versions = (numba.__version__, llvmlite.__version__, np.__version__, sys.version, kernel_set)
    h = hashlib.sha256(" ".join(versions).encode())
    for path in kernel_sources(own):
        h.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return h.hexdigest()[:16]


def _folder(own: str) -> KernelFolder:
    return kernel_folder(kernel_hash(own))


_call = CPUDispatcher.__call__  # runs a thousand times per step, so the cost of super() matters


class _Kernel(CPUDispatcher):
    """A compiled function that refuses to run in a forked child that lacks its parent's threads."""

    def __call__(self, *args: Any) -> Any:
        if FORK.refused:
            refuse()
        return _call(self, *args)

    def compile(self, sig: Any) -> Any:
        with at_large():
            return super().compile(sig)


class _ParallelKernel(_Kernel):
    """A compiled function that runs on all threads; only one call runs at a time."""

    def compile(self, sig: Any) -> Any:
        launch()  # must run before Numba chooses and launches a layer on its own
        return super().compile(sig)

    def __call__(self, *args: Any) -> Any:
        if FORK.refused:
            refuse()
        with LOCK:
            return _call(self, *args)


def kernel(
    *, parallel: bool = False, fast: bool = False, own: str = "", inline: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """Compile the decorated function (see the module docstring).

    `own` is the package folder that contains the kernel if that folder has a separate cache, and is
    empty otherwise. `inline` copies the function into its caller before types are inferred. Use it
    for functions that are called once per row: a call passes each array as seven machine words.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        options = {
            "nopython": True,
            "parallel": parallel,
            "error_model": "numpy",
            "fastmath": FAST if fast else False,
            "inline": "always" if inline else "never",
            "forceinline": not parallel,
        }
        made = (_ParallelKernel if parallel else _Kernel)(function, targetoptions=options)
        made._cache = KernelCache(function, lambda: _folder(own))
        return made

    return compiled


def thread_routine(function: Callable[[int, int], None]) -> Any:
    """Compile a routine that runs on each thread and is called through its `address`.

    Since routines are called by address, they share one parallel loop, which is compiled only once.
    A routine takes two int64 parameters.
    """
    launch()
    signature = normalize_signature("void(int64, int64)")
    routine: Any = CFunc(function, signature, locals={}, options={"error_model": "numpy"})
    routine._cache = KernelCache(function, lambda: _folder(""))
    with at_large():
        routine.compile()
    return routine
