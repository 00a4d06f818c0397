"""Faulty drafts of a good translation: one fault of a known kind, at a known place.

Each maker takes a sentence and returns where its fault goes, or None if the sentence has no place for it. It
makes only faults that no reader would take for another good translation.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fastling.interactive.knowledge import Knowledge
from fastling.interactive.languages import AND, Word, is_stop_word
from fastling.interactive.pairs import Direction

# Words that never follow the word that they belong to.
_LEADING = {
    "en": frozenset("the a an of in for with from to at by into between".split()),
    "de": frozenset("der die das den dem des ein eine einen einem einer mit von für zur zum bei aus".split()),
    "fr": frozenset("le la les un une des du de dans pour avec sur aux au par".split()),
}
_MARK = re.compile(r"[\"“”„«»「」()（）《》]")
_HALF_WIDTH = str.maketrans("。？", ".?")
MOST_OMITTED = 8
"""Most words missing from a draft that ends too early."""


@dataclass(frozen=True)
class Draft:
    """A text that differs from its reference in one place."""

    kind: str
    reference: str
    start: int
    wrong: str
    """The draft's text in that place."""
    right: str
    """The reference's text in that place."""

    @property
    def text(self) -> str:
        """The draft."""
        end = self.start + len(self.right)
        return self.reference[: self.start] + self.wrong + self.reference[end:]

    @property
    def span(self) -> str:
        """The words that an answer names as the reason: those that are wrong, missing, or there twice."""
        return (self.right if self.kind in ("omission", "repetition") else self.wrong).strip()

    def record(self) -> dict:
        """The fault as a row of the dialogues' file has it; `start` counts characters of the reference."""
        return {"kind": self.kind, "start": self.start, "wrong": self.wrong, "right": self.right}


def make_draft(pair: Direction, knowledge: Knowledge, choose: random.Random) -> Draft | None:
    """A draft of the pair's reference with one fault; None if no kind of fault fits into the text."""
    sentence = Sentence(pair, knowledge, choose)
    for kind in drawn_order({kind: maker.weight for kind, maker in MAKERS.items()}, choose):
        for _ in range(3):
            found = MAKERS[kind].make(sentence)
            if found:
                draft = Draft(kind, sentence.text, *found)
                if is_sound(draft, sentence.words):
                    return draft
    return None


def drawn_order(weights: Mapping[str, float], choose: random.Random) -> list[str]:
    """All names in a random order: as if drawn one after the other, each with its weight."""
    return sorted(weights, key=lambda name: choose.random() ** (1 / weights[name]), reverse=True)


def is_sound(draft: Draft, words: Sequence[Word]) -> bool:
    """Whether a fault shows and can be named: its words are in the draft once, and not in the reference.

    Of an omission, they are in the reference once, and not in the draft; of punctuation, there are none.
    """
    text = draft.text
    if text == draft.reference or not draft.span or len(words) < 4:
        return False
    if draft.kind == "omission":
        return draft.span not in text and draft.reference.count(draft.span) == 1
    if draft.kind == "punctuation":
        return True
    return text.count(draft.wrong.strip()) == 1 and draft.wrong.strip() not in draft.reference


Place = tuple[int, str, str]
"""(start, wrong, right) of a Draft."""


