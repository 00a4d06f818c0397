"""Compares a revised draft with its reference: whether errors were fixed, and whether anything was harmed.

Everything is counted in tokens, so that a number is not found inside a longer one. A token is a run of
digits, a run of letters, one character of a script without spaces, or any other sign. Letter case counts.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sacrebleu.metrics import CHRF, TER
from sacrebleu.metrics.lib_ter import BeamEditDistance

from fastling.evaluation.characters import HAN, JOINERS, KANA, MARKS, SOUTH_EAST_ASIAN

MOST_LEAD = 40
"""Most characters of a lead, words such as "Here it is:" that stand before a version on its line."""
LIKE_THE_DRAFT = 0.5
"""Lines of an answer are no version if they have less than this share of the best lines' similarity."""
MOST_FOR_MOVES = 2500
"""A draft's number of tokens times that of an unlike text, for which TER works about a second."""
_ALONE = f"[{HAN}{KANA}{SOUTH_EAST_ASIAN}]"
_LETTER = rf"(?!{_ALONE})[^\W\d_][{MARKS}{JOINERS}]*"
_TOKEN = re.compile(rf"{_ALONE}[{MARKS}]*|\d+|(?:{_LETTER})+|\S[{MARKS}{JOINERS}]*")
_LEAD, _LONG_LEAD = (
    re.compile(rf"(\**)[^:：\n]{{1,{most}}}(?:(?::\1|:)(?=\s)|：\1|：)\s*(?=\S)")
    for most in (MOST_LEAD, 2 * MOST_LEAD)
)
"""The second is for a draft, whose own words before a colon may be longer by its errors."""
_WRAPPERS = (
    ("**", "**"),
    ("*", "*"),
    ("`", "`"),
    ('"', '"'),
    ("“", "”"),
    ("„", "“"),
    ("「", "」"),
    ("«", "»"),
)
_GERMAN_QUOTATION = re.compile("„[^„“”]*[“”]")
"""A German quotation may close with the mark that opens an English one."""
_ter = TER(case_sensitive=True)
_chrf = CHRF()


class Error(NamedTuple):
    """An error that makes a draft of a reference: `wrong` in place of `right`, at character `start`."""

    kind: str
    start: int
    wrong: str
    right: str


class Fault(NamedTuple):
    """An error in whole tokens, those of the draft (`wrong`) and those of the reference (`right`)."""

    kind: str
    wrong: tuple[str, ...]
    right: tuple[str, ...]
    beside: str
    """The token before it (or after it, at the start), which must survive if only the error was removed."""


@dataclass(frozen=True)
class Draft:
    """A text to revise, with all its faults."""

    text: str
    reference: str
    faults: tuple[Fault, ...]
    right_tokens: tuple[str, ...]
    """Tokens of the draft outside all faults; the reference has them, too."""


def make_draft(reference: str, errors: Sequence[Error]) -> Draft:
    """The draft that results from putting errors into a reference.

    Raises ValueError for errors that are not in the reference, overlap, or change nothing.
    """
    text, places, last = "", [], 0
    errors = sorted(errors, key=lambda error: error.start)
    for error in errors:
        end = error.start + len(error.right)
        within = last <= error.start <= len(reference)
        if not within or reference[error.start : end] != error.right:
            raise ValueError(f"{error.right!r} is not at {error.start} of the reference, or errors overlap")
        text += reference[last : error.start]
        places.append([error.start, end, len(text), len(text) + len(error.wrong)])
        text, last = text + error.wrong, end
    text += reference[last:]
    ours, theirs = _spans(text), _spans(reference)
    for place in places:
        _widen(place, theirs, ours)
    if any(one[1] > two[0] or one[3] > two[2] for one, two in zip(places, places[1:], strict=False)):
        raise ValueError("two errors are in one word; make them one")
    faults = []
    for error, place in zip(errors, places, strict=True):
        wrong, right = tokens(text[place[2] : place[3]]), tokens(reference[place[0] : place[1]])
        if wrong == right:
            raise ValueError(f"an error that changes nothing: {error.wrong!r} for {error.right!r}")
        beside = (tokens(reference[: place[0]])[-1:] or tokens(reference[place[1] :])[:1] or [""])[0]
        faults.append(Fault(error.kind, tuple(wrong), tuple(right), beside))
    if errors and tokens(text) == tokens(reference):
        raise ValueError("errors that together change nothing")
    outside = [
        token
        for token, start, end in ours
        if not any(start < place[3] and end > place[2] for place in places)
    ]
    return Draft(text, reference, tuple(faults), tuple(outside))


def _widen(place: list[int], theirs: Sequence[tuple], ours: Sequence[tuple]) -> None:
    """Move the ends of an error outwards, alike in draft and reference, until they cut no token."""

    def cuts(spans: Sequence[tuple], at: int) -> bool:
        return any(start < at < end for _, start, end in spans)

    while cuts(theirs, place[0]) or cuts(ours, place[2]):
        place[0], place[2] = place[0] - 1, place[2] - 1
    while cuts(theirs, place[1]) or cuts(ours, place[3]):
        place[1], place[3] = place[1] + 1, place[3] + 1


def _spans(text: str) -> list[tuple[str, int, int]]:
    return [(unicodedata.normalize("NFC", match[0]), *match.span()) for match in _TOKEN.finditer(text)]


def tokens(text: str) -> list[str]:
    """The tokens of a text, each in NFC."""
    return [token for token, _, _ in _spans(text)]


