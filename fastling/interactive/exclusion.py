"""Sentences of evaluation sets, never to be trained on: the same ones, and ones with a long piece of one."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastling.errors import UserError
from fastling.interactive.languages import is_chinese, tidy
from fastling.interactive.pairs import read_lines

WORDS, CHARACTERS = 13, 20
"""Length of a piece that two sentences do not share by chance: in words, or in characters of Chinese."""
_NO_WORD = re.compile(r"[\W_]+")
_LABEL = re.compile(r"^(?:[^:：]{1,40}[:：]|\(?\d+[.)）])")
"""What a prompt says before a sentence: Original: ..., 2. ..."""


class Exclusion:
    """What must not be used."""

    def __init__(self, lines: Iterable[str] = ()):
        self.whole: set[str] = set()
        self.pieces: set[str] = set()
        for line in lines:
            text = normalised(tidy(line, language=""))  # as the corpus is
            if text:
                self.whole.add(text.replace(" ", ""))
                self.pieces.update(pieces(text))

    def holds(self, text: str) -> bool:
        """Whether a sentence is one of these, or has a long piece of one."""
        if not self.whole:
            return False
        text = normalised(text)
        return text.replace(" ", "") in self.whole or any(piece in self.pieces for piece in pieces(text))


def normalised(text: str) -> str:
    """Letters and digits only, in small letters."""
    return _NO_WORD.sub(" ", text.casefold()).strip()


def pieces(text: str) -> Iterator[str]:
    """Every piece of a normalised text that is long enough to tell it by."""
    if is_chinese(text):
        text = text.replace(" ", "")
        yield from (text[start : start + CHARACTERS] for start in range(len(text) - CHARACTERS + 1))
    else:
        words = text.split()
        yield from (" ".join(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1))


def read_exclusion(paths: Iterable[Path]) -> Exclusion:
    """Plain text, a sentence a line; of a file of JSON lines, every text in it. Raises UserError."""
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
                raise UserError(f"{path}:{number}", "is no line of JSON") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        for text in (value, *value.splitlines()):  # a prompt has sentences on lines of their own
            yield text
            yield _LABEL.sub("", text)
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)
