"""Sentences that must not be trained on: those of evaluation sets, and any with a long piece of one."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastling.errors import UserError
from fastling.interactive.languages import is_chinese, tidy
from fastling.interactive.pairs import read_lines

WORDS, CHARACTERS = 13, 20
"""Length of a piece that two sentences do not share by chance: in words or, for Chinese, in characters."""
_NO_WORD = re.compile(r"[\W_]+")
_LABEL = re.compile(r"^(?:[^:：]{1,40}[:：]|\(?\d+[.)）])")
"""A label before a sentence in a prompt, such as "Original:" or "2."."""


class Exclusion:
    """The sentences that must not be used."""

    def __init__(self, lines: Iterable[str] = ()):
        self.whole: set[str] = set()
        self.pieces: set[str] = set()
        for line in lines:
            text = normalised(tidy(line, language=""))  # as the corpus is
            if text:
                self.whole.add(text.replace(" ", ""))
                self.pieces.update(pieces(text))

    def holds(self, text: str) -> bool:
        """Whether a text is one of these sentences, or has a long piece of one."""
        if not self.whole:
            return False
        text = normalised(text)
        return text.replace(" ", "") in self.whole or any(piece in self.pieces for piece in pieces(text))


def normalised(text: str) -> str:
    """The text in small letters, with one space for everything between letters and digits."""
    return _NO_WORD.sub(" ", text.casefold()).strip()


def pieces(text: str) -> Iterator[str]:
    """Yield every piece of a normalised text that has WORDS words, or CHARACTERS characters of Chinese."""
    if is_chinese(text):
        text = text.replace(" ", "")
        yield from (text[start : start + CHARACTERS] for start in range(len(text) - CHARACTERS + 1))
    else:
        words = text.split()
        yield from (" ".join(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1))


def read_exclusion(paths: Iterable[Path]) -> Exclusion:
    """Read files of plain text, one sentence per line, or of JSON lines, all of whose texts count.

    Raises UserError for a file that cannot be read as that.
    """
    return Exclusion(text for path in paths for text in _texts(path))


def _texts(path: Path) -> Iterator[str]:
    as_json = ".json" in path.suffixes or ".jsonl" in path.suffixes
    for number, line in enumerate(read_lines(path), start=1):
        if not as_json:
            yield line
        elif line.strip():
            try:
                yield from _strings(json.loads(line))
            except (ValueError, RecursionError):
                fix = "Each line holds a whole value: `jq -c .` puts JSON of several lines on one."
                raise UserError(f"{path}:{number}", "is no line of JSON", fix) from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        for text in (value, *value.splitlines()):  # in a prompt, sentences are on lines of their own
            yield text
            yield _LABEL.sub("", text)
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)
