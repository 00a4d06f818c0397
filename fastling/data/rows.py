"""Files -> rows, not yet parsed: .json, .jsonl[.gz|.zst] and .parquet.

`read_rows` leaves lines of JSON as bytes, so that they can be parsed on all cores.
"""

import codecs
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

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
    array = _Array(path, file)
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


class _Array:
    """A file that is one JSON array, of which only some text is held, from the present item on."""

    def __init__(self, path: Path, file: io.BufferedIOBase):
        self._path, self._file = path, file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at = "", 0
        self._lines_before = self._bytes = 0

    def items(self) -> Iterator[tuple[Any, int]]:
        """(item, its characters) of the array. Raises ValueError where it is broken."""
        self._pass("[")
        while self._next() != "]":
            yield self._item()
            if self._next() == "]":
                break
            self._pass(",")
            if self._next() == "]":  # a comma after the last item
                raise json.JSONDecodeError("Expecting value", self._text, self._at)
        self._pass("]")
        if self._next():
            raise json.JSONDecodeError("Extra data", self._text, self._at)

    def line(self, at: int) -> int:
        """Number of the line, counted from 1, of a place in the text that is held."""
        return self._lines_before + self._text.count("\n", 0, at) + 1

    def _next(self) -> str:
        """The next character that is no space; "" at the end of the file."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()
            if self._at < len(self._text) or not self._read_on():
                return self._text[self._at : self._at + 1]

    def _pass(self, mark: str) -> None:
        if self._next() != mark:
            raise json.JSONDecodeError(f"Expecting '{mark}'", self._text, self._at)
        self._at += 1

    def _item(self) -> tuple[Any, int]:
        while True:
            try:
                item, end = _JSON.raw_decode(self._text, self._at)
            except json.JSONDecodeError:  # perhaps because its text is not yet held to its end
                if not self._read_on():
                    raise
                continue
            # Where the text ends within a number, what is held of it may be a number, too: 1 of 1.5e3.
            if self._text[end : end + 1] in tuple(" \t\r\n,]") or not self._read_on():
                size, self._at = end - self._at, end
                return item, size

    def _read_on(self) -> bool:
        """Hold more text, and none before the present place. False at the end of the file."""
        # As much again as is held of a long item, which is then read anew only a few times.
        content = self._file.read(max(BYTES_AT_ONCE, len(self._text) - self._at))
        waiting, _ = self._decoder.getstate()  # bytes of a character whose end was not yet read
        try:
            text = self._decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            line = self.line(len(self._text)) + content.count(b"\n", 0, max(0, error.start - len(waiting)))
            place = self._bytes - len(waiting) + error.start
            raise UserError(f"{self._path}:{line}", f"is not UTF-8 at byte {place}") from None
        if content:
            self._bytes += len(content)
            self._lines_before += self._text.count("\n", 0, self._at)
            self._text, self._at = self._text[self._at :] + text, 0
        return bool(content)


def _line_rows(path: Path, file: io.BufferedIOBase) -> Iterator[Row]:
    index = 0
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield Row(index, f"{path}:{number}", line, len(line))
            index += 1


def parse_json(text: str) -> Any:
    """json.loads, which also raises ValueError for a key twice in an object: one value would be lost."""
    return _JSON.decode(text)


def _once_each(pairs: list[tuple[str, Any]]) -> dict:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"a key is twice: {name!r:.60} in an object {fields!s:.80}")
    return fields


_JSON = json.JSONDecoder(object_pairs_hook=_once_each)
_SPACE = re.compile(r"[ \t\r\n]*")
