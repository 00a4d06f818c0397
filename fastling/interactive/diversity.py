"""How varied the users of dialogues speak: distinct-3, the share of runs of three words that differ.

Li et al. 2016, arXiv 1510.03055: the number of distinct runs of three words over the number of all. It falls
with the size of what it is counted on, so it is counted on the first dialogues of each type, as many of every
file; and the sentences of the corpus, which differ anyway, are left out: what is left is the phrasings.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from fastling.interactive.languages import HAN

COUNTED = 200
"""Dialogues of each type on which it is counted."""
_WORD = re.compile(rf"[{HAN}]|[^\W{HAN}]+|[^\w\s]")


class Diversity:
    """Counts as dialogues come by; holds no more than the runs of the first ones of each type."""

    def __init__(self) -> None:
        self.dialogues: Counter[str] = Counter()
        self.runs: Counter[str] = Counter()
        self.distinct: dict[str, set[tuple[str, ...]]] = defaultdict(set)

    def add(self, kind: str, requests: Sequence[str]) -> None:
        """Count what the user of one dialogue says, turn by turn."""
        if self.dialogues[kind] < COUNTED:
            self.dialogues[kind] += 1
            for request in requests:
                words = _WORD.findall(request.casefold())
                runs = list(zip(words, words[1:], words[2:], strict=False))
                self.runs[kind] += len(runs)
                self.distinct[kind].update(runs)

    @property
    def shares(self) -> dict[str, float]:
        """Type of dialogue -> distinct-3, between 0 and 1."""
        return {kind: len(self.distinct[kind]) / runs for kind, runs in self.runs.items() if runs}


def own_words(request: str, texts: Sequence[str]) -> str:
    """A request without the sentences of the corpus that stand in it; the longest one first."""
    for text in sorted(texts, key=len, reverse=True):
        request = request.replace(text, " ")
    return request
