"""An adapter that we trained has the same results in Hugging Face PEFT.

Needs the extra `peer` (torch, transformers, peft), which takes gigabytes on many machines.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from examples.toy_models import make_llama
from nbllama.gguf_io import open_gguf
from nbllama.model.passes import Model
from tests.adapter.adapters import trained

REASON = "needs the extra 'peer': pip install -e '.[peer]'"
torch: Any = pytest.importorskip("torch", reason=REASON)
transformers: Any = pytest.importorskip("transformers", reason=REASON)
peft: Any = pytest.importorskip("peft", reason=REASON)

TOKENS = [1, 70, 33, 300, 5, 5, 261, 12, 90]
HEADS, KV_HEADS, D = 4, 2, 16


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "toy.gguf"
    make_llama(path, n_head=HEADS, n_head_kv=KV_HEADS)
    return path


def hf_rows(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in Hugging Face's order, head by head."""
    out = np.empty_like(w)
    for h in range(heads):
        for i in range(D // 2):
            for j in range(2):
                out[h * D + j * (D // 2) + i] = w[h * D + 2 * i + j]
    return out


def hf_model(path: Path) -> Any:
    """The same float32 weights in Hugging Face's own implementation of the model."""
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, rms_norm_eps=1e-5,
        rope_theta=10000.0, max_position_embeddings=512, tie_word_embeddings=False,
        attn_implementation="eager",
    )  # fmt: skip
    with open_gguf(path) as f:
        w = {n: f.data(n).view("<f4").reshape(t.shape).copy() for n, t in f.tensors.items()}
    state = {
        "model.embed_tokens.weight": w["token_embd.weight"],
        "model.norm.weight": w["output_norm.weight"],
        "lm_head.weight": w["output.weight"],
    }
    for i in range(2):
        gguf, hf = f"blk.{i}", f"model.layers.{i}"
        state |= {
            f"{hf}.self_attn.q_proj.weight": hf_rows(w[f"{gguf}.attn_q.weight"], HEADS),
            f"{hf}.self_attn.k_proj.weight": hf_rows(w[f"{gguf}.attn_k.weight"], KV_HEADS),
            f"{hf}.self_attn.v_proj.weight": w[f"{gguf}.attn_v.weight"],
            f"{hf}.self_attn.o_proj.weight": w[f"{gguf}.attn_output.weight"],
            f"{hf}.mlp.gate_proj.weight": w[f"{gguf}.ffn_gate.weight"],
            f"{hf}.mlp.up_proj.weight": w[f"{gguf}.ffn_up.weight"],
            f"{hf}.mlp.down_proj.weight": w[f"{gguf}.ffn_down.weight"],
            f"{hf}.input_layernorm.weight": w[f"{gguf}.attn_norm.weight"],
            f"{hf}.post_attention_layernorm.weight": w[f"{gguf}.ffn_norm.weight"],
        }
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict({n: torch.from_numpy(x) for n, x in state.items()})
    return model


def hf_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].numpy()


def close(got: np.ndarray, want: np.ndarray) -> bool:
    # float32 sums in another order, through two layers
    return bool(abs(got - want).max() < 2e-5 * abs(want).max())


def trained_steps(model: Model, ranks: dict[str, int]) -> nbllama.Adapter:
    """A few real steps of AdamW, so that the adapter is really trained here."""
    adapter = nbllama.init_adapter(model, 4, 8, ranks=ranks)
    opt = nbllama.AdamW(adapter.parameters(), 0.05, beta1=0.9, beta2=0.999)
    for _ in range(4):
        _, grads = nbllama.loss_and_gradients(model, adapter, TOKENS)
        opt.step(grads, 1.0)
    return adapter


@pytest.mark.parametrize(
    "ranks",
    [{}, {"tok_embd": 4, "out": 4}, {"wq": 2, "wk": 3, "w2": 8, "tok_embd": 1, "out": 5}],
    ids=["seven linears", "all", "ranks of their own"],
)
def test_peft_does_what_was_trained(toy: Path, tmp_path: Path, ranks: dict[str, int]) -> None:
    model = nbllama.load_model(toy)
    adapter = trained_steps(model, ranks)
    assert nbllama.save_adapter(f"{tmp_path}/p/", adapter, model) == []
    base = hf_model(toy)
    plain = hf_logits(base)
    assert close(plain, nbllama.logits(model, TOKENS))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # such as: missing adapter keys
        loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "p")).eval()
    want = nbllama.logits(model, TOKENS, adapter)
    assert abs(want - plain).max() > 0.05 * abs(plain).max()
    assert close(hf_logits(loaded), want)
    assert close(hf_logits(loaded.merge_and_unload()), want)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_saves_is_read(toy: Path, tmp_path: Path, rslora: bool) -> None:
    model, base = nbllama.load_model(toy), hf_model(toy)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, task_type="CAUSAL_LM", use_rslora=rslora, init_lora_weights=False,
        target_modules=["q_proj", "k_proj", "v_proj", "down_proj", "embed_tokens", "lm_head"],
        rank_pattern={} if rslora else {"q_proj": 2, "model.layers.1.self_attn.k_proj": 3},
        alpha_pattern={} if rslora else {"layers.0.mlp.down_proj": 5, "embed_tokens": 9},
    )  # fmt: skip
    torch.manual_seed(0)
    lora = peft.get_peft_model(base, config).eval()
    for name, p in lora.named_parameters():
        if "lora_" in name:
            p.data.mul_(0.1 if "embedding" in name else 0.5)
    want = hf_logits(lora)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it requests the base model's configuration from the hub
        lora.save_pretrained(tmp_path / "p", save_embedding_layers=False)
    adapter = nbllama.load_adapter(tmp_path / "p", model)
    assert len(adapter.pairs) == 2 + 2 * 4
    assert abs(want - hf_logits(hf_model(toy))).max() > 0.05 * abs(want).max()
    assert close(nbllama.logits(model, TOKENS, adapter), want)


def test_safetensors_itself_reads_ours(toy: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    model = nbllama.load_model(toy)
    adapter = trained(toy, {"wv": 2, "tok_embd": 3}, 4, 2)
    nbllama.save_adapter(f"{tmp_path}/p/", adapter, model)
    found = load_file(tmp_path / "p" / "adapter_model.safetensors")
    key = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    np.testing.assert_array_equal(found[key], adapter.pairs["blk.1.attn_v.weight"].b)
    assert len(found) == 6
