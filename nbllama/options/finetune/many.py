"""Options for a run on several machines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nbllama.errors import UsageError
from nbllama.options.file_names import File
from nbllama.options.parser import Saved, option
from nbllama.options.values import Real, Text, Whole

_many = partial(option, "Many machines")


@dataclass(frozen=True)
class ManyOptions:
    """Options for blocks of micro-batches, and for the machines that compute them."""

    block: int | None = _many(
        Whole(),
        None,
        "sum the gradients of N micro-batches (a power of two) before adding the sum to the "
        "step's gradient; 0: all micro-batches. This changes the last digits of the results "
        "and is required to spread a step over several workers",
        shown_default="0",
        saved=Saved(49, taken=True),
        without=0,
    )
    ray: str = _many(
        Text("ADDRESS"),
        "",
        "compute the blocks on Ray workers: local:N starts N workers on this machine; HOST:PORT "
        "or auto uses one worker on each machine of a cluster and requires the cluster's token",
        shown_default="off",
    )
    model_dir: str = _many(
        File("FOLDER"),
        "",
        "folder for the base model on the worker machines; the model is copied there unless the "
        "folder already contains a file with the same sha256",
        shown_default="~/.cache/nbllama/models",
    )
    allow_mixed_cpu: bool = _many(
        None,
        False,
        "accept workers with different CPU models; results may then differ in the last digits",
    )
    worker_timeout: float = _many(
        Real(0, 1e6),
        0.0,
        "number of seconds to wait for a worker to connect when none are left; if none connects, "
        "save and stop with exit code 1; 0: compute on this machine instead",
    )
    audit: int = _many(
        Whole(),
        0,
        "also compute one in every N blocks on a second worker, and check that the results are "
        "bit-identical; 0: never",
    )


def check_many(options: ManyOptions, dumps: bool) -> None:
    """Raise `UsageError` for invalid combinations; `dumps` says whether `--dump` is given."""
    block = options.block or 0
    if block & (block - 1):
        near = 1 << (block.bit_length() - 1)
        raise UsageError(
            f"--block {block}: must be 0 or a power of two, such as {near} or {2 * near}"
        )
    if options.audit and options.allow_mixed_cpu:
        raise UsageError(
            "--audit and --allow-mixed-cpu cannot be combined: results from different CPUs can "
            "differ in the last digits, so the audit could exclude a good machine; leave one out"
        )
    if options.ray and dumps:
        raise UsageError(
            "--dump and --ray cannot be combined, because the steps are computed on other "
            "machines; leave one of them out"
        )
