"""Perplexity and KL divergence: the sums by hand, llama.cpp's values, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from examples.toy_models import decode_to_f32, make_llama
from nbllama.evaluate.scores import Mean, Reader, chunk_losses, chunks, compare_logits, token_losses
from nbllama.model.passes import load_model
from nbllama.perplexity import main
from tests.oracle.model import LlamaModel
from tests.train.toy_runs import Done, toy_adapter, toy_text

Run = Callable[..., Done]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    def call(*args: object) -> Done:
        capfd.readouterr()
        code = main([str(a) for a in args])
        return Done(code, *capfd.readouterr())

    yield call


def llama_cpp_perplexity(
    path: Path, text: str, n_ctx: int, lora: list[tuple[Path, float]] | None = None
) -> tuple[float, float]:
    """llama-perplexity's loop over real llama.cpp's logits: PPL and its uncertainty."""
    with LlamaModel(path, n_ctx=n_ctx, n_threads=2) as there:
        ids = there.vocab.tokenize(text.encode(), add_special=True, parse_special=False)
        nll = squares = 0.0
        count = 0
        for start in range(0, len(ids) - n_ctx + 1, n_ctx):
            chunk = list(ids[start : start + n_ctx])
            if there.vocab.add_bos:
                chunk[0] = there.vocab.bos or 0
            z = there.logits(chunk, lora or []).astype(np.float64)
            for j in range(n_ctx // 2, n_ctx - 1):
                top = z[j].max()
                v = math.log(np.exp(z[j] - top).sum()) + top - z[j][chunk[j + 1]]
                nll, squares, count = nll + v, squares + v * v, count + 1
    mean = nll / count
    spread = math.sqrt(max(0.0, squares / count - mean * mean) / (count - 1))
    return math.exp(mean), math.exp(mean) * spread


def final(done: Done) -> tuple[float, float]:
    assert done.code == 0, done
    words = done.out.strip().splitlines()[-1].split()
    assert words[:4] == ["Final", "estimate:", "PPL", "="]
    return float(words[4]), float(words[6])


def lines(done: Done) -> dict[str, str]:
    assert done.code == 0, done
    return {line[:17].strip(): line[18:] for line in done.out.splitlines()}


@pytest.mark.parametrize("tokenizer", ["spm", "bpe"])
def test_llama_cpp_s_value(tmp_path: Path, run: Run, tokenizer: str) -> None:
    model, text = tmp_path / "m.gguf", toy_text(tmp_path / "t.txt", 900)
    make_llama(model, tokenizer=tokenizer, n_head_kv=1)
    ppl, error = final(run("-m", model, "-f", text, "-c", "33"))
    expected = llama_cpp_perplexity(model, text.read_text(), 33)
    # both print four decimals of a number near 300
    np.testing.assert_allclose((ppl, error), expected, rtol=1e-5)


def test_an_adapter_and_its_scale(tmp_path: Path, run: Run) -> None:
    from nbllama.adapter.file import save_adapter

    path, text = tmp_path / "m.gguf", toy_text(tmp_path / "t.txt", 500)
    make_llama(path)
    model = load_model(path)
    # llama.cpp takes no pairs of norms
    adapter = toy_adapter(model, {"wq": 2, "wo": 3, "w1": 2, "out": 2})
    save_adapter(tmp_path / "a.gguf", adapter, model.hp)
    ppl, _ = final(
        run("-m", path, "-f", text, "-c", "32", "--lora-scaled", tmp_path / "a.gguf", "0.7")
    )
    plain, _ = final(run("-m", path, "-f", text, "-c", "32"))
    expected, _ = llama_cpp_perplexity(path, text.read_text(), 32, [(tmp_path / "a.gguf", 0.7)])
    assert ppl == pytest.approx(expected, rel=1e-5)
    assert abs(ppl - plain) > 0.1


@pytest.mark.slow
def test_the_demo_model_in_float32(tmp_path: Path, run: Run, demo_model: Path) -> None:
    model = tmp_path / "f32.gguf"
    decode_to_f32(demo_model, model)
    text = Path(__file__).parents[2] / "docs" / "from-llama-cpp-finetune.md"
    got = final(run("-m", model, "-f", text, "-c", "256", "--chunks", "4"))
    with LlamaModel(model) as there:
        ids = there.vocab.tokenize(text.read_bytes(), add_special=True, parse_special=False)
        short = there.vocab.detokenize(ids[: 4 * 256]).decode()
    expected = llama_cpp_perplexity(model, short, 256)
    assert got[0] == pytest.approx(expected[0], rel=1e-4)  # the requirement is 1e-3


def test_chunks() -> None:
    class Wants:
        add_bos, bos_id = True, 7

    found = chunks(np.arange(10, dtype=np.int32), 4, Wants())  # type: ignore[arg-type]
    assert [c.tolist() for c in found] == [[7, 1, 2, 3], [7, 5, 6, 7]]


def test_losses_of_a_chunk_are_those_of_one_row(tmp_path: Path) -> None:
    """The size of the pieces of logits changes nothing."""
    make_llama(tmp_path / "m.gguf")
    model = load_model(tmp_path / "m.gguf")
    tokens = np.random.default_rng(1).integers(0, 320, 300).astype(np.int32)
    reader = Reader(model, None, 300)
    (rows,) = [np.concatenate(list(reader.logits(tokens, 0, 300)))]
    want = token_losses(rows[150:299], tokens[151:300])
    np.testing.assert_array_equal(chunk_losses(reader, tokens), want)


def test_means() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(400)
    mean = Mean.of(values)
    assert mean.value == pytest.approx(values.mean())
    assert mean.error == pytest.approx(values.std(ddof=1) / 20, rel=1e-9)
    assert math.isnan(Mean.of(values[:1]).error)


def test_divergence_by_hand() -> None:
    rng = np.random.default_rng(2)
    p, q = (3 * rng.standard_normal((5, 11)).astype(np.float32) for _ in range(2))
    targets = np.array([0, 3, 10, 2, 2])
    c = compare_logits(p, q, targets)
    for m in range(5):
        one, two = (np.exp(z[m].astype(float)) / np.exp(z[m].astype(float)).sum() for z in (p, q))
        assert c.kl[m] == pytest.approx((one * np.log(one / two)).sum(), rel=1e-9)
        assert c.base[m] == pytest.approx(-np.log(one[targets[m]]), rel=1e-9)
        assert c.other[m] == pytest.approx(-np.log(two[targets[m]]), rel=1e-9)
        assert c.same_top[m] == (one.argmax() == two.argmax())
    assert compare_logits(p, p, targets).kl.max() == 0


def test_divergence_of_models(tmp_path: Path, run: Run) -> None:
    from nbllama.adapter.file import save_adapter

    path, text = tmp_path / "m.gguf", toy_text(tmp_path / "t.txt", 500)
    make_llama(path)
    model = load_model(path)
    save_adapter(tmp_path / "a.gguf", toy_adapter(model, {"wq": 2, "w2": 2}), model.hp)
    with_it = ("-m", path, "-f", text, "-c", "32", "--kl-divergence")
    moved = lines(run(*with_it, "--lora", tmp_path / "a.gguf"))
    assert float(moved["Mean KLD"].split()[0]) > 1e-4
    nothing = lines(run(*with_it, "--lora-scaled", tmp_path / "a.gguf", "0"))
    assert float(nothing["Mean KLD"].split()[0]) == 0
    assert nothing["Same top token"].startswith("100.000")
    same = lines(run(*with_it, "--base-model", path, "--lora", tmp_path / "a.gguf"))
    assert same == moved


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("-f", "none.txt"), 2, "none.txt: no such file"),
        (("-f", "gbk.txt"), 2, "gbk.txt is not UTF-8: byte 0xba at offset 0"),
        (("-f", "t.txt", "-c", "400"), 2, "are required with a context of 400"),
        (("-f", "t.txt", "--lora", "none.gguf"), 2, "none.gguf: no such adapter"),
        (("-f", "t.txt", "--lora-scaled", "none.gguf", "much"), 2, "'much' is not a number"),
        (("-f", "t.txt", "--lora", "other.gguf"), 5, "other.gguf"),
        (("-f", "t.txt", "--kl-divergence"), 2, "nothing to compare with"),
        (("-f", "t.txt", "--base-model", "m.gguf"), 2, "only used with --kl-divergence; pass both"),
        (
            ("-f", "t.txt", "-c", "32", "--kl-divergence", "--base-model", "words.gguf"),
            2,
            "a different vocabulary",
        ),
        ((), 2, "the text is missing"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    more: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    from nbllama.adapter.file import save_adapter

    monkeypatch.chdir(tmp_path)
    make_llama("m.gguf")
    make_llama("wide.gguf", n_embd=128)
    make_llama("words.gguf", tokenizer="bpe")
    wide = load_model("wide.gguf")
    save_adapter("other.gguf", toy_adapter(wide, {"wq": 2}), wide.hp)
    toy_text(tmp_path / "t.txt", 300)
    (tmp_path / "gbk.txt").write_bytes("红楼梦".encode("gbk"))
    done = run("-m", "m.gguf", *more)
    assert done.code == code, done
    (line,) = done.err.splitlines()
    assert line.startswith("error: ") and said in line
