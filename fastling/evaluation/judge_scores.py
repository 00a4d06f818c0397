"""Reads two scores or a verdict from a judge's answer: it accepts many forms, and guesses nothing.

The judge is asked for a first line of two numbers. Judges also write "[[8]] [[9]]", JSON, "Assistant 1: 8/10
... Assistant 2: 7.5/10", "Scores: 8 9", or a last line of two numbers after much thought. The first of these
forms that is found decides, and all scores in it must agree. Numbers that are merely mentioned do not count.
An answer without scores may end as MT-bench's prompts ask for: [[A]], [[B]], or [[C]] for a tie.
"""

import json
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

LOWEST, HIGHEST = 1, 10
LONGEST_TEXT = 50_000  # characters; a judge that writes more is probably repeating itself
MOST_OBJECTS = 20  # JSON objects that are looked for in a text
Scores = tuple[Fraction, Fraction]
"""Scores of Assistant 1 and Assistant 2; they are exact, so that equal means compare as equal."""
Told = Scores | int
"""What a judge said: scores, or only who is better: 1 for Assistant 1, -1 for Assistant 2, 0 for neither."""

_NUMBER = r"(?<![0-9.])([-+]?[0-9]{1,3}(?:\.[0-9]{1,6})?)(?![0-9])"
_SCALE = r"(?:\s?(?:/\s?|out of )10(?:\.0)?(?!\.?[0-9])|\s?分)"
_OF_ONE_TURN = r"(?!\s(?:for|in|on)\s(?:(?:the\s)?(?:first|second|last)\s)?turn)"
_SCORE = f"{_NUMBER}{_SCALE}?"
# "1 - 8" may be a label with its score, and "8-9" a range.
_BETWEEN = r"(?:\s?(?:[,;|、&]|and|vs\.?|和|与)\s?|(?<!\b[12])\s[-–—]\s|\s)"
_WORD = r"(?:scores?|ratings?|评分|得分|分数|打分)"
_LABEL = (
    r"(?<![a-z])(?:assistant|model|chatbot|ai|score|rating|助手|助理|模型|评分|得分)\s?#?([12ab])(?![0-9a-z])"
)
_NO_LABEL = _LABEL.replace("([12ab])", "[12ab]")
_BOTH_NAMED = rf"(?:\s?\(?\s?(?:(?:of|for) )?{_NO_LABEL}\s?(?:,|and|&|/)\s?{_NO_LABEL}\s?\)?)?"
_SAID = (  # what stands between a label and its number
    rf"(?:['’]s|的)?\s?[:=|]?\s?(?:(?:final |overall )?{_WORD})?\s?"
    r"(?:[:=|(\[]|[-–—]\s|(?:is|of|gets?|scores?|scored|receives?|earns?|deserves)\b|为|是|得)?"
    rf"\s?(?:an?\s(?:{_WORD}\sof\s)?)?[(\[]?\s?"
)
_AND_ON = (  # what stands after a number that is a score: another label, the end of a line, a remark
    rf"(?=\s?(?:[,;、。.|)\]]*\s*(?:(?:and|while|but)\s)?(?:the )?(?:{_WORD} (?:of|for) )?{_NO_LABEL}"
    r"|[,;、。.|)\]]*\s*$|\(|[-–—]\s(?!\s?[0-9])))"
)

# With one more number it would be a list: "3, 4 and 5 are wrong".
BEGINS = re.compile(rf"{_SCORE}[,;]?\s{_SCORE}(?![0-9/.%])(?!\W*(?:and|or|to)?\W*[-+]?[0-9])(?=\W)")
SCORES_ONLY = re.compile(rf"{_SCORE}(?:{_BETWEEN}{_SCORE})*\.?")
ANNOUNCED = re.compile(rf"(?:(?:the|my|final|overall) )*{_WORD}{_BOTH_NAMED}\s?(?:are|is|为|是)?\s?[:=]?\s?")
LABELLED = re.compile(rf"{_LABEL}{_SAID}{_NUMBER}(?:{_SCALE}{_OF_ONE_TURN}|{_AND_ON})", re.MULTILINE)
ONLY_LETTERS = re.compile(rf"([1a])\s?[:=]\s?{_SCORE}[\s,;]*([2b])\s?[:=]\s?{_SCORE}\.?")
BRACKETS = re.compile(r"\[\[([^\[\]]*)\]\]")
VERDICT = re.compile(r"\[\[\s?([abc])\s?\]\]")
BETTER = {"a": 1, "b": -1, "c": 0}
KEY = re.compile(r"(?:score|rating|of|for|assistant|model|answer|response|ai)*([12ab])(?:score|rating)?")


class Unreadable(Exception):
    """Raised for a text without two scores; its message is the reason, in a few words to count by."""


