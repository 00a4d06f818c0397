"""Aligns words: IBM model 1 on a sample of the corpus, in both directions.

Two words are linked if each is likely given the other. Everything doubtful is left out, because teaching a
wrong link is worse than not asking.
"""

from collections.abc import Sequence

import numpy

ROUNDS = 5
FEWEST = 4
"""Fewest pairs of sentences in which both words must occur."""
CONFIDENT = 0.3
"""Least probability of one word given the other: a link needs it both ways, `often_renders` only one way."""
POSSIBLE = 0.02
"""From this probability on, in either direction, a word may be a translation of the other."""
MOST_EVENTS = 16_000_000
"""Most pairs of words counted; further sentences are left out. This bounds memory at about 0.7 GiB."""
LONGEST = 80
"""Most words in a sentence; longer ones cost much time and tell little."""

Sentence = Sequence[str]


class Links:
    """Words that render each other, by their case-folded forms."""

    def __init__(
        self,
        confident: dict[str, set[str]],
        possible: set[tuple[str, str]],
        likely: frozenset[tuple[str, str]] = frozenset(),
    ):
        self.forward = confident
        self.backward: dict[str, set[str]] = {}
        for source, targets in confident.items():
            for target in targets:
                self.backward.setdefault(target, set()).add(source)
        self.possible, self.likely = possible, likely

    def reversed(self) -> "Links":
        """The links from the second language to the first."""
        possible, likely = (
            {(target, source) for source, target in each} for each in (self.possible, self.likely)
        )
        return Links(self.backward, possible, frozenset(likely))

    def between(self, source: Sentence, target: Sentence) -> list[tuple[int, int]]:
        """(source, target) positions of words that render each other and no other word of the two."""
        source, target = [word.casefold() for word in source], [word.casefold() for word in target]
        at = {word: place for place, word in enumerate(target)}
        there = set(source)
        found = []
        for place, word in enumerate(source):
            renderings = self.forward.get(word, set()) & at.keys()
            if len(renderings) != 1 or source.count(word) > 1:
                continue
            (rendering,) = renderings
            if target.count(rendering) == 1 and len(self.backward[rendering] & there) == 1:
                found.append((place, at[rendering]))
        return found

    def may_render(self, source: str, target: str) -> bool:
        """Whether a word could be a right translation of another."""
        return (source.casefold(), target.casefold()) in self.possible

    def often_renders(self, source: str, target: str) -> bool:
        """Whether a word often renders another one, perhaps together with others: "this year" is 今年."""
        return (source.casefold(), target.casefold()) in self.likely


def learn_links(pairs: Sequence[tuple[Sentence, Sentence]]) -> Links:
    """Learn from pairs of sentences, cut into words."""
    pairs = _affordable(pairs)
    source_ids, source_words = _numbered([pair[0] for pair in pairs])
    target_ids, target_words = _numbered([pair[1] for pair in pairs])
    if not source_words or not target_words:
        return Links({}, set())
    keys = [
        numpy.unique(source)[:, None] * len(target_words) + numpy.unique(target)[None, :]
        for source, target in zip(source_ids, target_ids, strict=True)
    ]
    # Every pair of words that occurs in a pair of sentences; equal pairs share one number.
    types, events = numpy.unique(numpy.concatenate([key.ravel() for key in keys]), return_inverse=True)
    sources, targets = numpy.divmod(types, len(target_words))
    shapes = numpy.array([key.shape for key in keys], dtype=numpy.int64)
    del keys
    events = events.astype(numpy.int32)
    # In each table one target word (or one source word) is divided among the words of the other side.
    together = numpy.bincount(events, minlength=len(types))
    forward = _probabilities(events, _groups(shapes, rows=False), sources, len(types))
    backward = _probabilities(events, _groups(shapes, rows=True), targets, len(types))
    confident: dict[str, set[str]] = {}
    sure = (forward >= CONFIDENT) & (backward >= CONFIDENT) & (together >= FEWEST)
    for place in numpy.flatnonzero(sure):
        confident.setdefault(source_words[sources[place]], set()).add(target_words[targets[place]])
    maybe = numpy.flatnonzero((forward >= POSSIBLE) | (backward >= POSSIBLE))
    often = maybe[numpy.maximum(forward, backward)[maybe] >= CONFIDENT]
    often = often[together[often] >= FEWEST]
    possible, likely = (
        {(source_words[sources[place]], target_words[targets[place]]) for place in each}
        for each in (maybe, often)
    )
    return Links(confident, possible, frozenset(likely))


def _affordable(pairs: Sequence[tuple[Sentence, Sentence]]) -> list[tuple[Sentence, Sentence]]:
    kept, events = [], 0
    for source, target in pairs:
        events += len(source) * len(target)
        if events > MOST_EVENTS:
            break
        if 0 < len(source) <= LONGEST and 0 < len(target) <= LONGEST:
            kept.append((source, target))
    return kept


def _numbered(sentences: Sequence[Sentence]) -> tuple[list[numpy.ndarray], list[str]]:
    """Sentences as numbers of their case-folded words, and the words."""
    numbers: dict[str, int] = {}
    ids = [
        numpy.array([numbers.setdefault(word.casefold(), len(numbers)) for word in sentence], numpy.int64)
        for sentence in sentences
    ]
    return ids, list(numbers)


def _groups(shapes: numpy.ndarray, *, rows: bool) -> numpy.ndarray:
    """For every event, the number of its column (target word), or of its row (source word), over all tables.

    A pair of sentences with `height` and `width` different words has a table of height * width events;
    `shapes` lists these tables.
    """
    counts = shapes[:, 0 if rows else 1]
    starts = numpy.cumsum(counts) - counts
    parts = []
    for (height, width), start in zip(shapes.tolist(), starts.tolist(), strict=True):
        if rows:
            parts.append(numpy.repeat(numpy.arange(start, start + height, dtype=numpy.int32), width))
        else:
            parts.append(numpy.tile(numpy.arange(start, start + width, dtype=numpy.int32), height))
    return numpy.concatenate(parts)


def _probabilities(
    events: numpy.ndarray, groups: numpy.ndarray, given: numpy.ndarray, types: int
) -> numpy.ndarray:
    """(types,) probability of one word of each pair given the other, by expectation maximisation.

    `events` holds the numbers of word pairs, `groups` those of the words being explained in their sentence,
    and `given` (types,) the word that the probability is conditioned on.
    """
    probability = numpy.ones(types)
    for _ in range(ROUNDS):
        weights = probability[events]
        weights /= numpy.bincount(groups, weights)[groups]
        expected = numpy.bincount(events, weights, minlength=types)
        probability = expected / numpy.bincount(given, expected)[given]
    return probability