@dataclass(frozen=True)
class Sentence:
    """A pair's reference, in which a fault is to be made."""

    pair: Direction
    knowledge: Knowledge
    choose: random.Random

    @property
    def text(self) -> str:
        return self.pair.reference

    @property
    def language(self) -> str:
        return self.pair.target

    @cached_property
    def words(self) -> list[Word]:
        return self.knowledge.cut(self.text, self.language)

    @cached_property
    def linked(self) -> set[int]:
        """Where the words begin that surely render a word of the source."""
        return {rendering.start for _, rendering in self.knowledge.links_of(self.pair)}

    def run(self, length: int) -> Sequence[Word]:
        """`length` words in a row, no punctuation between them and not the text's first word; or none."""
        text, words = self.text, self.words
        if len(words) < length + 3:
            return ()
        first = self.choose.randrange(1, len(words) - length + 1)
        run = words[first : first + length]
        gap = "" if self.language == "zh" else " "
        if any(text[one.end : two.start] != gap for one, two in zip(run, run[1:], strict=False)):
            return ()
        if self.language == "zh":  # unknown words come as single characters, which are only parts of words
            return run if _solid(run[0], "zh") and _solid(run[-1], "zh") else ()
        whole = _inside(text, run[0]) and _whole(text, run[0].start, run[-1].end)
        return run if whole and not all(is_stop_word(word.text, self.language) for word in run) else ()

    def content_word(self) -> Word | None:
        """A word that carries meaning, and not the first; one whose source is known if there is one."""
        text, language = self.text, self.language
        able = [word for word in self.words[1:] if _solid(word, language) and text.count(word.text) == 1]
        if language != "zh":
            able = [word for word in able if _inside(text, word) and _whole(text, word.start, word.end)]
        able = [word for word in able if word.start in self.linked] or able
        return self.choose.choice(able) if able else None

    def similar_word(self, word: Word, beside: tuple[str, str]) -> str | None:
        """A wrong word that could stand in the place of this one, between the two beside it; or None."""
        return self.knowledge.similar_word(word.text, self.pair, beside, self.choose)

    def beside(self, word: Word) -> tuple[str, str]:
        """The words before and after one; nothing at the edge of the text."""
        at, words = self.words.index(word), self.words
        return words[at - 1].text if at else "", words[at + 1].text if at + 1 < len(words) else ""

    def ends_phrase(self, word: Word) -> bool:
        """Whether punctuation or a function word follows, so that another word can be joined to this one."""
        following = self.beside(word)[1]
        if not following or is_stop_word(following, self.language):
            return True
        return bool(re.match(r"\s*[^\w\s]", self.text[word.end :]))


def _omission(sentence: Sentence) -> Place | None:
    """Leave out one to three words; or, rarely, the end of a longer sentence."""
    text, language, choose = sentence.text, sentence.language, sentence.choose
    if len(sentence.words) > 2 * MOST_OMITTED and choose.random() < 0.2:
        length = choose.randint(3, MOST_OMITTED)
        run = sentence.words[-length:]
    else:
        run = sentence.run(choose.randint(1, 3))
    if not run or all(is_stop_word(word.text, language) for word in run):
        return None
    if sentence.linked and not any(word.start in sentence.linked for word in run):
        return None  # perhaps the source does not say it either
    start, end = run[0].start, run[-1].end
    if _MARK.search(text[start:end]):
        return None  # of a pair that opens or closes elsewhere
    if language == "zh":
        if text[start - 1].isdigit() or text[end : end + 1].isdigit() or not _solid(run[0], language):
            return None
    else:
        if text[start - 1 : start] != " " or not re.match(r"[\s.,!?;:]|$", text[end:]):
            return None
        if text[start - 2 : start - 1] in ",;:" and not re.match(r"\s", text[end:]):
            return None  # ", word." would leave ",."
        start -= 1
    return start, "", text[start:end]


def _addition(sentence: Sentence) -> Place | None:
    """Join to a word another one that the source does not speak of."""
    word = sentence.content_word()
    if not word or not sentence.ends_phrase(word):
        return None
    and_ = AND.get(sentence.language)
    if not and_:
        return None
    other = sentence.similar_word(word, (and_.strip(), sentence.beside(word)[1]))
    return (word.end, and_ + other, "") if other else None


def _number(sentence: Sentence) -> Place | None:
    """Change one digit."""
    choose = sentence.choose
    numbers = [word for word in sentence.words if re.fullmatch(r"[0-9][0-9.,:\s]*", word.text)]
    if not numbers:
        return None
    word = choose.choice(numbers)
    at = choose.choice([place for place, digit in enumerate(word.text) if digit.isdigit()])
    digit = choose.choice([each for each in "123456789" if each != word.text[at]])
    wrong = word.text[:at] + digit + word.text[at + 1 :]
    return None if wrong in sentence.pair.text else (word.start, wrong, word.text)


