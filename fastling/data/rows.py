"""Files -> rows, not yet parsed: .json, .jsonl[.gz|.zst] and .parquet.

`read_rows` leaves lines of JSON as bytes, so that they can be parsed on all cores.
"""

import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet

from fastling.data.strict_json import Array
from fastling.errors import UserError, first_line

BYTES_AT_ONCE = 1 << 20
"""About how many bytes of rows are worked on together at most, however few rows that are."""


class Row(NamedTuple):
    """One row of a file: the bytes of a line of JSON, not yet parsed, or a record."""

    index: int
    """Counted from 0 over the rows of the file."""
    location: str
    """file:line, or file:row for formats without lines."""
    payload: bytes | dict
    size: int
    """About how many bytes of the file it takes."""


def kind_of(path: Path) -> str:
    """How a file is read, by its name: parquet, gzip, zstd, or plain. Raises UserError for other names."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith((".json", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")):
        return {".gz": "gzip", ".zst": "zstd"}.get(path.suffix.lower(), "plain")
    raise UserError(
        str(path), "unknown kind of file", "Use .json, .jsonl, .jsonl.gz, .jsonl.zst or .parquet."
    )


def read_rows(path: Path, keys: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of .json, .jsonl[.gz|.zst] or .parquet, streamed.

    With `keys`, the other values of a record are None, so that nothing unread is sent between processes.
    Raises UserError, with file and line where there is one, for a file that cannot be read.
    """
    return _parquet_rows(path, keys) if kind_of(path) == "parquet" else _json_rows(path, keys)


def _parquet_rows(path: Path, keys: Collection[str] | None) -> Iterator[Row]:
    try:
        index, file = 0, pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        names = file.schema_arrow.names
        wanted = [name for name in names if keys is None or name in keys]
        if len(set(wanted)) < len(wanted):
            raise ValueError(f"two columns have one name: {max(wanted, key=wanted.count)}")
        unread = dict.fromkeys(names)
        for batch in file.iter_batches(batch_size=256, columns=wanted):
            size = batch.nbytes // max(1, batch.num_rows)
            together = max(1, BYTES_AT_ONCE // max(1, size))
            for start in range(0, batch.num_rows, together):
                for record in batch.slice(start, together).to_pylist():
                    yield Row(index, f"{path}:row {index}", unread | record, size)
                    index += 1
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(str(path), f"cannot be read as parquet: {first_line(error)}") from None


def _open(path: Path) -> io.BufferedIOBase:
    # Arrow reads all members and frames of a file and, unlike zstandard, raises when the last is cut short.
    kind = kind_of(path)
    if kind == "plain":
        return open(path, "rb")
    return io.BufferedReader(pyarrow.CompressedInputStream(str(path), kind))


def _json_rows(path: Path, keys: Collection[str] | None) -> Iterator[Row]:
    try:
        with _open(path) as file:
            start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
        with _open(path) as file:
            if start.startswith(b"["):
                yield from _array_rows(path, file, keys)
            else:
                yield from _line_rows(path, file)
    except OSError as error:
        raise UserError(str(path), f"cannot be read: {first_line(error)}") from None


def _array_rows(path: Path, file: io.BufferedIOBase, keys: Collection[str] | None) -> Iterator[Row]:
    array = Array(path, file, BYTES_AT_ONCE)
    try:
        for index, (record, size) in enumerate(array.items()):
            if keys is not None and isinstance(record, dict):
                record = {key: value if key in keys else None for key, value in record.items()}
            yield Row(index, f"{path}:row {index}", record, size)
    except json.JSONDecodeError as error:
        fix = "A file that begins with [ is read as one list of rows."
        raise UserError(f"{path}:{array.line(error.pos)}", f"broken JSON: {error.msg}", fix) from None
    except (RecursionError, ValueError) as error:
        raise UserError(str(path), f"broken JSON: {first_line(error)}") from None


def _line_rows(path: Path, file: io.BufferedIOBase) -> Iterator[Row]:
    index = 0
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield Row(index, f"{path}:{number}", line, len(line))
            index += 1
