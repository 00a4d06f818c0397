"""What users and assistants say around the translations: one YAML file per language, in phrasings/.

Each key has a list of sentences with fixed placeholders. The files are checked when they are read, so that no
dialogue is built with an empty placeholder.
"""

import functools
import random
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fastling.errors import UserError, first_line
from fastling.interactive.languages import LANGUAGES, OTHER_LANGUAGES

FOLDER = Path(__file__).parent / "phrasings"

PLACEHOLDERS = {
    "translate": {"target", "text"},
    "next_sentence": {"text"},
    "include_words": {"words"},
    "keep": {"item"},
    "keep_number": {"item"},
    "correct_draft": {"target", "text", "draft"},
    "wrong_span": {"wrong"},
    "replace_span": {"wrong", "right"},
    "which_better": {"target", "text", "first", "second"},
    "continue_text": {"text"},
    "switch_direction": {"target", "text"},
    "switch_target": {"target"},
    "which_words": {"span"},
    "no_change": set(),
    "rendered_by": {"span", "rendering"},
}
FOREIGN = ("translate", "correct_draft")
"""Keys with further sentences for a foreign target language, by users who learn it or do not know it."""
FAULTS = ("omission", "addition", "number", "repetition", "order", "replacement", "punctuation", "case")
ADDRESSES = ("familiar", "polite")
VERDICTS = ("first_better", "second_better")
OPTIONAL = {"target", "origin"}
"""Placeholders that a sentence may use if its key has them, but does not have to."""
FEWEST = 20
"""Fewest sentences in a list: with fewer, a model would learn the sentences instead of the request."""
FEWEST_REASONS = 5
"""Fewest sentences of each of the many lists of reasons."""

_MARK = re.compile(r"[\"“”„«»「」‘‹›]|(?<!\w)'|'(?!\w)")
_QUOTED = re.compile(r"([\"“„«「]\s?)\{(\w+)\}(\s?[\"”“»」])")


@dataclass(frozen=True)
class Phrasings:
    """The sentences of one language."""

    language: str
    lists: Mapping[str, tuple[str, ...]]
    """Key -> sentences. Reasons have keys such as "first_better.omission", and further sentences for a
    foreign language such as "foreign.translate"."""
    names: Mapping[str, str]
    """Language code -> its name in this language."""
    separator: str
    addresses: Mapping[str, str]
    """Sentence -> "familiar" (du, tu, 你) or "polite" (Sie, vous, 您), for sentences in which it shows."""

    def say(
        self, choose: random.Random, key: str, said: set[str] | None = None, **values: str | Sequence[str]
    ) -> str:
        """Draw one of a key's sentences and fill its placeholders; languages are given by their codes.

        As long as there are others, it avoids the sentences in `said` and those that address the other person
        differently than they do. The sentence is added to `said`.
        """
        able = self.lists[key]
        if values.get("target", self.language) != self.language:
            able += self.lists.get(f"foreign.{key}", ())
        for name in OPTIONAL & values.keys():
            values[name] = self.names[values[name]]
        # A text that has quotation marks itself is not put into quotation marks.
        quoting = {name for name, value in values.items() if isinstance(value, str) and _MARK.search(value)}
        if quoting:
            able = tuple(text for text in able if not quoting & _quoted_holes(text)) or able
        said = set() if said is None else said
        used = {self.addresses[text] for text in said if text in self.addresses}
        if used:
            able = tuple(text for text in able if self.addresses.get(text) in {None, *used}) or able
        text = choose.choice([text for text in able if text not in said] or able)
        said.add(text)
        for name, value in values.items():
            if not isinstance(value, str):
                values[name] = self._joined(text, name, value)
        return text.format(**values)

    def _joined(self, text: str, name: str, words: Sequence[str]) -> str:
        """Words as a list; each in quotation marks where the sentence has them around its placeholder."""
        marks = next((match for match in _QUOTED.finditer(text) if match[2] == name), None)
        between = f"{marks[3]}{self.separator}{marks[1]}" if marks else self.separator
        return between.join(words)


