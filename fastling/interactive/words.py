"""Finds Chinese words in the corpus itself: characters that stay together while their neighbours vary.

The words serve to align sentences and to ask questions about, which needs no dictionary: a word that is not
found is not asked about, and characters without varying neighbours on both sides do not count as a word.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from fastling.interactive.languages import HAN, NO_WORD_EDGES, Word, is_chinese, tokens

LONGEST = 4
RECENT = 64
FEWEST = 6
"""Fewest occurrences of a word; below that, statistics say nothing."""
COHESION, COHESION_OF_FREQUENT = 40.0, 6.0
"""How many times as often as by chance characters must occur together; the second is for frequent words."""
FREQUENT = 30
"""Occurrences from which a word is frequent, so that a smaller excess over chance is enough."""
FREEDOM = 1.2
"""Least entropy, in nats, of the neighbours on each side."""
_RUN = re.compile(f"[{HAN}]+")


class Lexicon:
    """Splits a language's text into words. Without learned words it splits Chinese into characters."""

    def __init__(self, counts: Counter[str] | None = None, language: str = "zh"):
        self.language = language
        counts = counts or Counter()
        total = math.log(sum(counts.values()) + 1)
        self.cost = {word: total - math.log(count) for word, count in counts.items()}
        self.unknown = total + 1.0
        self.recent: dict[str, list[Word]] = {}
        """A cache: the texts of one dialogue are cut again and again."""

    def cut(self, text: str) -> list[Word]:
        """The words and numbers of a text, in order."""
        if text not in self.recent:
            if len(self.recent) >= RECENT:
                self.recent.clear()
            self.recent[text] = self._cut(text)
        return self.recent[text]

    def _cut(self, text: str) -> list[Word]:
        found = []
        for token in tokens(text, self.language):
            if is_chinese(token.text):
                start = token.start
                for piece in self._cut_run(token.text):
                    found.append(Word(piece, start))
                    start += len(piece)
            else:
                found.append(token)
        return found

    def _cut_run(self, run: str) -> list[str]:
        """The cheapest way to cut a run of Chinese."""
        best, last = [0.0] + [math.inf] * len(run), [0] * (len(run) + 1)
        for end in range(1, len(run) + 1):
            for start in range(max(0, end - LONGEST), end):
                cost = self.cost.get(run[start:end])
                if cost is None:
                    if end - start > 1:
                        continue
                    cost = self.unknown
                if best[start] + cost < best[end]:
                    best[end], last[end] = best[start] + cost, start
        pieces, end = [], len(run)
        while end:
            pieces.append(run[last[end] : end])
            end = last[end]
        return pieces[::-1]


def learn_lexicon(texts: Iterable[str]) -> Lexicon:
    """The Chinese words of some texts."""
    runs = [run for text in texts for run in _RUN.findall(text)]
    counts: Counter[str] = Counter()
    for run in runs:
        for length in range(1, LONGEST + 1):
            counts.update(run[start : start + length] for start in range(len(run) - length + 1))
    characters = sum(count for gram, count in counts.items() if len(gram) == 1)
    frequent = [gram for gram, count in counts.items() if count >= FEWEST]
    candidates = {gram for gram in frequent if _coheres(gram, counts, characters)}
    free = _bounded_freely(runs, candidates)
    kept = Counter({gram: counts[gram] for gram in free})
    kept.update({gram: counts[gram] for gram in counts if len(gram) == 1})
    return Lexicon(kept)


def _coheres(gram: str, counts: Counter[str], characters: int) -> bool:
    if len(gram) == 1 or gram[0] in NO_WORD_EDGES or gram[-1] in NO_WORD_EDGES:
        return False
    splits = (counts[gram[:at]] * counts[gram[at:]] for at in range(1, len(gram)))
    least = COHESION_OF_FREQUENT if counts[gram] >= FREQUENT else COHESION
    return counts[gram] * characters / max(splits) >= least


def _bounded_freely(runs: Iterable[str], candidates: set[str]) -> list[str]:
    """Candidates whose neighbours vary on both sides; each edge of a run counts as another neighbour."""
    before: dict[str, Counter] = defaultdict(Counter)
    after: dict[str, Counter] = defaultdict(Counter)
    for number, run in enumerate(runs):
        for length in range(2, LONGEST + 1):
            for start in range(len(run) - length + 1):
                gram = run[start : start + length]
                if gram in candidates:
                    end = start + length
                    before[gram][run[start - 1] if start else number] += 1
                    after[gram][run[end] if end < len(run) else number] += 1
    return sorted(gram for gram in before if min(_entropy(before[gram]), _entropy(after[gram])) >= FREEDOM)


def _entropy(counts: Counter) -> float:
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())
