"""GGUF adapters: results in llama.cpp, reading back, and files that must be refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from examples.toy_models import make_llama
from nbllama.adapter.file import format_of, load_adapter, save_adapter
from nbllama.errors import CheckpointError, GGUFError, UsageError
from nbllama.gguf_io import ValueType, open_gguf, write_gguf
from nbllama.lora.pairs import Adapter, Pair, delta
from nbllama.lora.slots import SLOTS
from tests.adapter.adapters import model, trained

LINEARS = {"wq": 3, "wk": 6, "wv": 2, "wo": 6, "w1": 1, "w2": 4, "w3": 6}
TOKENS = [1, 70, 33, 300, 5, 5, 261]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GQA model with untied output."""
    path = tmp_path_factory.mktemp("toy") / "toy.gguf"
    make_llama(path)
    return path


def merged(path: Path, out: Path, adapter: Adapter) -> None:
    """The float32 model with every delta added to its base tensor."""
    with open_gguf(path) as f:
        tensors = []
        for t in f.tensors.values():
            w = f.data(t.name).view(np.float32).reshape(t.shape)
            if t.name in adapter.pairs:
                w = w + delta(adapter.pairs[t.name], adapter.scale).reshape(t.shape)
            tensors.append((t.name, w))
        write_gguf(out, list(f.entries()), tensors)


@pytest.mark.parametrize(
    ("ranks", "alpha", "lora_r"),
    [
        (LINEARS, 16.0, 6),  # scale is not 1, ranks differ from lora_r and from each other
        ({"wq": 4, "w2": 4}, 4.0, 4),
        ({"tok_embd": 3}, 5.0, 4),
        ({"out": 2, "tok_embd": 4, "wk": 1}, 2.0, 4),
    ],
)
def test_llama_cpp_adds_what_was_trained(
    toy: Path, tmp_path: Path, ranks: dict[str, int], alpha: float, lora_r: int
) -> None:
    from tests.oracle import LlamaModel

    adapter = trained(toy, ranks, alpha, lora_r)
    file = tmp_path / "a.gguf"
    assert save_adapter(file, adapter, model(toy)[0]) == []
    merged(toy, tmp_path / "merged.gguf", adapter)
    with LlamaModel(toy) as llama, LlamaModel(tmp_path / "merged.gguf") as whole:
        plain, got, want = llama.logits(TOKENS), llama.logits(TOKENS, [(file, 1.0)]), None
        want = whole.logits(TOKENS)
    # The same sums in another order, float32 through two layers; the effect itself is over 0.1.
    assert abs(got - want).max() < 2e-5 * abs(want).max()
    assert abs(got - plain).max() > 0.02 * abs(plain).max()


def test_norm_pairs_and_tied_embeddings_are_warned_of(toy: Path, tmp_path: Path) -> None:
    from tests.oracle import LlamaModel

    hp, _ = model(toy)
    adapter = trained(toy, {"att_norm": 2, "out_norm": 1, "wq": 2}, 4, 2)
    (note,) = save_adapter(tmp_path / "norms.gguf", adapter, hp)
    assert note.startswith("llama.cpp ignores LoRA on norm vectors (3 here, such as output_norm")
    without = Adapter(hp.arch, 4, 2, {n: p for n, p in adapter.pairs.items() if "norm" not in n})
    assert save_adapter(tmp_path / "without.gguf", without, hp) == []
    with LlamaModel(toy) as llama:
        a, b = (llama.logits(TOKENS, [(tmp_path / f"{n}.gguf", 1.0)]) for n in ("norms", "without"))
    np.testing.assert_array_equal(a, b)  # the note is true

    tied = tmp_path / "tied.gguf"
    make_llama(tied, tied=True)
    adapter = trained(tied, {"tok_embd": 2}, 4, 2)
    (note,) = save_adapter(tmp_path / "t.gguf", adapter, model(tied)[0])
    assert "tied" in note


