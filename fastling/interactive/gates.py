"""Gates: the checks that a pair of sentences, and then a finished dialogue, must pass to be used.

The rules should build only correct dialogues. The gates check that again, on the finished text, because a
rule may be wrong. No gate asks a quality estimator whether the last version is better than a draft:
that needs a neural model, and here the last version is a human translation and the draft is faulty.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Set

from fastling.interactive.constraints import is_meant
from fastling.interactive.dialogue import Dialogue
from fastling.interactive.exclusion import Exclusion
from fastling.interactive.knowledge import Knowledge
from fastling.interactive.languages import CASELESS, HAN, reads_as, tokens
from fastling.interactive.pairs import Corpus, Pair

SHORTEST = {"zh": 4, "ja": 6, "ko": 6}
SHORTEST_LATIN = 12
LONGEST = 1000
"""Shortest and longest sentence in characters."""
LEAST_RATIO, MOST_RATIO = 0.5, 2.0
"""Bounds of a pair's ratio of lengths, relative to the median ratio of the corpus."""
NEAR_COPY = 0.7
"""Largest share of words that a third text may have in common with one of the other two."""
_UNFINISHED = frozenset(",;:，；：、(（-–—")
_CUT_BEFORE = re.compile(r"[,;:!?，；：。！？、)）\]]|\.\s")
"""Beginnings of a line that is only the rest of a sentence."""
_SMALL_WORD = re.compile(r"[a-zß-öø-ÿ]+(?![\w.'’-])")
"""A first word in lower case, but not one like eBay or cctv.com."""
_BRACKETS = ((re.compile(r"(?<![:;=-])[(（]"), re.compile("[)）]")), (re.compile("《"), re.compile("》")))
"""Opening brackets (but no faces such as :( ), and those that close them."""
_DAMAGE = re.compile(
    rf"[\x00-\x1f\x7f-\x9f\ue000-\uf8ff\ufffd]|[{HAN}]\?[{HAN}]|[a-zà-ÿ]\?[a-zà-ÿ]|"
    r"Ã[\u0080-\u00bf\u0192\u201e\u2020\u0152\u0153\u0178]|â€|Â[\u00a1-\u00bf]"
)
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_YEAR = re.compile(r"(?<![\d.,])(?:1[1-9]|20)\d\d(?!\d|[.,]\d)")


# Pairs ----------------------------------------------------------------------------------------------


def is_empty(pair: Pair) -> bool:
    return not all(pair.texts)


def is_copy(pair: Pair) -> bool:
    return pair.first.casefold() == pair.second.casefold()


def is_too_short(pair: Pair, corpus: Corpus) -> bool:
    sides = zip(pair.texts, corpus.languages, strict=True)
    return any(len(text) < SHORTEST.get(language, SHORTEST_LATIN) for text, language in sides)


def is_too_long(pair: Pair) -> bool:
    return max(map(len, pair.texts)) > LONGEST


def is_unfinished(pair: Pair, corpus: Corpus, capital: Set[str]) -> bool:
    """Whether a line is only a part of a sentence.

    It ends or begins with a comma or the like, begins with a small letter in a language of `capital`, whose
    lines begin with capital ones, or opens a quotation or bracket that it does not close.
    """
    return any(
        text[-1] in _UNFINISHED
        or _CUT_BEFORE.match(text)
        or (language in capital and _SMALL_WORD.match(text))
        or not _quotes_match(text)
        or any(len(one.findall(text)) > len(other.findall(text)) for one, other in _BRACKETS)
        for text, language in zip(pair.texts, corpus.languages, strict=True)
    )


def _quotes_match(text: str) -> bool:
    if text.count('"') % 2 or text.count("„") + text.count("“") < text.count("”"):
        return False
    if "„" in text:  # German closes with the mark that opens in English
        return text.count("„") == text.count("“") + text.count("”")
    return text.count("“") == text.count("”") and all(
        text.count(one) == text.count(other) for one, other in ("「」", "«»")
    )


def is_damaged(pair: Pair) -> bool:
    """Whether characters were lost: a question mark inside a word, control characters, UTF-8 as Latin-1."""
    return any(_DAMAGE.search(_ADDRESS.sub("", text)) for text in pair.texts)


def has_other_markup(pair: Pair) -> bool:
    """Whether one side has tags that the other lacks."""
    first, second = (Counter(_TAG.findall(text)) for text in pair.texts)
    return first != second


def has_other_years(pair: Pair) -> bool:
    """Whether both sides name years, but none in common: they do not belong together, or one is wrong."""
    first, second = (set(_YEAR.findall(text)) for text in pair.texts)
    return bool(first and second) and first.isdisjoint(second)


def is_in_capitals(pair: Pair, corpus: Corpus) -> bool:
    """Whether only one side is written all in capital letters; some languages have none."""
    sides = zip(pair.texts, corpus.languages, strict=True)
    loud = [
        language not in CASELESS and text == text.upper() and text != text.lower() for text, language in sides
    ]
    return loud[0] != loud[1]


def is_in_another_language(pair: Pair, corpus: Corpus) -> bool:
    first, second = corpus.languages
    return not (reads_as(pair.first, first, second) and reads_as(pair.second, second, first))


