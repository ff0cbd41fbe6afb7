"""Training data: the samples in a file, their order, and batches of samples."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from nbllama.data.batch import NOT_TRAINED, Batch, Dataset
from nbllama.data.chat import prompt_ids
from nbllama.data.columns import parse_columns
from nbllama.data.cutters import Cutter, SampleStart, every_token
from nbllama.data.data_file import DataFile
from nbllama.data.encoding import Progress
from nbllama.data.feed import Feed, OldFeed, SeedFeed
from nbllama.data.formats import Continuation, Conversation, Style
from nbllama.data.mt19937 import MT19937
from nbllama.data.order import Position
from nbllama.data.packing import Packed
from nbllama.data.raw_text import RawText, Rules, load_raw_text
from nbllama.data.records import open_data, open_records
from nbllama.data.samples import Samples, load_samples
from nbllama.data.splits import Splits, find_splits
from nbllama.data.text_checks import control_tokens_in

if TYPE_CHECKING:
    from nbllama.text.chat_template import ChatTemplate
    from nbllama.text.tokenizer import Tokenizer

__all__ = [
    "MT19937",
    "NOT_TRAINED",
    "Batch",
    "Continuation",
    "Conversation",
    "Cutter",
    "DataFile",
    "Dataset",
    "Feed",
    "OldFeed",
    "Packed",
    "Position",
    "Progress",
    "RawText",
    "Rules",
    "SampleStart",
    "Samples",
    "SeedFeed",
    "Splits",
    "Style",
    "data_kind",
    "every_token",
    "find_splits",
    "load_dataset",
    "load_raw_text",
    "load_samples",
    "open_data",
    "open_records",
    "parse_columns",
    "prompt_ids",
]


def load_dataset(
    data: DataFile | str | os.PathLike[str],
    tokenizer: Tokenizer,
    n_ctx: int,
    *,
    template: ChatTemplate | None,
    data_format: str | None = None,
    cutter: Cutter = every_token,
    rules: Rules | None = None,
    keep_mark: bool = False,
    train_on_prompt: bool = False,
    parse_special: bool = False,
    skip_bad: bool = False,
    on_long: str = "cut",
    system_as_user: bool = False,
    keep_texts: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Load samples of at most `n_ctx` tokens each from a training file.

    `data` is a path or the result of `open_data`. `data_format`, `skip_bad` and `keep_mark` are
    passed to `open_data`. `cutter` and `rules` apply only to raw text (see `load_raw_text`); the
    remaining keyword arguments apply only to records (see `load_samples`).

    Raises `DataError` under the same conditions as these three functions.
    """
    if not isinstance(data, DataFile):
        data = open_data(data, data_format, skip_bad=skip_bad, keep_mark=keep_mark)
    if data.kind == "raw":
        raw = load_raw_text(
            data.path, tokenizer, n_ctx, cutter=cutter, rules=rules, text=data.text,
            texts=data.texts,
        )  # fmt: skip
        more = () if keep_mark else control_tokens_in(tokenizer, data.texts or (data.text,))
        return replace(raw, notes=(*data.notes, *more, *raw.notes))
    return load_samples(
        data,
        tokenizer,
        n_ctx,
        template,
        train_on_prompt=train_on_prompt,
        parse_special=parse_special,
        skip_bad=skip_bad,
        on_long=on_long,
        system_as_user=system_as_user,
        keep_texts=keep_texts,
        progress=progress,
    )


def data_kind(path: str | os.PathLike[str]) -> str:
    """Return the kind of data in a training file: "raw" or "chat" (records of any format).

    The contents of the file determine the kind. Bad records are not reported until the file is
    loaded. Raises the same errors as `open_data` with `skip_bad`.
    """
    return open_data(path, skip_bad=True).kind