def equal(a: Adapter, b: Adapter) -> bool:
    same = (a.arch, a.alpha, a.lora_r, list(a.pairs)) == (b.arch, b.alpha, b.lora_r, list(b.pairs))
    return same and all(
        np.array_equal(x, y) and x.dtype == y.dtype and y.flags.c_contiguous and y.flags.writeable
        for x, y in zip(a.parameters().values(), b.parameters().values(), strict=True)
    )


def test_reading_back(toy: Path, tmp_path: Path) -> None:
    hp, shapes = model(toy)
    alike = trained(toy, {slot.name: 4 for slot in SLOTS}, 11, 4)
    save_adapter(tmp_path / "a.gguf", alike, hp)
    assert equal(alike, load_adapter(tmp_path / "a.gguf", hp, shapes))
    # factors 1/2, 2 and 4 are exact, 3/4 is not
    powers = trained(toy, {"wq": 2, "wk": 4, "tok_embd": 16, "ffn_norm": 1}, 11, 4)
    save_adapter(tmp_path / "a.gguf", powers, hp)
    assert equal(powers, load_adapter(tmp_path / "a.gguf", hp, shapes))
    odd = trained(toy, {"wq": 3}, 11, 4)
    save_adapter(tmp_path / "a.gguf", odd, hp)
    back = load_adapter(tmp_path / "a.gguf", hp, shapes)
    assert (back.alpha, back.lora_r) == (11, 4)
    for x, y in zip(odd.parameters().values(), back.parameters().values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-7)  # two roundings of float32


