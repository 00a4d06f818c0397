"""Two or three files of parallel lines -> pairs of sentences, read as a stream."""

import gzip
import hashlib
import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from fastling.errors import UserError, first_line
from fastling.interactive.languages import check_language, reads_as, tidy

SAMPLED_RUNS, RUN_LENGTH = 500, 50
"""The sample to learn from: at most this many runs of this many neighbouring lines each."""
FEWEST_TOLD, LEAST_SPREAD, LEAST_CORRELATION = 20, 0.2, 0.3
"""Alignment of two files can be judged from a run of at least FEWEST_TOLD lines whose lengths, as logarithms,
have at least the standard deviation LEAST_SPREAD. In aligned files the lengths have at least the correlation
LEAST_CORRELATION: the lowest of 591 real runs was 0.49."""


class Pair(NamedTuple):
    """A sentence and its translation."""

    line: int
    """Number of the line in every file, counted from 1."""
    first: str
    second: str
    third: str = ""
    """The same sentence in a third language, or nothing."""

    @property
    def texts(self) -> tuple[str, str]:
        """The first and the second text."""
        return self.first, self.second


class Direction(NamedTuple):
    """A pair as a dialogue uses it: `text`, which is to be translated, and `reference`, its translation."""

    line: int
    origin: str
    target: str
    """Codes of the languages of text and reference."""
    text: str
    reference: str
    third: str = ""
    """The same in the corpus's third language, or nothing."""


class Corpus(NamedTuple):
    """Two files that translate each other line by line, and perhaps a third one in a third language."""

    first: Path
    second: Path
    first_language: str
    second_language: str
    third: Path | None = None
    third_language: str = ""

    @property
    def name(self) -> str:
        return f"{self.first_language}-{self.second_language}"

    @property
    def languages(self) -> tuple[str, str]:
        return self.first_language, self.second_language

    def directed(self, pair: Pair, origin: str) -> Direction:
        """The pair as a translation from one of the two languages."""
        if origin == self.first_language:
            return Direction(pair.line, origin, self.second_language, *pair[1:])
        return Direction(pair.line, origin, self.first_language, pair.second, pair.first, pair.third)

    def tidied(self, number: int, lines: Sequence[str]) -> Pair:
        """The pair of line `number`, from the lines as the files have them."""
        languages = (*self.languages, self.third_language)
        return Pair(number, *(tidy(line, each) for line, each in zip(lines, languages, strict=False)))

    def lines(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Yield (number, the line in each file). Raises UserError if one is no text or too short."""
        paths = (self.first, self.second, *((self.third,) if self.third else ()))
        for number, lines in enumerate(zip_longest(*map(read_lines, paths)), start=1):
            if None in lines:
                shorter = paths[lines.index(None)]
                longer = next(path for path, line in zip(paths, lines, strict=True) if line is not None)
                raise UserError(
                    str(shorter),
                    f"ends after {number - 1:,} lines, and {longer} goes on",
                    "Give files in which the same line is the same sentence.",
                )
            yield number, lines

    def sample(self, total: int) -> list[list[Pair]]:
        """Runs of neighbouring pairs, spread evenly over the files, which have `total` lines."""
        runs = min(SAMPLED_RUNS, -(-total // RUN_LENGTH))
        found: list[list[Pair]] = [[] for _ in range(runs)]
        for number, lines in self.lines():
            # The run that begins last at or before this line.
            run = ((number - 1) * runs + runs - 1) // total if total else 0
            run = min(run, runs - 1)
            if number - 1 - run * total // runs < RUN_LENGTH:
                found[run].append(self.tidied(number, lines))
        return found


def out_of_step(sample: Sequence[Sequence[Pair]], side: str) -> tuple[list[int], int]:
    """(first lines of the runs that do not translate each other, number of runs that could be judged).

    Where texts differ in length, a text and its translation are both long or both short. `side` is the text
    that is compared with the first one: "second" or "third".
    """
    bad, told = [], 0
    for run in sample:
        texts = [(pair.first, getattr(pair, side)) for pair in run]
        lengths = [[math.log(len(text)) for text in both] for both in texts if all(both)]
        if len(lengths) < FEWEST_TOLD:
            continue
        sides = list(zip(*lengths, strict=True))
        if min(map(statistics.stdev, sides)) >= LEAST_SPREAD:
            told += 1
            if statistics.correlation(*sides) < LEAST_CORRELATION:
                bad.append(run[0].line)
    return bad, told


def share_in_another_language(
    sample: Sequence[Sequence[Pair]], side: str, language: str, other: str
) -> float:
    """Share of the texts of a side ("first", "second" or "third") that do not read as its `language`.

    `other` is the other language of the pair. The share is 0 if there are too few texts to tell.
    """
    texts = [text for run in sample for pair in run if (text := getattr(pair, side))]
    foreign = sum(not reads_as(text, language, other) for text in texts)
    return foreign / len(texts) if len(texts) >= FEWEST_TOLD else 0.0


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, which may be gzipped. Raises UserError for other files."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}:{number}", "is not UTF-8", "Save the file as UTF-8.") from None
    except (OSError, EOFError) as error:  # gzip: bad magic, cut short
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(str(path), f"cannot be read: {reason}") from None


def make_corpus(paths: Sequence[Path], languages: Sequence[str]) -> Corpus:
    """The corpus of a source, a target and perhaps a third file.

    Raises UserError, naming the option, for unknown or equal languages and for missing or equal files.
    """
    sides = ("source", "target", "third")
    for number, (side, path, language) in enumerate(zip(sides, paths, languages, strict=False)):
        check_language(f"--{side}-lang", language)
        if language in languages[:number]:
            other = sides[languages.index(language)]
            raise UserError(f"--{side}-lang", f"is the language of the {other}: {language}")
        if not path.is_file():
            raise UserError(f"--{side}", f"no such file: {path}")
        for other, earlier in zip(sides, paths[:number], strict=False):
            if path.samefile(earlier):
                raise UserError(f"--{side}", f"is the file of the {other}: {path}", "Give its translation.")
    return Corpus(*paths[:2], *languages[:2], *paths[2:], *languages[2:])


def fingerprint(texts: Sequence[str]) -> bytes:
    """Eight bytes by which equal texts are recognised, whatever the case of their letters."""
    return hashlib.blake2b("\n".join(texts).casefold().encode(), digest_size=8).digest()
