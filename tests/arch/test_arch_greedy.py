"""Every architecture: its generated text, and the same bits with any number of threads."""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np
import pytest

import nbllama
from examples.toy_archs import MODELS, random_adapter
from nbllama.model.gradients import loss_and_gradients
from tests.arch.kinds import kinds
from tests.generation.test_generation_vs_llama import differs_at, ours, theirs
from tests.oracle import LlamaModel
from tests.train.toy_runs import random_batch

# In the default suite: each difference of a block from llama's block, once.
QUICK = (
    "mistral3, Ministral 3 (YaRN, temperature)",
    "hunyuan-dense, 0.5B to 7B",
    "olmo2, OLMo 3 (windows)",
    "apertus, 8B and 70B",
    "cohere2, 7B and 111B",
    "lfm2, 350M to 2.6B",
    "qwen35, 4B to 27B (heads share keys)",
    "qwen3moe, 30B-A3B and 235B-A22B",
    "gpt-oss, 20B and 120B",
)
SLOW = [name for name in MODELS if name not in QUICK]


@pytest.mark.parametrize("name", kinds(also_slow=SLOW))
def test_greedy(name: str, tmp_path: Path) -> None:
    """64 tokens, with an adapter, by a token's program and its cache."""
    path, lora = tmp_path / "toy.gguf", tmp_path / "lora.gguf"
    MODELS[name].make(path)
    model = nbllama.load_model(path)
    adapter = random_adapter(model, norms=False)
    nbllama.save_adapter(lora, adapter, model)
    prompt = np.random.default_rng(3).integers(3, 288, 9).tolist()
    with LlamaModel(path) as llama:
        differs_at(ours(model, adapter, prompt, 64), theirs(llama, prompt, 64, [(lora, 1.0)]))


@pytest.mark.parametrize("name", kinds(also_slow=SLOW))
def test_threads_do_not_change_bits(name: str, tmp_path: Path) -> None:
    MODELS[name].make(tmp_path / "toy.gguf")
    model = nbllama.load_model(tmp_path / "toy.gguf")
    adapter, batch = random_adapter(model, norms=True), random_batch(model, (1, 7, 40))
    most = numba.get_num_threads()
    found = []
    try:
        for n in (1, most):
            numba.set_num_threads(n)
            found.append(loss_and_gradients(model, adapter, batch, False))
    finally:
        numba.set_num_threads(most)
    (loss, grads), (again, others) = found
    assert again == loss
    for key, g in grads.items():
        np.testing.assert_array_equal(others[key], g, err_msg=key)
