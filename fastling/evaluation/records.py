"""Rows and lines of the files that are given to an evaluation, each mistake named by file and line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastling.data.rows import parse_json, read_rows
from fastling.errors import UserError


class Record(NamedTuple):
    """A row that is an object, and where it lies."""

    location: str
    """file:line"""
    fields: dict

    def text(self, name: str) -> str:
        """The text of a field. Raises UserError if it is missing or no text."""
        if name not in self.fields:
            raise UserError(
                self.location, f"lacks {name}", f"The row has: {', '.join(self.fields) or 'nothing'}."
            )
        value = self.fields[name]
        if not isinstance(value, str):
            raise UserError(self.location, f"{name} must be text: {_shown(value)}")
        return value


def read_records(path: Path) -> list[Record]:
    """Rows of .json, .jsonl, their .gz or .zst, or .parquet. Raises UserError for none, or no objects."""
    _check_there(path)
    records = []
    for row in read_rows(path):
        fields = _parse(row.location, row.payload) if isinstance(row.payload, bytes) else row.payload
        if not isinstance(fields, dict):
            raise UserError(row.location, f"a row must be an object: {_shown(fields)}")
        records.append(Record(row.location, fields))
    if not records:
        raise UserError(str(path), "is empty")
    return records


def _parse(location: str, line: bytes) -> object:
    try:
        return parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(location, f"is not UTF-8 at byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        raise UserError(location, f"broken JSON: column {error.colno}: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(location, f"broken JSON: {str(error)[:80]}") from None


def read_lines(path: Path) -> list[str]:
    """Text, one sentence a line, ended by \\n or \\r\\n and by nothing else that Unicode calls a line break.

    An empty line counts as an empty sentence; the end of the last line need not be there. The file may
    be a pipe, as a shell's <(...) is one.
    """
    _check_there(path)
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}", f"is not UTF-8 at byte {error.start}", "Save it as UTF-8."
        ) from None
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(str(path), "is empty")
    return [line.removesuffix("\r") for line in lines]


def _check_there(path: Path) -> None:
    if not path.exists():
        raise UserError(str(path), "no such file")
    if path.is_dir():
        raise UserError(str(path), "is a folder", "Name a file.")


def check_same_number(first: Path, firsts: Sequence, what: str, second: Path, seconds: Sequence) -> None:
    """Raises UserError, with both numbers, for files whose rows should belong together and do not."""
    if len(firsts) != len(seconds):
        words = f"{len(firsts):,} {what}, and {second} has {len(seconds):,}"
        raise UserError(str(first), words, "One is needed for each, in the same order; empty ones count.")


def _shown(value: object) -> str:
    names = {dict: "an object", list: "a list", type(None): "null"}
    return names.get(type(value)) or repr(value)[:60]