def test_stored_form(toy: Path, tmp_path: Path) -> None:
    """Names, shapes and types as llama.cpp's loader wants them, read by another reader."""
    adapter = trained(toy, {"tok_embd": 3, "wk": 2, "out_norm": 1}, 8, 4)
    save_adapter(tmp_path / "a.gguf", adapter, model(toy)[0])
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    types = {k: f.types for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    string, f32, u32 = (gguf.GGUFValueType[n] for n in ("STRING", "FLOAT32", "UINT32"))
    assert types == {
        "general.type": [string], "general.architecture": [string], "adapter.type": [string],
        "adapter.lora.alpha": [f32], "nbllama.lora_r": [u32], "nbllama.head_dim": [u32],
    }  # fmt: skip
    texts = {k: reader.fields[k].contents() for k in types}
    assert texts == {
        "general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora",
        "adapter.lora.alpha": 8.0, "nbllama.lora_r": 4, "nbllama.head_dim": 16,
    }  # fmt: skip
    pairs = adapter.pairs
    want = {
        "token_embd.weight.lora_a": pairs["token_embd.weight"].b * np.float32(0.75),
        "token_embd.weight.lora_b": pairs["token_embd.weight"].a.T,
        "output_norm.weight.lora_a": pairs["output_norm.weight"].a,
        "output_norm.weight.lora_b": pairs["output_norm.weight"].b / 4,
        "blk.0.attn_k.weight.lora_a": pairs["blk.0.attn_k.weight"].a,
        "blk.0.attn_k.weight.lora_b": pairs["blk.0.attn_k.weight"].b / 2,
        "blk.1.attn_k.weight.lora_a": pairs["blk.1.attn_k.weight"].a,
        "blk.1.attn_k.weight.lora_b": pairs["blk.1.attn_k.weight"].b / 2,
    }
    assert [t.name for t in reader.tensors] == list(want)
    for t in reader.tensors:
        assert t.data.dtype == np.float32
        np.testing.assert_array_equal(t.data.reshape(want[t.name].shape), want[t.name])
        assert tuple(t.shape) == want[t.name].shape[::-1]


Tensors = dict[str, Any]
Q = "blk.0.attn_q.weight"


def converted(path: Path, tensors: Tensors, *, alpha: Any = 8.0, **keys: Any) -> Path:
    """A file as `convert_lora_to_gguf.py` writes it, without our keys."""
    metadata = {
        "general.type": ("adapter", ValueType.STRING),
        "general.architecture": ("llama", ValueType.STRING),
        "general.name": ("a name", ValueType.STRING),
        "adapter.type": ("lora", ValueType.STRING),
        "adapter.lora.alpha": (alpha, ValueType.FLOAT32),
    }
    metadata.update({k.replace("__", "."): v for k, v in keys.items()})
    entries = [(k, *v) for k, v in metadata.items() if v is not None and v[0] is not None]
    write_gguf(path, entries, list(tensors.items()))
    return path


def halves(rank: int, n_out: int = 64, n_in: int = 64, name: str = Q) -> Tensors:
    rng = np.random.default_rng(rank)
    a, b = rng.standard_normal((rank, n_in)), rng.standard_normal((n_out, rank))
    return {f"{name}.lora_a": a.astype(np.float32), f"{name}.lora_b": b.astype(np.float32)}


def test_files_of_llama_cpp_s_converter(toy: Path, tmp_path: Path) -> None:
    hp, shapes = model(toy)
    tensors = halves(4) | halves(2, n_out=32, name="blk.1.attn_k.weight")
    got = load_adapter(converted(tmp_path / "c.gguf", tensors), hp, shapes)
    assert (got.alpha, got.lora_r) == (8, 4)
    for name, rank in ((Q, 4), ("blk.1.attn_k.weight", 2)):
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        # llama.cpp: alpha / rank of the tensor
        np.testing.assert_allclose(delta(got.pairs[name], got.scale), 8 / rank * (b @ a), rtol=1e-5)
    one = converted(tmp_path / "c.gguf", halves(4))
    assert np.array_equal(load_adapter(one, hp, shapes).pairs[Q].b, halves(4)[f"{Q}.lora_b"])


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_other_tensor_types(toy: Path, tmp_path: Path, kind: str) -> None:
    tensors = halves(32)
    type_id = gguf.GGMLQuantizationType[kind]
    w = gguf.GGUFWriter(tmp_path / "c.gguf", "llama")
    w.add_type("adapter")
    w.add_string("adapter.type", "lora")
    w.add_float32("adapter.lora.alpha", 16)
    want = {}
    for name, x in tensors.items():
        raw = gguf.quants.quantize(x, type_id)
        want[name] = gguf.quants.dequantize(raw, type_id)
        w.add_tensor(name, raw, raw_dtype=type_id)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    got = load_adapter(tmp_path / "c.gguf", *model(toy)).parameters()
    for name, x in want.items():
        np.testing.assert_array_equal(got[name], x)


NAN = np.full((64, 4), np.nan, np.float32)
BAD: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "no lora_b": ({f"{Q}.lora_a": halves(4)[f"{Q}.lora_a"]}, {}, "pair has no lora_b"),
    "no lora_a": ({f"{Q}.lora_b": halves(4)[f"{Q}.lora_b"]}, {}, "pair has no lora_a"),
    "ranks differ": (halves(4) | {f"{Q}.lora_b": np.ones((64, 3), np.float32)}, {}, "differ"),
    "old orientation": (
        halves(4) | {f"{Q}.lora_a": np.ones((64, 4), np.float32)}, {}, "differ"),
    "both transposed": (
        {n: np.ascontiguousarray(x.T) for n, x in halves(4).items()}, {}, r"\(4, 4\)"),
    "unknown block": (halves(4, name="blk.2.attn_q.weight"), {}, "no such tensor"),
    "no target at all": (halves(4, name="blk.0.attn_q.bias"), {}, "no model has"),
    "name of a model's tensor": ({Q: np.ones((64, 64), np.float32)}, {}, "not half of"),
    "wrong n_in": (halves(4, n_in=96), {}, r"\(64, 96\).*\(64, 64\)"),
    "wrong n_out": (halves(4, n_out=32), {}, r"\(32, 64\).*\(64, 64\)"),
    "token_embd not swapped": (halves(4, 320, 64, "token_embd.weight"), {}, "differ"),
    "three dimensions": (halves(4) | {f"{Q}.lora_a": np.ones((1, 4, 64), np.float32)}, {}, "dim"),
    "both halves three dimensions": ({n: x[None] for n, x in halves(4).items()}, {}, "3 dim"),
    "alpha 0": (halves(4), {"alpha": 0.0}, "above 0"),
    "alpha NaN": (halves(4), {"alpha": float("nan")}, "above 0"),
    "alpha negative": (halves(4), {"alpha": -1.0}, "above 0"),
    "alpha infinite": (halves(4), {"alpha": float("inf")}, "above 0"),
    "alpha missing": (halves(4), {"alpha": None}, "adapter.lora.alpha.*missing"),
    "alpha of another type": (
        halves(4), {"adapter__lora__alpha": (8, ValueType.UINT32)}, "floating point"),
    "another architecture": (
        halves(4), {"general__architecture": ("qwen2", ValueType.STRING)}, "qwen2"),
    "no adapter": (halves(4), {"general__type": ("model", ValueType.STRING)}, "general.type"),
    "no type": (halves(4), {"general__type": None}, "general.type"),
    "not lora": (halves(4), {"adapter__type": ("ia3", ValueType.STRING)}, "adapter.type"),
    "aLoRA": (
        halves(4),
        {"adapter__alora__invocation_tokens": (np.array([1], np.uint32), ValueType.ARRAY)},
        "aLoRA"),
    "a checkpoint": (
        halves(4), {"training__type": ("finetune_lora", ValueType.STRING)}, "checkpoint"),
    "nothing": ({}, {}, "no pair"),
    "NaN": (halves(4) | {f"{Q}.lora_b": NAN}, {}, "NaN"),
    "infinity": (halves(4) | {f"{Q}.lora_a": np.full((4, 64), np.inf, np.float32)}, {}, "NaN"),
    "lora_r 0": (halves(4), {"nbllama__lora_r": (0, ValueType.UINT32)}, "lora_r"),
    "lora_r huge": (halves(4), {"nbllama__lora_r": (2**32 - 1, ValueType.UINT32)}, "lora_r"),
    "lora_r of another type": (halves(4), {"nbllama__lora_r": ("4", ValueType.STRING)}, "lora_r"),
    "more than pairs": (
        halves(4) | {f"{Q}.lora_c": np.ones((4, 4), np.float32)}, {}, "other than LoRA pairs"),
    "factor overflows": (
        halves(4) | {f"{Q}.lora_b": np.full((64, 4), 3e38, np.float32)},
        {"nbllama__lora_r": (1 << 20, ValueType.UINT32)}, "overflows"),
    "integers": (halves(4) | {f"{Q}.lora_a": np.ones((4, 64), np.int32)}, {}, "weight type"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_adapters_are_refused(toy: Path, tmp_path: Path, name: str) -> None:
    tensors, keys, message = BAD[name]
    path = converted(tmp_path / "bad.gguf", tensors, **keys)
    with pytest.raises(CheckpointError, match=message) as e:
        load_adapter(path, *model(toy))
    assert e.value.exit_code == 5
    assert str(e.value).startswith(str(path)) and "\n" not in str(e.value)


def test_damaged_and_missing_files(toy: Path, tmp_path: Path) -> None:
    hp, shapes = model(toy)
    path = tmp_path / "a.gguf"
    save_adapter(path, trained(toy, {"wq": 2}, 4, 2), model(toy)[0])
    whole = path.read_bytes()
    for size in (0, 3, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as e:
            load_adapter(path, hp, shapes)
        assert not isinstance(e.value, GGUFError)
    (tmp_path / "link.gguf").symlink_to("nowhere.gguf")
    for name in ("none.gguf", "none/", "link.gguf"):
        for kind in (FileNotFoundError, CheckpointError):
            with pytest.raises(kind, match=f"{name}: no such file or folder; pass"):
                load_adapter(f"{tmp_path}/{name}", hp, shapes)
    with pytest.raises(CheckpointError, match=r"toy\.gguf.*general\.type"):
        load_adapter(toy, hp, shapes)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.gguf", "gguf"), ("a", "gguf"), ("a.bin.gguf", "gguf"),
        ("a.bin", "bin"), ("A.BIN", "bin"), ("none/", "peft"), (".", "peft"), ("a.bin/", "peft"),
    ],
)  # fmt: skip
def test_the_name_decides_what_is_written(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    hp, shapes = model(toy)
    adapter = trained(toy, {"wq": 2, "w2": 2}, 4, 2)
    assert format_of(name) == kind
    assert save_adapter(name, adapter, hp) == []
    assert equal(adapter, load_adapter(name, hp, shapes))
    file = Path(name) / "adapter_model.safetensors" if kind == "peft" else Path(name)
    magic = {"gguf": b"GGUF", "bin": b"algg", "peft": b"{"}[kind]
    assert file.read_bytes()[8 if kind == "peft" else 0 :].startswith(magic)


@pytest.mark.parametrize("name", ["a.safetensors", "adapter_config.json", "x.pt"])
def test_names_that_ask_for_something_else(toy: Path, tmp_path: Path, name: str) -> None:
    hp, _ = model(toy)
    with pytest.raises(UsageError, match="folder"):
        save_adapter(tmp_path / name, trained(toy, {"wq": 2}, 4, 2), hp)
    assert list(tmp_path.iterdir()) == []


def test_files_are_read_by_what_they_hold(toy: Path, tmp_path: Path) -> None:
    hp, shapes = model(toy)
    adapter = trained(toy, {"wq": 2}, 4, 2)
    save_adapter(tmp_path / "a.bin", adapter, hp)
    (tmp_path / "a.bin").rename(tmp_path / "a.gguf")  # as the old tool's default name
    assert equal(adapter, load_adapter(tmp_path / "a.gguf", hp, shapes))
    for name, content, said in (
        ("pytorch.bin", b"PK\x03\x04", "PyTorch"),
        ("adapter_model.safetensors", bytes(8), "folder"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            load_adapter(tmp_path / name, hp, shapes)


def test_notes_belong_to_the_format(toy: Path, tmp_path: Path) -> None:
    hp, _ = model(toy)
    adapter = trained(toy, {"att_norm": 2, "wq": 2}, 4, 2)
    assert save_adapter(tmp_path / "a.bin", adapter, hp) == []
    (note,) = save_adapter(f"{tmp_path}/p/", adapter, hp)
    assert note.startswith("a PEFT folder cannot store LoRA on norm vectors: 2 pairs, such as blk.")
    tied = tmp_path / "tied.gguf"
    make_llama(tied, tied=True)
    (note,) = save_adapter(tmp_path / "p", trained(tied, {"tok_embd": 2}, 4, 2), model(tied)[0])
    assert note.startswith("PEFT applies LoRA on token_embd only to the embedding")


def test_what_llama_cpp_would_not_load_is_not_written(toy: Path, tmp_path: Path) -> None:
    hp, _ = model(toy)
    good = trained(toy, {"wq": 2}, 4, 2)
    bad = Pair(good.pairs[Q].a, np.full((64, 2), np.nan, np.float32))
    for adapter in (
        Adapter("llama", 4, 2, {}),
        Adapter("llama", 0, 2, good.pairs),
        Adapter("llama", float("nan"), 2, good.pairs),
        Adapter("llama", 4, 2, {Q: bad}),
    ):
        with pytest.raises(ValueError):
            save_adapter(tmp_path / "a.gguf", adapter, hp)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["rope_freqs.weight", "rope_factors_long.weight", "blk.0.rope_freqs.weight"]
)
def test_a_stray_table_of_rope_is_passed_over(toy: Path, tmp_path: Path, name: str) -> None:
    tensors = halves(4)
    plain = load_adapter(converted(tmp_path / "plain.gguf", tensors), *model(toy))
    path = converted(tmp_path / "a.gguf", tensors | {name: np.ones(8, np.float32)})
    lines: list[str] = []
    assert equal(plain, load_adapter(path, *model(toy), lines.append))
    assert lines == [f"{path}: constants of the base model are ignored: {name}"]
    with pytest.warns(UserWarning, match="are ignored"):
        load_adapter(path, *model(toy))
    norm = {"blk.0.attn_norm.weight": np.ones(64, np.float32)}
    with pytest.raises(CheckpointError, match=r"'blk\.0\.attn_norm': not half of a LoRA"):
        load_adapter(converted(tmp_path / "b.gguf", tensors | norm), *model(toy))
