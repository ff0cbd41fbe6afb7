"""The start and end of the current learning-rate decay, and the resulting learning rates.

If the decay is as long as the run, extending a finished run starts a new decay that covers the
additional iterations. A checkpoint stores where the current decay began (`TrainState.decay_begin`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbllama.errors import UsageError
from nbllama.opt.schedule import Schedule
from nbllama.options.finetune.table import Options
from nbllama.train.run.defaults import SHORT, decay_end, follows_length, with_the_run

if TYPE_CHECKING:
    from nbllama.checkpoint.state import TrainState
    from nbllama.train.run.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Decay:
    """The current decay of a run, with iterations counted from the start of training.

    The decay starts after iteration `begin`, and the learning rate reaches its minimum at iteration
    `end`. `last` is the last iteration planned when the decay started, or `end` if the decay has
    its own length. `first` is the first iteration that `check_rates` checks. It is the first
    iteration of the decay if the decay is in progress, and the first of this run otherwise. `new`
    says whether the decay starts with this run. `renews` says whether training beyond the end
    starts a new decay. `given` says whether `--lr-decay-steps` was given.
    """

    begin: int
    end: int
    last: int
    first: int
    new: bool = False
    renews: bool = False
    given: bool = False
    notes: tuple[str, ...] = ()

    @property
    def stored_last(self) -> int:
        """The `last` to store in a checkpoint, or 0 (store nothing) if it equals `end`."""
        return 0 if self.last == self.end else self.last


def plan(
    options: Options, asked: int | None, state: TrainState | None, *, data_kind: str, n_iter: int
) -> Decay:
    """Plan the decay for a run of `n_iter` iterations that starts from `state`.

    `options` must already be filled in from the checkpoint. `asked` is the value of
    `--lr-decay-steps` that the user specified.
    """
    done = state.iteration if state is not None else 0
    total = done + n_iter
    end = decay_end(options, data_kind, total)
    follows = follows_length(options, data_kind)
    if state is None:
        return Decay(begin=0, end=end, last=total if follows else end, first=1)
    begin, notes = state.decay_begin, []
    found = int(state.identity.settings.get("cos_decay_steps", end))
    if asked is not None and begin and asked <= begin + 1 and asked != found:
        notes.append(
            f"--lr-decay-steps {asked} was the end of an earlier decay; the current decay ends at "
            f"iteration {found}"
        )
        asked, end = None, found
    last = (state.decay_last or found) if follows else found
    under_way = done < max(found, last) or options.enable_restart
    first = begin + 1 if under_way else done + 1
    with_run = last == found or (found == last + 1 and last - begin < SHORT)
    if n_iter and follows and with_run and done >= last:
        new = with_the_run(total, done)
        # passing the same end again, as the options file of a run does, has no effect
        again = asked == found and done <= found < total
        if asked in (None, new) or again:
            covered = f"iterations {done + 1} to {total}" if n_iter > 1 else f"iteration {total}"
            notes.append(
                f"the learning rate decay has ended; a new decay without warm-up covers {covered}"
            )
            return Decay(
                begin=done, end=new, last=total, first=done + 1, new=True, notes=tuple(notes)
            )
    if not follows:
        last = end
    elif asked is not None or not with_run:
        last = max(last, total)
    return Decay(
        begin=begin,
        end=end,
        last=last,
        first=first,
        renews=follows and with_run,
        given=asked is not None,
        notes=tuple(notes),
    )


def schedule(settings: Settings, decay: Decay) -> Schedule:
    """Return the learning-rate schedule of a run.

    A new decay has no warm-up. Warm-up is meant for a new adapter and moments that are still 0,
    whereas a resumed run reads the adapter and the moments from its checkpoint.
    """
    o = settings.options
    return Schedule(
        kind=o.lr_schedule,
        warmup=0 if decay.begin else settings.warmup,
        cos_decay_steps=decay.end - decay.begin,
        cos_decay_min=settings.cos_decay_min,
        cos_decay_restart=o.cos_decay_restart,
        enable_restart=o.enable_restart,
        min_ratio=o.adam_min_alpha / settings.adam_alpha,
        wsd_decay=o.wsd_decay,
        begin=decay.begin,
    )


def check_rates(
    decay: Decay, settings: Settings, done: int, factor: Callable[[int], float]
) -> list[str]:
    """Return messages about iterations whose learning rate is 0.

    `factor` returns the learning-rate factor for an iteration. `done` is the number of iterations
    in the checkpoint.

    Raises `UsageError` if the learning rate is 0 in all iterations of the run. The error is not
    raised with --compat, which follows the old tool, or for the rest of a decay in progress.
    """
    options, total = settings.options, done + settings.n_iter
    if not settings.n_iter:
        return []  # the run only evaluates
    # The learning rate can be 0 at the end and once before the end. In the old tool, it can also
    # be 0 at the first iteration.
    looked_at = {decay.first, min(decay.first + 1, total), total}
    if not any(factor(i) for i in looked_at):
        if not options.compat:
            raise UsageError(_nothing_to_learn(decay, settings.n_iter, done))
        return [f"the learning rate is 0 {_all(settings.n_iter)}, as in the old tool"]
    if factor(total) or options.compat or options.enable_restart:
        return []
    warmup = 0 if decay.begin else settings.warmup
    zero = max(decay.end, warmup, done + 1)
    if zero == total:
        return []  # the decay ends at the last iteration
    line = f"the learning rate is 0 from iteration {zero} to {total}"
    if decay.renews and done < decay.last < total:
        line += (
            f"; pass --adam-iter {decay.last - done} to stop at the end of the decay; a new "
            "decay starts if you then continue the run"
        )
    return [line]


def _all(n_iter: int) -> str:
    return f"in all {n_iter} iterations" if n_iter > 1 else "in the only iteration"


def _nothing_to_learn(decay: Decay, n_iter: int, done: int) -> str:
    line = f"the learning rate would be 0 {_all(n_iter)}: "
    if decay.renews and decay.given:
        return (
            f"{line}the decay ended at iteration {decay.end}; leave out --lr-decay-steps to start "
            "a new decay"
        )
    if not done:
        return (
            f"{line}the decay ends at iteration {decay.end}; pass a larger --lr-decay-steps, or "
            "--lr-decay-min above 0"
        )
    return (
        f"{line}the decay ended at iteration {decay.end} (--lr-decay-steps); pass --force with "
        "a larger --lr-decay-steps or with --lr-decay-min above 0, or start a new run from the "
        "adapter with --lora-in"
    )