def parse_answer(text: str) -> Told:
    """The scores of Assistant 1 and Assistant 2, each from 1 to 10; in an answer without scores, its verdict.

    Raises Unreadable if there is neither.
    """
    if len(text) > LONGEST_TEXT:
        raise Unreadable("far too long")
    text = text.rpartition("</think>")[2].strip()
    if not text or text.startswith("<think>"):
        raise Unreadable("empty or cut off")
    text = text.lower().translate({code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)})  # full-width
    plain = re.sub(r"[^\S\n]+", " ", re.sub(r"[*_`#\"]", " ", text))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    for pairs in (
        _at_the_start(lines),
        _in_brackets(text),
        _in_json(text),
        _labelled(plain),
        _announced(lines),
        _scores_only(lines[-1]) if lines else [],
    ):
        if pairs:
            return _agreed(pairs)
    verdicts = set(VERDICT.findall(text))
    if len(verdicts) == 1:
        return BETTER[verdicts.pop()]
    raise Unreadable("verdicts that disagree" if verdicts else "no scores")


def _agreed(found: list[list[str]]) -> Scores:
    """The two scores on which all readings agree; a reading is a list of scores. Raises Unreadable."""
    for reading in found:
        if len(reading) != 2:
            raise Unreadable("one score only" if len(reading) < 2 else "more than two scores")
    first, second = {(Fraction(a), Fraction(b)) for a, b in found}.pop()
    if any((Fraction(a), Fraction(b)) != (first, second) for a, b in found):
        raise Unreadable("scores that disagree")
    if not (LOWEST <= first <= HIGHEST and LOWEST <= second <= HIGHEST):
        raise Unreadable(f"a score out of {LOWEST} to {HIGHEST}")
    return first, second


def _scores_only(line: str) -> list[list[str]]:
    """The reading of a line that holds scores and nothing else; none for any other line."""
    line = " ".join(line.strip("()[]").split())
    return [re.findall(_SCORE, line)] if SCORES_ONLY.fullmatch(line) else []


def _at_the_start(lines: list[str]) -> list[list[str]]:
    """Scores on the first line, which is the form that was asked for, or on each of the first lines."""
    block: list[str] = []
    for line in lines:
        reading = _scores_only(line)
        if not reading:
            break
        block += reading[0]
    if not block and lines and (match := BEGINS.match(lines[0])):
        block = list(match.groups())
    return [block] if block else []


def _in_brackets(text: str) -> list[list[str]]:
    """[[8]] [[9]] or [[8, 9]]; if they are repeated, every two scores are a reading."""
    scores = [score for held in BRACKETS.findall(text) for found in _scores_only(held) for score in found]
    size = 2 if len(scores) % 2 == 0 else len(scores)
    return [scores[start : start + size] for start in range(0, len(scores), size)]


def _in_json(text: str) -> list[list[str]]:
    """{"assistant_1": 8, "assistant_2": {"score": 9}} or {"scores": [8, 9]}, anywhere in the text."""
    found: list[list[str]] = []
    # Numbers stay text, so that 1e999999999 is never computed.
    decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
    end = 0
    for _ in range(MOST_OBJECTS):
        at = text.find("{", end)
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
            continue
        alone = not re.sub(r"^```\w*|```$", "", text[:at] + text[end:]).strip()
        found += _in_value(value, letters=alone)
    return found


def _in_value(value: Any, *, letters: bool) -> Iterator[list[str]]:
    """Yield the readings in a JSON value. With `letters` {"a": 8, "b": 9} is one, too."""
    if isinstance(value, list):
        scores = [score for item in value if (score := _number(item)) is not None]
        if scores and len(scores) == len(value):
            yield scores
            return
    if not isinstance(value, dict):
        return
    sides = {}
    for key, item in value.items():
        name = re.sub(r"[^0-9a-z]", "", key)
        match, score = KEY.fullmatch(name), _number(item)
        if match and score is not None and (letters or len(name) > 1):
            sides["first" if match[1] in "1a" else "second"] = score
    if len(sides) == 2:
        yield [sides["first"], sides["second"]]
        return
    for item in value.values():
        yield from _in_value(item, letters=False)


def _number(value: Any) -> str | None:
    """The number in 8, "8/10" or {"score": 8}, as text; None for anything else."""
    if isinstance(value, dict):
        value = value.get("score", value.get("rating"))
    match = re.fullmatch(_SCORE, value.strip()) if isinstance(value, str) else None
    return match[1] if match else None


def _labelled(text: str) -> list[list[str]]:
    """Scores with labels: Assistant 1: 8/10 ... Assistant 2 gets 7.5."""
    if whole := ONLY_LETTERS.fullmatch(text.strip()):
        return [[whole[2], whole[4]]]
    said: dict[str, list[str]] = {"first": [], "second": []}
    for label, score in LABELLED.findall(text):
        said["first" if label in "1a" else "second"].append(score)
    firsts, seconds = said["first"], said["second"]
    if not (firsts and seconds):
        return [firsts or seconds] if len({*firsts, *seconds}) == 1 else []
    return [[first, second] for first in firsts for second in seconds]


def _announced(lines: list[str]) -> list[list[str]]:
    """Scores after a word that announces them: Scores: 8 9."""
    return [
        reading
        for line in lines
        if (match := ANNOUNCED.match(line)) and match[0]
        for reading in _scores_only(line[match.end() :])
    ]
