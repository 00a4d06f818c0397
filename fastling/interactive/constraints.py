"""What a user can require of a translation that the reference is known to meet: words, names, numbers."""

import random
import re
from collections.abc import Sequence

from fastling.interactive.knowledge import Knowledge
from fastling.interactive.languages import CASELESS, HAN, Word, is_stop_word
from fastling.interactive.pairs import Direction

MOST_WORDS = 3
"""Most words in one requirement."""
_NUMBER = r"(?<![\w.,:/-])(?<!\d\s)\d{2,}(?![\w,:/-]|\.\d|\s\d{3}(?!\d))"
_JOINED = r"(?:& |(?:of|for|the|de|la|le|les|des|du|del|di|da|von|van|der|den|al|bin) )*"
"""Lower-case words inside a name: Jardín de la Unión is one name, and half of it is not."""
_NAME = rf"(?<![\w&.-])[A-ZÀ-Þ][\w'’]*(?:[ -]{_JOINED}[A-ZÀ-Þ][\w'’]*)*(?![\w&-])"
_NUMBER_BY_CHINESE = r"(?<![A-Za-z0-9.,:/-])\d{2,}(?![A-Za-z0-9,:/%-]|\.\d|[万亿千百十])"
_CANDIDATE = re.compile(f"{_NAME}|{_NUMBER}")
_FRENCH_JOINTS = frozenset(("de", "du", "des", "d"))
_MONTHS = frozenset(("april", "august", "september", "november"))
"""Written alike in English and German, but not names."""
_TITLE = re.compile(r"^(?:Mr|Mrs|Ms|Dr|Sir|Mme|Mlle|MM?|Herr|Frau)\.? ")
"""Titles before a name, which are translated."""
_MID_SENTENCE = re.compile(r"(?:[\w,;)]|\b(?:Mr|Mrs|Ms|Dr|MM?)\.) $")


def renderings(pair: Direction, knowledge: Knowledge) -> list[tuple[str, str]]:
    """(word of the text, word of the reference), for sure links of words that make sense alone."""
    found, links = [], knowledge.links_of(pair)
    for source, target in links:
        if source.text.casefold() == target.text.casefold():
            continue  # a name, or a number
        if "de" in (pair.origin, pair.target) and not 0.5 <= len(source.text) / len(target.text) <= 2:
            continue  # Grönlandhai is more than shark
        if _renders_more(source, target, pair, knowledge, links):
            continue
        if knowledge.stands_alone(pair.text, source, pair.origin) and knowledge.stands_alone(
            pair.reference, target, pair.target
        ):
            found.append((source.text, target.text))
    return found


def _renders_more(
    source: Word, target: Word, pair: Direction, knowledge: Knowledge, links: Sequence[tuple[Word, Word]]
) -> bool:
    """Whether a word beside one of the two may belong to the link as well.

    So 景区 is not scenic, but scenic area, and 今年 is not year, but this year. Freitag is Friday, since the
    words before them, "am" and "on", render each other.
    """
    linked = {word for link in links for word in link}
    by_source, by_target = (
        [each for each in _neighbours(text, language, word, knowledge) if each not in linked]
        for text, language, word in (
            (pair.text, pair.origin, source),
            (pair.reference, pair.target, target),
        )
    )
    paired = [
        (one, other)
        for one in by_source
        for other in by_target
        if is_stop_word(one.text, pair.origin) and is_stop_word(other.text, pair.target)
        if knowledge.may_render(one, other, pair)
    ]
    taken = {word for both in paired for word in both}
    return any(knowledge.may_render(each, target, pair) for each in by_source if each not in taken) or any(
        knowledge.may_render(source, each, pair) for each in by_target if each not in taken
    )


def _neighbours(text: str, language: str, word: Word, knowledge: Knowledge) -> list[Word]:
    """The words right before and after a word; in French also the one beyond a "de" (mot de passe)."""
    words = knowledge.cut(text, language)
    at = words.index(word)
    before, after = words[max(0, at - 2) : at][::-1], words[at + 1 : at + 3]
    return [
        each
        for side in (before, after)
        for number, each in enumerate(side)
        if not number or (language == "fr" and side[0].text in _FRENCH_JOINTS)
    ]


def words_to_include(pair: Direction, knowledge: Knowledge, choose: random.Random) -> list[str]:
    """Up to three words of the reference that render words of the text, in their order; or none."""
    able = renderings(pair, knowledge)
    count = min(len(able), choose.choices((1, 2, 3), (3, 4, 3))[0], MOST_WORDS)
    picked = {target for _, target in choose.sample(able, count)}
    return sorted(picked, key=pair.reference.index)


def items_to_keep(pair: Direction) -> list[str]:
    """Names and numbers that are the same in text and reference."""
    return [
        item
        for item in dict.fromkeys(
            _TITLE.sub("", match[0]) for match in _CANDIDATE.finditer(_latin_side(pair))
        )
        if _is_worth_keeping(item, pair)
    ]


def _latin_side(pair: Direction) -> str:
    """The text whose capital letters mark names: one in a language that has them, but not German, which also
    capitalises nouns, if the other one will do.
    """
    sides = ((pair.origin, pair.text), (pair.target, pair.reference))
    return min(sides, key=lambda side: (side[0] in CASELESS, side[0] == "de", side[0] != "en"))[1]


def _is_worth_keeping(item: str, pair: Direction) -> bool:
    side = _latin_side(pair)
    if not all(_count_whole(item, text) == 1 for text in (pair.text, pair.reference)):
        return False
    if _in_brackets(item, pair.reference) and not _in_brackets(item, pair.text):
        return False  # the reference renders it, and adds the original in brackets: 罗斯 (Ross)
    if item[0].isdigit():
        return True
    latin = {pair.origin, pair.target} - {"zh"}
    if len(item) < 3 or item.casefold() in _MONTHS or any(is_stop_word(item, each) for each in latin):
        return False
    several = " " in item or item[1:] != item[1:].lower()
    return several or bool(_MID_SENTENCE.search(side[: side.index(item)]))


def _in_brackets(item: str, text: str) -> bool:
    return bool(re.search(rf"[(（][^()（）]*{re.escape(item)}", text))


def _count_whole(item: str, text: str) -> int:
    """Occurrences of an item that are not part of a longer word or number."""
    if re.search(f"[{HAN}]", text) and item[0].isdigit():
        return sum(match[0] == item for match in re.finditer(_NUMBER_BY_CHINESE, text))
    before, after = r"(?<![A-Za-zÀ-ÿ0-9.,&-])", r"(?![A-Za-zÀ-ÿ0-9&-]|[.,]\d)"
    return len(re.findall(before + re.escape(item) + after, text))


def is_meant(word: str, pair: Direction, knowledge: Knowledge) -> bool:
    """Whether a word of the reference makes sense by itself, and renders a word of the text."""
    return any(word == target for _, target in renderings(pair, knowledge))
