"""The only place with Numba options.

Every kernel is made by `kernel`. Flags follow one rule: never `fastmath=True`, because it assumes
that no NaN and no infinity exist, and then `isnan` is false and a broken loss goes unseen.

- `kernel()`: strict IEEE arithmetic (decoders: bit-equal to numpy).
- `kernel(fast=True)`: `contract, reassoc, nsz, arcp`: sums may be vectorised. The order of such a
  sum depends on the vector width, not on the number of threads.
- `kernel(parallel=True)`: `prange` over what is written, never a reduction across threads.

A kernel that others call is copied into their machine code (`forceinline`). A call would run the
version of it that the process loaded first, which may add in another order: a process that compiles
would differ in the last bits from one that loads, and run slower.

Compiled kernels are kept in a folder whose name holds a hash of every kernel source
(`nbllama.kernels.cache`), because an edit in a kernel changes all that call it. A folder that
training does not need (`own="quants/encode"`) has a cache folder of its own, so that an edit there
leaves the trainer's compiled kernels in use. Numba's own settings and caches stay as they are.
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
"""Whether plain loops take the place of vector code (checked in `quants.base`)."""
FAST = {"contract", "reassoc", "nsz", "arcp"}
_PACKAGE = Path(errors.__file__).resolve().parent

FOLDERS = ("kernels", "ops", "quants")
"""Folders of the package in which kernels may be defined."""
OWN_FOLDERS = ("quants/encode",)
"""Those inside of them whose kernels are cached apart (`own`)."""


def kernel_sources(own: str = "") -> list[Path]:
    """All files whose text decides what the kernels compute, in a fixed order."""
    found = {p for folder in FOLDERS for p in (_PACKAGE / folder).rglob("*.py")}
    apart = {
        p for folder in OWN_FOLDERS if folder != own for p in (_PACKAGE / folder).rglob("*.py")
    }
    return sorted(found - apart)


@cache
def kernel_hash(own: str = "") -> str:
    """Hex digest (16 characters) of kernel sources and the versions that compile them."""
    kernel_set = os.environ.get("NBLLAMA_KERNELS", "")
    versions = (numba.__version__, llvmlite.__version__, np.__version__, sys.version, kernel_set)
    h = hashlib.sha256(" ".join(versions).encode())
    for path in kernel_sources(own):
        h.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return h.hexdigest()[:16]


def _folder(own: str) -> KernelFolder:
    return kernel_folder(kernel_hash(own))


_call = CPUDispatcher.__call__  # a step calls it a thousand times: no way through super()


class _Kernel(CPUDispatcher):
    """A compiled function."""

    def __call__(self, *args: Any) -> Any:
        if FORK.refused:
            refuse()
        return _call(self, *args)

    def compile(self, sig: Any) -> Any:
        with at_large():
            return super().compile(sig)


class _ParallelKernel(_Kernel):
    """A compiled function that all threads run: one at a time."""

    def compile(self, sig: Any) -> Any:
        launch()  # before Numba does, on a layer of its own choice
        return super().compile(sig)

    def __call__(self, *args: Any) -> Any:
        if FORK.refused:
            refuse()
        with LOCK:
            return _call(self, *args)


def kernel(
    *, parallel: bool = False, fast: bool = False, own: str = "", inline: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a compiled function of the package (see the module's text).

    `own`: the folder of the package whose kernels are cached apart; empty for all others.
    `inline`: copied into its caller before types are known, for what is called once a row: an
    array is passed to a function as seven words.
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
    """Decorate what each of several threads runs, called by its `address`.

    The parallel loop around it then need not be compiled again with every such routine. Takes two
    int64.
    """
    launch()
    signature = normalize_signature("void(int64, int64)")
    routine: Any = CFunc(function, signature, locals={}, options={"error_model": "numpy"})
    routine._cache = KernelCache(function, lambda: _folder(""))
    with at_large():
        routine.compile()
    return routine
