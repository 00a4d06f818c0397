"""How varied the users' requests are: distinct-3, the share of word trigrams that are distinct.

The measure is from Li et al. 2016, arXiv 1510.03055. It falls as more text is counted, so it is computed on
the same number of dialogues for every file, the first ones of each type. The sentences of the corpus, which
differ anyway, are left out, so that only the phrasings count.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from fastling.interactive.languages import HAN

COUNTED = 200
"""Dialogues of each type that are counted."""
_WORD = re.compile(rf"[{HAN}]|[^\W{HAN}]+|[^\w\s]")


class Diversity:
    """Counts word trigrams as dialogues are made, in the first COUNTED dialogues of each type."""

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
    """A request without the sentences of the corpus in it."""
    for text in sorted(texts, key=len, reverse=True):
        request = request.replace(text, " ")
    return request