# The version in an answer ---------------------------------------------------------------------------


def version_of(answer: str, draft: str) -> str:
    """The revised text in an answer, which may have "Here it is:" before it and a list of changes after it.

    Among all runs of lines of the draft's length, it is the last one whose chrF to the draft (never to the
    reference) is at least half of the best run's. A lead that ends in a colon is left out, unless it is the
    draft's own; so are quotation marks or asterisks around the text that the draft does not have.
    """
    lines = [line.strip() for line in answer.splitlines()]
    lines = [line for line in lines if line and not line.startswith("```")]
    count = max(1, sum(bool(line.strip()) for line in draft.splitlines()))
    runs = ["\n".join(lines[at : at + count]) for at in range(max(1, len(lines) - count + 1))]
    runs = [_bare(run, draft) for run in runs]
    if len(runs) == 1:
        return runs[0]
    likeness = [chrf(run, draft) for run in runs]
    least = LIKE_THE_DRAFT * max(likeness)
    return next(run for run, like in zip(reversed(runs), reversed(likeness), strict=True) if like >= least)


def _bare(text: str, draft: str) -> str:
    """A version without a lead on its line, and without marks around it."""
    text = _unwrapped(text, draft)
    lead = _LEAD.match(text)
    if lead and lead[0].strip(":：* ") not in draft:
        rest = text[lead.end() :]
        text = rest if _LONG_LEAD.match(rest) or not _LONG_LEAD.match(draft) else text
    return _unwrapped(text, draft)


def _unwrapped(text: str, draft: str) -> str:
    for opening, closing in _WRAPPERS:
        inner = text[len(opening) : -len(closing)]
        whole = len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing)
        has_its_own = draft.startswith(opening) and not inner.startswith(opening)
        if whole and _are_a_pair(inner, opening, closing) and not has_its_own:
            text = inner.strip()
    return text


def _are_a_pair(inner: str, opening: str, closing: str) -> bool:
    """Whether the marks around a text belong together. In “a” and “b” the first and the last do not."""
    if opening == closing:
        return closing not in inner
    depth = 0
    inner = _GERMAN_QUOTATION.sub("", inner)
    for mark in re.findall(f"[{opening}{closing}]", inner):
        depth += 1 if mark == opening else -1
        if depth < 0:
            return False
    return depth == 0


# Measures -------------------------------------------------------------------------------------------


def is_fixed(fault: Fault, reference: Sequence[str], version: Sequence[str]) -> bool:
    """Whether the wrong tokens are at most, and the right ones at least, as frequent as in the reference.

    Frequencies are compared since a reference may have the wrong tokens elsewhere, or the right ones twice.
    If the error was only too many words, so that there are no right ones, the token beside it must be there.
    """
    gone = not fault.wrong or count_runs(version, fault.wrong) <= count_runs(reference, fault.wrong)
    if not fault.right:
        return gone and (fault.beside in version if fault.beside else True)
    return gone and count_runs(version, fault.right) >= count_runs(reference, fault.right)


def count_runs(text: Sequence[str], run: Sequence[str]) -> int:
    """How often the tokens of `run` follow each other in `text`; overlaps count."""
    return sum(list(text[at : at + len(run)]) == list(run) for at in range(len(text) - len(run) + 1))


def lost_tokens(draft: Draft, version: Sequence[str]) -> int:
    """The number of right tokens of the draft outside a longest common subsequence with its revision."""
    return len(draft.right_tokens) - common_length(draft.right_tokens, version)


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of a longest common subsequence. A bit for each token of `first` makes it fast (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for at, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << at
    full = open_bits = (1 << len(first)) - 1
    for token in second:
        matched = open_bits & places.get(token, 0)
        open_bits = ((open_bits + matched) | (open_bits - matched)) & full
    return len(first) - open_bits.bit_count()


def edit_rate(text: str, draft: str) -> float:
    """TER of a text in percent of the draft's tokens: the edits that turn the draft into the text.

    A text is not a revision if the two share less than half of the longer one's tokens. The edits of a long
    such text are counted without TER's moves, which TER would search for minutes.
    """
    ours, theirs = tokens(text), tokens(draft)
    is_other = 2 * common_length(theirs, ours) < max(len(ours), len(theirs))
    if is_other and len(ours) * len(theirs) > MOST_FOR_MOVES:
        return 100 * BeamEditDistance(theirs)(ours)[0] / len(theirs)
    return _ter.sentence_score(" ".join(ours), [" ".join(theirs)]).score


def chrf(text: str, reference: str) -> float:
    """chrF2 of one text, 0 to 100."""
    return _chrf.sentence_score(text, [reference]).score


def signatures() -> str:
    """sacrebleu's signatures of chrF and TER; TER is given our tokens."""
    for metric in (_chrf, _ter):
        metric.corpus_score(["-"], [["-"]])  # a signature names the number of references it has seen
    return f"chrF2 {_chrf.get_signature()}; TER {_ter.get_signature()}, on tokens of fastling"


def is_unchanged(version: str, draft: str) -> bool:
    """Whether a version is the draft, up to white space and the encoding of accents (NFC)."""
    return _plain(version) == _plain(draft)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def holds(text: str, words: str, *, any_case: bool) -> bool:
    """Whether a text holds `words`, one after the other, as whole tokens."""
    if any_case:
        text, words = text.casefold(), words.casefold()
    return count_runs(tokens(text), tokens(words)) > 0