def has_odd_length(pair: Pair, median_ratio: float) -> bool:
    ratio = len(pair.second) / len(pair.first) / median_ratio
    return not LEAST_RATIO <= ratio <= MOST_RATIO


def check_pair(pair: Pair, knowledge: Knowledge, exclusion: Exclusion) -> str | None:
    """Why a pair is not used, or None. A line held out in one of its languages is held out in all."""
    if reason := _check_texts(pair, knowledge.corpus, knowledge.length_ratio, knowledge.capital):
        return reason
    return "excluded" if any(exclusion.holds(text) for text in pair[1:] if text) else None


def check_third(pair: Pair, knowledge: Knowledge) -> str | None:
    """Why the third text of a good pair is not used, or None."""
    corpus = knowledge.corpus
    beside = corpus._replace(second=corpus.third, second_language=corpus.third_language)
    translated = pair._replace(second=pair.third)
    if reason := _check_texts(translated, beside, knowledge.third_ratio, knowledge.capital):
        return reason
    return "untranslated" if any(is_near_copy(pair.third, text) for text in pair.texts) else None


def is_near_copy(text: str, other: str) -> bool:
    """Whether two texts have most of their words in common."""
    words = [Counter(word.text.casefold() for word in tokens(each)) for each in (text, other)]
    return (words[0] & words[1]).total() > NEAR_COPY * max(each.total() for each in words)


def _check_texts(pair: Pair, corpus: Corpus, median_ratio: float, capital: Set[str]) -> str | None:
    if is_empty(pair):
        return "empty-line"
    if is_copy(pair):
        return "untranslated"
    if is_too_short(pair, corpus):
        return "too-short"
    if is_too_long(pair):
        return "too-long"
    if is_unfinished(pair, corpus, capital):
        return "unfinished"
    if is_damaged(pair):
        return "damaged"
    if has_other_markup(pair):
        return "markup"
    if has_other_years(pair):
        return "other-years"
    if is_in_capitals(pair, corpus):
        return "capitals"
    if is_in_another_language(pair, corpus):
        return "wrong-language"
    if has_odd_length(pair, median_ratio):
        return "length-ratio"
    return None


# Dialogues ------------------------------------------------------------------------------------------


def ends_with_reference(dialogue: Dialogue) -> bool:
    """Every answer that should give a translation ends with the pair's reference."""
    return all(dialogue.turns[turn][1].endswith(pair.reference) for turn, pair in dialogue.versions)


def drafts_differ_where_declared(dialogue: Dialogue) -> bool:
    """Every draft differs from its reference in the declared place, by the declared text."""
    for draft in dialogue.drafts:
        tail = draft.start + len(draft.right)
        if draft.text == draft.reference or draft.reference[draft.start : tail] != draft.right:
            return False
        if draft.text[draft.start : draft.start + len(draft.wrong)] != draft.wrong:
            return False
    return True


def drafts_are_never_answers(dialogue: Dialogue) -> bool:
    """No answer has a faulty draft on one of its lines, since a model would learn to write it."""
    faulty = {draft.text for draft in dialogue.drafts}
    return not any(line in faulty for _, answer in dialogue.turns for line in answer.split("\n"))


def feedback_names_what_is_there(dialogue: Dialogue) -> bool:
    """What the user calls wrong is in the draft only, and once; what the user wants is in the reference."""
    return all(
        draft.text.count(wrong) == 1 and wrong not in draft.reference and right in draft.reference
        for draft, wrong, right in dialogue.pointed
    )


def wishes_hold(dialogue: Dialogue) -> bool:
    """Every translation of a line contains the words requested so far."""
    return all(
        wish.words in dialogue.turns[turn][1]
        for wish in dialogue.wishes
        for turn, pair in dialogue.versions
        if pair.line == wish.line and turn >= wish.turn
    )


def wishes_come_from_the_source(dialogue: Dialogue) -> bool:
    """Every requested word is a name or number of the source, or renders a word of it."""
    pairs = {pair.line: pair for pair in dialogue.pairs}
    return all(
        wish.words in pairs[wish.line].text or is_meant(wish.words, pairs[wish.line], dialogue.knowledge)
        for wish in dialogue.wishes
    )


def says_something(dialogue: Dialogue) -> bool:
    """No request and no answer is empty."""
    return all(text.strip() for turn in dialogue.turns for text in turn)


DIALOGUE_GATES: Mapping[str, Callable[[Dialogue], bool]] = {
    "final-is-not-the-reference": ends_with_reference,
    "draft-differs-elsewhere": drafts_differ_where_declared,
    "faulty-answer": drafts_are_never_answers,
    "feedback-names-nothing": feedback_names_what_is_there,
    "constraint-broken": wishes_hold,
    "constraint-not-in-the-source": wishes_come_from_the_source,
    "empty-turn": says_something,
}


def check_dialogue(dialogue: Dialogue) -> str | None:
    """Why a dialogue is not kept, or None."""
    return next((reason for reason, passes in DIALOGUE_GATES.items() if not passes(dialogue)), None)
