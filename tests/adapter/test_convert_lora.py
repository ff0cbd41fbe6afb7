"""`python -m nbllama.convert_lora`: six directions, the losses of each, results in llama.cpp."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from examples.toy_models import make_llama
from nbllama.adapter.file import load_adapter, read_stored, save_adapter, write_stored
from nbllama.adapter.stored import Base
from nbllama.cli.convert_lora import convert, main, parse
from nbllama.errors import CheckpointError, UsageError
from nbllama.gguf_io import ValueType, write_gguf
from nbllama.lora.pairs import Adapter
from tests.adapter.adapters import ALL, LINEARS, NORMS, model, same_bits, stored, trained

NAMES = {"gguf": "x.gguf", "bin": "x.bin", "peft": "x/"}
WITHOUT_NORMS = tuple(slot for slot in ALL if slot not in NORMS)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GQA model with untied output."""
    path = tmp_path_factory.mktemp("toy") / "toy.gguf"
    make_llama(path)
    return path


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(NAMES, 2)))
def test_there_and_back_the_same_bits(toy: Path, tmp_path: Path, first: str, second: str) -> None:
    """Equal ranks, or ranks that differ by powers of two, with a scale other than 1."""
    slots = WITHOUT_NORMS if "peft" in (first, second) else ALL
    for ranks, alpha, lora_r in (
        (dict.fromkeys(slots, 4), 11, 4),
        (dict.fromkeys(slots, 3), 5, 3),
        ({slot: 2 ** (i % 3) for i, slot in enumerate(slots)}, 6, 4),
    ):
        for name in ("one", "two", "three"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            (tmp_path / name).mkdir()
        one, two, three = (
            f"{tmp_path}/{name}/{NAMES[kind]}"
            for name, kind in (("one", first), ("two", second), ("three", first))
        )
        adapter = trained(toy, ranks, alpha, lora_r)
        assert write_stored(one, stored(toy, ranks, alpha, lora_r)) == []
        assert convert(one, two, str(toy)) == notes_on_norms(second, ranks)
        assert convert(two, three, str(toy)) == notes_on_norms(first, ranks)
        base = Base.of(*model(toy))
        read = [read_stored(path, base) for path in (one, two, three)]
        assert same_bits(read[0], read[2])
        for back in (load_adapter(path, *model(toy)) for path in (one, two, three)):
            assert (back.alpha, back.lora_r) == (alpha, lora_r)
            for name, x in adapter.parameters().items():
                np.testing.assert_array_equal(back.parameters()[name], x)


def notes_on_norms(kind: str, ranks: dict[str, int]) -> list[str]:
    if kind != "gguf" or "att_norm" not in ranks:
        return []
    return [
        "llama.cpp ignores LoRA on norm vectors (5 here, such as output_norm.weight): merge the"
        " adapter into the model to use every trained pair"
    ]


def test_norm_pairs_are_left_out_of_a_peft_folder(toy: Path, tmp_path: Path) -> None:
    ranks = {"wq": 4, "att_norm": 1, "out_norm": 1}
    one = stored(toy, ranks, 4, 4)
    write_stored(tmp_path / "a.bin", one)
    (note,) = convert(str(tmp_path / "a.bin"), f"{tmp_path}/p/", str(toy))
    assert note.startswith("a PEFT folder cannot store LoRA on norm vectors: 3 pairs, such as outp")
    left = {name: pair for name, pair in one.pairs.items() if "norm" not in name}
    assert len(left) == 2
    got = read_stored(tmp_path / "p", Base())
    assert list(got.pairs) == list(left)
    for name, pair in left.items():
        np.testing.assert_array_equal(got.pairs[name].b, pair.b)


def test_scales_that_a_format_has_no_place_for(toy: Path, tmp_path: Path) -> None:
    """One scale per file (.bin) or per rank (GGUF): B is adjusted, and that is reported."""
    ranks = {"wq": 3, "wk": 4}
    adapter = trained(toy, ranks, 8, 4)
    base = model(toy)
    save_adapter(tmp_path / "a.bin", adapter, base[0])
    (note,) = convert(str(tmp_path / "a.bin"), str(tmp_path / "a.gguf"), str(toy))
    why = "llama.cpp scales each pair by alpha divided by the pair's rank"
    assert note.startswith(f"{why}: lora_b of 2 pairs")
    assert "blk.0.attn_q.weight" in note
    back = load_adapter(tmp_path / "a.gguf", *base)
    for name, x in adapter.parameters().items():
        # times 3/4, and back: two roundings
        np.testing.assert_allclose(back.parameters()[name], x, rtol=2e-7)
    # of another program, pairs scaled by alpha / rank: exact in PEFT, rounded in a .bin
    tensors: dict[str, np.ndarray] = {}
    for name, pair in adapter.pairs.items():
        tensors |= {f"{name}.lora_a": pair.a, f"{name}.lora_b": pair.b}
    keys = [
        ("general.type", "adapter"),
        ("general.architecture", "llama"),
        ("adapter.type", "lora"),
    ]
    entries = [(k, v, ValueType.STRING) for k, v in keys]
    entries += [("adapter.lora.alpha", 8.0, ValueType.FLOAT32)]  # type: ignore[list-item]
    write_gguf(tmp_path / "other.gguf", entries, list(tensors.items()))
    assert convert(str(tmp_path / "other.gguf"), f"{tmp_path}/p/", str(toy)) == []
    got = read_stored(tmp_path / "p", Base())
    assert got.alphas == dict.fromkeys(adapter.pairs, 8)
    for name, pair in adapter.pairs.items():
        np.testing.assert_array_equal(got.pairs[name].b, pair.b)
    (note,) = convert(str(tmp_path / "other.gguf"), str(tmp_path / "b.bin"), str(toy))
    assert note.startswith("a .bin file stores one scale for all pairs: lora_b of 2 pairs")


def test_without_the_base_model(toy: Path, tmp_path: Path) -> None:
    """Our own files suffice for every direction except those that begin with a .bin."""
    one = stored(toy, {"wq": 2, "w2": 2}, 4, 2)
    write_stored(tmp_path / "a.gguf", one)
    assert convert(str(tmp_path / "a.gguf"), f"{tmp_path}/p/") == []
    assert convert(f"{tmp_path}/p", str(tmp_path / "b.gguf")) == []
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert convert(f"{tmp_path}/p", str(tmp_path / "a.bin")) == []
    (note,) = convert(str(tmp_path / "a.bin"), str(tmp_path / "c.gguf"))
    assert "a.bin does not name an architecture; assuming llama" in note
    assert same_bits(one, read_stored(tmp_path / "c.gguf", Base()))
    with pytest.raises(UsageError, match=r"head size.*--model-base"):
        convert(str(tmp_path / "a.bin"), f"{tmp_path}/q/")
    assert not (tmp_path / "q").exists()


def test_the_base_model_proves_the_pairs(toy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    make_llama(other, n_embd=128)
    write_stored(tmp_path / "a.bin", stored(toy, {"wq": 2}, 4, 2))
    with pytest.raises(CheckpointError, match=r"\(64, 64\) matrix.*\(128, 128\)"):
        convert(str(tmp_path / "a.bin"), str(tmp_path / "b.gguf"), str(other))
    tied = tmp_path / "tied.gguf"
    make_llama(tied, tied=True)
    write_stored(tmp_path / "t.bin", stored(tied, {"tok_embd": 2}, 4, 2))
    for target, said in (("t.gguf", "llama.cpp aborts"), ("t/", "PEFT applies")):
        (note,) = convert(str(tmp_path / "t.bin"), f"{tmp_path}/{target}", str(tied))
        assert note.startswith(said)


def test_llama_cpp_does_what_was_trained(toy: Path, tmp_path: Path) -> None:
    """One adapter in three formats, each converted to GGUF and loaded by real llama.cpp."""
    from tests.oracle import LlamaModel

    tokens = [1, 70, 33, 300, 5, 5, 261]
    ranks = {"wq": 3, "wk": 6, "wv": 2, "wo": 6, "w1": 1, "w2": 4, "w3": 6, "tok_embd": 3, "out": 2}
    adapter = trained(toy, ranks, 16, 6)
    hp, _ = model(toy)
    files = {}
    for kind, name in NAMES.items():
        source = f"{tmp_path}/{name}"
        save_adapter(source, adapter, hp)
        files[kind] = tmp_path / f"from-{kind}.gguf"
        convert(source, str(files[kind]), str(toy))
    with LlamaModel(toy) as llama:
        plain = llama.logits(tokens)
        got = {kind: llama.logits(tokens, [(file, 1.0)]) for kind, file in files.items()}
    assert abs(got["gguf"] - plain).max() > 0.02 * abs(plain).max()
    for kind in ("bin", "peft"):
        # B is rounded once more or once less; float32 through two layers
        assert abs(got[kind] - got["gguf"]).max() < 2e-6 * abs(plain).max()


def test_the_program(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_stored("a.gguf", stored(toy, dict.fromkeys(LINEARS, 2), 4, 2))
    assert main(["a.gguf", "适配器/", "--model-base", str(toy)]) == 0
    assert capfd.readouterr() == ("wrote 适配器/\n", "")
    assert main([f"--model_base={toy}", "适配器", "a.bin"]) == 0
    assert load_adapter("a.bin", *model(toy)).alpha == 4
    capfd.readouterr()
    for argv, code, said in (
        ([], 2, "pass two names"),
        (["a.gguf"], 2, "pass two names"),
        (["a", "b", "c"], 2, "pass two names"),
        (["a.gguf", "b.bin", "--modle-base", "x"], 2, "--model-base"),
        (["none.gguf", "b.bin"], 2, "none.gguf: no such file"),
        (["a.gguf", "b.bin", "-m", "none.gguf"], 2, "none.gguf"),
        (["a.gguf", "./a.gguf"], 2, "the same"),
        (["适配器", "适配器/"], 2, "the same"),
        (["a.gguf", "x.safetensors"], 2, "folder"),
        (["a.gguf", "none/b.bin"], 3, "cannot be written"),
        ([str(toy), "b.bin"], 5, "general.type"),
        (["a.gguf", "a.bin/"], 3, "cannot be written"),
    ):
        assert main(argv) == code, argv
        out, err = capfd.readouterr()
        assert out == "" and err.startswith("error: ") and said in err
        assert err.count("\n") == 1
    assert not Path("b.bin").exists()
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capfd.readouterr().out
    assert "IN OUT" in text and "--model-base" in text


def test_an_adapter_of_only_norms_stays_what_it_is(toy: Path, tmp_path: Path) -> None:
    adapter: Adapter = trained(toy, {"ffn_norm": 1}, 2, 1)
    save_adapter(tmp_path / "a.bin", adapter, model(toy)[0])
    with pytest.raises(UsageError, match="nothing else"):
        convert(str(tmp_path / "a.bin"), f"{tmp_path}/p/", str(toy))
