"""The same training step with PyTorch and Hugging Face PEFT: a separate program.

peer.py WEIGHTS.npz CTX BATCH STEPS CHECKPOINTING THREADS FORMAT prints one JSON line. It imports
torch, transformers, peft and numpy, but not this package, so that any interpreter with those
packages can run it. WEIGHTS.npz contains arrays under Hugging Face's names and a `config` (JSON as
bytes); `tokens` `[B, T+1]` is the batch.

FORMAT is float32, or NF4: bitsandbytes' four-bit type, as in the documentation of PEFT (a model
loaded with `BitsAndBytesConfig`, `prepare_model_for_kbit_training`, bfloat16 products). For NF4 the
model is first saved as a folder, by a separate process whose memory does not count:
peer.py WEIGHTS.npz FOLDER.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any


def float32_model(path: str) -> Any:
    """Return the weights of the file as Hugging Face's model."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with np.load(path) as stored:
        arrays = {name: x for name, x in stored.items() if name != "tokens"}
    config = LlamaConfig(**json.loads(arrays.pop("config").tobytes()))
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
    return model


def nf4_model(path: str, checkpointing: bool) -> Any:
    """Return the same model in bitsandbytes' NF4, ready for training."""
    import torch
    from peft import prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, path, folder], check=True)
        model = LlamaForCausalLM.from_pretrained(
            folder, quantization_config=bits, dtype=torch.bfloat16, device_map="cpu"
        )
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)


def peak_bytes() -> int:
    """Return the peak memory of this process; not ru_maxrss on Linux: it includes the parent's."""
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii") as file:
            return 1024 * next(int(x.split()[1]) for x in file if x.startswith("VmHWM:"))
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def main() -> None:
    sys.path.pop(0)  # this folder: its `kernels` would shadow the one of transformers
    if len(sys.argv) == 3:
        float32_model(sys.argv[1]).save_pretrained(sys.argv[2])
        return
    path, ctx, batch, steps, checkpointing, threads, form = sys.argv[1:]
    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(int(threads))
    with np.load(path) as stored:
        tokens = stored["tokens"].astype(np.int64)
    ids = torch.from_numpy(tokens)[: int(batch), : int(ctx) + 1]
    nf4 = form == "NF4"
    model = nf4_model(path, checkpointing == "1") if nf4 else float32_model(path)
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
        logits = logits.float().flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        times.append(time.perf_counter() - start)
        losses.append(float(loss.detach()))
    seconds = median(times[1:])
    tokens = ids[:, 1:].numel()
    print(json.dumps({
        "seconds": seconds, "tokens_per_s": tokens / seconds, "peak_mb": peak_bytes() / 1e6,
        "first_loss": losses[0],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
