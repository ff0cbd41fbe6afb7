"""Parquet files as records, by the package pyarrow (the extra `nbllama[data]`)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from nbllama.data.unpack import EXTRA, MAX_UNPACKED
from nbllama.data.wrapped import Entry
from nbllama.errors import DataError, shown

MAGIC = b"PAR1"
_ROWS = 256  # of a batch: what is read before its size is looked at


def parquet_rows(content: bytes, path: str) -> Iterator[Entry]:
    """The rows of a Parquet file, numbered from 1.

    Raises `DataError` for a damaged file, for one of more than `MAX_UNPACKED` bytes of values, and
    where pyarrow is not installed.
    """
    where = shown(path, 400)
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(
            f"{where} is a Parquet file; reading it needs the package pyarrow: {EXTRA}"
        ) from None
    row = size = 0
    try:
        file = pq.ParquetFile(io.BytesIO(content))
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            raise DataError(f"{where}: a column comes twice")
        for batch in file.iter_batches(batch_size=_ROWS):
            size += batch.nbytes
            if size > MAX_UNPACKED:
                raise DataError(
                    f"{where} unpacks to more than {MAX_UNPACKED >> 20} MiB, which is the limit; "
                    "split it"
                )
            for record in batch.to_pylist():
                row += 1
                yield Entry(row, {key: _plain(value) for key, value in record.items()})
        if row != file.metadata.num_rows:
            raise DataError(f"{where}: {row} rows, its header says {file.metadata.num_rows}")
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as e:
        raise DataError(f"{where} is a damaged Parquet file: {shown(e)}") from e


def _plain(value: Any) -> Any:
    """A value as JSON would have it: no NaN, and no keys that a struct has for other rows only."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {k: p for k, v in value.items() if (p := _plain(v)) is not None}
    return value
