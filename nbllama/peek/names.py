"""The names of all arrays, and patterns for names. This module does not import numpy.

| name | meaning | kind |
|---|---|---|
| `blk.3.attn_q.weight` | a base tensor, decoded to float32 | weight |
| `blk.3.attn_q.weight.lora_a` | matrix A of the tensor's LoRA pair, before the step | parameter |
| `....lora_a.grad` | the gradient over the whole step, before clipping | gradient |
| `....lora_a.m`, `.v` | the AdamW moments, after the step | moment |
| `....lora_a.after` | the same matrix after the step | parameter |
| `Qcur-3` | an activation of block 3, named as in llama.cpp | activation |
| `Qcur-3.grad` | the gradient of the loss with respect to the activation | gradient |
| `tokens`, `targets`, `positions`, `offsets` | the batch, int32 | batch |

If one watch covers several micro-batches or calls, a number is appended to activation names from
the second one on: `Qcur-3@1`. finetune.cpp's numbers are aliases for activations:
`t07-3` is `Qcur-3`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import NamedTuple

from nbllama.errors import UsageError, shown


class Node(NamedTuple):
    """An activation: its shape in letters, its numbers in finetune.cpp, and its meaning.

    The letters stand for the sizes N (tokens), C (n_embd), H (n_head), G (n_head_kv), D (head_dim),
    F (n_ff), V (n_vocab), M (trained tokens), E (experts), K (experts per token) and P (width of a
    block's own embeddings).
    """

    name: str
    shape: str
    numbers: tuple[str, ...]
    meaning: str
    gradient: bool = True


ENDS = (
    Node("inp_embd", "[N, C]", ("t01",), "token embeddings"),
    Node("result_norm", "[N, C]", ("t33",), "the last block's output after the final norm"),
    Node("result_output", "[N, V]", ("t34", "t35"), "logits"),
    Node("loss", "[M]", ("t36",), "loss of each trained token (t36 is their mean)", False),
)
BLOCK = (
    Node("attn_norm", "[N, C]", ("t04",), "the normalised input to the block"),
    Node("Qcur_raw", "[N, H, D]", ("t05", "t06"), "queries after the projection and bias"),
    Node("Kcur_raw", "[N, G, D]", ("t08", "t09"), "keys after the projection and bias"),
    Node("Qcur_normed", "[N, H, D]", (), "queries after the query norm (models that have one)"),
    Node("Kcur_normed", "[N, G, D]", (), "keys after the key norm (models that have one)"),
    Node("Qcur", "[N, H, D]", ("t07", "t13"), "queries after RoPE"),
    Node("Kcur", "[N, G, D]", ("t10", "t14"), "keys after RoPE"),
    Node("Vcur", "[N, G, D]", ("t11", "t12", "t15"), "values"),
    Node("kq", "[H, N, Nk]", ("t16_1", "t16_2"), "scores before softmax; -inf: masked", False),
    Node("kq_soft_max", "[H, N, Nk]", ("t16_3",), "attention probabilities", False),
    Node("kqv_out", "[N, H, D]", ("t16", "t17", "t18", "t19"), "attention output"),
    Node("attn_out", "[N, C]", ("t20",), "what attention adds to the residual stream", False),
    Node("attn_post_norm", "[N, C]", (), "the same after a norm (models that have one)", False),
    Node("ffn_inp", "[N, C]", ("t21",), "the residual stream between attention and feed-forward"),
    Node("ffn_norm", "[N, C]", ("t24",), "ffn_inp after the feed-forward norm"),
    Node("ffn_up", "[N, F]", ("t25",), "up projection"),
    Node("ffn_gate", "[N, F]", ("t26",), "gate projection"),
    Node("ffn_swiglu", "[N, F]", ("t28",), "silu(gate) * up (models with silu)"),
    Node("ffn_geglu", "[N, F]", ("t28",), "gelu(gate) * up (models with gelu)"),
    Node("ffn_gelu", "[N, F]", ("t28",), "gelu(up) (models without a gate)"),
    Node("ffn_relu2", "[N, F]", ("t28",), "relu(up)^2 (models without a gate)"),
    Node("ffn_xielu", "[N, F]", ("t28",), "xielu(up) (models without a gate)"),
    Node("ffn_moe_logits", "[N, E]", (), "router logits (MoE models)"),
    Node("ffn_moe_probs", "[N, E]", (), "expert scores (MoE models)", False),
    Node("ffn_moe_weights", "[N, K]", (), "weights of the selected experts (MoE models)", False),
    Node("ffn_moe_out", "[N, C]", (), "sum of the routed experts' outputs (MoE models)", False),
    Node("ffn_out", "[N, C]", ("t29",), "what feed-forward adds to the residual stream", False),
    Node("ffn_post_norm", "[N, C]", (), "the same after a norm (models that have one)", False),
    Node("l_out", "[N, C]", ("t30",), "the block's output"),
)
MIXERS = (
    Node("attn_gated", "[N, H, D]", (), "attention output times the gates (models that have them)"),
    Node("conv_in", "[N, 3 C]", (), "gates and values of a short convolution"),
    Node("conv_mixed", "[N, C]", (), "output of a short convolution"),
    Node("conv_out", "[N, C]", (), "what the convolution adds to the residual stream", False),
    Node("delta_qkv", "[N, W]", (), "projected queries, keys and values of a delta net"),
    Node("delta_z", "[N, H D]", (), "gates for the output of a delta net"),
    Node("delta_alpha", "[N, H]", (), "projection for the decay of the delta net's state"),
    Node("delta_beta", "[N, H]", (), "projection for the update strength of each token"),
    Node("delta_o", "[N, H, D]", (), "what the queries read from the state"),
    Node("delta_out", "[N, H D]", (), "delta_o after a norm, times the gates"),
    Node("ssm_out", "[N, C]", (), "what the delta net adds to the residual stream", False),
    Node(
        "pe_in",
        "[N, C]",
        (),
        "the residual stream after feed-forward (models with per-block embeddings)",
    ),
    Node("per_layer_gate", "[N, P]", (), "gates for the block's own embeddings"),
    Node("per_layer_act", "[N, P]", (), "gelu(gate) * embedding"),
    Node(
        "per_layer_out",
        "[N, C]",
        (),
        "projection of per_layer_act, before the norm and the addition to the residual stream",
        False,
    ),
)
BATCH = ("tokens", "targets", "positions", "offsets")
_NUMBERS = {node.name: node.numbers for node in ENDS + BLOCK + MIXERS}
_NODE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(-[0-9]+)?((?:\.grad)?(?:@[0-9]+)?)")


def node_name(name: str, layer: int) -> str:
    """Return a node's full name, including the block number if the node is in a block."""
    return name if layer < 0 else f"{name}-{layer}"


@lru_cache(maxsize=1 << 16)
def aliases(name: str) -> tuple[str, ...]:
    """Return the array's other names, which are finetune.cpp's numbers."""
    match = _NODE.fullmatch(name)
    if match is None:
        return ()
    block, rest = match[2] or "", match[3] or ""
    return tuple(f"{t}{block}{rest}" for t in _NUMBERS.get(match[1], ()))


class Patterns:
    """Shell patterns (`*`, `?`, `[0-3]`), separated by commas.

    A pattern must match the whole name or an alias; it may omit `.weight`. The number of the
    micro-batch is ignored unless the pattern contains `@`.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(p.strip() for text in texts for p in text.split(",") if p.strip())
        if not self.texts:
            raise UsageError("the pattern is empty; use '*' to match everything")
        self._known: dict[str, bool] = {}

    def __call__(self, name: str) -> bool:
        """Return whether a pattern matches `name`."""
        fits = self._known.get(name)
        if fits is None:
            fits = self._known[name] = any(self._one(text, name) for text in self.texts)
        return fits

    def _one(self, text: str, name: str) -> bool:
        bare = name if "@" in text else name.partition("@")[0]
        names = (bare, *aliases(bare))
        if any(fnmatchcase(n, text) for n in names):
            return True
        return bare.endswith(".weight") and fnmatchcase(bare, f"{text}.weight")

    def unused(self, names: Iterable[str]) -> list[str]:
        """Return the patterns that match none of `names`."""
        every = list(names)
        return [t for t in self.texts if not any(self._one(t, name) for name in every)]


def activation_names(n_layer: int) -> list[str]:
    """Return the names of all activations (and gradients) of a model with `n_layer` blocks."""
    names = [(n, node_name(n.name, -1)) for n in ENDS]
    names += [(n, node_name(n.name, layer)) for layer in range(n_layer) for n in BLOCK + MIXERS]
    out = []
    for node, name in names:
        out += [name, f"{name}.grad"] if node.gradient else [name]
    return out


def parameter_names(parameters: Iterable[str], suffixes: Sequence[str]) -> list[str]:
    """Return each parameter name, both unchanged and with each suffix."""
    return [name + s for name in parameters for s in ("", *suffixes)]


def check(patterns: Patterns, names: Iterable[str]) -> None:
    """Raise `UsageError` for a pattern that matches no name."""
    if unused := patterns.unused(names):
        raise UsageError(
            f"no name matches {shown(unused[0])}; activation names look like attn_norm-0, l_out-0 "
            "or t04-0, and weight names like blk.0.attn_q.weight; docs/peek.md lists them"
        )


def kind_of(name: str) -> str:
    """Return "weight", "parameter", "gradient", "moment", "activation" or "batch"."""
    bare = name.partition("@")[0]
    if bare.endswith(".grad"):
        return "gradient"
    if bare.endswith((".lora_a.m", ".lora_b.m", ".lora_a.v", ".lora_b.v")):
        return "moment"
    if ".lora_" in bare:
        return "parameter"
    if bare in BATCH:
        return "batch"
    match = _NODE.fullmatch(bare)
    return "activation" if match and match[1] in _NUMBERS else "weight"
