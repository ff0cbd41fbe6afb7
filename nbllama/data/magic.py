"""Recognise files that are not plain text by their first bytes or by their encoding."""

from __future__ import annotations

import codecs
import io
import re
import zipfile

# Signatures at the start of a file. The signatures of readable archives are in `unpack`.
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", "a PDF document; save it as plain text"),
    (b"{\\rtf", "an RTF document; save it as plain text"),
    (b"%!PS", "a PostScript document; save it as plain text"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file (doc, xls); save it as text or CSV"),
    (b"SQLite format 3\0", "an SQLite database; export a table as CSV or JSON lines"),
    (b"GGUF", "a GGUF file (a model or adapter), not training data"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file; save it as Parquet or JSON lines"),
    (b"\xff\xff\xff\xff", "an Arrow stream or other binary data; save it as Parquet"),
    (b"ORC", "an ORC file; save it as Parquet or JSON lines"),
    (b"Obj\x01", "an Avro file; save it as Parquet or JSON lines"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file; save it as Parquet or JSON lines"),
    (b"\x93NUMPY", "a NumPy array; save its strings as JSON lines"),
    (b"\x80\x02", "a Python pickle, which is not supported; save the data as JSON lines"),
    (b"\x80\x03", "a Python pickle, which is not supported; save the data as JSON lines"),
    (b"\x80\x04", "a Python pickle, which is not supported; save the data as JSON lines"),
    (b"\x80\x05", "a Python pickle, which is not supported; save the data as JSON lines"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"BZh", "a bzip2 file; unpack it first (bunzip2)"),
    (b"\xfd7zXZ\0", "an xz file; unpack it first (unxz)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it first"),
    (b"\x04\x22\x4d\x18", "an LZ4 file; unpack it first"),
    (b"\x1f\x9d", "a compress (.Z) file; unpack it first"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF87a", "a GIF image"),
    (b"GIF89a", "a GIF image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"\0\0\x01\0", "an icon"),
    (b"ID3", "an MP3 file"),
    (b"OggS", "an Ogg file"),
    (b"fLaC", "a FLAC file"),
    (b"\x7fELF", "a program (ELF)"),
    (b"\xca\xfe\xba\xbe", "a program (Java or Mach-O)"),
    (b"\xcf\xfa\xed\xfe", "a program (Mach-O)"),
    (b"\0asm", "a WebAssembly program"),
    (b"wOFF", "a font"),
    (b"wOF2", "a font"),
    (b"lmgg", "a GGML model, not training data"),
    (b"fmgg", "a GGML model, not training data"),
    (b"tjgg", "a GGML model, not training data"),
    (b"algg", "a 'ggla' adapter, not training data"),
    (b"lcgg", "a 'ggcl' checkpoint, not training data"),
    (b"version https://git-lfs", "a Git LFS pointer instead of the data; run git lfs pull"),
)  # fmt: skip
_RIFF = {b"WEBP": "a WebP image", b"WAVE": "a WAV file", b"AVI ": "an AVI video"}
# Signatures that look like ordinary words ("ORC", "ID3") count only if the file is not text.
_WORDS = {b"GGUF", b"PAR1", b"ORC", b"ID3", b"BZh", b"ARROW1", b"OggS", b"fLaC", b"wOFF", b"wOF2"}
_WORDS |= {b"lmgg", b"fmgg", b"tjgg", b"algg", b"lcgg", b"%!PS"}
_CONTROLS = bytes(c for c in range(32) if c not in b"\t\n\v\f\r\x1b")
_LOOK = 1 << 16


def binary_kind(content: bytes) -> str | None:
    """Return what the file is and what the user should do, or None if it could be a text file.

    This function checks for file signatures and for bytes that never occur in text. UTF-16 and
    UTF-32 text must be decoded first.
    """
    head = content[:_LOOK]
    for mark, kind in _STARTS:
        if head.startswith(mark) and (mark not in _WORDS or _is_no_text(head)):
            return _zip_kind(content) if mark == b"PK\x03\x04" else kind
    if head[:4] == b"RIFF" and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if head[4:8] == b"ftyp":
        return "an MP4 video or HEIF image"
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "a BMP image"
    if head[:2] == b"MZ" and _is_no_text(head):
        return "a program (Windows)"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and pass the folder"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32 and b"\0" in head[:8]:
        return "a safetensors file (a model or adapter), not training data"
    if 20 * (len(head) - len(head.translate(None, _CONTROLS))) > len(head):
        return _wide_kind(content) or _with_nul(content) or "binary data, not text"
    return (_wide_kind(content) or _with_nul(content)) if b"\0" in content else None


def _with_nul(content: bytes) -> str | None:
    at = content.find(b"\0")
    return None if at < 0 else f"not text: it contains NUL bytes, the first at offset {at}"


def _is_no_text(head: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return True
    return head.translate(None, _CONTROLS) != head


def _wide_kind(content: bytes) -> str | None:
    """Detect UTF-16 or UTF-32 without a byte-order mark from the positions of zero bytes."""
    head = content[: _LOOK // 4 * 4]
    if not (n := len(head) // 4):
        return None
    zeros = [4 * n - len(head[: 4 * n]) + head[i : 4 * n : 4].count(0) for i in range(4)]
    for name, high in (("UTF-32LE", (2, 3)), ("UTF-32BE", (0, 1))):
        if all(zeros[i] > 0.95 * n for i in high):
            return _no_mark(name)
    for name, high, low in (("UTF-16LE", (1, 3), (0, 2)), ("UTF-16BE", (0, 2), (1, 3))):
        h, low_zeros = sum(zeros[i] for i in high), sum(zeros[i] for i in low)
        if h > 0.3 * 2 * n and low_zeros < 0.1 * h:
            return _no_mark(name)
    # In text without Latin letters, the zeros come from line breaks, spaces and digits.
    wide = len(head) // 2 * 2
    for name in ("utf-16-le", "utf-16-be"):
        try:
            text = head[:wide].decode(name)
        except UnicodeDecodeError:
            continue
        if _plausible(text):
            return _no_mark(name.upper().replace("-LE", "LE").replace("-BE", "BE"))
    return None


def _no_mark(name: str) -> str:
    return (
        f"not UTF-8: it contains NUL bytes; it looks like {name} without a byte-order mark; "
        f"convert it with iconv -f {name} -t UTF-8"
    )


def _plausible(text: str) -> bool:
    """Return whether most characters are common in Latin, Greek, Cyrillic, CJK or Hangul text."""
    common = re.findall(r"[\t\n\r -~\u00a0-\u024f\u0370-\u04ff\u2010-\u2026\u3000-\u30ff"
                        r"\u4e00-\u9fff\uac00-\ud7a3\uff01-\uff5e]", text)  # fmt: skip
    return len(common) > 0.97 * len(text) and bool(
        re.search(r"[\n\r ,.0-9\u3001\u3002\uff0c]", text)
    )


def _zip_kind(content: bytes) -> str:
    """Return the kind of a file that is stored as a zip archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged zip archive"
    return office_kind(names) or "a zip archive"


def office_kind(names: list[str]) -> str | None:
    """Identify a zip-based format by the names in the archive; return None for a plain archive."""
    for start, kind in (
        ("word/", "a Word document (docx); save it as plain text"),
        ("xl/", "an Excel workbook (xlsx); save the sheet as CSV"),
        ("ppt/", "a PowerPoint file (pptx); save it as plain text"),
    ):
        if "[Content_Types].xml" in names and any(n.startswith(start) for n in names):
            return kind
    if "mimetype" in names and any(n.startswith("META-INF/") for n in names):
        return "an OpenDocument file or an e-book; save it as plain text or CSV"
    if any(n.endswith("data.pkl") for n in names):
        return "a PyTorch model, not training data"
    if any(n.startswith("META-INF/MANIFEST.MF") for n in names):
        return "a Java archive"
    if names and all(n.endswith(".npy") for n in names):
        return "a NumPy archive; save its strings as JSON lines"
    return None


def guessed_encoding(content: bytes) -> str:
    """Return a hint ("; it looks like ...") if the bytes are in another known encoding, else ""."""
    kind = _wide_kind(content[:_LOOK])
    if kind is not None:
        return "; " + kind.removeprefix("not UTF-8: it contains NUL bytes; ")
    if _is_gb18030(content[:_LOOK]):
        return "; it looks like GB18030; convert it with iconv -f GB18030 -t UTF-8"
    return ""


def _is_gb18030(head: bytes) -> bool:
    """Return whether the bytes are GBK-encoded Chinese, with most characters in GB 2312.

    Big5 and Shift JIS text can also be decoded as GBK, but the result contains many characters
    outside GB 2312.
    """
    try:
        codecs.getincrementaldecoder("gb18030")().decode(head)
    except UnicodeDecodeError:
        return False
    pairs = re.findall(rb"[\x81-\xfe][\x40-\xfe]", head)
    usual = sum(
        p[1] >= 0xA1 and (0xB0 <= p[0] <= 0xF7 or p[0] in (0xA1, 0xA2, 0xA3)) for p in pairs
    )
    return bool(pairs) and usual >= 0.8 * len(pairs)
