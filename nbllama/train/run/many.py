"""`--ray`: runs whose steps are computed on several machines."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nbllama.checkpoint.identity import model_fingerprint
from nbllama.errors import NotEnoughMemory, UsageError, counted
from nbllama.report.log import memory
from nbllama.system.memory import available_memory
from nbllama.train.blocks.address import parse_address, protect_local
from nbllama.train.blocks.spread import Spread
from nbllama.train.blocks.worker import Plan, facts, file_sha256

if TYPE_CHECKING:
    from nbllama.train.forecast import Forecast
    from nbllama.train.run.session import RunSession
    from nbllama.train.trainer import Trainer

LINK = 125e6  # bytes per second over a 1 Gbit/s link
SHOWN = (2, 4, 8)  # numbers of workers in the forecast for a cluster


def plan_of(
    trainer: Trainer,
    own: Mapping[str, str],
    *,
    threads: int,
    constants: Mapping[str, Any] | None = None,
    trunk: tuple[str, int] | None = None,
    alone: bool = True,
) -> Plan:
    """Return the plan that the workers of a run need; `own` contains the `facts` of this machine.

    `alone` says whether all workers run on this machine, in which case they do not search for the
    base model by its sha256. `trunk` contains the key and the layer of the `TrunkCache`, if any.
    """
    gguf, adapter = trainer.model.gguf, trainer.adapter
    path = os.path.abspath(gguf.path)
    return Plan(
        path=path,
        sha256="" if alone else file_sha256(path),
        size=gguf.size,
        fingerprint=model_fingerprint(gguf),
        hp=repr(trainer.model.hp),
        constants=dict(constants or {}),
        shapes={name: (pair.a.shape, pair.b.shape) for name, pair in adapter.pairs.items()},
        alpha=adapter.alpha,
        lora_r=adapter.lora_r,
        limits=trainer.limits,
        batch=trainer.batch,
        checkpointing=trainer.checkpointing,
        kept=trainer.kept,
        dropout=trainer.dropout,
        seed=trainer.seed,
        objective=trainer.objective.copied(),
        trunk=trunk,
        threads=threads,
        facts=own,
    )


def traffic(n_bytes: int, blocks: int, workers: int) -> int:
    """Return the bytes sent per step: one gradient per block, and all parameters to each worker."""
    return (blocks + workers) * n_bytes


def forecast_line(
    n_bytes: int, seconds: float, *, micro: int, block: int, workers: Sequence[int], local: bool
) -> str:
    """Return a forecast of the speed-up and the traffic per step for several numbers of workers.

    `n_bytes` is the size of the gradient, and `seconds` is the time per step on one machine. A
    step consists of `micro` micro-batches, in blocks of `block` (0 for a single block). `local`
    says whether the workers share the cores of one machine.
    """
    size = min(block or micro, micro)
    blocks = math.ceil(micro / size)
    words = []
    for n in workers:
        sent = traffic(n_bytes, blocks, n)
        step = seconds * (n if local else 1) * min(1.0, math.ceil(blocks / n) * size / micro)
        step += 0.0 if local else sent / LINK
        words.append(f"{counted(n, 'worker')} {seconds / step:.1f} x and {memory(sent)}")
    how = "in memory" if local else "on a 1 Gbit/s network"
    return (
        f"{counted(blocks, 'block')} per step, gradient {memory(n_bytes)}; speed-up over a "
        f"single process, and traffic per step {how}: {', '.join(words)}"
    )


def forecast_of(session: RunSession) -> Forecast:
    """Print the forecast of a run (`RunSession.forecast`), with speed-up and traffic for `--ray`.

    Raises `NotEnoughMemory` if the run or its local workers need more memory than is available.
    """
    expected, o = session.forecast(), session.options
    if not o.ray:
        return expected
    n_bytes = sum(g.nbytes for g in session.trainer.gradients.values())
    local = parse_address(o.ray).local
    line = forecast_line(
        n_bytes, expected.seconds, micro=o.grad_acc, block=o.block or 0,
        workers=[local] if local else SHOWN, local=bool(local),
    )  # fmt: skip
    session.ui.header([("workers", line)])
    # the workers share the mapped model, and only this process saves files
    needs = local * (expected.untouched - expected.saving)
    if needs > (available := available_memory()):
        raise NotEnoughMemory(
            f"--ray {o.ray}: the workers need {memory(needs)}, but only {memory(available)} is "
            "available; start fewer workers, or pass a smaller --batch or --ctx"
        )
    return expected


@contextmanager
def many_machines(session: RunSession) -> Iterator[None]:
    """Compute the steps of a run on Ray workers if `--ray` is given."""
    o, trainer, ui = session.options, session.trainer, session.ui
    if not o.ray:
        yield
        return
    address = parse_address(o.ray)
    if not address.local and len(trainer.model.gguf.paths) > 1:
        raise UsageError(
            "--ray: a base model in several files can only be used with local:N; join the files "
            "with llama-gguf-split --merge"
        )
    if address.local and (warning := protect_local()):
        ui.note(warning)
    try:
        from nbllama.train.blocks.ray_pool import RayPool
    except ModuleNotFoundError as e:
        if e.name != "ray":
            raise
        raise UsageError("--ray requires Ray; install it with: pip install 'nbllama[ray]'") from e

    threads = max(1, session.threads // address.local) if address.local else 0
    trunk = (session.trunk.key, session.trunk.layer) if session.trunk is not None else None
    plan = plan_of(
        trainer, facts(), threads=threads, constants=o.constants(), trunk=trunk,
        alone=bool(address.local),
    )  # fmt: skip
    pool = RayPool(address, plan, model_dir=o.model_dir, mixed_cpu=o.allow_mixed_cpu)
    spread = Spread(pool, o.block or 0, say=ui.note, audit=o.audit, worker_timeout=o.worker_timeout)
    here, trainer.steps = trainer.steps, spread
    try:
        yield
    finally:
        trainer.steps = here
        spread.close()
        for row in spread.summary():
            ui.note(
                f"worker {row.worker}: {row.blocks} blocks, {row.tokens_per_s:.1f} tokens/s, busy "
                f"{100 * row.share:.0f} % of the time"
            )
