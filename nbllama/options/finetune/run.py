"""Options for the run as a whole, including its length and batches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nbllama.options.common import debug_option, threads_option
from nbllama.options.parser import Saved, option
from nbllama.options.values import Port, Size, Whole

_run = partial(option, "Run")
_data = partial(option, "Run length and batches")


@dataclass(frozen=True)
class RunOptions:
    """Options for the run as a whole, its length, and the samples per iteration."""

    threads: int | None = threads_option()
    seed: int = _run(
        Whole(-1, 2**63 - 1),
        -1,
        "seed for the initial adapter and the data order; -1: a new seed, which is printed",
        also=["-s"],
        saved=Saved(16),
    )
    use_checkpointing: bool = _run(
        None,
        True,
        "use gradient checkpointing, which saves memory but takes more time",
        off=["--no-checkpointing"],
        shown_default="on",
    )
    activation_memory: int | None = _run(
        Size(),
        None,
        "keep the activations of as many blocks as fit in SIZE bytes (such as 750M) and recompute "
        "the others; replaces --use-checkpointing",
        shown_default="off",
    )
    trunk_cache: int | None = _run(
        Size(least=0),
        None,
        "with --lora-layers last:N, store the output of the blocks below the trained ones in a "
        "file of at most SIZE bytes next to the checkpoint, so that these blocks run only once; "
        "0: never",
        shown_default="on for several epochs, if the file needs at most a tenth of the free disk "
        "space",
    )
    live: int | None = _run(
        Port(),
        None,
        "serve a live page about the run to browsers on this machine; the address, which contains "
        "a secret, is printed",
        shown_default="off",
    )
    dry_run: bool = _run(None, False, "print the time and memory forecast, then exit")
    force: bool = _run(
        None,
        False,
        "overwrite the output files of an earlier run; with --checkpoint-in, resume even if the "
        "model, data or options differ",
    )
    list_archs: bool = _run(
        None, False, "print the supported architectures and what was checked for each, then exit"
    )
    debug: bool = debug_option()

    adam_iter: int | None = _data(
        Whole(0),
        None,
        "number of iterations in this run, not counting those before the checkpoint; 0: only run "
        "the evaluation that was due after the checkpoint's last iteration",
        shown_default="256 for plain text, no limit for records or with --epochs",
        saved=Saved(38, "last", may_change=True),
    )
    epochs: int | None = _data(
        Whole(-(2**31)),
        None,
        "passes over the data in this run; 0 or less: no limit",
        shown_default="no limit for plain text; for records, depends on the number of records",
    )
    batch: int = _data(  # None until `nbllama.train.run.plan` sets it
        Whole(1, 65536),
        None,
        "samples per forward and backward pass; with --packing, the limit is this number times "
        "--ctx tokens",
        also=["-b"],
        shown_default="8 for plain text; for records, depends on the number of records",
        saved=Saved(1, taken=True),
    )
    grad_acc: int = _data(Whole(1, 65536), 1, "batches per iteration", saved=Saved(2))
    ctx: int | None = _data(
        Whole(1, 2**24),
        None,
        "maximum length of a sample, in tokens",
        also=["-c"],
        shown_default="128 for plain text, 512 for chat",
        saved=Saved(3, taken=True),
    )
