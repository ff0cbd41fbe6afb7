"""Adapters for all architectures that Hugging Face also has: same results there, and read back.

Needs the extra `peer` (torch, transformers, peft), as tests/adapter/test_peft_itself.py.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from examples.toy_archs import MODELS
from nbllama.arch import ARCHS
from nbllama.gguf_io import open_gguf
from nbllama.lora.slots import EVERY_SLOT, without_tensor
from nbllama.model.passes import Model
from tests.adapter.test_peft_itself import TOKENS, hf_logits, hf_rows, peft, torch, transformers
from tests.differences import relative

GLOBAL, LOCAL = ({"rope_type": "default", "rope_theta": base} for base in (1e6, 1e4))
# The kind of model, Hugging Face's class, and the entries of its configuration besides sizes.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, 7B to 30B": ("Llama", {"rope_parameters": LOCAL}),
    "llama, Llama 3 1B": (
        "Llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    ),
    "qwen2, 7B": ("Qwen2", {"rope_parameters": GLOBAL}),
    "qwen3, all dense sizes": ("Qwen3", {"rope_parameters": GLOBAL}),
    "gemma2, 2B and 9B": (
        "Gemma2",
        {
            "rope_parameters": LOCAL,
            "sliding_window": 20,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 24,
        },
    ),
    "gemma3, 270M and 1B": (
        "Gemma3",
        {
            "rope_parameters": {"full_attention": GLOBAL, "sliding_attention": LOCAL},
            "sliding_window": 20,
            "query_pre_attn_scalar": 24,
        },
    ),
    "phi3, medium (GQA)": (
        "Phi3",
        {"rope_parameters": LOCAL, "pad_token_id": 0, "eos_token_id": 1},
    ),
}
NORMS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
POST_NORMS = {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def hf_model(name: str, path: Path, model: Model) -> Any:
    """The same float32 weights in Hugging Face's own implementation."""
    kind, more = PEERS[name]
    hp = model.hp
    config = getattr(transformers, f"{kind}{'Text' * (kind == 'Gemma3')}Config")(
        vocab_size=hp.n_vocab, hidden_size=hp.n_embd, intermediate_size=hp.n_ff,
        num_hidden_layers=hp.n_layer, num_attention_heads=hp.n_head,
        num_key_value_heads=hp.n_head_kv, head_dim=hp.head_dim, rms_norm_eps=hp.rms_eps,
        max_position_embeddings=512, tie_word_embeddings=hp.tied_output,
        attn_implementation="eager", **more,
    )  # fmt: skip
    gemma = kind.startswith("Gemma")
    modules = {**NORMS, **(POST_NORMS if gemma else {}), **ARCHS[hp.arch].hf_modules}
    ends = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
    state = {}
    with open_gguf(path) as f:
        for full, info in f.tensors.items():
            w = f.data(full).view("<f4").reshape(info.shape).copy()
            *block, tensor, half = full.split(".")
            if tensor == "rope_freqs":
                continue
            if gemma and tensor.endswith("norm"):
                w -= 1  # its norms multiply by 1 + w
            if hp.rope_pairing == "interleaved" and tensor in ("attn_q", "attn_k"):
                w = hf_rows(w, hp.n_head if tensor == "attn_q" else hp.n_head_kv)
            path_of = f"model.layers.{block[1]}.{modules[tensor]}" if block else ends[tensor]
            state[f"{path_of}.{half}"] = torch.from_numpy(w)
    if hp.tied_output:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    made = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    made.load_state_dict(state)
    return made


@pytest.mark.parametrize("name", PEERS)
def test_peft_does_what_was_trained(name: str, tmp_path: Path) -> None:
    path = tmp_path / "toy.gguf"
    MODELS[name].make(path, **({"rope_factors": False} if "Llama 3" in name else {}))
    model = nbllama.load_model(path)
    missing = without_tensor(model.shapes)
    ranks = {
        slot.name: 0 if slot.kind != "linear" or slot.name in missing else 1 + i % 3
        for i, slot in enumerate(EVERY_SLOT)
    }
    adapter = nbllama.init_adapter(model, 2, 3, ranks=ranks)
    rng = np.random.default_rng(4)
    for p in adapter.parameters().values():
        p[...] = 0.2 * rng.standard_normal(p.shape)
    assert nbllama.save_adapter(f"{tmp_path}/p/", adapter, model) == []
    base = hf_model(name, path, model)
    plain, wanted = hf_logits(base), nbllama.logits(model, TOKENS, adapter)
    # float32 on both sides; Hugging Face computes some angles and norms in another order
    assert relative(nbllama.logits(model, TOKENS), plain) < 2e-5
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # such as: missing adapter keys
        loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "p")).eval()
    assert relative(hf_logits(loaded), wanted) < 2e-5
    assert relative(plain, wanted) > 0.05
    again = nbllama.load_adapter(tmp_path / "p", model)
    for key, p in adapter.parameters().items():
        np.testing.assert_array_equal(again.parameters()[key], p, err_msg=key)
