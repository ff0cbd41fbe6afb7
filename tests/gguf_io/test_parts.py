"""A model in parts: the same model as in one file, from any part; and invalid sets of parts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from examples.toy_models import make_llama
from nbllama.checkpoint.identity import model_fingerprint
from nbllama.errors import GGUFError, UsageError
from nbllama.gguf_io import GGUFFile, RawTensor, ValueType, open_gguf, write_gguf
from nbllama.gguf_io.reader import open_one
from nbllama.inspect.look import look
from nbllama.options.finetune.table import Options
from nbllama.quantize import main as quantize
from nbllama.system.output_file import prepare_output
from nbllama.system.part_names import part_names, part_of
from nbllama.train.run.names import Names, check_outputs
from tests.gguf_io.split import split
from tests.oracle.model import LlamaModel


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "toy.gguf"
    make_llama(path)
    return path


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    return split(whole, tmp_path / "toy", [4, 3, 1])


@pytest.mark.parametrize("sizes", [[4, 3, 1], [0, 7, 1], [1, 1]])
def test_any_part_is_the_whole_model(whole: Path, tmp_path: Path, sizes: list[int]) -> None:
    parts = split(whole, tmp_path / "toy", sizes)
    with open_gguf(whole) as one:
        for part in parts:
            with open_gguf(part) as f:
                assert _shown(f) == _shown(one)
                assert list(f.tensors) == list(one.tensors)
                for name, info in one.tensors.items():
                    assert f.tensors[name][1:3] == info[1:3]
                    np.testing.assert_array_equal(f.data(name), one.data(name))
                assert f.path == str(parts[0]) and f.paths == tuple(map(str, parts))
                assert f.size == sum(p.stat().st_size for p in parts)
                f.recheck()
                # a run that began with one file continues with the parts
                assert model_fingerprint(f) == model_fingerprint(one)


def _shown(f: GGUFFile) -> list[tuple[str, ValueType, str]]:
    """Keys with types and values, which may be arrays."""
    return [(key, kind, str(value)) for key, value, kind in f.entries()]


def test_llama_cpp_reads_the_same_model(whole: Path, parts: list[Path]) -> None:
    """The helper's layout is llama.cpp's own."""
    with LlamaModel(whole) as one, LlamaModel(parts[0]) as several:
        np.testing.assert_array_equal(one.logits([1, 5, 9]), several.logits([1, 5, 9]))


def _removed(parts: list[Path]) -> None:
    parts[1].unlink()


def _two_removed(parts: list[Path]) -> None:
    parts[0].unlink()
    parts[1].unlink()


def _twice(parts: list[Path]) -> None:
    shutil.copy(parts[2], parts[1])


def _foreign(parts: list[Path]) -> None:
    """A part of a model of other blocks: another number of tensors in all."""
    other = parts[1].parent / "other.gguf"
    make_llama(other, n_layer=3)
    shutil.copy(split(other, other.parent / "other", [4, 3, 1])[1], parts[1])


def _other_count(parts: list[Path]) -> None:
    other = split(parts[0], parts[0].parent / "other", [4, 4])
    shutil.copy(other[1], parts[1])


def _of_one_file(parts: list[Path]) -> None:
    make_llama(parts[1])


def _doubled(parts: list[Path]) -> None:
    """The last part holds one more tensor, and it is one of the first part's."""
    with open_one(parts[2]) as f:
        tensors = [
            (t.name, RawTensor(t.shape, t.type_id, f.data(t.name).copy()))
            for t in f.tensors.values()
        ]
        keys = list(f.entries())
    tensors.append(("token_embd.weight", RawTensor((4,), 0, bytes(16))))
    write_gguf(parts[2], keys, tensors)


def _extra(parts: list[Path]) -> None:
    with open_gguf(parts[0]) as f:
        tensor = [("x", np.zeros(4, np.float32))]
        n = len(f.tensors)
    keys = [("split.no", 2, ValueType.UINT16), ("split.count", 3, ValueType.UINT16)]
    write_gguf(parts[2], [*keys, ("split.tensors.count", n, ValueType.INT32)], tensor)


