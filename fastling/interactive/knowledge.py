"""What the rules must know about a corpus, learned from a sample of it in seconds."""

import itertools
import random
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastling.interactive.alignment import Links, learn_links
from fastling.interactive.languages import ELISION, Word, is_stop_word
from fastling.interactive.neighbours import Neighbours
from fastling.interactive.pairs import Corpus, Direction, Pair
from fastling.interactive.words import Lexicon, learn_lexicon

NEAR = 0.15
"""How many ranks of frequency apart a word and its replacement may be: a share of all words of that form."""
CAPITAL = 0.9
"""If at least this share of lines begins with a capital letter, any other line is only part of a sentence."""
TRIED = 40
"""How many words are tried as replacements."""
RUNNING_TEXT = 1.5
"""In a running text, neighbouring lines share words at least this many times as often as distant lines."""
COMMON = 0.01
"""A word in more than this share of the sentences does not reveal a text's topic."""
_SENTENCE_START = re.compile(r"(^|[.!?:\"“”„«‘—–-]\s*)$")
_CAPITAL_BEFORE = re.compile(r"[A-ZÀ-Þ][\w'’.-]* $")
_CAPITAL_AFTER = re.compile(r" (of |the |de |du |von )?[A-ZÀ-Þ]")
_NUMBER_BEFORE = re.compile(r"[\d一二两三四五六七八九十百千万亿几数] ?$")
_OF_NUMBER = frozenset("年月日号时点级万亿")
"""A Chinese word that begins with one of these belongs to a number before it: 9月25 日晚, 2000 亿美元."""


@dataclass(frozen=True)
class Knowledge:
    """What is known about the words and texts of a corpus."""

    corpus: Corpus
    lexicons: Mapping[str, Lexicon]
    links: Links
    reverse: Links
    """Links of words: `links` from the first language to the second, `reverse` the other way round."""
    alike: Mapping[str, Mapping[str, Sequence[str]]]
    """Language -> form of a word -> the words of that form, the most frequent first."""
    neighbours: Mapping[str, Neighbours]
    """Language -> the neighbours of the words in `alike`."""
    small: Mapping[str, frozenset[str]]
    """Language -> words seen both in lower case and with a capital letter, here in lower case."""
    capital: frozenset[str]
    """Languages whose lines begin with a capital letter."""
    topical: Mapping[str, frozenset[str]]
    """Language -> words that tell what a text is about."""
    length_ratio: float
    """Median of the number of characters in the second language for each one in the first."""
    third_ratio: float
    """Median of the number of characters in the third language for each one in the first."""
    running_text: bool
    """Whether neighbouring lines belong to the same text."""

    def cut(self, text: str, language: str) -> list[Word]:
        """The words and numbers of a text, in order."""
        return self.lexicons[language].cut(text)

    def _links_from(self, language: str) -> Links:
        return self.links if language == self.corpus.first_language else self.reverse

    def links_of(self, pair: Direction) -> list[tuple[Word, Word]]:
        """(word of the text, word of the reference), for words that surely render each other."""
        source, target = self.cut(pair.text, pair.origin), self.cut(pair.reference, pair.target)
        found = self._links_from(pair.origin).between(
            [word.text for word in source], [word.text for word in target]
        )
        return [(source[one], target[other]) for one, other in found]

    def may_render(self, source: Word, target: Word, pair: Direction) -> bool:
        """Whether a word of a text could be rendered by one of its reference, by itself or with others."""
        links = self._links_from(pair.origin)
        by_itself = not is_stop_word(source.text, pair.origin) and not is_stop_word(target.text, pair.target)
        # A possible link means nothing for function words, which occur in every sentence.
        return (links.may_render if by_itself else links.often_renders)(source.text, target.text)

    def similar_word(
        self, word: str, pair: Direction, beside: tuple[str, str], choose: random.Random
    ) -> str | None:
        """A word of the same form and a similar frequency that is wrong in the pair's reference; or None.

        It was seen next to the words `beside`, between which it is to stand. Of those that were tried, it is
        the one that is used most like the right word: a mistake that a translator could make.
        """
        words = self.alike[pair.target].get(form_of(word, pair.target), ())
        links = self._links_from(pair.origin)
        if word not in words or len(words) < 4:
            return None
        at, reach = words.index(word), max(4, round(NEAR * len(words)))
        near = words[max(0, at - reach) : at + reach + 1]
        source = [each.text for each in self.cut(pair.text, pair.origin)]
        neighbours, able = self.neighbours[pair.target], []
        for other in choose.sample(near, min(TRIED, len(near))):
            kin = set(other) & set(word) if pair.target == "zh" else other[:3] == word[:3]
            if kin or other in pair.reference or not neighbours.fits(other, *beside):
                continue
            if not any(links.may_render(each, other) for each in source):
                able.append(other)
        return max(able, key=lambda other: neighbours.likeness(word, other), default=None)

    def belong_together(self, before: Direction, after: Direction) -> bool:
        """Whether two neighbouring lines have the same topic: they share words in both languages."""
        return self._share_topic(before.text, after.text, before.origin) and self._share_topic(
            before.reference, after.reference, before.target
        )

    def _share_topic(self, before: str, after: str, language: str) -> bool:
        words = {word.text.casefold() for word in self.cut(before, language)} & self.topical[language]
        return any(word.text.casefold() in words for word in self.cut(after, language))

    def stands_alone(self, text: str, word: Word, language: str) -> bool:
        """Whether a word can be asked about by itself: it has a meaning, is in the text once, and is part of
        no longer word, number or name."""
        if word.text[0].isdigit():
            return False  # 10月 is October, but 10 is not
        if len(word.text) < 2 or is_stop_word(word.text, language) or text.count(word.text) > 1:
            return False
        if language == "zh":
            if word.text[0] in _OF_NUMBER and _NUMBER_BEFORE.search(text[: word.start]):
                return False
            # 上市公司 is two words, which the other language renders separately.
            known = self.lexicons[language].cost
            return len(word.text) < 4 or not (word.text[:2] in known or word.text[2:] in known)
        before, after = text[: word.start], text[word.end :]
        if language == "fr":
            before = ELISION.sub("", before)
        if re.search(r"[\w'’-]$", before) or re.match(r"[\w-]|['’]\w", after):
            return False
        if word.text[0].isupper():
            if _SENTENCE_START.search(before):
                return False
            return language == "de" or not (_CAPITAL_BEFORE.search(before) or _CAPITAL_AFTER.match(after))
        return len(word.text) > 2


