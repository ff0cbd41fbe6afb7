"""An epoch over records with PyTorch and Hugging Face PEFT: a separate program, like peer.py.

peer_job.py WEIGHTS.npz SAMPLES.npz RANK ALPHA RATE THREADS prints one JSON line. SAMPLES.npz
contains `tokens` and `targets` `[N]` (-1: not trained), `lengths` of the samples, and
`samples_of_batch`. Batches are padded to their longest sample; padding is masked in the attention
and in the loss.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = str(Path(__file__).resolve().parent)


def padded(tokens: Any, targets: Any, lengths: Any) -> tuple[Any, Any, Any]:
    """Return ids, labels and attention mask `[B, T]` of some concatenated samples."""
    import numpy as np
    import torch

    shape = len(lengths), max(lengths)
    ids, labels, mask = np.zeros(shape, int), np.full(shape, -100), np.zeros(shape, int)
    at = 0
    for row, n in enumerate(lengths):
        ids[row, :n], mask[row, :n] = tokens[at : at + n], 1
        wanted = targets[at : at + n]
        labels[row, :n] = np.where(wanted < 0, -100, wanted)
        at += n
    return torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(mask)


def main() -> None:
    sys.path[:] = [p for p in sys.path if p != FOLDER]  # its `kernels` is not that of transformers
    weights, samples, rank, alpha, rate, threads = sys.argv[1:]
    import importlib.util

    import numpy as np
    import torch
    from peft import LoraConfig, get_peft_model

    spec = importlib.util.spec_from_file_location("peer", Path(FOLDER) / "peer.py")
    assert spec is not None and spec.loader is not None
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    torch.set_num_threads(int(threads))
    with np.load(samples) as stored:
        tokens, targets = stored["tokens"].astype(int), stored["targets"].astype(int)
        lengths, counts = stored["lengths"].tolist(), stored["samples_of_batch"].tolist()
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=int(rank), lora_alpha=int(alpha), target_modules=names)
    model = get_peft_model(peer.float32_model(weights), config)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=float(rate))
    batches, at, first = [], 0, 0
    for count in counts:
        rows = lengths[first : first + count]
        end = at + sum(rows)
        batches.append(padded(tokens[at:end], targets[at:end], rows))
        at, first = end, first + count

    def step(ids: Any, labels: Any, mask: Any) -> float:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        loss.backward()
        return float(loss.detach())

    step(*(part[:1] for part in batches[0]))  # warm-up
    optimiser.zero_grad()
    losses, start = [], time.perf_counter()
    for batch in batches:
        losses.append(step(*batch))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
    print(json.dumps({
        "seconds": time.perf_counter() - start, "peak_mb": peer.peak_bytes() / 1e6,
        "first_loss": losses[0],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
