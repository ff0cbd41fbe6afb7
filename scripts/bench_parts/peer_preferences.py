"""DPO with PyTorch, PEFT and TRL: a separate program, like peer.py.

peer_preferences.py WEIGHTS.npz PAIRS.npz SETTINGS prints one JSON line. PAIRS.npz contains `ids`
(for each pair the prompt, the chosen and the rejected answer, all concatenated), their `sizes`
`[pairs, 3]`, and the initial values of the adapter's A by PEFT's names (B is 0). SETTINGS is JSON:
rank, alpha, rate, beta, batch (pairs per step), steps, checkpointing, threads.

Everything else is as in TRL's trainer, except for float32 instead of bfloat16, a constant learning
rate, the order of the pairs, and the reference, which is computed before the first step.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = str(Path(__file__).resolve().parent)


def _peer() -> Any:
    """Import peer.py, which is not in a package here."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("peer", Path(FOLDER) / "peer.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def _tokenizer(n_vocab: int) -> Any:
    """Return a tokenizer that is never used: TRL requires one, but the pairs are already ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"{i}": i for i in range(n_vocab)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="0")),
        pad_token="0", eos_token="0",
    )  # fmt: skip


def main() -> None:
    sys.path[:] = [p for p in sys.path if p != FOLDER]  # its `kernels` would shadow transformers'
    weights, pairs, words = sys.argv[1:]
    settings = json.loads(words)
    import numpy as np
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    peer = _peer()
    torch.set_num_threads(settings["threads"])
    with np.load(pairs) as stored:
        arrays = dict(stored)
    ids, sizes = arrays.pop("ids").tolist(), arrays.pop("sizes")
    columns: dict[str, list[list[int]]] = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    at = 0
    for row in sizes.tolist():
        for name, n in zip(columns, row, strict=True):
            columns[name].append(ids[at : at + n])
            at += n
    losses: list[float] = []
    ends: list[float] = []

    class InOrder(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # they are ids already

        def compute_loss(self, *args: Any, **more: Any) -> Any:
            found = super().compute_loss(*args, **more)
            losses.append(float(found.detach()))
            return found

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    model = peer.float32_model(weights)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            folder, beta=settings["beta"], learning_rate=settings["rate"],
            per_device_train_batch_size=settings["batch"], max_steps=settings["steps"],
            gradient_checkpointing=settings["checkpointing"], precompute_ref_log_probs=True,
            bf16=False, use_cpu=True, lr_scheduler_type="constant", report_to=[],
            train_sampling_strategy="sequential", save_strategy="no", disable_tqdm=True,
            max_length=None,
        )  # fmt: skip
        start = time.perf_counter()
        trainer = InOrder(
            model, args=config, train_dataset=Dataset.from_dict(columns),
            processing_class=_tokenizer(model.config.vocab_size), callbacks=[Clock()],
            peft_config=LoraConfig(
                r=settings["rank"], lora_alpha=settings["alpha"], target_modules=names
            ),
        )  # fmt: skip
        reference = time.perf_counter() - start
        missing = set(arrays)
        with torch.no_grad():
            for name, value in trainer.model.named_parameters():
                if name in missing:
                    value.copy_(torch.from_numpy(arrays[name]))
                    missing.remove(name)
        if missing:
            sys.exit(f"the adapter has no {sorted(missing)[:3]}")
        trainer.train()
    # the first step warms up
    seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
    print(json.dumps({
        "seconds": seconds, "pairs_per_s": settings["batch"] / seconds,
        "peak_mb": peer.peak_bytes() / 1e6, "reference_seconds": reference, "losses": losses,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
