"""Records which frequent words occur next to a word, to judge whether it could take another word's place.

No grammar is needed: a verb has "to" or "has" before it, an adjective "very", a noun "the". A wrong word that
fits its neighbours is a mistake that a translator could make; one that does not fit them is only noise.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

FREQUENT = 300
"""How many neighbours count. Never having been seen next to a rarer one means nothing."""


class Neighbours:
    """The frequent words that each word was seen next to, as the bits of a number."""

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
        """How far two words have the same neighbours: the cosine of the two sets, from 0 to 1."""
        shared = size = other_size = 0
        for seen in (self.before, self.after):
            one, two = seen.get(word, 0), seen.get(other, 0)
            shared += (one & two).bit_count()
            size += one.bit_count()
            other_size += two.bit_count()
        return shared / math.sqrt(size * other_size) if shared else 0.0

    def fits(self, word: str, before: str, after: str) -> bool:
        """Whether a word was seen after `before` and before `after`; of the two only frequent ones count."""
        sides = ((before, self.before), (after, self.after))
        return all(
            seen.get(word, 0) & bit for beside, seen in sides if (bit := self.bits.get(beside.casefold(), 0))
        )
