"""JSON without duplicate keys: a whole text, or the items of a file's array one by one."""

import codecs
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastling.errors import UserError


def _once_each(pairs: list[tuple[str, Any]]) -> dict:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"a key is twice: {name!r:.60} in an object {fields!s:.80}")
    return fields


_JSON = json.JSONDecoder(object_pairs_hook=_once_each)
_SPACE = re.compile(r"[ \t\r\n]*")


def parse_json(text: str) -> Any:
    """json.loads, but raises ValueError for a duplicate key, whose first value would be lost."""
    return _JSON.decode(text)


class Array:
    """A file that is one JSON array. Only a part of its text is held in memory, from the current item on."""

    def __init__(self, path: Path, file: io.BufferedIOBase, bytes_at_once: int):
        self._path, self._file, self._bytes_at_once = path, file, bytes_at_once
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at = "", 0
        self._lines_before = self._bytes = 0

    def items(self) -> Iterator[tuple[Any, int]]:
        """Yield (item, its length in characters). Raises ValueError where the JSON is broken."""
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
        """Line number, counted from 1, of a position in the text that is held."""
        return self._lines_before + self._text.count("\n", 0, at) + 1

    def _next(self) -> str:
        """The next character other than space; "" at the end of the file."""
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
            except json.JSONDecodeError:  # perhaps the rest of its text has not been read yet
                if not self._read_on():
                    raise
                continue
            # If the text ends within a number, its beginning may be a number as well: 1 of 1.5e3.
            if self._text[end : end + 1] in tuple(" \t\r\n,]") or not self._read_on():
                size, self._at = end - self._at, end
                return item, size

    def _read_on(self) -> bool:
        """Read more text, and drop what is before the current place. Returns False at the end of the file."""
        # Double what is held of a long item, so that it is parsed again only a few times.
        content = self._file.read(max(self._bytes_at_once, len(self._text) - self._at))
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
