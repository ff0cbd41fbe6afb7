"""The training data of a run, and the order of the samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING

from nbllama.data import (
    MT19937,
    Cutter,
    DataFile,
    Dataset,
    Feed,
    OldFeed,
    Packed,
    Position,
    Progress,
    RawText,
    Rules,
    Samples,
    SampleStart,
    SeedFeed,
    Splits,
    Style,
    every_token,
    find_splits,
    load_dataset,
    open_data,
    open_records,
    parse_columns,
)
from nbllama.data.feed import iterations
from nbllama.data.grouped import GroupedOrder
from nbllama.data.held_out import apart, hold_out
from nbllama.errors import UsageError, shown
from nbllama.options.data import DataOptions
from nbllama.options.finetune.table import OPTIONS, Options
from nbllama.options.values import parse_variables
from nbllama.text import Tokenizer, chat_template_for, find_layout
from nbllama.train.run.defaults import context
from nbllama.train.run.defaults import iterations as run_length
from nbllama.train.run.given import NOTHING, Given, Records
from nbllama.train.run.plan import with_plan
from nbllama.train.run.preferences import as_wanted
from nbllama.train.run.rewards import draws, load_prompts

if TYPE_CHECKING:
    from nbllama.checkpoint.state import TrainState
    from nbllama.model.passes import Model
    from nbllama.train.run.outputs import Outputs

_WORDS = {"raw": "plain text", "text": "plain text", "chat": "records", "records": "records"}
_MUCH = 4_000_000  # characters; tokenising a longer text takes noticeably long


def old_order(options: Options, state: TrainState | None) -> bool:
    """Return whether the options or the checkpoint require the old tool's sample order."""
    return options.compat or (state is not None and (state.old or bool(state.rng_state)))


def _shared(options: Options, model: Model) -> Options:
    """Disable prompt sharing if any block has a state, because states are never shared."""
    if not model.hp.mixers:
        return options
    if options.share_prompts:
        raise UsageError(
            f"--share-prompts: {model.hp.arch} blocks carry a state from token to token, which "
            "samples cannot share; pass --no-share-prompts"
        )
    return replace(options, share_prompts=False)


def load_data(
    options: Options,
    model: Model,
    state: TrainState | None,
    *,
    seed: int,
    say: Progress,
    given: Given = NOTHING,
) -> tuple[Options, Dataset, Dataset | None]:
    """Load the training samples and any validation samples.

    Returns the options, filled in from the plan for the data, and the two data sets. The validation
    data come from `--val-data`, `--val-split`, or the folder with the training data.

    `say` receives messages about files and about long texts. `given` may contain records in
    memory, which are used instead of the files. Raises the same errors as `_load`, and `UsageError`
    if validation data are missing or of a different kind.
    """
    path = options.train_data
    files = find_splits(path) if given.train_data is None else Splits(path)
    if files.note:
        say(files.note)
    data: Dataset = _load(files.train, options, model, state, say, given.train_data)
    validation: Dataset | None = None
    other = options.val_data or (None if options.val_split else files.valid)
    options = with_plan(
        _shared(options, model), data.kind, data.n_samples, n_embd=model.hp.n_embd, state=state,
        validated=bool(other),
    )  # fmt: skip
    if options.val_split:
        data, validation = hold_out(data, options.val_split, seed)
    elif other:
        validation = apart(_load(other, options, model, state, say, given.val_data))
        if validation.kind != data.kind:
            raise UsageError(
                f"--val-data {shown(other)} contains {_WORDS[validation.kind]}, but the training "
                f"data contain {_WORDS[data.kind]}"
            )
        for note in [note for note in validation.notes if note not in data.notes]:
            say(f"validation data: {note}")
    elif options.early_stop:
        raise UsageError("--early-stop requires validation data: pass --val-data or --val-split")
    if isinstance(data, Samples) and options.packing:
        data = Packed(data, bool(options.share_prompts))
    return options, data, validation


def _load(
    path: str,
    options: Options,
    model: Model,
    state: TrainState | None,
    say: Progress | None,
    records: Records | None,
) -> Dataset:
    """Load the samples from a file.

    The old tool could only read plain text. With `--compat`, or when resuming from one of its
    checkpoints, every file is therefore read as plain text. Raises `DataError` if the data cannot
    be used, and `UsageError` if options for plain text are combined with records or vice versa.
    """
    if draws(options):
        return load_prompts(path, options, model.tokenizer, records)
    old = old_order(options, state)
    cutter = every_token
    if options.sample_start:
        cutter = SampleStart(
            options.sample_start, include=options.include_sample_start,
            overlapping=options.overlapping_samples, old=old,
        )  # fmt: skip
    rules = Rules(
        fill_with_next_samples=options.fill_with_next_samples,
        separate_with_eos=options.separate_with_eos,
        separate_with_bos=options.separate_with_bos,
        sample_random_offsets=options.sample_random_offsets,
        pad=options.compat,
    )
    data = load_file(
        path, options, model.tokenizer, old=old, cutter=cutter, rules=rules, say=say,
        records=records,
    )  # fmt: skip
    _check_kind(options, path, data.kind)
    return as_wanted(options.objective, path, data)


