"""Which frequent words a word stands beside: what tells whether it could stand in another one's place.

Without a grammar, a verb is told by "to" or "has" before it, an adjective by "very", a noun by "the". A wrong
word that its neighbours go with is a mistake that a translator makes; any other is only noise.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

FREQUENT = 300
"""Neighbours that tell something: with rarer ones, that two words were never seen together means nothing."""


class Neighbours:
    """Words beside which each word was seen, as bits of a number."""

    def __init__(self, sentences: Sequence[Sequence[str]], words: Iterable[str]):
        counts = Counter(word.casefold() for sentence in sentences for word in sentence)
        frequent = sorted(counts, key=lambda word: (-counts[word], word))[: FREQUENT - 1]
        # The edge of a text is a neighbour, too.
        self.bits = {word: 1 << place for place, word in enumerate(["", *frequent])}
        self.before = dict.fromkeys(words, 0)
        self.after = dict(self.before)
        for sentence in sentences:
            bits = [self.bits.get(word.casefold(), 0) for word in sentence]
            for word, one, other in zip(sentence, [1, *bits], [*bits[1:], 1], strict=False):
                if word in self.before:
                    self.before[word] |= one
                    self.after[word] |= other

    def likeness(self, word: str, other: str) -> float:
        """How far two words stand beside the same ones: cosine of their neighbours, 0 to 1."""
        shared = size = other_size = 0
        for seen in (self.before, self.after):
            one, two = seen.get(word, 0), seen.get(other, 0)
            shared += (one & two).bit_count()
            size += one.bit_count()
            other_size += two.bit_count()
        return shared / math.sqrt(size * other_size) if shared else 0.0

    def fits(self, word: str, before: str, after: str) -> bool:
        """Whether a word was seen after the one and before the other, as far as these are frequent."""
        sides = ((before, self.before), (after, self.after))
        return all(
            seen.get(word, 0) & bit for beside, seen in sides if (bit := self.bits.get(beside.casefold(), 0))
        )
