"""`--trunk-cache`: whether and where a run stores the output of its frozen blocks.

By default, a run stores the output if every sample is used more than once and the file takes up no
more than a tenth of the free disk space. The file is created next to the checkpoint (or the
adapter) and removed when the run finishes. If a run is interrupted, the file is left for the run
that resumes it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from nbllama.checkpoint.environment import environment
from nbllama.checkpoint.identity import model_fingerprint
from nbllama.data.text_file import sha256_parts
from nbllama.errors import OutputError, shown
from nbllama.report.log import memory
from nbllama.train.trunk import TrunkCache, trunk_bytes

if TYPE_CHECKING:
    from nbllama.data.batch import Dataset
    from nbllama.model.passes import Model
    from nbllama.train.run.outputs import Outputs
    from nbllama.train.trainer import Trainer

SHARE_OF_DISK = 0.1  # maximum share of the free disk space if --trunk-cache is not given


class TrunkPlan(NamedTuple):
    """The path, key and size of the file with the output of the blocks below `layer`."""

    path: str
    key: str
    layer: int
    nbytes: int

    def line(self) -> str:
        """Return a one-line description of the plan for the run's header."""
        blocks = f"blocks 0-{self.layer - 1}" if self.layer > 1 else "block 0"
        return (
            f"the output of {blocks} is computed once and stored: {memory(self.nbytes)} in"
            f" {shown(self.path, 400)}"
        )


def plan_trunk(
    trainer: Trainer,
    validation: Dataset | None,
    *,
    size: int | None,
    n_iter: int,
    outputs: Outputs,
    say: Callable[[str], None],
) -> TrunkPlan | None:
    """Plan to store the output of the frozen blocks.

    Returns None if `--trunk-cache` is 0, or if the output cannot be stored or is not worth storing.

    `size` is the value of `--trunk-cache` in bytes, or None if the option is not given. `n_iter` is
    the number of iterations in this run. If the option cannot be applied, `say` receives a message.
    """
    model = trainer.model
    layer = min(trainer.adapter.lowest_layer(), model.hp.most_frozen)
    if size == 0:
        return None
    if layer == 0:
        if size is not None:
            say(
                "--trunk-cache is not used, because the first block is trained; pass --lora-layers "
                "last:N"
            )
        return None
    name = outputs.checkpoint or outputs.adapter
    if not name:
        if size is not None:
            say(
                "--trunk-cache is not used, because the run writes neither a checkpoint nor an "
                "adapter"
            )
        return None
    folder = os.path.dirname(name.rstrip("/" + os.sep))
    key = trunk_key(model, layer)
    path = os.path.join(folder, f"trunk-{key[:16]}.cache")
    tokens = samples = 0
    for data in filter(None, (trainer.dataset, validation)):
        tokens += int(data.lengths()[0].sum())
        samples += data.n_samples
    nbytes = trunk_bytes(tokens, samples, model.hp.n_embd)
    plan = TrunkPlan(path, key, layer, nbytes)
    if size is not None and nbytes > size:
        say(
            f"--trunk-cache is not used: the data need {memory(nbytes)}, but only {memory(size)} "
            f"is allowed; pass {nbytes} or more"
        )
        return None
    if size is not None or os.path.exists(path):  # left by an interrupted run
        return plan
    per_step = trainer.dataset.per_batch(trainer.batch) * trainer.grad_acc
    if n_iter * per_step <= trainer.dataset.n_samples:
        return None
    try:
        free = shutil.disk_usage(folder or os.curdir).free
    except OSError:
        return None
    return plan if nbytes <= SHARE_OF_DISK * free else None


def trunk_key(model: Model, layer: int) -> str:
    """Return the hex sha256 of everything that affects the blocks' output, except the tokens."""
    where = sorted(environment().items())
    return sha256_parts("trunk", model_fingerprint(model.gguf), repr(model.hp), layer, repr(where))


@contextmanager
def stored_trunk(
    plan: TrunkPlan | None,
    trainer: Trainer,
    *,
    finished: Callable[[], bool],
    say: Callable[[str], None],
) -> Iterator[None]:
    """Store the output of the frozen blocks during the run, if there is a plan to do so.

    If the file is unusable, a message is printed, and the run computes all blocks. At the end, the
    file is removed if `finished` returns True.
    """
    if plan is None:
        yield
        return
    width = trainer.model.hp.n_embd
    try:
        cache = TrunkCache(plan.path, plan.key, layer=plan.layer, width=width, say=say)
    except OutputError as e:
        say(f"the output of the frozen blocks cannot be stored: {e}")
        yield
        return
    if cache.n_samples:
        say(
            f"{shown(plan.path, 400)}: found the stored output of the frozen blocks for "
            f"{cache.n_samples} samples"
        )
    with cache:
        trainer.trunk = cache
        try:
            yield
        finally:
            trainer.trunk = None
        if finished():
            cache.remove()