@functools.cache
def _quoted_holes(text: str) -> frozenset[str]:
    """Placeholders that a sentence puts in quotation marks."""
    return frozenset(match[2] for match in _QUOTED.finditer(text))


@functools.cache
def load_phrasings(language: str, folder: Path = FOLDER, fewest: int = FEWEST) -> Phrasings:
    """Read and check the sentences of a language; `fewest` is how many each list must have.

    Raises UserError, naming file, key and sentence, if something is wrong with them.
    """
    path = folder / f"{language}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(str(path), f"cannot be read: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(str(path), "holds no phrasings", "Give a mapping of key to sentences.")
    lists = {
        key: _sentences(path, key, content.get(key), holes, fewest) for key, holes in PLACEHOLDERS.items()
    }
    foreign = content.get("foreign")
    if not isinstance(foreign, dict):
        raise UserError(f"{path}: foreign", "is no mapping", "Give lists by key.")
    for key in FOREIGN:
        lists[f"foreign.{key}"] = _sentences(path, f"foreign.{key}", foreign.get(key), PLACEHOLDERS[key], 1)
    for verdict in VERDICTS:
        reasons = content.get(verdict)
        if not isinstance(reasons, dict):
            raise UserError(f"{path}: {verdict}", "is no mapping", "Give lists by kind of fault.")
        for fault in FAULTS:
            key = f"{verdict}.{fault}"
            lists[key] = _sentences(path, key, reasons.get(fault), {"span"}, min(fewest, FEWEST_REASONS))
    names, separator = content.get("languages"), content.get("list_separator")
    if not isinstance(names, dict):
        raise UserError(f"{path}: languages", "is no mapping", "Give a name for each code.")
    if nameless := [code for code in LANGUAGES + OTHER_LANGUAGES if not isinstance(names.get(code), str)]:
        raise UserError(f"{path}: languages", f"has no name for {nameless[0]}")
    if not isinstance(separator, str) or not separator:
        raise UserError(f"{path}: list_separator", f"must be text: {separator!r}")
    addresses = _addresses(path, content.get("address", {}), lists)
    return Phrasings(language, lists, names, separator, addresses)


def _addresses(path: Path, patterns: Any, lists: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Sentence -> how it addresses the other person, if one of the patterns under "address" finds that."""
    where = f"{path}: address"
    if not isinstance(patterns, dict) or not set(patterns) <= set(ADDRESSES):
        raise UserError(where, f"must be a mapping of {' and '.join(ADDRESSES)} to a pattern")
    found: dict[str, str] = {}
    for address, pattern in patterns.items():
        try:
            of_address = re.compile(pattern, re.VERBOSE)
        except (TypeError, re.error) as error:
            raise UserError(where, f"{address} is no pattern: {error}") from None
        for text in {text for texts in lists.values() for text in texts if of_address.search(text)}:
            if text in found:
                raise UserError(where, f"is both familiar and polite: {text}")
            found[text] = address
    return found


def _sentences(path: Path, key: str, found: Any, holes: set[str], fewest: int) -> tuple[str, ...]:
    where = f"{path}: {key}"
    if not isinstance(found, list):
        raise UserError(where, "is no list of sentences")
    for text in found:
        if not isinstance(text, str) or not text.strip():
            raise UserError(where, f"is no sentence: {text!r}")
        try:
            used = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        except ValueError as error:
            raise UserError(where, f"{error}: {text}") from None
        if missing := holes - OPTIONAL - used:
            raise UserError(where, f"lacks {{{min(missing)}}}: {text}")
        if unknown := used - holes:
            raise UserError(where, f"has the unknown placeholder {{{min(unknown)}}}: {text}")
    if len(set(found)) < fewest:
        raise UserError(where, f"has {len(set(found))} different sentences; {fewest} are needed")
    return tuple(found)
