"""PyTorch + PEFT on the same model and tokens, in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench_parts.step import Case, random_row, work_of
from nbllama.data.batch import Batch
from nbllama.model.bound import Bound
from nbllama.model.passes import Model, load_model

NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def hugging_face(model: Model) -> dict[str, np.ndarray]:
    """Return all weights in float32 by Hugging Face's names; q and k have pairs i, i + D/2."""
    hp, state = model.hp, {}
    ends = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    for name in model.gguf.tensors:
        parts = name.split(".")
        x = model.tensor(name)
        if name in ends:
            state[ends[name]] = x
        elif parts[0] == "blk" and parts[2] in NAMES:
            if parts[2] in ("attn_q", "attn_k"):
                heads = hp.n_head if parts[2] == "attn_q" else hp.n_head_kv
                x = x.reshape(heads, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
            state[f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"] = np.ascontiguousarray(x)
    return state


def write_weights(model: Model, tokens: np.ndarray, path: Path) -> None:
    """Write the input file of peer.py."""
    hp = model.hp
    config = {
        "vocab_size": hp.n_vocab, "hidden_size": hp.n_embd, "intermediate_size": hp.n_ff,
        "num_hidden_layers": hp.n_layer, "num_attention_heads": hp.n_head,
        "num_key_value_heads": hp.n_head_kv, "rms_norm_eps": hp.rms_eps,
        "rope_theta": hp.rope_freq_base, "tie_word_embeddings": hp.tied_output,
    }  # fmt: skip
    packed = np.frombuffer(json.dumps(config).encode(), np.uint8)
    np.savez(path, config=packed, tokens=tokens, **hugging_face(model))


def loss_of(model: Model, tokens: np.ndarray) -> float:
    """Return our mean loss of `tokens` `[B, T+1]` without an adapter: the peer's first loss."""
    batch = Batch.from_rows((row[:-1], row[1:]) for row in tokens)
    bound, n = Bound(model, None), batch.n_tokens
    acts = model.activations(None, n, n, checkpointing=True)
    model.forward(bound, acts, batch)
    total = model.loss(
        bound, acts, model.loss_buffers(None, n), batch, weight=1 / n, gradient=False
    )
    return total / n


def has_modules(python: str, *names: str) -> bool:
    """Return whether an interpreter has these packages."""
    code = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    return subprocess.run([python, "-c", code, *names], capture_output=True).returncode == 0


def bench_peer(python: str, weights: str, case: Case) -> dict[str, Any]:
    """Measure steps of PEFT on the same weights and tokens, with its first loss and ours.

    `weights`: "float32", or "NF4", the four-bit type of bitsandbytes, to which the float32 weights
    are rounded.
    """
    model_path, ctx, batch = case.model, case.ctx, case.batch
    model = load_model(model_path)
    rows = [random_row(model.hp.n_vocab, ctx, i) for i in range(batch)]
    tokens = np.stack([np.append(t, last[-1]) for t, last in rows]).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        write_weights(model, tokens, path)
        words = [python, str(Path(__file__).with_name("peer.py")), str(path), str(ctx), str(batch)]
        words += [str(case.steps), str(int(case.checkpointing)), str(case.threads), weights]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(words, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"the peer failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {
        "weights": weights,
        "ctx": ctx,
        "batch": batch,
        "checkpointing": case.checkpointing,
        "gflops": work_of(model, case)[0] / found["seconds"] / 1e9,
        "our_first_loss": loss_of(model, tokens),
    }
