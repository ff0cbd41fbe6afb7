"""The software and hardware that a run uses, which affect the last digits of its results."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from nbllama.errors import shown


def environment() -> dict[str, str]:
    """Return the kernel hash, package versions and CPU, which affect the exact results of a run."""
    import llvmlite.binding
    import numba

    from nbllama.kernels.jit import kernel_hash

    return {
        "kernels": kernel_hash(),
        "numba": numba.__version__,
        "numpy": np.__version__,
        "cpu": getattr(numba.config, "CPU_NAME", None) or llvmlite.binding.get_host_cpu_name(),
    }


def more_of_environment() -> dict[str, str]:
    """Return the LLVM version and a digest of the CPU features.

    These values, like those from `environment`, are compared across the machines of a run.
    """
    import llvmlite.binding

    features = llvmlite.binding.get_host_cpu_features()
    names = sorted(name for name, on in features.items() if on)
    return {
        "llvm": ".".join(str(n) for n in llvmlite.binding.llvm_version_info),
        "cpu features": hashlib.sha256(" ".join(names).encode()).hexdigest()[:12],
    }


def environment_notes(written: Mapping[str, str]) -> list[str]:
    """Return a line for each changed value that can alter the last digits of a run's results."""
    return [
        f"{name} was {shown(written[name])} when the checkpoint was written and is {now} now; "
        f"the last digits of the results may differ from those of an uninterrupted run"
        for name, now in environment().items()
        if written.get(name, now) != now
    ]
