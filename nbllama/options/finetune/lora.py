"""The adapter: ranks, scale, dropout, layers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from nbllama.options.parser import Saved, option
from nbllama.options.values import Real, Text, Whole

_lora = partial(option, "LoRA")

_RANK = Whole(0, 65536)
_SEVEN = "--lora-r"
_NORM = "0; 1 if --lora-out ends in .bin, or with --compat"
_ENDS = "--lora-r for plain text, 0 for chat"


@dataclass(frozen=True)
class LoraOptions:
    """None where the rank follows from another option or from the data."""

    lora_r: int | None = _lora(
        Whole(1, 65536),
        None,
        "rank of the adapter, and divisor of its scale alpha / r",
        shown_default="4 for plain text, 16 for chat",
    )
    lora_alpha: float | None = _lora(
        Real(above=True),
        None,
        "the adapter is scaled by alpha / r",
        shown_default="r for plain text, 2 r for chat",
        saved=Saved(34, "alpha", taken=True),
    )
    rank_wq: int | None = _lora(_RANK, None, "rank of attn_q; 0: none", shown_default=_SEVEN)
    rank_wk: int | None = _lora(_RANK, None, "rank of attn_k; 0: none", shown_default=_SEVEN)
    rank_wv: int | None = _lora(_RANK, None, "rank of attn_v; 0: none", shown_default=_SEVEN)
    rank_wo: int | None = _lora(_RANK, None, "rank of attn_output; 0: none", shown_default=_SEVEN)
    rank_w1: int | None = _lora(
        _RANK, None, "rank of ffn_gate; 0: none", also=["--rank-ffn-gate"], shown_default=_SEVEN
    )
    rank_w2: int | None = _lora(
        _RANK, None, "rank of ffn_down; 0: none", also=["--rank-ffn-down"], shown_default=_SEVEN
    )
    rank_w3: int | None = _lora(
        _RANK, None, "rank of ffn_up; 0: none", also=["--rank-ffn-up"], shown_default=_SEVEN
    )
    rank_wqkv: int | None = _lora(
        _RANK,
        None,
        "rank of attn_qkv, which some models have in place of attn_q, attn_k and attn_v (and"
        " ffn_gate within ffn_up); 0: none",
        shown_default=_SEVEN,
    )
    rank_tok_embd: int | None = _lora(
        _RANK,
        None,
        "rank of token_embd; 0: none",
        shown_default=f"{_ENDS} and models with tied embeddings",
    )
    rank_out: int | None = _lora(
        _RANK,
        None,
        "rank of output, which models with tied embeddings do not have; 0: none",
        shown_default=_ENDS,
    )
    rank_att_norm: int | None = _lora(
        _RANK, None, "rank of attn_norm; 0: none", shown_default=_NORM
    )
    rank_ffn_norm: int | None = _lora(_RANK, None, "rank of ffn_norm; 0: none", shown_default=_NORM)
    rank_out_norm: int | None = _lora(
        _RANK, None, "rank of output_norm; 0: none", shown_default=_NORM
    )
    rslora: bool = _lora(
        None,
        False,
        "scale by alpha / sqrt(r) instead (rank-stabilised LoRA)",
        saved=Saved(33),
        without=False,
    )
    lora_dropout: float = _lora(
        Real(0, 1, below=True),
        0.0,
        "share of the values of a block's inputs that its pairs do not see in training",
        saved=Saved(30),
        without=0.0,
    )
    lora_layers: str | None = _lora(
        Text("BLOCKS,..."),
        None,
        "blocks that get pairs: all, first:N, last:N or a list such as 4-11,20",
        shown_default="all",
        saved=Saved(31, taken=True),
        without="all",
    )
