"""Options for the adapter: ranks, scale, dropout and layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nbllama.lora.slots import SLOT_BY_NAME
from nbllama.options.parser import Saved, option
from nbllama.options.values import Real, Text, Whole

_lora = partial(option, "LoRA")

_ENDS = "--lora-r for plain text, 0 for chat"


def _rank(
    name: str, more: str = "", *, also: Sequence[str] = (), shown_default: str | None = None
) -> Any:
    """Declare a rank option. A test compares the names with `nbllama.lora.slots.EVERY_SLOT`."""
    slot = SLOT_BY_NAME[name]
    default = "--lora-r" if slot.in_block else _ENDS
    if slot.kind == "norm":
        default = "0; 1 if --lora-out ends in .bin, or with --compat"
    text = f"rank for {slot.tensor}{more}; 0: none"
    return _lora(Whole(0, 65536), None, text, also=also, shown_default=shown_default or default)


@dataclass(frozen=True)
class LoraOptions:
    """Options for the adapter. A rank of None is derived from other options or from the data."""

    lora_r: int | None = _lora(
        Whole(1, 65536),
        None,
        "rank of the adapter, and the divisor r in its scale alpha / r",
        shown_default="4 for plain text, 16 for chat",
    )
    lora_alpha: float | None = _lora(
        Real(1e-6, 1e6),
        None,
        "the adapter is scaled by alpha / r",
        shown_default="r for plain text, 2 r for chat",
        saved=Saved(34, "alpha", taken=True),
    )
    rank_wq: int | None = _rank("wq")
    rank_wk: int | None = _rank("wk")
    rank_wv: int | None = _rank("wv")
    rank_wo: int | None = _rank("wo")
    rank_w1: int | None = _rank("w1", also=["--rank-ffn-gate"])
    rank_w2: int | None = _rank("w2", also=["--rank-ffn-down"])
    rank_w3: int | None = _rank("w3", also=["--rank-ffn-up"])
    rank_wqkv: int | None = _rank(
        "wqkv",
        ", which some models have instead of attn_q, attn_k and attn_v (these may also "
        "have ffn_gate within ffn_up)",
    )
    rank_conv_in: int | None = _rank("conv_in", ", in blocks with a short convolution")
    rank_conv_out: int | None = _rank("conv_out", ", in blocks with a short convolution")
    rank_attn_gate: int | None = _rank("attn_gate", ", in blocks with a delta net")
    rank_ssm_alpha: int | None = _rank("ssm_alpha", ", in blocks with a delta net")
    rank_ssm_beta: int | None = _rank("ssm_beta", ", in blocks with a delta net")
    rank_ssm_out: int | None = _rank("ssm_out", ", in blocks with a delta net")
    rank_inp_gate: int | None = _rank("inp_gate", ", in models with per-block embeddings")
    rank_proj: int | None = _rank("proj", ", in models with per-block embeddings")
    rank_gate_shexp: int | None = _rank("gate_shexp", ", in a shared expert")
    rank_down_shexp: int | None = _rank("down_shexp", ", in a shared expert")
    rank_up_shexp: int | None = _rank("up_shexp", ", in a shared expert")
    rank_experts: int | None = _lora(
        Whole(0, 65536),
        None,
        "rank of the pairs for the routed experts in mixture-of-experts models; 0: none",
        shown_default="0",
    )
    rank_gate_exps: int | None = _rank("gate_exps", shown_default="--rank-experts")
    rank_down_exps: int | None = _rank("down_exps", shown_default="--rank-experts")
    rank_up_exps: int | None = _rank("up_exps", shown_default="--rank-experts")
    rank_tok_embd: int | None = _rank(
        "tok_embd", shown_default=f"{_ENDS} and models with tied embeddings"
    )
    rank_out: int | None = _rank("out", ", which models with tied embeddings do not have")
    rank_att_norm: int | None = _rank("att_norm")
    rank_ffn_norm: int | None = _rank("ffn_norm")
    rank_out_norm: int | None = _rank("out_norm")
    rslora: bool = _lora(
        None,
        False,
        "scale the adapter by alpha / sqrt(r) instead (rank-stabilised LoRA)",
        saved=Saved(33),
        without=False,
    )
    lora_dropout: float = _lora(
        Real(0, 1, below=True),
        0.0,
        "dropout probability for the inputs of the LoRA pairs during training",
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
