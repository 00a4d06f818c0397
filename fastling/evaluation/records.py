"""Reads the rows and lines of files that are given to an evaluation; errors name file and line."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fastling.data.rows import read_rows
from fastling.data.strict_json import parse_json
from fastling.errors import UserError


class Record(NamedTuple):
    """A row, which is an object, and its place."""

    location: str
    """file:line"""
    fields: dict

    def text(self, name: str) -> str:
        """The text of a field. Raises UserError if it is missing or not text."""
        if name not in self.fields:
            raise UserError(
                self.location, f"lacks {name}", f"The row has: {', '.join(self.fields) or 'nothing'}."
            )
        value = self.fields[name]
        if not isinstance(value, str):
            raise UserError(self.location, f"{name} must be text: {_shown(value)}")
        return value


def read_records(path: Path) -> list[Record]:
    """The rows of .json, .jsonl, their .gz or .zst, or .parquet.

    Raises UserError if the file is missing or broken, has no rows, or has rows that are not objects.
    """
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
    """The lines of a text file. A line ends with \\n or \\r\\n, and not at other line breaks of Unicode.

    An empty line counts as an empty sentence; the last line needs no end. The file may be a pipe, such as a
    shell's <(...). Raises UserError if it is missing, empty or not UTF-8.
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
    """Raise UserError, with both numbers, if two files whose rows belong together have different numbers."""
    if len(firsts) != len(seconds):
        words = f"{len(firsts):,} {what}, and {second} has {len(seconds):,}"
        raise UserError(str(first), words, "One is needed for each, in the same order; empty ones count.")


def _shown(value: object) -> str:
    names = {dict: "an object", list: "a list", type(None): "null"}
    return names.get(type(value)) or repr(value)[:60]
