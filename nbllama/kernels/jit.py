"""The only place with Numba options.

Every kernel is made by `kernel`. Flags follow one rule: never `fastmath=True`, because it assumes
that no NaN and no infinity exist, and then `isnan` is false and a broken loss goes unseen.

- `kernel()`: strict IEEE arithmetic (decoders: bit-equal to numpy).
- `kernel(fast=True)`: `contract, reassoc, nsz, arcp`: sums may be vectorised. The order of such a
  sum depends on the vector width, not on the number of threads.
- `kernel(parallel=True)`: `prange` over what is written, never a reduction across threads.

Numba's on-disk cache does not notice an edit in a kernel that another kernel calls, so the cache
folder's name holds a hash of every kernel source (`NUMBA_CACHE_DIR` overrides it). A folder that
training does not need (`own="quants/encode"`) has a cache folder of its own, so that an edit there
leaves the trainer's compiled kernels in use.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np

PLAIN = os.environ.get("NBLLAMA_KERNELS") == "plain"
"""Whether plain loops take the place of vector code (checked in `quants.base`)."""
FAST = {"contract", "reassoc", "nsz", "arcp"}
_PACKAGE = Path(__file__).resolve().parents[1]
KERNEL_FOLDERS = ("kernels", "ops", "quants")
OWN_FOLDERS = ("quants/encode",)  # folders in those whose kernels are cached apart


def kernel_sources(own: str = "") -> list[Path]:
    """All files whose text decides what the kernels compute, in a fixed order."""
    found = {p for folder in KERNEL_FOLDERS for p in (_PACKAGE / folder).rglob("*.py")}
    apart = {
        p for folder in OWN_FOLDERS if folder != own for p in (_PACKAGE / folder).rglob("*.py")
    }
    return sorted(found - apart)


def kernel_hash(own: str = "") -> str:
    """Hex digest (16 characters) of kernel sources and the versions that compile them."""
    kernel_set = os.environ.get("NBLLAMA_KERNELS", "")
    versions = f"{numba.__version__} {np.__version__} {sys.version} {kernel_set}"
    h = hashlib.sha256(versions.encode())
    for path in kernel_sources(own):
        h.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return h.hexdigest()[:16]


def _cache_root() -> Path:
    if base := os.environ.get("NBLLAMA_CACHE_DIR"):
        return Path(base)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", tempfile.gettempdir())) / "nbllama"
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base) / "nbllama" if base else Path.home() / ".cache" / "nbllama"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"nbllama-{os.getuid()}"


@cache
def _cache_dir(own: str = "") -> str:
    """A folder of this kernel set, made if need be; a private temporary one where that fails."""
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return given
    folder = _cache_root() / f"kernels-{kernel_hash(own)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="nbllama-kernels-"))
    return str(folder)


CACHE_DIR = _cache_dir()


def _threading_layer() -> str:
    """Numba's OpenMP layer where its library is there, else Numba's own queue of work.

    OpenMP starts a kernel on both threads in about 1 us, the queue in 50 to 100 us. GNU's library
    lets a thread without work look for it some 300,000 times before it sleeps, in the way of any
    other process on the same cores; 10,000 looks (tens of us) are as fast (docs/speed.md).
    """
    if given := os.environ.get("NUMBA_THREADING_LAYER"):
        return given
    looks = {"GOMP_SPINCOUNT": "10000"}
    if looks.keys() & os.environ.keys() or "OMP_WAIT_POLICY" in os.environ:
        looks = {}
    os.environ.update(looks)  # read once, by the library as it is loaded
    try:
        importlib.import_module("numba.np.ufunc.omppool")
    except ImportError:
        return "workqueue"
    finally:
        for name in looks:
            del os.environ[name]
    return "omp"


# In the environment too: Numba reads its configuration again whenever a NUMBA_ variable changed.
os.environ["NUMBA_THREADING_LAYER"] = numba.config.THREADING_LAYER = _threading_layer()
# And it would count the processors anew, while this thread may be bound to one (`own_cores`).
os.environ.setdefault("NUMBA_NUM_THREADS", str(numba.config.NUMBA_NUM_THREADS))
# Where colorama is installed, Numba would have it write to the terminal at the program's end.
os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
numba.config.DISABLE_ERROR_MESSAGE_HIGHLIGHTING = 1


def kernel(
    *, parallel: bool = False, fast: bool = False, own: str = "", inline: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """Decorator for every compiled function of the package (see the module's text).

    `own`: the folder of the package whose kernels are cached apart; empty for all others.
    `inline`: always copied into its caller, for what is called once a row: an array is passed to
    a function as seven words.
    """
    # Set each time: a reread configuration would have forgotten it.
    numba.config.CACHE_DIR = _cache_dir(own) if own else CACHE_DIR
    return numba.njit(
        cache=True,
        parallel=parallel,
        error_model="numpy",
        fastmath=FAST if fast else False,
        inline="always" if inline else "never",
    )


def thread_routine(function: Callable[[int, int], None]) -> Any:
    """Decorator for what each of several threads runs, called by its `address`: the parallel loop
    around it then need not be compiled again with every such routine. Takes two int64.
    """
    numba.config.CACHE_DIR = CACHE_DIR
    return numba.cfunc("void(int64, int64)", cache=True, error_model="numpy")(function)
