"""Options for batches of records and for plain-text samples.

The options for reading records are in `nbllama.options.data`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nbllama.options.data import record_option
from nbllama.options.parser import Saved, option
from nbllama.options.values import Words

_text = partial(option, "Plain-text samples")


@dataclass(frozen=True)
class SampleOptions:
    """Options that decide how records share batches, and where plain-text samples begin and end."""

    packing: bool = record_option(
        None,
        False,
        "fill each batch with whole records, up to --batch x --ctx tokens",
        off=["--no-packing"],
        saved=Saved(24),
        only="records",
    )

    share_prompts: bool | None = record_option(
        None,
        None,
        "if samples in a batch share a prefix, compute the prefix only once; the loss is "
        "bit-identical",
        off=["--no-share-prompts"],
        shown_default="on, except with --lora-dropout or --compat",
        saved=Saved(39, taken=True, may_change=True),
        without=False,
    )
    group_prompts: bool = record_option(
        None,
        False,
        "put samples with the same prefix into the same batch so that more tokens are shared",
        off=["--no-group-prompts"],
        saved=Saved(40),
        only="records",
        without=False,
    )

    sample_start: str = _text(
        Words(),
        "",
        "text that marks the start of a sample; empty: a sample starts at every token",
        shown_default="empty",
        saved=Saved(17),
        only="text",
    )
    include_sample_start: bool = _text(
        None,
        False,
        "include the --sample-start text in each sample, instead of starting the sample after it",
        saved=Saved(18),
        only="text",
    )
    escape: bool = _text(
        None, False, r"interpret \n \r \t \' \" \\ and \xHH in --sample-start as escape sequences"
    )
    overlapping_samples: bool = _text(
        None,
        False,
        "let samples overlap instead of ending each sample at the start of the next",
        saved=Saved(19),
        only="text",
    )
    fill_with_next_samples: bool = _text(
        None,
        False,
        "if a sample is shorter than --ctx tokens, fill the rest of its row with the next samples",
        saved=Saved(20),
        only="text",
    )
    separate_with_eos: bool = _text(
        None,
        False,
        "with --fill-with-next-samples, insert EOS between the samples in a row",
        off=["--no-separate-with-eos"],
        saved=Saved(21),
        only="text",
    )
    separate_with_bos: bool = _text(
        None,
        True,
        "with --fill-with-next-samples, insert BOS between the samples in a row",
        off=["--no-separate-with-bos"],
        shown_default="on",
        saved=Saved(22),
        only="text",
    )
    sample_random_offsets: bool = _text(
        None,
        False,
        "start the first sample of each row at a random token within the sample",
        saved=Saved(23),
        only="text",
    )
    force_reshuffle: bool = _text(
        None, False, "reshuffle the samples with --seed, even when resuming from a checkpoint"
    )