def form_of(word: str, language: str) -> str:
    """The form that a replacement of this word must share: its length, or its case and last letters."""
    if language == "zh":
        return str(len(word))
    return ("A" if word[0].isupper() else "a") + word[-2:].lower()


def learn(corpus: Corpus, sample: Sequence[Sequence[Pair]]) -> Knowledge:
    """Learn from runs of neighbouring pairs."""
    pairs = [pair for run in sample for pair in run if pair.first and pair.second]
    texts = {
        corpus.first_language: [pair.first for pair in pairs],
        corpus.second_language: [pair.second for pair in pairs],
    }
    lexicons = {
        language: learn_lexicon(texts[language]) if language == "zh" else Lexicon(language=language)
        for language in texts
    }
    cut = {
        language: [[word.text for word in lexicons[language].cut(text)] for text in texts[language]]
        for language in texts
    }
    first, second = corpus.languages
    links = learn_links(list(zip(cut[first], cut[second], strict=True)))
    alike = {language: _alike(cut[language], language) for language in texts}
    topical = {language: _topical(cut[language], language) for language in texts}
    return Knowledge(
        corpus=corpus,
        lexicons=lexicons,
        links=links,
        reverse=links.reversed(),
        alike=alike,
        neighbours={
            language: Neighbours(cut[language], itertools.chain(*alike[language].values()))
            for language in texts
        },
        small={language: _small(cut[language]) for language in texts},
        capital=frozenset(
            language
            for language, lines in {**texts, corpus.third_language: [pair.third for pair in pairs]}.items()
            if language != "zh" and _begin_with_capitals(lines)
        ),
        topical=topical,
        length_ratio=_median_ratio([pair.texts for pair in pairs]),
        third_ratio=_median_ratio([(pair.first, pair.third) for pair in pairs if pair.third]),
        running_text=_is_running_text(sample, lexicons[second], topical[second]),
    )


def _median_ratio(texts: Sequence[tuple[str, str]]) -> float:
    return statistics.median(len(two) / len(one) for one, two in texts) if texts else 1.0


def _alike(sentences: Sequence[Sequence[str]], language: str) -> dict[str, list[str]]:
    counts = Counter(word for sentence in sentences for word in sentence[1:])
    found: dict[str, list[str]] = {}
    for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        able = count >= 3 and len(word) >= (2 if language == "zh" else 4) and not word[0].isdigit()
        if able and not is_stop_word(word, language):
            found.setdefault(form_of(word, language), []).append(word)
    return found


def _small(sentences: Sequence[Sequence[str]]) -> frozenset[str]:
    words = {word for sentence in sentences for word in sentence}
    return frozenset(word.lower() for word in words if word[0].isupper()) & words


def _begin_with_capitals(texts: Iterable[str]) -> bool:
    first = [text[0] for text in texts if text[:1].upper() != text[:1].lower()]
    return bool(first) and sum(map(str.isupper, first)) >= CAPITAL * len(first)


def _topical(sentences: Sequence[Sequence[str]], language: str) -> frozenset[str]:
    held = Counter(word for sentence in sentences for word in {word.casefold() for word in sentence})
    most = max(10, COMMON * len(sentences))
    return frozenset(
        word
        for word, count in held.items()
        if 2 <= count <= most and len(word) > 1 and not is_stop_word(word, language)
    )


def _is_running_text(sample: Sequence[Sequence[Pair]], lexicon: Lexicon, topical: frozenset[str]) -> bool:
    """Whether neighbouring lines have words in common more often than distant lines do."""
    runs = sample[:: max(1, len(sample) // 100)]
    lines = [
        {word.text.casefold() for word in lexicon.cut(pair.second)} & topical for run in runs for pair in run
    ]
    ends = set(itertools.accumulate(len(run) for run in runs))
    near = [bool(lines[at - 1] & lines[at]) for at in range(1, len(lines)) if at not in ends]
    half = len(lines) // 2
    far = [bool(lines[at] & lines[at + half]) for at in range(len(lines) - half)]
    if not near or not far:
        return False
    return statistics.mean(near) > RUNNING_TEXT * max(0.02, statistics.mean(far))
