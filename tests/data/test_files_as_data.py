"""Files other than plain JSON or text: compressed, archived, in other encodings, or no data."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sqlite3
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest

from nbllama.data import DataFile, Samples, load_dataset, open_data, text_file, unpack
from nbllama.data.splits import data_files, find_splits
from nbllama.errors import DataError
from nbllama.system import regular
from nbllama.text import Tokenizer

CASES = Path(__file__).parent / "cases" / "files"
MOON = "海上生明月，天涯共此时。床前明月光，疑是地上霜。"
LINE = '{"text": "Ebbe, 潮, é"}\n'
PAIRS = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(3)]


def opened(folder: Path, content: bytes, name: str = "data", **options: Any) -> DataFile:
    (folder / name).write_bytes(content)
    return open_data(folder / name, **options)


def refusal(folder: Path, content: bytes, name: str = "data", **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(folder, content, name, **options)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    return str(caught.value)


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


class TestEncodings:
    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
    @pytest.mark.parametrize("big", [False, True])
    def test_a_byte_order_mark_says_which(self, tmp_path: Path, encoding: str, big: bool) -> None:
        content = LINE.encode(encoding)
        if big and encoding != "utf-8-sig":
            content = ("\ufeff" + LINE).encode(encoding + "-be")
        assert opened(tmp_path, content, "a.jsonl").samples == [(1, ("", "Ebbe, 潮, é"))]
        text = opened(tmp_path, content, "a.txt", data_format="raw")
        assert text.text == LINE

    @pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
    @pytest.mark.parametrize(
        "text", ["The tide came in. " * 9, LINE, "海上生明月，天涯共此时。\n" * 5]
    )
    def test_without_a_mark_it_is_refused(self, tmp_path: Path, encoding: str, text: str) -> None:
        for name, more in (("a.txt", {}), ("a.jsonl", {}), ("a.txt", {"data_format": "raw"})):
            line = refusal(tmp_path, text.encode(encoding), name, **more)
            wanted = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
            assert f"it looks like {wanted} without a byte-order mark" in line
            assert f"iconv -f {wanted} -t UTF-8" in line

    @pytest.mark.parametrize(
        "text", ["海上生明月，天涯共此时。\n", '{"text": "床前明月光，疑是地上霜。"}']
    )
    @pytest.mark.parametrize("encoding", ["gb18030", "gbk", "gb2312"])
    def test_gb18030_is_guessed(self, tmp_path: Path, text: str, encoding: str) -> None:
        line = refusal(tmp_path, text.encode(encoding), "a.txt")
        assert "is not UTF-8: byte 0x" in line
        assert "looks like GB18030; convert it with iconv -f GB18030 -t UTF-8 " in line
        assert line.endswith("a.txt > " + str(tmp_path / "a-utf8.txt"))

    @pytest.mark.parametrize(
        ("text", "encoding"),
        [
            ("Der Fluß steigt, die Fähre fährt später.", "cp1252"),
            ("海上生明月，天涯共此時，情人怨遙夜，竟夕起相思。", "big5"),
            ("ひさかたの光のどけき春の日に", "shift_jis"),
            ("Белеет парус одинокий", "cp1251"),
        ],
    )
    def test_others_are_not_taken_for_it(self, tmp_path: Path, text: str, encoding: str) -> None:
        line = refusal(tmp_path, text.encode(encoding), "a.txt")
        assert "convert the file to UTF-8" in line and "GB18030" not in line

    def test_nul_bytes(self, tmp_path: Path) -> None:
        for name in ("nul-bytes.txt", "utf16-no-mark.txt"):
            with pytest.raises(DataError, match="NUL bytes"):
                open_data(CASES / name)
        assert "NUL bytes, the first at offset 3" in refusal(tmp_path, b"abc\0def\n" * 9)

    def test_damaged_utf16(self, tmp_path: Path) -> None:
        line = refusal(tmp_path, "text".encode("utf-16")[:-1], "a.txt")
        assert "begins with the byte-order mark of UTF-16, but is damaged at byte" in line


def database(folder: Path) -> bytes:
    base = sqlite3.connect(folder / "x.db")
    base.execute("create table t (a text)")
    base.commit()
    base.close()
    return (folder / "x.db").read_bytes()


BINARY = {
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n",
    "RTF": b"{\\rtf1\\ansi Hello}",
    "Word": zipped({"[Content_Types].xml": b"<x/>", "word/document.xml": b"<x/>"}),
    "Excel": zipped({"[Content_Types].xml": b"<x/>", "xl/workbook.xml": b"<x/>"}),
    "PowerPoint": zipped({"[Content_Types].xml": b"<x/>", "ppt/a.xml": b"<x/>"}),
    "OpenDocument": zipped({"mimetype": b"x", "META-INF/manifest.xml": b"<x/>"}),
    "PyTorch": zipped({"m/data.pkl": b"\x80\x02.", "m/data/0": b"0000"}),
    "old Office": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500),
    "GGUF": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
    "safetensors": struct.pack("<Q", 60) + b'{"__metadata__": {"format": "pt"}}'.ljust(60),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "JPEG": b"\xff\xd8\xff\xe0" + bytes(40),
    "tar": b"a.txt".ljust(257, b"\0") + b"ustar\0" + bytes(300),
    "bzip2": bz2.compress(LINE.encode()),
    "xz": lzma.compress(LINE.encode()),
    "7-Zip": b"7z\xbc\xaf\x27\x1c" + bytes(40),
    "pickle": b"\x80\x04\x95" + bytes(40),
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "NumPy": b"\x93NUMPY\x01\0" + bytes(40),
    "Arrow": b"ARROW1\0\0" + bytes(40),
    "binary data": bytes(range(1, 256)) * 4,
    "NUL bytes": b"\x9c" + bytes(9) + b"\x07\x80",
}  # fmt: skip


@pytest.mark.parametrize("kind", BINARY)
@pytest.mark.parametrize("name", ["data.txt", "data.jsonl", "data"])
def test_binary_files_say_what_they_are(tmp_path: Path, kind: str, name: str) -> None:
    for options in ({}, {"skip_bad": True}, {"data_format": "raw"}, {"data_format": "chat"}):
        assert kind in refusal(tmp_path, BINARY[kind], name, **options)


def test_a_database_and_other_binary_cases(tmp_path: Path) -> None:
    assert "SQLite database" in refusal(tmp_path, database(tmp_path))
    with pytest.raises(DataError, match="Parquet"):
        open_data(CASES / "parquet-magic.parquet")
    with pytest.raises(DataError, match="Zstandard"):
        open_data(CASES / "zstd-magic.jsonl.zst")
    assert "is named like a Parquet file" in refusal(tmp_path, LINE.encode(), "a.parquet")
    assert "is named like a compressed file" in refusal(tmp_path, LINE.encode(), "a.zip")


class TestPacked:
    def test_gzip(self, tmp_path: Path) -> None:
        two = gzip.compress(LINE.encode()) + gzip.compress(LINE.encode())  # two members
        for name in ("a.jsonl.gz", "a.jsonl", "noname"):
            assert len(opened(tmp_path, two, name).samples) == 2
        raw = opened(tmp_path, gzip.compress(b"Enter HAMLET.\n"), "a.txt.gz")
        assert (raw.kind, raw.text) == ("raw", "Enter HAMLET.\n")
        whole = gzip.compress(LINE.encode())
        for damaged in (whole[:-1], whole[:-9], whole[:12] + b"\xff" + whole[13:]):
            assert "(gzip) is damaged" in refusal(tmp_path, damaged, "a.jsonl.gz")
        assert "compressed twice" in refusal(tmp_path, gzip.compress(whole), "a.jsonl.gz")
        table = gzip.compress(b"question,answer\nq,a\n")
        assert opened(tmp_path, table, "a.csv.gz").format == "alpaca"

    def test_zstandard(self, tmp_path: Path) -> None:
        zstandard = pytest.importorskip("zstandard")
        packed = zstandard.ZstdCompressor().compress(LINE.encode() * 3000)
        assert len(opened(tmp_path, packed, "a.jsonl.zst").samples) == 3000
        assert len(opened(tmp_path, packed * 2, "a.jsonl.zst").samples) == 6000
        for damaged in (packed[:-3], packed[:20], packed + packed[:9], packed + b"x"):
            assert "(Zstandard) is damaged" in refusal(tmp_path, damaged, "a.jsonl.zst")

    def test_parquet(self, tmp_path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        table = pa.table({"messages": [chat, None, chat], "n": [1, 2, 3]})
        pq.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"a\.parquet, line 2: "):
            open_data(tmp_path / "a.parquet")
        found = open_data(tmp_path / "a.parquet", skip_bad=True)
        assert [n for n, _ in found.samples] == [1, 3] and found.bad[0].line == 2
        labels = pa.table({"prompt": ["a", "b"], "completion": [0, 1]})
        pq.write_table(labels, tmp_path / "a.parquet", compression="zstd")
        labelled = open_data(tmp_path / "a.parquet")
        assert labelled.samples == [(1, ("a", "0")), (2, ("b", "1"))]
        assert labelled.notes == ("numbers read as text: completion (2)",)
        whole = (tmp_path / "a.parquet").read_bytes()
        assert "damaged Parquet" in refusal(tmp_path, whole[:-9], "b.parquet")

    def test_a_footer_at_which_pyarrow_would_end_the_process(self) -> None:
        pytest.importorskip("pyarrow")
        with pytest.raises(DataError, match="damaged Parquet file: Definition level histogram"):
            open_data(CASES / "damaged-histogram.parquet")

    def test_without_the_packages_the_extra_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("pyarrow", "pyarrow.parquet", "zstandard", "compression.zstd"):
            monkeypatch.setitem(__import__("sys").modules, name, None)
        for content, package in ((b"PAR1\0PAR1", "pyarrow"), (b"\x28\xb5\x2f\xfd\0", "zstandard")):
            line = refusal(tmp_path, content, "a.jsonl")
            assert f"requires the {package} package: pip install 'nbllama[data]'" in line

    def test_no_small_file_fills_the_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(unpack, "MAX_UNPACKED", 1 << 22)
        bomb = gzip.compress(b" " * (1 << 23))
        assert "larger than the limit of 4 MiB when unpacked" in refusal(tmp_path, bomb, "a.txt.gz")
        half = b"x" * ((1 << 21) + 9)
        files = {f"{i}.txt": half for i in range(2)}
        assert "larger than the limit of 4 MiB when unpacked" in refusal(
            tmp_path, zipped(files), "a.zip"
        )
        if zstandard := pytest.importorskip("zstandard"):
            packed = zstandard.ZstdCompressor().compress(b" " * (1 << 23))
            assert "larger than the limit of 4 MiB when unpacked" in refusal(
                tmp_path, packed, "a.txt.zst"
            )

    def test_zip(self, tmp_path: Path) -> None:
        files = {
            "set/b.jsonl": LINE.encode(),
            "set/a.json": json.dumps(PAIRS).encode(),
            "set/README.md": b"# About\n",
            "__MACOSX/set/a.json": b"\0\0",
        }
        found = opened(tmp_path, zipped(files), "set.zip")
        assert [found.place(line)[0] for line, _ in found.samples] == [
            *[str(tmp_path / "set.zip/set/a.json")] * 3, str(tmp_path / "set.zip/set/b.jsonl"),
        ]  # fmt: skip
        assert any("ignoring 1 file: set/README.md" in note for note in found.notes)
        texts = opened(tmp_path, zipped({"b.txt": b"two", "a.txt": b"one"}), "t.zip")
        assert (texts.kind, texts.texts) == ("raw", ("one", "two"))
        split = zipped({"train.jsonl": LINE.encode(), "test.jsonl": LINE.encode() * 5})
        assert len(opened(tmp_path, split, "s.zip").samples) == 1
        assert "contains no data" in refusal(tmp_path, zipped({"a.py": b"x"}), "a.zip")
        damaged = zipped(files)[:-30]
        assert "(zip) is damaged" in refusal(tmp_path, damaged, "a.zip")


class TestPathsThatAreNoFiles:
    @pytest.mark.parametrize("name", ["/dev/zero", "/dev/full", "/dev/null"])
    def test_devices_are_refused(self, name: str) -> None:
        with pytest.raises(DataError, match=f"{name}: a character device, not a regular file"):
            open_data(name)

    def test_a_pipe_is_read_while_something_comes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, write = os.pipe()
        os.write(write, LINE.encode())
        os.close(write)
        assert len(open_data(f"/dev/fd/{read}").samples) == 1
        os.close(read)
        monkeypatch.setattr(regular, "_PIPE_SECONDS", 0.1)
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(DataError, match="a pipe that sent nothing for 0 s"):
            open_data(tmp_path / "fifo")

    def test_the_largest_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(text_file, "MAX_BYTES", 10)
        assert "bytes, but the limit is 10" in refusal(tmp_path, LINE.encode())


class TestSeveralFiles:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        Path("set").mkdir()
        for name, text in (("b", "1"), ("a", "2"), ("c,d", "3")):
            Path("set", f"{name}.jsonl").write_text(f'{{"text": "{text}"}}\n{{"text": "x"}}\n')
        return tmp_path

    @pytest.mark.parametrize(
        ("named", "said"),
        [
            ("set", "213"),
            ("set/", "213"),
            ("set/*.jsonl", "213"),
            ("set/[ab].jsonl", "21"),
            ("set/b.jsonl,set/a.jsonl", "12"),
            (" set/b.jsonl , set/a.jsonl,", "12"),
            ("set/c,d.jsonl", "3"),
            ("set/[b].jsonl,set/a.jsonl", "12"),
        ],
    )
    def test_which_files_are_read(self, folder: Path, named: str, said: str) -> None:
        found = open_data(named)
        texts = [str(s.answer) for _, s in found.samples]  # type: ignore[union-attr]
        assert "".join(texts[::2]) == said

    def test_errors_name_the_file_and_its_line(self, folder: Path, bpe: Tokenizer) -> None:
        Path("set/b.jsonl").write_text('{"text": "1"}\n\n{"text": ""}\n')
        with pytest.raises(DataError, match=r"^set/b\.jsonl, line 3: the text is empty"):
            open_data("set")
        found = open_data("set", skip_bad=True)
        assert found.where(found.bad[0].line) == "set/b.jsonl, line 3"
        samples = load_dataset(found, bpe, 64, template=None)
        assert isinstance(samples, Samples)
        assert [samples.place(i) for i in range(3)] == [
            "set/a.jsonl, line 1", "set/a.jsonl, line 2", "set/b.jsonl, line 1",
        ]  # fmt: skip
        with pytest.raises(DataError, match=r"set/z\.jsonl: no such file"):
            open_data("set/a.jsonl,set/z.jsonl")
        with pytest.raises(DataError, match="no file matches the pattern"):
            open_data("set/z*")

    def test_texts_and_records_are_not_mixed(self, folder: Path) -> None:
        Path("set/notes.txt").write_text("Enter HAMLET.")
        assert "ignoring 1 file: notes.txt" in open_data("set").notes[1]
        with pytest.raises(
            DataError, match=r"set/notes\.txt contains plain text, but the other files"
        ):
            open_data("set/a.jsonl,set/notes.txt")
        Path("texts").mkdir()
        Path("texts/b.md").write_text("Two.")
        Path("texts/a.txt").write_text("One.")
        Path("texts/.hidden").write_text("Three.")
        assert open_data("texts").texts == ("One.", "Two.")

    def test_parts_of_a_split(self, folder: Path) -> None:
        Path("hub/data").mkdir(parents=True)
        for i in (1, 0):
            Path(f"hub/data/train-0000{i}-of-00002.jsonl").write_text(f'{{"text": "{i}"}}\n')
        Path("hub/data/validation-00000-of-00001.jsonl").write_text(LINE, encoding="utf-8")
        splits = find_splits("hub")
        assert data_files(splits.train).files == [
            "hub/data/train-00000-of-00002.jsonl", "hub/data/train-00001-of-00002.jsonl",
        ]  # fmt: skip
        assert splits.valid == "hub/data/validation-00000-of-00001.jsonl"
