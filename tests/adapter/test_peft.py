"""PEFT folders: the stored form, other programs' files, and files that must be refused."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.toy_models import make_llama
from nbllama.adapter.file import load_adapter, save_adapter
from nbllama.adapter.hf_names import Half, half_of, hf_keys, hf_module, rows_to_gguf, rows_to_hf
from nbllama.adapter.peft import CONFIG, read_peft, write_peft
from nbllama.adapter.safetensors import read_safetensors
from nbllama.adapter.stored import Base, Stored
from nbllama.errors import CheckpointError, OutputError, UsageError
from nbllama.lora.pairs import Adapter, Pair, delta
from nbllama.lora.slots import base_names
from tests.adapter.adapters import model, same_bits, stored, trained

Q, K = "blk.0.attn_q.weight", "blk.0.attn_k.weight"
HF_Q = "base_model.model.model.layers.0.self_attn.q_proj"
LLAMA = Base("llama", 16)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GQA model with untied output: 2 blocks, 4 heads of 16."""
    path = tmp_path_factory.mktemp("toy") / "toy.gguf"
    make_llama(path)
    return path


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def test_every_tensor_has_its_name_and_back() -> None:
    for slot, name in base_names(12):
        if slot.kind == "norm":
            assert hf_module(name) is None
            continue
        for key, is_b in zip(hf_keys(name), (False, True), strict=True):
            wanted = Half(name, str(hf_module(name)), is_b)
            assert half_of(key) == wanted
            assert half_of(key.removeprefix("base_model.model.")) == wanted
    assert hf_keys("blk.11.ffn_down.weight") == (
        "base_model.model.model.layers.11.mlp.down_proj.lora_A.weight",
        "base_model.model.model.layers.11.mlp.down_proj.lora_B.weight",
    )
    assert hf_keys("token_embd.weight") == (
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.embed_tokens.lora_embedding_B",
    )
    for other in (
        "", HF_Q, f"{HF_Q}.weight", f"{HF_Q}.lora_A.bias", f"{HF_Q}.lora_C.weight",
        f"{HF_Q}.lora_embedding_A", f"x{HF_Q}.lora_A.weight", f"{HF_Q}.lora_A.weight\n",
        "base_model.model.model.embed_tokens.lora_A.weight",
        "base_model.model.model.layers.01.self_attn.q_proj.lora_A.weight",
        "base_model.model.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.lm_head.lora_A.weight",
    ):  # fmt: skip
        assert half_of(other) is None, other


def test_row_order_is_that_of_llama_cpp_s_converter() -> None:
    """`LlamaModel.permute` makes of Hugging Face's rows 0 1 2 | 3 4 5 the rows 0 3 1 4 2 5."""
    hf = np.arange(12, dtype=np.float32).reshape(12, 1)  # two heads of 6
    gguf = np.array([0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11], np.float32).reshape(12, 1)
    np.testing.assert_array_equal(rows_to_gguf(hf, 6), gguf)
    np.testing.assert_array_equal(rows_to_hf(gguf, 6), hf)


def test_stored_form(toy: Path, tmp_path: Path) -> None:
    ranks = {"tok_embd": 3, "out": 4, "wq": 4, "wk": 2, "w2": 6, "att_norm": 1}
    adapter = trained(toy, ranks, 10, 4)
    hp, _ = model(toy)
    (tmp_path / "p").mkdir()  # an existing folder needs no / in its name
    (note,) = save_adapter(tmp_path / "p", adapter, hp)
    assert note.startswith("a PEFT folder cannot store LoRA on norm vectors: 2 pairs")
    assert sorted(os.listdir(tmp_path / "p")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = config_of(tmp_path / "p")
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 10, "LORA")
    assert config["rank_pattern"] == {"embed_tokens": 3, "k_proj": 2, "down_proj": 6}
    # alpha / rank is 10 / 4 for all
    assert config["alpha_pattern"] == {"embed_tokens": 7.5, "k_proj": 5, "down_proj": 15}
    assert config["target_modules"] == ["down_proj", "embed_tokens", "k_proj", "lm_head", "q_proj"]
    tensors, metadata = read_safetensors(tmp_path / "p" / "adapter_model.safetensors")
    assert metadata == {"format": "pt", "nbllama.arch": "llama", "nbllama.head_dim": "16"}
    assert len(tensors) == 2 * (2 + 3 * 2)
    p = adapter.pairs
    prefix = "base_model.model.model"
    for got, want in (
        (f"{prefix}.embed_tokens.lora_embedding_A", p["token_embd.weight"].b.T),
        (f"{prefix}.embed_tokens.lora_embedding_B", p["token_embd.weight"].a.T),
        ("base_model.model.lm_head.lora_A.weight", p["output.weight"].a),
        ("base_model.model.lm_head.lora_B.weight", p["output.weight"].b),
        (f"{prefix}.layers.1.mlp.down_proj.lora_B.weight", p["blk.1.ffn_down.weight"].b),
        (f"{prefix}.layers.1.self_attn.k_proj.lora_A.weight", p["blk.1.attn_k.weight"].a),
    ):
        np.testing.assert_array_equal(tensors[got], want)
    b = tensors[f"{prefix}.layers.1.self_attn.k_proj.lora_B.weight"]
    mine = p["blk.1.attn_k.weight"].b
    for head, i, j in np.ndindex(2, 8, 2):
        np.testing.assert_array_equal(b[16 * head + 8 * j + i], mine[16 * head + 2 * i + j])


