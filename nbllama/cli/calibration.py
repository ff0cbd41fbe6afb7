"""Calibration samples for a merge, read in the same way as in the run that wrote the adapter.

A run writes its options next to its adapter (`NAME.config.yaml`). The options name the training
data and specify how to read it.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from nbllama.data import Batch, Dataset, find_splits
from nbllama.data.order import permutation
from nbllama.data.splits import input_files
from nbllama.errors import DataError, UsageError, counted, shown
from nbllama.options.finetune.table import Options, parse
from nbllama.system.output_file import prepare_output
from nbllama.text import Tokenizer
from nbllama.train.run.data import load_file

if TYPE_CHECKING:
    from nbllama.model.passes import Model
    from nbllama.options.merge import Export

HELD_BACK = 10  # one out of this many samples is held back for the final comparison
MOST_HELD = 32
BATCH_TOKENS = 512  # maximum number of tokens per batch of two or more samples


class Found(NamedTuple):
    """The options of the run that wrote an adapter, and the file that contains them."""

    path: str
    options: Options


class Sample(NamedTuple):
    """The batches to calibrate on, and the samples held back for the final comparison."""

    batches: list[Batch]
    held: list[Batch]


def run_of(adapter: str) -> Found | None:
    """Find the options stored by the run that wrote an adapter; return None if there are none.

    Raises `UsageError` if `NAME.config.yaml` exists but does not contain options of this program.
    """
    bare = adapter.rstrip("/" + os.sep)
    own = os.path.splitext(bare)[0] + ".config.yaml"
    others = sorted(glob.glob(os.path.join(glob.escape(os.path.dirname(bare)), "*.config.yaml")))
    for path in dict.fromkeys((own, *others)):
        if not os.path.isfile(path):
            continue
        try:
            options = parse(["--config", path])
        except UsageError:
            if path == own:
                raise
            continue  # the options of a different program
        if path == own or _names(options, os.path.basename(bare)):
            return Found(path, options)
    return None


def _names(options: Options, adapter: str) -> bool:
    """Return whether a run with these options would write an adapter with this name."""
    written = os.path.basename(options.lora_out.rstrip("/" + os.sep))
    parts = map(re.escape, written.split(options.pattern_fn_it))
    return bool(written) and re.fullmatch(".+".join(parts), adapter) is not None


def load_samples(
    path: str, options: Options | None, tokenizer: Tokenizer, say: Callable[[str], None]
) -> Dataset:
    """Read data as a run with `options` would (None means the defaults).

    Raises `DataError` and `UsageError`.
    """
    options = Options() if options is None else options
    path, *_, note = find_splits(path)
    if note:
        say(note)
    return load_file(path, options, tokenizer, old=options.compat, say=say)


def draw(data: Dataset, most_tokens: int) -> Sample:
    """Draw samples in a fixed random order until they contain `most_tokens` tokens.

    One sample in `HELD_BACK` is held back, up to a total of `MOST_HELD` samples. If there is only
    one sample, none is held back. Raises `DataError` if the data contain no sample to calibrate on.
    """
    order = permutation(data.n_samples, 0, 0).tolist()
    n_held = min(-(-data.n_samples // HELD_BACK), MOST_HELD) if data.n_samples > 1 else 0
    held, used = order[:n_held], order[n_held:]
    chosen: list[int] = []
    tokens = 0
    for i in used:
        if tokens >= most_tokens:
            break
        chosen.append(i)
        tokens += data.n_tokens(i)
    if not chosen:
        raise DataError("the training data contain no sample to calibrate on; pass different data")
    return Sample(_batches(data, chosen), _batches(data, held))


def _batches(data: Dataset, numbers: Sequence[int]) -> list[Batch]:
    made: list[Batch] = []
    now: list[int] = []
    tokens = 0
    for i in numbers:
        if now and tokens + data.n_tokens(i) > BATCH_TOKENS:
            made.append(data.batch(now))
            now, tokens = [], 0
        now.append(i)
        tokens += data.n_tokens(i)
    return [*made, data.batch(now)] if now else made


def find_sample(export: Export, model: Model) -> Sample | None:
    """Read samples from `--calibrate` or from the adapters' training data, and print the source.

    With `--nearest`, returns None. If there are no data, prints a line and returns None. Raises the
    same errors as `load_samples` and `draw`. Also raises `UsageError` if the output is one of the
    data files.
    """
    asked = export.options
    if asked.nearest:
        return None
    runs = [found for adapter, _ in export.adapters if (found := run_of(adapter)) is not None]
    if asked.calibrate:
        sources = [(asked.calibrate, runs[0].options if runs else None, "--calibrate")]
    else:
        sources = [(r.options.train_data, r.options, r.path) for r in runs if r.options.train_data]
        for path, _, named in sources:
            if not _there(path):
                print(f"{shown(named, 400)} names training data that do not exist: {shown(path)}")
        sources = [s for s in dict.fromkeys(sources) if _there(s[0])]
    if not sources:
        print("no training data to calibrate on: every weight is rounded to the nearest value")
        return None
    batches, held = [], []
    for path, options, named in sources:
        prepare_output(asked.model_out, input_files(path))
        data = load_samples(path, options, model.tokenizer, print)
        part = draw(data, -(-asked.calibrate_tokens // len(sources)))
        batches += part.batches
        held += part.held
        print(
            f"calibrated on {shown(path, 400)} ({shown(named, 400)}): {_size(part.batches)}; "
            f"held out: {_size(part.held)}"
        )
    return Sample(batches, held)


def check_calibrate(path: str) -> None:
    """Raise `UsageError` if the data that `--calibrate` names do not exist."""
    if path and not os.path.isdir(path) and not _there(path):
        raise UsageError(f"--calibrate {shown(path, 400)}: no such file or folder")


def _there(path: str) -> bool:
    """Return whether all the training data files exist."""
    files = input_files(path)
    return bool(files) and all(map(os.path.exists, files))


def _size(batches: Sequence[Batch]) -> str:
    samples, tokens = sum(b.n_sequences for b in batches), sum(b.n_tokens for b in batches)
    return f"{counted(samples, 'sample')}, {tokens:,} tokens"
