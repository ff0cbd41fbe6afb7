"""Options for batches of records and for plain-text samples; for reading, see `options/data.py`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nbllama.options.data import record_option
from nbllama.options.parser import Saved, option
from nbllama.options.values import Words

_text = partial(option, "Samples of plain text")


@dataclass(frozen=True)
class SampleOptions:
    """Options for how records share batches, and where plain-text samples begin and end."""

    packing: bool = record_option(
        None,
        False,
        "fill each batch with any number of whole records up to --batch x --ctx tokens",
        off=["--no-packing"],
        saved=Saved(24),
        only="records",
    )

    share_prompts: bool | None = record_option(
        None,
        None,
        "compute each common beginning of a batch's samples only once; the loss is bit-identical",
        off=["--no-share-prompts"],
        shown_default="on, except with --lora-dropout or --compat",
        saved=Saved(39, taken=True, may_change=True),
        without=False,
    )
    group_prompts: bool = record_option(
        None,
        False,
        "put samples with the same beginning into the same batches, so that more is shared",
        off=["--no-group-prompts"],
        saved=Saved(40),
        only="records",
        without=False,
    )

    sample_start: str = _text(
        Words(),
        "",
        "text that opens a sample; empty: a sample begins at every token",
        shown_default="empty",
        saved=Saved(17),
        only="text",
    )
    include_sample_start: bool = _text(
        None,
        False,
        "begin samples with --sample-start, not after it",
        saved=Saved(18),
        only="text",
    )
    escape: bool = _text(
        None, False, r"interpret \n \r \t \' \" \\ and \xHH in --sample-start as escapes"
    )
    overlapping_samples: bool = _text(
        None,
        False,
        "let samples overlap: do not end one where the next begins",
        saved=Saved(19),
        only="text",
    )
    fill_with_next_samples: bool = _text(
        None,
        False,
        "if a sample ends before --ctx tokens, fill its row with the next samples",
        saved=Saved(20),
        only="text",
    )
    separate_with_eos: bool = _text(
        None,
        False,
        "put EOS between the samples of a row, with --fill-with-next-samples",
        off=["--no-separate-with-eos"],
        saved=Saved(21),
        only="text",
    )
    separate_with_bos: bool = _text(
        None,
        True,
        "put BOS between the samples of a row, with --fill-with-next-samples",
        off=["--no-separate-with-bos"],
        shown_default="on",
        saved=Saved(22),
        only="text",
    )
    sample_random_offsets: bool = _text(
        None,
        False,
        "begin the first sample of a row at a random token of that sample",
        saved=Saved(23),
        only="text",
    )
    force_reshuffle: bool = _text(
        None, False, "shuffle the samples again from --seed, even if a checkpoint is continued"
    )