def load_file(
    path: str,
    options: DataOptions,
    tokenizer: Tokenizer,
    *,
    old: bool = False,
    cutter: Cutter = every_token,
    rules: Rules | None = None,
    say: Progress | None = None,
    records: Records | None = None,
    keep_texts: bool = False,
    opened: Callable[[DataFile], object] | None = None,
) -> Dataset:
    """Load samples from any file, applying the options for `--train-data`.

    If `records` is given, it is used instead of the file, and messages refer to it as `path`. For
    `keep_texts`, see `load_samples`. `opened` is called with the open file. Raises the same errors
    as `load_data`.
    """
    layout = find_layout(options.chat_template) if options.chat_template else None
    style = Style(layout.joint, layout.with_input) if layout is not None else Style()
    columns, data_format = parse_columns(options.data_columns), options.data_format
    if records is None:
        data = open_data(
            path, "raw" if old else data_format, columns=columns, style=style,
            skip_bad=options.skip_bad, keep_mark=old,
        )  # fmt: skip
    elif old:
        raise UsageError(f"{path}: the old finetune can only read plain text; pass a file")
    else:
        data = open_records(
            records, path, data_format, columns=columns, style=style, skip_bad=options.skip_bad
        )
    if opened is not None:
        opened(data)
    if say is not None and (size := sum(map(len, data.texts)) + 1000 * len(data.samples)) > _MUCH:
        say(f"tokenising {shown(path)} ({size / 1e6:.0f} million characters) ...")
    template = None
    if data.has_chats:
        now = datetime.fromisoformat(options.template_date) if options.template_date else None
        template = chat_template_for(
            tokenizer, layout.source if layout else None, now=now,
            variables=parse_variables(options.template_vars),
        )  # fmt: skip
    try:
        return load_dataset(
            data, tokenizer, context(options, data.kind), template=template, cutter=cutter,
            rules=rules, train_on_prompt=options.train_on_prompt,
            parse_special=options.parse_special, skip_bad=options.skip_bad,
            on_long=options.on_long, system_as_user=options.system_as_user,
            keep_texts=keep_texts, progress=say, keep_mark=old,
        )  # fmt: skip
    finally:
        if template is not None:
            template.close()  # the template runs in its own process


def _check_kind(options: Options, path: str, kind: str) -> None:
    """Raise `UsageError` if an option does not apply to this kind of data."""
    holds = "text" if kind == "raw" else "records"
    for o in OPTIONS:
        if o.only not in ("", holds) and getattr(options, o.dest) != o.default:
            raise UsageError(
                f"{o.names[0]} is for {_WORDS[o.only]}, but {shown(path)} contains {_WORDS[holds]}"
            )


def make_feed(
    options: Options, data: Dataset, seed: int, state: TrainState | None
) -> tuple[Feed, Position]:
    """Return the data feed, and the position in the data where the run starts.

    A resumed run starts at the position stored in the checkpoint, unless the data have changed
    (`--force`) or `--force-reshuffle` requests a new order.
    """
    epoch = state.epoch if state is not None else 0
    if not old_order(options, state):
        samples = data.samples if isinstance(data, Packed) else data
        order = None
        if options.group_prompts and isinstance(samples, Samples):
            order = GroupedOrder(samples, seed, options.batch)
        feed = SeedFeed(data, seed, order)
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


def walk_epochs(
    options: Options, data: Dataset, feed: Feed, start: Position
) -> Callable[[int], int] | None:
    """Return a function that converts epochs to iterations, for `resolve`.

    Returns None if a simple division is sufficient.
    """
    filled = isinstance(data, RawText) and data.rules.fill_with_next_samples
    if filled or isinstance(data, Packed):
        return cache(
            lambda epochs: iterations(
                feed, start, epochs=epochs, batch=options.batch, grad_acc=options.grad_acc
            )
        )
    if not feed.wraps:
        return None
    first = math.ceil((data.n_samples - start.next_sample) / options.batch)
    whole = math.ceil(data.n_samples / options.batch)
    return lambda epochs: math.ceil((first + (epochs - 1) * whole) / options.grad_acc)


def rest_of(
    options: Options, data: Dataset, feed: Feed, state: TrainState | None, *, outputs: Outputs
) -> Options:
    """Return options that limit a run resumed from `state` to the remaining iterations.

    If no length is given, a run on records ends where it was originally planned to end. Otherwise,
    if the run found the checkpoint under its own output name, it ends where its options specify. If
    no iterations remain, `outputs.complete_at` is set and the length is one iteration. The run is
    refused later, once it is known that the checkpoint is from the same run.
    """
    if state is None:
        return options
    planned = outputs.unlimited and data.kind != "raw"
    last = int(state.identity.settings.get("last", 0)) if planned else 0
    if outputs.finishes and not last:
        walked = walk_epochs(options, data, feed, Position())
        last = run_length(options, data.kind, data.n_samples, walked)
    left = last - state.iteration
    if outputs.finishes and left < 1:
        outputs.complete_at, left = state.iteration, 1
    return replace(options, adam_iter=left, epochs=None) if left > 0 else options
