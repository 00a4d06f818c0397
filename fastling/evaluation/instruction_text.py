"""Counts words and sentences of a text, and finds its language, for the instructions of Multi-IF.

How a text is counted depends on the characters in it, not on a guess at its language.
"""

import re
from collections.abc import Callable

from fastling.errors import needing
from fastling.evaluation.characters import (
    CLOSERS,
    DEVANAGARI,
    HAN,
    HANGUL,
    JOINERS,
    KANA,
    MARKS,
    SOUTH_EAST_ASIAN,
)

_WORD = re.compile(rf"\w[\w{MARKS}{JOINERS}]*")
_EAST_ASIAN = re.compile(f"[{HAN}{KANA}]")
_SYLLABLE = re.compile(f"[{HAN}{KANA}{HANGUL}]")
_DEVANAGARI = re.compile(f"[{DEVANAGARI}]")
_LATIN_WORD = re.compile(r"(?:(?![\u0900-\u097f])[^\W\d_])+")
_PICTURE = "[\u2600-\u27bf\u2b00-\u2bff\U0001f300-\U0001faff]"
_CHANGED = "[\ufe0f\u20e3\U0001f3fb-\U0001f3ff]*"
_EMOJI = re.compile(f"[\U0001f1e6-\U0001f1ff]{{2}}|{_PICTURE}{_CHANGED}(?:\u200d{_PICTURE}{_CHANGED})*")

_EAST_ASIAN_END = re.compile(rf"(?:[。．！？!?…]|\.(?!\w))+[{CLOSERS}]*")
_DANDA = re.compile(rf"[।॥!?]+[{CLOSERS}]*")
_END = re.compile(rf"(?<![.!?…؟۔])(?P<stop>[.!?…؟۔]++)[{CLOSERS}]*+(?=\s|$)")
_BEFORE = re.compile(rf"[\w.{MARKS}]+$")
_NEXT = re.compile(r"\s*[^\w\s]*(\w)")
LONGEST_ABBREVIATION = 40
"""Characters before a full stop in which an abbreviation is looked for."""
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev gen col sgt lt st mt jr sr vs cf ca approx dept est fig vol pp "  # English
    "sra srta dra ud uds pág núm art av "  # Spanish, Portuguese
    "mme mlle mm sig sigg dott ing "  # French, Italian
    "bzw usw evtl ggf nr str "  # German
    "г гг ул им проф руб тыс млн млрд стр рис".split()  # Russian
)
_CODES = frozenset(
    "af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl no "
    "pa pl pt ro ru sk sl so sq sv sw ta te th tl tr uk ur vi zh".split()
)
"""Codes of the languages that the detector knows."""


def is_east_asian(text: str) -> bool:
    """Whether a text is Chinese or Japanese: it has more Han characters and kana than other words."""
    characters = len(_EAST_ASIAN.findall(text))
    return characters > len(_WORD.findall(_EAST_ASIAN.sub(" ", text)))


def count_words(text: str) -> int:
    """The number of words of a text.

    In Chinese and Japanese each character is a word. So is each emoji, and each run of other letters and
    digits up to a space, whatever signs are in it (3.5, AI-based). In other texts a word is a run of letters,
    marks, digits and underscores, so that don't is two words and हिन्दी is one. Thai, Lao, Burmese and Khmer
    put no spaces between words: without a dictionary a whole run of them is one word.
    """
    if not is_east_asian(text):
        return len(_WORD.findall(text))
    emoji = len(_EMOJI.findall(text))
    rest = _EMOJI.sub("", text)
    stretches = _SYLLABLE.sub(" ", rest).split()
    return len(_SYLLABLE.findall(rest)) + emoji + sum(bool(_WORD.search(each)) for each in stretches)


def count_sentences(text: str) -> int:
    """The number of sentences of a text; each has at least one letter.

    In Chinese and Japanese 。！？, their ASCII forms, and the end of a line end a sentence; in Hindi । ॥ ! ?.
    In other texts . ! ? … before a space end a sentence, unless a lower-case letter comes next. A full stop
    after an abbreviation, an initial, or a number that begins a line does not end one, nor does the end of a
    line.
    """
    if is_east_asian(text):
        pieces = [piece for line in text.splitlines() for piece in _EAST_ASIAN_END.split(line)]
    elif len(_DEVANAGARI.findall(text)) > len("".join(_LATIN_WORD.findall(text))):
        pieces = _DANDA.split(text)
    else:
        pieces = _western_sentences(text)
    return sum(any(character.isalpha() for character in piece) for piece in pieces)


def _western_sentences(text: str) -> list[str]:
    pieces, start = [], 0
    for match in _END.finditer(text):
        following = _NEXT.match(text, match.end())
        if following and following[1].islower():
            continue
        if match["stop"] == "." and _is_abbreviated(
            text[max(start, match.start() - LONGEST_ABBREVIATION) : match.start()]
        ):
            continue
        pieces.append(text[start : match.end()])
        start = match.end()
    return [*pieces, text[start:]]


def _is_abbreviated(before: str) -> bool:
    """Whether the full stop after a text belongs to its last word: Dr., J., e.g., or 1. of a list."""
    word = _BEFORE.search(before)
    if not word:
        return False
    last = word[0]
    initial = len(last) == 1 and last.isupper() and last != "I"
    item = last.isdigit() and not before[: word.start()].rpartition("\n")[2].strip()
    dotted = "." in last.strip(".") and not last[-1].isdigit()
    return initial or item or dotted or last.lower() in _ABBREVIATIONS


def includes_word(text: str, word: str) -> bool:
    """Whether a text has a word, in any letter case, that is not part of a longer one.

    Scripts without spaces do not show where words end, so beside their characters it counts as a word.
    """
    letter = f"(?![{HAN}{KANA}{SOUTH_EAST_ASIAN}])[\\w{MARKS}]"
    before = f"(?<!(?={letter}).)" if re.match(letter, word) else ""
    after = f"(?!{letter})" if re.search(f"{letter}$", word) else ""
    return re.search(f"{before}{re.escape(word)}{after}", text, re.IGNORECASE | re.DOTALL) is not None


# Language -------------------------------------------------------------------------------------------


def knows_language(code: str) -> bool:
    return base_language(code) in _CODES


def base_language(code: str) -> str:
    """The code of a language without its country: zh for zh-cn."""
    return code.lower().replace("_", "-").partition("-")[0]


def load_detector() -> Callable[[str], str | None]:
    """The detector of languages: langdetect, as in the benchmark, but seeded, so that results repeat.

    It takes a text and returns a code, or None if it finds no language. Raises UserError if langdetect is not
    installed.
    """
    with needing("eval", "fastling evaluate instructions"):
        import langdetect
    langdetect.DetectorFactory.seed = 0

    def detect(text: str) -> str | None:
        try:
            return langdetect.detect(text)
        except langdetect.LangDetectException:
            return None

    return detect


def language_of(text: str) -> str | None:
    """The code of the language of most of a text, or None for a text without letters.

    The detector takes capitals for other languages, so it is given lower case. It takes short Chinese for
    Korean, so a text that `is_east_asian` without kana and hangul is called Chinese here.
    """
    if is_east_asian(text) and not re.search(f"[{KANA}{HANGUL}]", text):
        return "zh"
    code = load_detector()(text.lower())
    return code and base_language(code)