FAULTS: dict[str, tuple[Callable[[list[Path]], None], str, str]] = {
    "missing": (_removed, "one of 3 parts of a split model; part 2 is missing: ", ""),
    "two missing": (_two_removed, "parts 1, 2 are missing: ", ""),
    "twice": (_twice, "is not part of the same model as", "'split.count'"),
    "foreign": (_foreign, "is not part of the same model as", "'split.tensors.count'"),
    "other count": (_other_count, "is not part of the same model as", "are 1, 2, "),
    "of one file": (_of_one_file, "is not part of the same model as", "are None, None, None"),
    "doubled": (_doubled, "tensor 'token_embd.weight': is also in toy-00001-of-00003.gguf", ""),
    "other tensors": (_extra, "its parts contain", "tensors, expected"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_parts_that_are_no_model(parts: list[Path], fault: str) -> None:
    spoil, *expected = FAULTS[fault]
    spoil(parts)
    with pytest.raises(GGUFError) as caught:
        open_gguf(parts[2])
    line = str(caught.value)
    assert "\n" not in line and all(text in line for text in expected), line


def test_names_that_are_no_parts(parts: list[Path], tmp_path: Path) -> None:
    for name, expected in (
        (
            "blob",
            "one of 3 parts of a split model; rename it to NAME-00002-of-00003.gguf",
        ),
        ("toy-00003-of-00003.gguf", "its name says part 3 of 3, but its keys say 2 of 3"),
        ("toy-00002-of-00004.gguf", "its name says part 2 of 4, but its keys say 2 of 3"),
    ):
        shutil.copy(parts[1], tmp_path / name)
        with pytest.raises(GGUFError, match=expected):
            open_gguf(tmp_path / name)


def test_a_part_that_changes_is_seen(parts: list[Path]) -> None:
    with open_gguf(parts[0]) as f:
        parts[2].write_bytes(parts[2].read_bytes() + bytes(32))
        with pytest.raises(GGUFError, match=r"00003-of-00003.*has changed since it was opened"):
            f.recheck()


def test_one_part_of_one_is_a_file(whole: Path, tmp_path: Path) -> None:
    (only,) = split(whole, tmp_path / "toy", [9])
    renamed = shutil.copy(only, tmp_path / "x.gguf")
    with open_gguf(renamed) as f:
        assert f.paths == (str(renamed),)


def test_part_names() -> None:
    assert part_of("a/b-00002-of-00003.gguf") == ("a/b", 2, 3)
    assert part_names("m-00001-of-00002.gguf") == [
        "m-00001-of-00002.gguf",
        "m-00002-of-00002.gguf",
    ]
    for name in ("m-1-of-2.gguf", "m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m.gguf"):
        assert part_of(name) is None and part_names(name) == []


def test_no_part_is_overwritten(parts: list[Path]) -> None:
    with pytest.raises(UsageError, match="is also an input"):
        prepare_output(str(parts[2]), [str(parts[0])])
    options = Options(model_base=str(parts[0]), train_data="x.txt")
    outputs = {"--lora-out": [Names(str(parts[1]))]}
    with pytest.raises(UsageError, match="--lora-out and --model-base are the same file"):
        check_outputs(options, outputs)


def test_inspect_and_quantise(
    whole: Path, parts: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = look(str(parts[1]))
    assert found.refused is None and found.format == "GGUF version 3, in 3 files"
    assert len(found.tensors) == len(look(str(whole)).tensors)
    out = tmp_path / "q.gguf"
    assert quantize([str(parts[2]), str(out), "F16"]) == 0
    assert f"the model has 3 file parts; {out} will be a single file" in capsys.readouterr().out
    with open_gguf(out) as f:
        assert len(f.tensors) == len(found.tensors) and "split.count" not in f.metadata
