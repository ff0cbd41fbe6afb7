"""The same training step by PyTorch and Hugging Face PEFT, float32: a program of its own.

peer.py WEIGHTS.npz CTX BATCH STEPS CHECKPOINTING THREADS prints one JSON line. It imports torch,
transformers, peft and numpy, nothing of this package, so that any interpreter that has these can
run it. WEIGHTS.npz holds Hugging Face's names and a `config` (JSON as bytes); `tokens` `[B, T+1]`
is the batch.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import median


def main() -> None:
    path, ctx, batch, steps, checkpointing, threads = sys.argv[1:]
    sys.path.pop(0)  # this folder, whose `kernels` is not the one that transformers looks for
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(int(threads))
    with np.load(path) as stored:
        arrays = dict(stored)
    config = LlamaConfig(**json.loads(arrays.pop("config").tobytes()))
    ids = torch.from_numpy(arrays.pop("tokens").astype(np.int64))[: int(batch), : int(ctx) + 1]
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.to_empty(device="cpu")
    state = {name: torch.from_numpy(x) for name, x in arrays.items()}
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if unexpected or set(missing) - {"lm_head.weight"}:
        sys.exit(f"state: {missing}, {unexpected}")
    model.tie_weights()
    rotary = type(model.model.rotary_emb)  # its buffers are not in the state
    model.model.rotary_emb = rotary(config)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=names))
    if checkpointing == "1":
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3)
    times, losses = [], []
    for _ in range(int(steps) + 1):
        start = time.perf_counter()
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        times.append(time.perf_counter() - start)
        losses.append(float(loss.detach()))
    with open("/proc/self/status", encoding="ascii") as file:
        peak = next(int(x.split()[1]) for x in file if x.startswith("VmHWM:"))
    seconds = median(times[1:])
    tokens = ids[:, 1:].numel()
    print(json.dumps({
        "seconds": seconds, "tokens_per_s": tokens / seconds, "peak_mb": peak * 1024 / 1e6,
        "first_loss": losses[0],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
