"""Decides whether a text answers a cloze question: equal after normalisation, or the same number."""

import re
import unicodedata
from fractions import Fraction

ANNOUNCEMENT = re.compile(
    r"(?:\b(?:answers?|result|value)\s*(?:is|are|:|=)(?:\s*:)?|(?:答案|结果)(?:应该|应|就)?(?:是|为)?\s*:?|填(?:入|写)?:?"
    r"|^\s*答\s*:)",
    re.I | re.M,
)
LEAD = re.compile(r"(?:综上(?:所述)?|因此|所以|故|即|(?:therefore|thus|hence|so)\b)?[,:\s]*=?\s*", re.I)
# After an answer: a reason, or words without numbers after a formula in dollars.
REASON = re.compile(r"[,;]?\s*(?:因为|其中|because\b|since\b|where\b).*|(?<=\$)[,;][^$0-9]*$", re.I)
UNITS = re.compile(
    r"(?<=[0-9})])(?:cm|mm|km|m|kg|g|s|min|h|degrees?|dollars?|units?|°|平方米|立方米|厘米|千米|米|度|元|个|人|种|次"
    r"|分|秒|天|岁)$"
)
"""Units after a number. An answer that leaves its unit out, or adds one, is the same answer."""
MEASURES = {
    **{name: name for name in ("mm", "cm", "m", "km", "g", "kg", "s", "min", "h", "°", "平方米", "立方米")},
    **{"厘米": "cm", "米": "m", "千米": "km", "秒": "s", "度": "°", "degree": "°", "degrees": "°"},
}
"""Spelling -> unit. Two answers with different ones of these units are not the same."""
LONGEST_NUMBER = 1000
"""Most characters in a number. A model may repeat digits up to its limit, too many for Python to convert."""
ATOM = r"(?:\\?[a-z]+\{[^{}]*\}|\\[a-z]+|[0-9.]+|[a-z])+"


def is_right(text: str, answer: str) -> bool | None:
    """Whether the text gives the answer, with all blanks in their order; None if it announces no answer.

    Several blanks are separated by semicolons in `answer`. A text of one line needs no announcement.
    """
    wanted = [normalize(part) for part in _blanks(unicodedata.normalize("NFKC", answer))]
    given = _given(text, len(wanted))
    if given is None:
        return None
    for parts in given:
        normal = [normalize(part) for part in parts]
        if len(normal) == len(wanted) and all(map(_equal, normal, wanted)):
            return True
    return False


def _given(text: str, blanks: int) -> list[list[str]] | None:
    """The possible readings of a text's answer, each as a list of blanks; None if it gives none.

    They are in the last boxes, else after the last announcement, else in a text of one line.
    """
    text = unicodedata.normalize("NFKC", text).strip()
    boxes = _boxes(text, blanks)
    if boxes:
        return [boxes, *_readings(boxes[-1])]
    announced = [match.end() for match in ANNOUNCEMENT.finditer(text)]
    if announced:
        rest = text[announced[-1] :].strip()
        return _readings(re.split(r"\n|。|\.(?=\s|$)", rest)[0]) if rest else None
    return _readings(text[LEAD.match(text).end() :]) if text and "\n" not in text else None


def _readings(said: str) -> list[list[str]]:
    """Readings of a text, each as its blanks: the text is one, or they are separated by semicolons, or by
    commas outside of brackets; and all of this without a reason at the end.
    """
    readings = [[said], _blanks(said), _split_outside_of_brackets(said)]
    shorter = REASON.sub("", said, count=1)
    return readings if shorter == said else [*readings, *_readings(shorter)]


def _blanks(text: str) -> list[str]:
    return [part for part in text.split(";") if part.strip()]


def _split_outside_of_brackets(text: str) -> list[str]:
    parts: list[list[str]] = [[]]
    depth = 0
    for character in re.sub(r"\s+and\s+|和", ",", text):
        depth += (character in "([{") - (character in ")]}")
        if character in ",、" and depth == 0:
            parts.append([])
        else:
            parts[-1].append(character)
    return [whole for part in parts if (whole := "".join(part)).strip()]


def _boxes(text: str, count: int) -> list[str]:
    """The insides of the last `count` \\boxed{...}, with the braces in them."""
    found, opened = [], []
    for match in re.finditer(r"(?P<box>\\boxed\s*)?\{|\}", text):
        if match[0] != "}":
            opened.append(match)
        elif opened and (opening := opened.pop())["box"]:
            found.append((opening.end(), match.start()))
    return [text[start:stop] for start, stop in sorted(found)[-count:]]


def normalize(text: str) -> str:
    """A formula in a canonical spelling: without invisible LaTeX, spaces, and surrounding punctuation."""
    text = unicodedata.normalize("NFKC", text).replace("−", "-").replace("–", "-")
    text = re.sub(
        r"\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])|\\[,;:! ()\[\]]|\*\*|[$\s]", "", text
    )
    text = re.sub(r"([\^_])\{(\w)\}", r"\1\2", text.replace("{,}", ","))
    text = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\(?:mathrm|text|mathbf|rm|operatorname)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\^(?:\{\\circ\}|\\circ)|°", "°", text).replace("\\%", "%")
    text = text.replace("√", "\\sqrt").replace("π", "\\pi").replace("∞", "\\infty").replace("∪", "\\cup")
    text = re.sub(r"\\(sqrt|frac)(\d)(?=\d)", r"\\\1{\2}", text)
    text = re.sub(r"\\sqrt\(?([0-9a-z]+)\)?", r"\\sqrt{\1}", text)
    text = re.sub(r"(\\frac\{[^{}]*\})(\d)", r"\1{\2}", text)
    text = text.lstrip("。,;:!'\"“”").rstrip("。.,;:!'\"“”")  # not the dot before .5
    # A fraction becomes a/b if neither part needs brackets.
    return re.sub(rf"\\frac\{{(-?{ATOM})\}}\{{({ATOM})\}}", r"\1/\2", text)


def _equal(given: str, wanted: str) -> bool:
    """Whether two normalised formulas, or numbers, are equal; the given one may add a name before "=", and a
    unit may be added or left out.
    """
    if "=" not in wanted:
        given = re.sub(r"^\\?[a-zA-Z](?:\([a-z]\))?=", "", given)
    if given == wanted:
        return True
    measures = {MEASURES.get(unit[0]) for text in (given, wanted) if (unit := UNITS.search(text))} - {None}
    if len(measures) > 1:
        return False
    given, wanted = UNITS.sub("", given), UNITS.sub("", wanted)
    number = _number(given)
    return given == wanted or (number is not None and number == _number(wanted))


def _number(text: str) -> Fraction | None:
    """The value of a plain number, a fraction or a percentage; None for any other text."""
    match = re.fullmatch(r"([-+]?)(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:/(\d+))?(%?)", text)
    if not match or not (match[2] or match[3]) or len(text) > LONGEST_NUMBER:
        return None
    if match[4] and not int(match[4]):
        return None
    value = Fraction((match[2] or "0").replace(",", "") + (match[3] or ""))
    value = value / int(match[4] or 1) / (100 if match[5] else 1)
    return -value if match[1] == "-" else value
