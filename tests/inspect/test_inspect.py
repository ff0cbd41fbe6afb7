"""`python -m nbllama.inspect`: its output for each kind of file, refusals, hostile files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nbllama
from examples.toy_models import make_llama
from nbllama.checkpoint.file import save_checkpoint
from nbllama.inspect.__main__ import main
from nbllama.lora.pairs import init_adapter
from nbllama.options.inspect import parse
from tests.checkpoint.run_states import make_state
from tests.conftest import GOLDEN
from tests.gguf_io.build import Gguf, T, kv_f32, kv_str, kv_strings, kv_u32
from tests.gguf_io.cases import CASES
from tests.train.toy_runs import toy_adapter

SPOTTED = "blk.0.attn_q.weight"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "toy.gguf"
    make_llama(path, types={"*": "F32", "ffn_up": "Q8_0"})
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def document(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    code, out, err = run(capsys, "--json", *words)
    found: dict[str, Any] = json.loads(out)
    assert (code == 0) == (found["refused"] is None) and bool(err) == (code != 0)
    return found


def test_a_model(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, toy)
    assert (code, err) == (0, "")
    for line in (
        "  architecture      llama",
        "  heads             4 of size 16, with 2 for keys and values",
        "  types             19 F32, 2 Q8_0",
    ):
        assert line in out.splitlines(), line
    assert "llama.attention.head_count" in out and "can be used: yes" in out
    assert "blk.*.ffn_up.weight (2)       Q8_0  96 x 64" in out
    every = run(capsys, "--all", toy)[1]
    assert "blk.1.ffn_up.weight" in every and "blk.1.ffn_up.weight" not in out


def test_what_would_train_is_what_is_trained(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The counts are those of adapters that the trainer makes with these ranks."""
    model = nbllama.load_model(toy)
    found = document(capsys, toy)
    assert {t["option"] for t in found["targets"] if t["parameters"]["plain text, r 4"]} == {
        f"--rank-{s}" for s in ("tok-embd", "out", "wq", "wk", "wv", "wo", "w1", "w2", "w3")
    }
    for column, r in (("plain text, r 4", 4), ("records, r 16", 16)):
        ranks = {t["option"][7:].replace("-", "_"): t["ranks"][column][0] for t in found["targets"]}
        adapter = init_adapter(model.hp, ranks, alpha=1.0, lora_r=r, seed=0, shapes=model.shapes)
        total = sum(t["parameters"][column] for t in found["targets"])
        assert total == adapter.n_parameters > 0
    more = document(capsys, "--lora-r", "7", toy)["targets"]
    assert {c for t in more for c in t["parameters"]} == {"plain text, r 7", "records, r 7"}
    assert {t["name"]: t["shape"] for t in found["tensors"]} == {
        name: list(shape) for name, shape in model.shapes.items()
    }


def test_every_weight_is_read_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nan.gguf"
    make_llama(path)
    data = bytearray(path.read_bytes())
    with nbllama.load_model(path).gguf as f:
        at = f.tensors[SPOTTED].offset
    data[at + 400 : at + 404] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    assert run(capsys, path)[0] == 0
    code, out, err = run(capsys, "--check", path)
    assert code == 2 and SPOTTED in err and err.count("\n") == 1
    assert "can be used: no" in out


