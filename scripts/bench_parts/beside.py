"""PyTorch + PEFT and the old `finetune` on the same model, each a process beside ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench_parts.step import random_row
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
    """All weights in float32 by Hugging Face's names; q and k with pairs i, i + D/2."""
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
    """What peer.py reads."""
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
    """Our mean loss of `tokens` `[B, T+1]` without an adapter: the peer's first loss."""
    batch = Batch.from_rows((row[:-1], row[1:]) for row in tokens)
    bound, n = Bound(model, None), batch.n_tokens
    acts = model.activations(None, n, n, checkpointing=True)
    model.forward(bound, acts, batch)
    total = model.loss(bound, acts, model.loss_buffers(None, n), batch, 1 / n, gradient=False)
    return total / n


def bench_peer(
    model_path: str, python: str, ctx: int, batch: int, checkpointing: bool, steps: int, n: int
) -> dict[str, Any]:
    """Steps of PEFT on the same weights and tokens with `n` threads; its first loss beside ours."""
    model = load_model(model_path)
    rows = [random_row(model.hp.n_vocab, ctx, i) for i in range(batch)]
    tokens = np.stack([np.append(t, last[-1]) for t, last in rows]).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        write_weights(model, tokens, path)
        words = [python, str(Path(__file__).with_name("peer.py")), str(path), str(ctx), str(batch)]
        words += [str(steps), str(int(checkpointing)), str(n)]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(words, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"the peer failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {
        "ctx": ctx,
        "batch": batch,
        "checkpointing": checkpointing,
        "our_first_loss": loss_of(model, tokens),
    }


def bench_old(program: str, model_path: str, checkpointing: bool, n: int) -> dict[str, Any]:
    """Tokens/s of a built `finetune` of llama.cpp, ctx 64 x 4: from the time between iterations 2
    and 4 of its log.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "data.txt"
        text.write_text("once upon a time there was a small bench. " * 2000, encoding="utf-8")
        words = [program, "--model-base", model_path, "--train-data", str(text), "-t", str(n)]
        words += ["--ctx", "64", "--batch", "4", "--adam-iter", "4", "--sample-start", " "]
        words += ["--checkpoint-out", f"{folder}/c.gguf", "--lora-out", f"{folder}/l.bin"]
        words += ["--use-checkpointing" if checkpointing else "--no-checkpointing"]
        env = os.environ | {"LC_ALL": "C"}
        at: dict[int, float] = {}
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=folder
        ) as run:
            assert run.stdout is not None
            for line in run.stdout:
                if found := re.search(r"iter=\s*(\d+)", line):
                    at[int(found.group(1))] = time.perf_counter()
    if not {2, 4} <= at.keys():
        raise RuntimeError(f"{program} printed no iterations 2 and 4")
    seconds = (at[4] - at[2]) / 2
    return {"checkpointing": checkpointing, "tokens_per_s": 256 / seconds, "seconds": seconds}
