"""Read Parquet files as records, using the `pyarrow` package (the extra `nbllama[data]`)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from nbllama.data.unpack import EXTRA, MAX_UNPACKED
from nbllama.data.wrapped import Entry
from nbllama.errors import DataError, shown

MAGIC = b"PAR1"
_ROWS = 256  # rows per batch; a batch is in memory before its size is known
_VALUE_BYTES = 8  # smallest size of a value


def parquet_rows(content: bytes, path: str) -> Iterator[Entry]:
    """Yield the rows of a Parquet file with their numbers, counted from 1.

    Raises `DataError` if the file is damaged, its values exceed `MAX_UNPACKED` bytes, or pyarrow is
    not installed.
    """
    where = shown(path, 400)
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(
            f"{where} is a Parquet file; reading it requires the pyarrow package: {EXTRA}"
        ) from None
    row = size = 0
    try:
        source = io.BytesIO(content)
        metadata = pq.read_metadata(source)
        names = metadata.schema.to_arrow_schema().names
        if len(set(names)) < len(names):
            raise DataError(f"{where}: two columns have the same name; rename one")
        if metadata.num_rows * metadata.num_columns * _VALUE_BYTES > MAX_UNPACKED:
            raise _too_large(where)
        # If the footer entry of a column is damaged, pyarrow aborts the process when asked for the
        # column's metadata. Reading and discarding the values raises an error instead.
        pq.ParquetFile(source).scan_contents()
        # Repeated strings are stored once and not copied when read, so add up their full sizes.
        packed = pq.ParquetFile(source, read_dictionary=_text_columns(metadata, where))
        for batch in packed.iter_batches(batch_size=_ROWS, use_threads=False):
            size += sum(_unpacked_size(column) for column in batch.columns)
            if size > MAX_UNPACKED:
                raise _too_large(where)
        for batch in pq.ParquetFile(source).iter_batches(batch_size=_ROWS, use_threads=False):
            for record in batch.to_pylist():
                row += 1
                yield Entry(row, {key: _plain(value) for key, value in record.items()})
        if row != metadata.num_rows:
            raise DataError(f"{where} contains {row} rows, but its footer says {metadata.num_rows}")
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as e:
        raise DataError(f"{where} is a damaged Parquet file: {shown(e)}") from e


def _too_large(where: str) -> DataError:
    return DataError(
        f"{where} is larger than the limit of {MAX_UNPACKED >> 20} MiB when unpacked; split it"
    )


def _text_columns(metadata: Any, where: str) -> list[str]:
    """Check the total number of values, and return the paths of the string columns."""
    size = 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        for j in range(group.num_columns):
            width = max(_VALUE_BYTES, metadata.schema.column(j).length or 0)
            size += group.column(j).num_values * width
    if size > MAX_UNPACKED:
        raise _too_large(where)
    columns = [metadata.schema.column(j) for j in range(metadata.num_columns)]
    return [c.path for c in columns if c.physical_type == "BYTE_ARRAY"]


def _unpacked_size(column: Any) -> int:
    """Return the size in bytes that an Arrow array would have with every value written out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(column.dictionary).take(column.indices)
        return int(pc.sum(lengths.cast(pa.int64())).as_py() or 0)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_struct(kind):
        inside = column.flatten()
        parts = inside if isinstance(inside, list) else [inside]
        return sum(_unpacked_size(part) for part in parts)
    return int(column.nbytes)


def _plain(value: Any) -> Any:
    """Return a value in JSON form: NaN becomes None, and keys whose value is None are left out."""
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {k: p for k, v in value.items() if (p := _plain(v)) is not None}
    return value