def test_blocks_without_a_pair(tmp_path: Path) -> None:
    """Only in the last of three blocks, with another rank in one: whole paths, exact ones."""
    rng = np.random.default_rng(0)

    def pair(rank: int) -> Pair:
        a, b = rng.standard_normal((rank, 8)), rng.standard_normal((16, rank))
        return Pair(a.astype(np.float32), b.astype(np.float32))

    ranks = {"blk.0.ffn_up.weight": 2, "blk.1.ffn_up.weight": 3, "blk.2.ffn_up.weight": 2}
    pairs = {name: pair(rank) for name, rank in ranks.items()} | {"blk.2.attn_v.weight": pair(2)}
    one = Stored.of(Adapter("llama", 4, 2, pairs), Base("llama", 16, 3))
    write_peft(tmp_path / "p", one)
    config = config_of(tmp_path / "p")
    assert config["target_modules"] == ["model.layers.2.self_attn.v_proj", "up_proj"]
    assert config["rank_pattern"] == {"model.layers.1.mlp.up_proj": 3}
    assert config["alpha_pattern"] == {"model.layers.1.mlp.up_proj": 6}
    assert same_bits(one, read_peft(tmp_path / "p", Base()))


def folder(path: Path, tensors: dict[str, np.ndarray], dtype: str = "F32", **config: Any) -> Path:
    """A folder as PEFT writes it."""
    path.mkdir()
    header, data = {}, b""
    for name, x in tensors.items():
        if dtype == "BF16":
            raw = (x.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            raw = x.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    (path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    whole = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
    (path / "adapter_config.json").write_text(json.dumps(whole))
    return path


def halves(rank: int = 2, n_out: int = 64, module: str = HF_Q) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rank)
    return {
        f"{module}.lora_A.weight": rng.integers(-9, 9, (rank, 64)).astype(np.float32),
        f"{module}.lora_B.weight": rng.integers(-9, 9, (n_out, rank)).astype(np.float32),
    }


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_types(tmp_path: Path, dtype: str) -> None:
    x = halves()
    pair = read_peft(folder(tmp_path / "p", x, dtype), LLAMA).pairs[Q]
    np.testing.assert_array_equal(pair.a, x[f"{HF_Q}.lora_A.weight"])
    np.testing.assert_array_equal(rows_to_hf(pair.b, 16), x[f"{HF_Q}.lora_B.weight"])


def test_scales_of_single_modules(toy: Path, tmp_path: Path) -> None:
    hp, shapes = model(toy)
    other = HF_Q.replace("layers.0", "layers.1")
    k = HF_Q.replace("q_proj", "k_proj")
    x = halves() | halves(4, module=other) | halves(3, 32, k)
    path = folder(
        tmp_path / "p",
        x,
        rank_pattern={"layers.1.self_attn.q_proj": 4, "^model\\.layers\\.0.self_attn.k_proj": 3},
        alpha_pattern={"k_proj": 9.0, "proj": 1.0, "^self_attn.q_proj": 1.0},
    )
    adapter = load_adapter(path, hp, shapes)
    assert (adapter.alpha, adapter.lora_r) == (4, 2)
    for module, name, scale, rows in (
        (HF_Q, Q, 4 / 2, 64), (other, "blk.1.attn_q.weight", 4 / 4, 64), (k, K, 9 / 3, 32),
    ):  # fmt: skip
        a, b = x[f"{module}.lora_A.weight"], x[f"{module}.lora_B.weight"]
        assert len(b) == rows
        got = rows_to_hf(delta(adapter.pairs[name], adapter.scale), 16)
        np.testing.assert_array_equal(got, scale * (b @ a))  # small integers: exact


def test_rank_stabilised_scale(toy: Path, tmp_path: Path) -> None:
    path = folder(tmp_path / "p", halves(), use_rslora=True)
    adapter = load_adapter(path, *model(toy))
    assert adapter.lora_r == 2
    assert adapter.scale == pytest.approx(4 / math.sqrt(2), rel=1e-15)
    b = rows_to_hf(adapter.pairs[Q].b, 16)
    np.testing.assert_array_equal(b, halves()[f"{HF_Q}.lora_B.weight"])


def test_a_configuration_with_a_byte_order_mark(toy: Path, tmp_path: Path) -> None:
    path = folder(tmp_path / "p", halves(), use_rslora=None)
    file = path / CONFIG
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_adapter(path, *model(toy)).scale == 4 / 2


def test_what_must_be_known_of_the_base_model(toy: Path, tmp_path: Path) -> None:
    path = folder(tmp_path / "p", halves())
    with pytest.raises(UsageError, match="--model-base"):
        read_peft(path, Base())
    with pytest.raises(UsageError, match=r"head size.*--model-base"):
        read_peft(path, Base("llama"))
    with pytest.raises(UsageError, match="architecture 'mystery' is not supported"):
        read_peft(path, Base("mystery", 16))
    v = {n.replace("q_proj", "v_proj"): x for n, x in halves().items()}
    assert list(read_peft(folder(tmp_path / "v", v), Base()).pairs) == ["blk.0.attn_v.weight"]
    whole = stored(toy, {"wq": 2}, 4, 2)
    write_peft(tmp_path / "own", whole)
    assert same_bits(whole, read_peft(tmp_path / "own", Base()))  # our files contain it
    for known in (Base(), Base("llama")):
        bare = Stored(4, 2, whole.pairs, whole.alphas, known)
        with pytest.raises(UsageError, match="--model-base"):
            write_peft(tmp_path / "not", bare)
    assert not (tmp_path / "not").exists()
    norms = stored(toy, {"att_norm": 1}, 4, 2)
    with pytest.raises(UsageError, match="nothing else"):
        write_peft(tmp_path / "not", norms)


ONE = halves()
A_KEY, B_KEY = ONE
BAD: dict[str, tuple[dict[str, np.ndarray], dict[str, Any], str]] = {
    "nothing": ({}, {}, "no pair"),
    "no B": ({A_KEY: ONE[A_KEY]}, {}, "no lora_b"),
    "no A": ({B_KEY: ONE[B_KEY]}, {}, "no lora_a"),
    "ranks differ": (ONE | {B_KEY: np.ones((64, 3), np.float32)}, {}, "differ"),
    "rank of the configuration": (ONE, {"r": 4}, "rank 2, but adapter_config.json has 4"),
    "one dimension": (ONE | {A_KEY: np.ones(64, np.float32)}, {}, "one dimension"),
    "no whole heads": (halves(n_out=24), {}, "24 rows do not match head size 16"),
    "unknown block": (halves(module=HF_Q.replace("layers.0", "layers.2")), {}, "no such tensor"),
    "wrong size": (halves(n_out=32), {}, r"\(32, 64\) matrix.*\(64, 64\)"),
    "whole tensor": (ONE | {HF_Q + ".weight": np.ones((4, 4))}, {}, "not half of a LoRA pair"),
    "DoRA tensor": (ONE | {HF_Q + ".lora_magnitude_vector": np.ones(64)}, {}, "DoRA"),
    "bias": (ONE | {HF_Q + ".lora_B.bias": np.ones(64)}, {}, "not half"),
    "twice": (
        ONE | {A_KEY.removeprefix("base_model.model."): ONE[A_KEY]}, {}, "twice"),
    "control characters": (ONE | {"\x1b[2J\n": np.ones((2, 2))}, {}, r"\\x1b\[2J\\n"),
    "NaN": (ONE | {A_KEY: np.full((2, 64), np.nan)}, {}, "NaN"),
    "DoRA": (ONE, {"use_dora": True}, "DoRA"),
    "no LoRA": (ONE, {"peft_type": "IA3"}, "IA3"),
    "no type": (ONE, {"peft_type": None}, "peft_type"),
    "biases": (ONE, {"bias": "all"}, "biases"),
    "whole modules": (ONE, {"modules_to_save": ["lm_head"]}, "whole tensors"),
    "PiSSA": (ONE, {"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*changed"),
    "start of an odd type": (ONE, {"init_lora_weights": [1]}, "init_lora_weights"),
    "transposed": (ONE, {"fan_in_fan_out": True}, "transposed"),
    "r missing": (ONE, {"r": None}, "key 'r'"),
    "r 0": (ONE, {"r": 0}, "key 'r'"),
    "r true": (ONE, {"r": True}, "key 'r'"),
    "r huge": (ONE, {"r": 10**30}, "key 'r'"),
    "alpha 0": (ONE, {"lora_alpha": 0}, "lora_alpha"),
    "alpha NaN": (ONE, {"lora_alpha": float("nan")}, "lora_alpha"),
    "alpha huge": (ONE, {"lora_alpha": 1e30}, "a number above 1e-30 and below 1e[+]30"),
    "alpha text": (ONE, {"lora_alpha": "4"}, 'the text "4", but must be .*, without quotes'),
    "r text": (ONE, {"r": "4"}, 'the text "4", but must be a whole number .*, without quotes'),
    "r a list": (ONE, {"r": [2]}, "a list, but must be a whole number from 1"),
    "scale text": (ONE, {"use_rslora": "false"}, 'the text "false", but must be true or false'),
    "scale 1": (ONE, {"use_rslora": 1}, "key 'use_rslora': 1, but must be true or false;"),
    "DoRA 0": (ONE, {"use_dora": 0}, "key 'use_dora': 0, but must be true or false"),
    "biases text": (ONE, {"lora_bias": "no"}, "lora_bias.*, but must be true or false"),
    "transposed text": (ONE, {"fan_in_fan_out": "x"}, "fan_in_fan_out.*, but must be true or"),
    "alpha of a module": (ONE, {"alpha_pattern": {"q_proj": -1}}, "key 'q_proj'"),
    "pattern no object": (ONE, {"rank_pattern": [1]}, "not an object"),
    "slow pattern": (ONE, {"rank_pattern": {"(a+)+$": 2}}, "regular expression"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_folders_are_refused(toy: Path, tmp_path: Path, name: str) -> None:
    tensors, config, message = BAD[name]
    path = folder(tmp_path / "p", tensors, **config)
    with pytest.raises(CheckpointError, match=message) as e:
        load_adapter(path, *model(toy))
    assert str(e.value).startswith(str(path)) and str(e.value).isprintable()


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes


HEADERS: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "not JSON"),
    "no text": (b"\xff\xff", "not JSON"),
    "a list": ([], "not a JSON object"),
    "deep": (b'{"a":' * 50_000, "not JSON"),
    "twice": (b'{"a":{},"a":{}}', "a key appears twice"),
    "number": ({"a": 1}, "not an object"),
    "F64": ({"a": entry(dtype="F64")}, "the type must be one of .*, not F64"),
    "type a list": ({"a": entry(dtype=[])}, "type"),
    "shape negative": ({"a": entry(shape=[-2, -2])}, "shape"),
    "shape zero": ({"a": entry(shape=[0, 2], data_offsets=[0, 0])}, "shape"),
    "shape of three": ({"a": entry(shape=[1, 2, 2])}, "shape"),
    "shape of floats": ({"a": entry(shape=[2.0, 2])}, "shape"),
    "shape of booleans": ({"a": entry(shape=[True, 4])}, "shape"),
    "huge": ({"a": entry(shape=[1 << 31, 1 << 31], data_offsets=[0, 1 << 64])}, "data_offsets"),
    "size and place": ({"a": entry(data_offsets=[0, 12])}, "do not fit"),
    "beyond the end": ({"a": entry(data_offsets=[4, 20])}, "do not fit"),
    "backwards": ({"a": entry(data_offsets=[16, 0])}, "do not fit"),
    "no place": ({"a": {"dtype": "F32", "shape": [2, 2]}}, "data_offsets"),
    "overlap": ({"a": entry(), "b": entry(data_offsets=[0, 16])}, "overlap"),
    "gap": ({"a": entry(shape=[1, 2], data_offsets=[8, 16])}, "gap"),
    "more behind": ({"a": entry(shape=[1, 2], data_offsets=[0, 8])}, "8 bytes after"),
    "metadata": ({"__metadata__": {"a": 1}}, "__metadata__"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_bad_safetensors_are_refused(tmp_path: Path, name: str) -> None:
    header, message = HEADERS[name]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    with pytest.raises(CheckpointError, match=message) as e:
        read_safetensors(path)
    assert str(e.value).startswith(str(path)) and str(e.value).isprintable()
    assert len(str(e.value)) < 700


@pytest.mark.parametrize("size", [0, 7, 8, 2**32, 2**64 - 1])
def test_sizes_of_the_header(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", size)[: max(size, 1) if size < 8 else 8])
    with pytest.raises(CheckpointError, match="header"):
        read_safetensors(path)


def test_a_pointer_of_git_lfs_instead_of_the_weights(toy: Path, tmp_path: Path) -> None:
    path = folder(tmp_path / "p", halves())
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (path / "adapter_model.safetensors").write_bytes(pointer)
    with pytest.raises(CheckpointError, match=r"a Git LFS pointer .* run git lfs pull"):
        load_adapter(path, *model(toy))


def test_what_is_missing(toy: Path, tmp_path: Path) -> None:
    base = model(toy)
    with pytest.raises(FileNotFoundError):
        load_adapter(tmp_path / "none", *base)
    for gone in ("adapter_config.json", "adapter_model.safetensors"):
        path = folder(tmp_path / gone, halves())
        (path / gone).unlink()
        with pytest.raises(CheckpointError, match=gone):
            load_adapter(path, *base)
        os.mkfifo(path / gone)  # must not wait for a pipe without a writer
        with pytest.raises(CheckpointError, match="not a regular file"):
            load_adapter(path, *base)


def test_folders_that_cannot_be_written(toy: Path, tmp_path: Path) -> None:
    adapter, hp = trained(toy, {"wq": 2}, 4, 2), model(toy)[0]
    (tmp_path / "file").touch()
    for name in ("file/", "none/below/"):
        with pytest.raises(OutputError, match="cannot be written"):
            save_adapter(f"{tmp_path}/{name}", adapter, hp)


WRAPPED = {
    "doubled": lambda key: f"base_model.model.{key}",
    "in front": lambda key: f"model.language_model.{key}",
    "with pictures": lambda key: key.replace("model.layers", "model.language_model.layers"),
    "compiled": lambda key: f"_orig_mod.{key}",
    "compiled inside": lambda key: key.replace("model.model.", "model._orig_mod.model."),
    "compiled blocks": lambda key: key.replace("layers.0.", "layers.0._orig_mod."),
    "compiled modules": lambda key: key.replace("self_attn.", "self_attn._orig_mod."),
    "parallel": lambda key: f"module.{key}",
    "named": lambda key: key.replace(".weight", ".default.weight"),
    "named otherwise": lambda key: key.replace(".weight", ".my-adapter_2.weight"),
    "all": lambda key: (
        "_orig_mod.base_model.model.language_model." + key.replace(".weight", ".default.weight")
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_names_of_wrapped_models(toy: Path, tmp_path: Path, name: str) -> None:
    tensors = {WRAPPED[name](key): x for key, x in ONE.items()}
    plain = load_adapter(folder(tmp_path / "plain", ONE), *model(toy))
    found = load_adapter(folder(tmp_path / "p", tensors), *model(toy))
    assert list(found.pairs) == [Q]
    np.testing.assert_array_equal(found.pairs[Q].a, plain.pairs[Q].a)
    np.testing.assert_array_equal(found.pairs[Q].b, plain.pairs[Q].b)


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj", "model.language_model.layers.0.self_attn.q_proj", "self_attn.q_proj",
        r"^_orig_mod\.model\.layers\.0\.self_attn\.q_proj$", "layers.0.self_attn.q_proj",
    ],
)  # fmt: skip
def test_patterns_name_modules_of_wrapped_models(toy: Path, tmp_path: Path, pattern: str) -> None:
    path = folder(tmp_path / "p", ONE, alpha_pattern={pattern: 10})
    assert read_peft(path, LLAMA).alphas == {Q: 10}


def test_two_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    a, b = (key.replace(".weight", f".{name}.weight") for key, name in zip(ONE, "xy", strict=True))
    with pytest.raises(CheckpointError, match="pairs of several adapters: 'x' and 'y'"):
        read_peft(folder(tmp_path / "p", dict(zip((a, b), ONE.values(), strict=True))), LLAMA)


@pytest.mark.parametrize("key", ["base_model.model.lm_head.weight", "a\nb", "é" * 300])
def test_tensors_are_named_in_single_quotes(tmp_path: Path, key: str) -> None:
    path = folder(tmp_path / "p", ONE | {key: np.ones((4, 4), np.float32)})
    with pytest.raises(CheckpointError, match="not half of a LoRA pair") as caught:
        read_peft(path, LLAMA)
    line = str(caught.value)
    assert "''" not in line and "\n" not in line
    if "lm_head" in key:
        assert f"tensor '{key}': not half of a LoRA pair: a whole tensor (modules_to_save)" in line