@pytest.mark.parametrize("name", ["a.gguf", "a.bin", "folder/"])
def test_adapters(name: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nbllama.load_model(toy)
    adapter = toy_adapter(model, {"wq": 3, "w2": 2, "wk": 3})
    nbllama.save_adapter(f"{tmp_path}/{name}", adapter, model)
    found = document(capsys, "-m", toy, tmp_path / name)
    assert found["kind"] == "adapter" and "fits the base model" in found["notes"]
    assert sum(t["parameters"]["here"] for t in found["targets"]) == adapter.n_parameters
    assert {t["name"]: tuple(t["shape"]) for t in found["tensors"]} == {
        n: x.shape for n, x in adapter.parameters().items()
    }
    assert {t["option"]: t["ranks"]["here"] for t in found["targets"]} == {
        "--rank-wq": [3], "--rank-wk": [3], "--rank-w2": [2],
    }  # fmt: skip
    alone = document(capsys, tmp_path / name)
    assert alone["targets"] == found["targets"]
    other = tmp_path / "other.gguf"
    make_llama(other, n_ff=64)
    code, out, err = run(capsys, "-m", other, tmp_path / name)
    assert code == 5 and "ffn_down" in err and "can be used: no" in out


def test_an_adapter_that_was_not_trained(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = nbllama.load_model(toy)
    nbllama.save_adapter(tmp_path / "new.gguf", nbllama.init_adapter(model), model)
    assert "every B is zero" in run(capsys, tmp_path / "new.gguf")[1]


def test_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, path = make_state(), tmp_path / "chk.gguf"
    save_checkpoint(path, state)
    found = document(capsys, path)
    assert found["kind"] == "checkpoint" and found["facts"]["iteration"] == state.iteration
    assert found["facts"]["tokens seen"] == 10**12
    n = state.adapter.n_parameters
    moments = {t["name"]: t["shape"] for t in found["tensors"] if "moments" in t["name"]}
    assert moments == {f"optimizer.adam.{which}_moments": [n] for which in ("first", "second")}
    assert sum(t["parameters"]["here"] for t in found["targets"]) == n
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, out, err = run(capsys, path)
    assert code == 5 and "sha256" in err
    # the contents of the header are shown anyway
    assert "training.iteration_count" in out and "blk.*.attn_q.weight.lora_a (2)" in out


def test_files_of_the_old_tool(capsys: pytest.CaptureFixture[str]) -> None:
    base = GOLDEN / "tiny-q4_k.gguf"
    found = document(capsys, "-m", base, GOLDEN / "b-chk-6.gguf")
    assert found["kind"] == "checkpoint of the old finetune" and found["facts"]["iteration"] == 6
    ranks = {t["option"]: t["ranks"]["here"] for t in found["targets"]}
    assert ranks["--rank-wq"] == [3] and ranks["--rank-wk"] == [6]
    again = document(capsys, "-m", base, GOLDEN / "b-lora-6.bin")
    assert again["targets"] == found["targets"] and again["format"].startswith("ggla")


@pytest.mark.parametrize(("build", "said"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_malformed_files(
    build: Callable[[], bytes], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(build())
    code, _, err = run(capsys, path)
    # 'ggla' begins an adapter, which has its own reader
    assert code == (5 if build()[:4] == b"algg" else 2)
    assert err.startswith("error: ") and err.count("\n") == 1 and err.strip().isprintable()
    assert code == 5 or said in err


EVIL = "\x1b]0;owned\x07\x1b[2J\u202e\n\r"


def hostile() -> bytes:
    """Well formed, with terminal commands in every string of the file."""
    return Gguf(
        kvs=(
            kv_str("general.architecture", f"llama{EVIL}"),
            kv_str("general.name", EVIL * 50),
            kv_strings("tokenizer.ggml.tokens", [EVIL.encode(), b"\xff\xfe\x1b", "x" * 9000] * 9),
            kv_u32("llama.block_count", 2**32 - 1),
            kv_f32("nan", float("nan")),
        ),
        tensors=[T(f"blk.{i}.t.weight", (i + 1,)) for i in range(900)],
    ).build()


@pytest.mark.parametrize("option", [(), ("--all",), ("--json",)], ids=str)
def test_hostile_strings_do_not_reach_the_terminal(
    option: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(hostile())
    code, out, err = run(capsys, *option, path)
    assert code == 2 and err.count("\n") == 1
    for line in [*out.splitlines(), *err.splitlines()]:
        assert line.isprintable(), line
        assert len(line) < 2500
    if not option:
        assert len(out) < 40_000 and "... and 700 more" in out
    if option == ("--json",):
        assert json.loads(out)["metadata"]["nan"]["value"] == "nan"
        assert len(json.loads(out)["tensors"]) == 900


def test_a_model_that_is_not_supported_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.gguf"
    tensors = [T("token_embd.weight", (32, 4)), T("numbers", (4,), 24)]
    path.write_bytes(Gguf((kv_str("general.architecture", "mamba"),), tensors).build())
    code, out, err = run(capsys, path)
    assert code == 2 and "mamba" in err and "not supported" in err
    assert "refused: its type is not a weight type" in out and "can be used: no" in out


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, path = parse(["--json", "x.gguf", "-m", "base.gguf"])
    assert path == "x.gguf" and options.json and options.model_base == "base.gguf"
    assert parse(["--", "-x"])[1] == "-x"
    assert run(capsys, "a", "b")[0] == 2
    assert run(capsys)[0] == 2
    code, _, err = run(capsys, tmp_path / "none.gguf")
    assert code == 2 and "no such file" in err
    assert "usage: python -m nbllama.inspect" in run(capsys, "--help")[1]


@pytest.mark.slow
def test_the_demo_model(demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--check", demo_model)
    assert found["facts"]["parameters"] == 134_515_008 and found["facts"]["blocks"] == 30
    assert sum(t["parameters"]["plain text, r 4"] for t in found["targets"]) == 1_221_120
