"""Options for a run on several machines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nbllama.errors import UsageError
from nbllama.options.parser import Saved, option
from nbllama.options.values import Real, Text, Whole

_many = partial(option, "Many machines")


@dataclass(frozen=True)
class ManyOptions:
    """Options for blocks of micro-batches, and for the machines that compute them."""

    block: int | None = _many(
        Whole(),
        None,
        "sum the gradients of N micro-batches (a power of two) before adding them to the step's; "
        "0: of all. It changes the last digits. Needed to spread a step over several workers",
        shown_default="0",
        saved=Saved(49, taken=True),
        without=0,
    )
    ray: str = _many(
        Text("ADDRESS"),
        "",
        "compute the blocks on workers that Ray connects: local:N starts N on this machine; "
        "HOST:PORT or auto uses one on each machine of a cluster, and needs its token",
        shown_default="off",
    )
    model_dir: str = _many(
        Text("FOLDER"),
        "",
        "folder on the workers' machines with the base model, found by its sha256, or for its copy",
        shown_default="~/.cache/nbllama/models",
    )
    allow_mixed_cpu: bool = _many(
        None, False, "accept workers with another kind of CPU; bits may differ then"
    )
    worker_timeout: float = _many(
        Real(0, 1e6),
        0.0,
        "if no worker is left, wait this many seconds for one, then save and stop with exit code "
        "1; 0: compute on this machine",
    )
    audit: int = _many(
        Whole(),
        0,
        "compute one block in N on a second worker too, and compare the bits; 0: never",
    )


def check_many(options: ManyOptions, dumps: bool) -> None:
    """Raise `UsageError` for invalid combinations; `dumps` means that `--dump` is given."""
    block = options.block or 0
    if block & (block - 1):
        near = 1 << (block.bit_length() - 1)
        raise UsageError(
            f"--block {block}: must be a power of two, such as {near} or {2 * near}, or 0"
        )
    if options.audit and options.allow_mixed_cpu:
        raise UsageError(
            "--audit and --allow-mixed-cpu: the bits of different CPUs can differ, and the audit "
            "would exclude a good machine; leave one out"
        )
    if options.ray and dumps:
        raise UsageError("--dump and --ray: other machines compute the steps; leave one out")
