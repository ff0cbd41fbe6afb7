"""Every weight type: bits of the decoder against gguf-py and llama.cpp, and the checks."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from nbllama.errors import GGUFError
from nbllama.quants import DECODERS, QUANTS, as_readonly, decode, decode_rows, nbytes, quant_type
from nbllama.quants.base import KERNEL_SET, find_decoder
from tests.quants.blocks import (
    BLOCK_TYPE_IDS,
    ERRORS,
    TYPE_IDS,
    assert_same_bits,
    random_blocks,
    reference,
    type_name,
)

KERNEL_SETS = ("vector", "plain")

each_type = pytest.mark.parametrize("type_id", TYPE_IDS, ids=type_name)
each_block_type = pytest.mark.parametrize("type_id", BLOCK_TYPE_IDS, ids=type_name)


def test_table_is_ggml_s() -> None:
    for type_id, t in QUANTS.items():
        theirs = gguf.GGMLQuantizationType(type_id)
        assert (t.name, (t.block_size, t.type_size)) == (theirs.name, gguf.GGML_QUANT_SIZES[theirs])
    assert sorted(DECODERS) == TYPE_IDS
    assert DECODERS[2] is find_decoder(2, KERNEL_SET)
    assert find_decoder(2, "plain") is not find_decoder(2, "vector")


each_set = pytest.mark.parametrize("kernel_set", KERNEL_SETS)


@each_set
@each_type
def test_random_blocks_like_gguf_py(type_id: int, kernel_set: str) -> None:
    raw = random_blocks(type_id, 301)
    got = np.zeros(301 * QUANTS[type_id].block_size, np.float32)
    find_decoder(type_id, kernel_set)(raw, 0, 301, got, 0)
    assert np.isfinite(got).all()
    assert_same_bits(got, reference(type_id, raw))


@each_type
def test_random_blocks_like_llama_cpp(type_id: int) -> None:
    oracle = pytest.importorskip("tests.oracle")
    raw = random_blocks(type_id, 301, seed=1)
    n = 301 * QUANTS[type_id].block_size
    assert_same_bits(decode(type_id, raw, n), oracle.dequantize(type_id, raw, n))


# llama.cpp's quantisers of these first spend 2 to 10 s on a table.
SLOW_QUANTISERS = ("IQ1_S", "IQ1_M", "IQ2_XS", "IQ2_S")


@pytest.mark.parametrize(
    "type_id",
    [
        pytest.param(i, marks=pytest.mark.slow) if type_name(i) in SLOW_QUANTISERS else i
        for i in TYPE_IDS
    ],
    ids=type_name,
)
def test_weights_quantised_by_llama_cpp(type_id: int) -> None:
    oracle = pytest.importorskip("tests.oracle")
    weights = np.random.default_rng(2).standard_normal((5, 512)).astype(np.float32) * 0.02
    if type_name(type_id).startswith("TQ"):
        weights = np.sign(weights) * (np.abs(weights) > 0.01) * np.float32(0.02)
    raw = np.frombuffer(oracle.quantize(type_id, weights), dtype=np.uint8)
    got = decode(type_id, raw, weights.size)
    assert_same_bits(got, oracle.dequantize(type_id, raw, weights.size))
    # Also close to the true weights, to exclude two equal mistakes. Bounds are
    # what llama.cpp's quantisers reach on these numbers, and a tenth more.
    error = np.linalg.norm(got - weights.ravel()) / np.linalg.norm(weights)
    assert error <= 1.1 * ERRORS[type_name(type_id)]


@each_block_type
def test_zero_block(type_id: int) -> None:
    raw = np.zeros(QUANTS[type_id].type_size, dtype=np.uint8)
    got = decode(type_id, raw, QUANTS[type_id].block_size)
    assert_same_bits(got, reference(type_id, raw))


@each_set
@each_type
@pytest.mark.parametrize("shift", [1, 2, 7])
def test_any_alignment_and_offsets(type_id: int, kernel_set: str, shift: int) -> None:
    t = QUANTS[type_id]
    blocks = random_blocks(type_id, 9)
    want = reference(type_id, blocks)
    other = np.full(shift, 255, np.uint8)
    raw = as_readonly(np.concatenate([other, blocks, other]))
    out = np.full(3 + 4 * t.block_size + 6, 7.0, dtype=np.float32)
    decoder = find_decoder(type_id, kernel_set)
    decoder(raw, shift + 2 * t.type_size, 4, out, 3)
    assert_same_bits(out[3:-6].copy(), want[2 * t.block_size : 6 * t.block_size].copy())
    assert (out[:3] == 7).all() and (out[-6:] == 7).all()
    decoder(raw[1:], shift - 1, 0, out[:0], 0)


@each_type
def test_writable_input_is_not_a_second_compilation(type_id: int) -> None:
    raw = np.array(random_blocks(type_id, 4))
    decode(type_id, as_readonly(raw), 4 * QUANTS[type_id].block_size)
    before = list(DECODERS[type_id].signatures)
    decode(type_id, raw, 4 * QUANTS[type_id].block_size)
    assert DECODERS[type_id].signatures == before
    assert raw.flags.writeable


def test_memmap(tmp_path) -> None:
    raw = random_blocks(2, 10)
    (tmp_path / "w").write_bytes(b"x" + raw.tobytes())
    mapped = np.memmap(tmp_path / "w", dtype=np.uint8, mode="r")[1:]
    assert_same_bits(decode(2, mapped, 320), reference(2, raw))


@each_type
def test_rows(type_id: int) -> None:
    row_elements = 2 * QUANTS[type_id].block_size
    raw = random_blocks(type_id, 14)
    matrix = reference(type_id, raw).reshape(7, row_elements)
    rows = np.array([6, 0, 0, 3], dtype=np.int32)
    assert_same_bits(decode_rows(type_id, raw, row_elements, rows), matrix[rows])
    assert decode_rows(type_id, raw, row_elements, rows[:0]).shape == (0, row_elements)
    for bad in (7, -1):
        with pytest.raises(IndexError):
            decode_rows(type_id, raw, row_elements, np.array([0, bad]))


def test_sizes_are_checked() -> None:
    raw = random_blocks(2, 2)
    with pytest.raises(ValueError, match="36 bytes, expected 18"):
        decode(2, raw, 32)
    with pytest.raises(ValueError, match="36 bytes, expected 54"):
        decode(2, raw, 96)
    with pytest.raises(ValueError, match="whole Q4_0 blocks"):
        decode(2, raw, 63)
    with pytest.raises(ValueError, match="whole Q4_0 blocks"):
        nbytes(2, -32)
    with pytest.raises(ValueError, match="not a multiple of the row size"):
        decode_rows(2, raw[:-1], 32, np.array([0]))
    with pytest.raises(ValueError, match="not a multiple of the row size"):
        decode_rows(2, raw, 0, np.array([0]))
    with pytest.raises(ValueError, match="rows must be integers"):
        decode_rows(2, raw, 32, np.array([0.0]))
    for bad in (raw.view(np.int8), raw.reshape(2, 18), raw[::2]):
        with pytest.raises(ValueError, match="contiguous uint8"):
            decode(2, bad, 64)
    assert nbytes(12, 512) == 288


def test_unsupported_types_are_named() -> None:
    with pytest.raises(GGUFError, match="Q8_K"):
        quant_type(15)
    with pytest.raises(GGUFError, match="number 999"):
        decode(999, np.zeros(1, np.uint8), 1)


def test_a_type_without_a_decoder_in_vectors_uses_the_plain_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nbllama.quants import legacy
    from nbllama.quants.vector import legacy as in_vectors

    find = find_decoder.__wrapped__
    assert find(2, "vector") is in_vectors.decode_q4_0
    monkeypatch.delattr(in_vectors, "decode_q4_0")
    assert find(2, "vector") is find(2, "plain") is legacy.decode_q4_0
