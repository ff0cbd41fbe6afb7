"""The training data of a run, and the order in which it is dealt out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from nbllama.cli.options import Options
from nbllama.cli.settings import context
from nbllama.data import (
    MT19937,
    Dataset,
    Feed,
    OldFeed,
    Position,
    RawText,
    Rules,
    SampleStart,
    SeedFeed,
    data_kind,
    every_token,
    load_dataset,
)
from nbllama.data.feed import iterations
from nbllama.data.held_out import apart, hold_out
from nbllama.errors import UsageError, shown

if TYPE_CHECKING:
    from nbllama.model import Model
    from nbllama.train_state import TrainState

# Options that say how plain text is cut, and have no meaning for chats.
_TEXT_ONLY = (
    "sample_start",
    "include_sample_start",
    "overlapping_samples",
    "fill_with_next_samples",
    "separate_with_eos",
    "sample_random_offsets",
)


def old_order(options: Options, state: TrainState | None) -> bool:
    """Whether samples come in the old tool's order: as asked for, or as the run began."""
    return options.compat or (state is not None and (state.old or bool(state.rng_state)))


def load_data(
    options: Options, model: Model, state: TrainState | None, seed: int
) -> tuple[Dataset, Dataset | None]:
    """The samples of `--train-data`, and those of `--val-data` or `--val-split`, if any.

    Raises as `_load`, and `UsageError` for validation data of another kind.
    """
    data = _load(options, model, state, options.train_data)
    if options.val_split:
        return hold_out(data, options.val_split, seed)
    if not options.val_data:
        return data, None
    validation = _load(options, model, state, options.val_data)
    if validation.kind != data.kind:
        raise UsageError(
            f"--val-data {shown(options.val_data)} is {validation.kind}, the training data are "
            f"{data.kind}"
        )
    return data, apart(validation)


def _load(options: Options, model: Model, state: TrainState | None, path: str) -> Dataset:
    """The samples of a file.

    The old tool knew plain text only, so with `--compat`, or where its checkpoint is continued,
    every file is that. Raises `DataError`, and `UsageError` for options of plain text with chats.
    """
    old = old_order(options, state)
    kind = "raw" if old else data_kind(path)
    given = [name for name in _TEXT_ONLY if getattr(options, name)]
    if kind == "chat" and given:
        name = given[0].replace("_", "-")
        raise UsageError(f"--{name} is for plain text, and {shown(path)} holds chats; leave it out")
    template = model.chat_template if kind == "chat" else None
    cutter = every_token
    if options.sample_start:
        cutter = SampleStart(
            options.sample_start,
            include=options.include_sample_start,
            overlapping=options.overlapping_samples,
            old=old,
        )
    rules = Rules(
        fill_with_next_samples=options.fill_with_next_samples,
        separate_with_eos=options.separate_with_eos,
        separate_with_bos=options.separate_with_bos,
        sample_random_offsets=options.sample_random_offsets,
        pad=options.compat,
    )
    data = load_dataset(
        path, model.tokenizer, context(options, kind), template=template, kind=kind, cutter=cutter,
        rules=rules, keep_mark=old,
    )  # fmt: skip
    if template is not None:
        template.close()  # it is a process with memory of its own
    return data


def make_feed(
    options: Options, data: Dataset, seed: int, state: TrainState | None
) -> tuple[Feed, Position]:
    """What deals out the data, and where in it the run begins.

    A checkpoint's place is taken up again, unless its data were others (`--force`) or
    `--force-reshuffle` asks for a new order.
    """
    epoch = state.epoch if state is not None else 0
    if not old_order(options, state):
        feed = SeedFeed(data, seed)
        if state is None:
            return feed, Position()
        if options.force_reshuffle:
            return feed, Position(epoch + 1)
        return feed, Position(epoch, state.next_sample % data.n_samples)
    if (
        state is None
        or options.force_reshuffle
        or not state.rng_state
        or state.n_samples != data.n_samples
    ):
        return OldFeed(data, MT19937.seeded(seed).text(), epoch), Position(epoch)
    return OldFeed(data, state.rng_state, epoch), Position(epoch, state.next_sample)


def walk(
    options: Options, data: Dataset, feed: Feed, start: Position
) -> Callable[[int], int] | None:
    """For `resolve`: how many iterations a number of epochs takes where that is no plain division,
    or None.
    """
    if isinstance(data, RawText) and data.rules.fill_with_next_samples:
        return lambda epochs: iterations(feed, start, epochs, options.batch, options.grad_acc)
    if not feed.wraps:
        return None
    first = math.ceil((data.n_samples - start.next_sample) / options.batch)
    whole = math.ceil(data.n_samples / options.batch)
    return lambda epochs: math.ceil((first + (epochs - 1) * whole) / options.grad_acc)