def _repetition(sentence: Sentence) -> Place | None:
    """Say one to three words twice."""
    run = sentence.run(sentence.choose.randint(1, 3))
    if not run:
        return None
    right = sentence.text[run[0].start : run[-1].end]
    return run[0].start, right + ("" if sentence.language == "zh" else " ") + right, right


def _order(sentence: Sentence) -> Place | None:
    """Put an article or preposition after its noun; in Chinese, turn round the sides of 的."""
    text, words, language = sentence.text, sentence.words, sentence.language
    found = []
    if language == "zh":
        for first, middle, last in zip(words, words[1:], words[2:], strict=False):
            whole = text[first.start : last.end]
            if middle.text == "的" and len(whole) == len(first.text + last.text) + 1:
                if _solid(first, language) and _solid(last, language) and first.text != last.text:
                    found.append((first.start, f"{last.text}的{first.text}", whole))
    else:
        for first, second in zip(words[1:], words[2:], strict=False):
            if first.text in _LEADING.get(language, ()) and not is_stop_word(second.text, language):
                if text[first.end : second.start] == " " and _whole(text, first.start, second.end):
                    whole = text[first.start : second.end]
                    found.append((first.start, f"{second.text} {first.text}", whole))
    return sentence.choose.choice(found) if found else None


def _replacement(sentence: Sentence) -> Place | None:
    """Replace a word by another one of the corpus, of similar form and frequency."""
    word = sentence.content_word()
    other = word and sentence.similar_word(word, sentence.beside(word))
    return (word.start, other, word.text) if other else None


def _case(sentence: Sentence) -> Place | None:
    """Write a name, or in German a noun, in lower case: a word that is never written that way."""
    small = sentence.knowledge.small[sentence.language]
    found = [word for word in sentence.words[1:] if word.text[0].isupper() and word.text[1:].islower()]
    found = [word for word in found if _inside(sentence.text, word) and len(word.text) > 2]
    found = [word for word in found if word.text.lower() not in small]
    if sentence.language == "zh" or not found:
        return None
    word = sentence.choose.choice(found)
    return word.start, word.text.lower(), word.text


def _punctuation(sentence: Sentence) -> Place | None:
    """End a statement as a question, or a question as a statement; not as the source has it."""
    text = sentence.text
    other = {".": "?", "?": ".", "。": "？", "？": "。"}.get(text[-1])
    if other is None or not text[-2].isalpha():
        return None
    if sentence.pair.text[-1].translate(_HALF_WIDTH) == other.translate(_HALF_WIDTH):
        return None
    if sentence.language == "fr" and other == "?":
        other = "\u00a0?"
    return len(text) - 1, other, text[-1]


class Maker(NamedTuple):
    weight: float
    """How often this kind of fault is tried first, beside the weights of the others."""
    make: Callable[[Sentence], Place | None]


# The order matters: with the weights, it decides which random number each kind draws.
MAKERS = {
    "omission": Maker(4, _omission),
    "replacement": Maker(4, _replacement),
    "number": Maker(3, _number),
    "addition": Maker(2, _addition),
    "repetition": Maker(2, _repetition),
    "order": Maker(2, _order),
    "case": Maker(1, _case),
    "punctuation": Maker(1, _punctuation),
}


def _solid(word: Word, language: str) -> bool:
    least = 2 if language == "zh" else 3
    return len(word.text) >= least and not word.text[0].isdigit() and not is_stop_word(word.text, language)


def _inside(text: str, word: Word) -> bool:
    """Whether a word does not begin a sentence or quotation, so that it has a capital letter of its own."""
    return bool(re.search(r"[\w,;)] $", text[: word.start]))


def _whole(text: str, start: int, end: int) -> bool:
    """Whether letters do not go on beside a stretch, as they do in 24-year-old and U.S."""
    return not re.search(r"[\w'’-]$|\w\.$", text[:start]) and not re.match(r"[\w'’%-]|\.\w", text[end:])
