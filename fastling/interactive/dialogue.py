"""A dialogue as it is written: its turns, and what each of them promises, so that gates can check it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fastling.interactive.drafts import Draft
from fastling.interactive.knowledge import Knowledge
from fastling.interactive.pairs import Direction
from fastling.interactive.phrasings import Phrasings


class Wish(NamedTuple):
    """Words that every translation of a line must hold, from a turn on."""

    turn: int
    line: int
    words: str


class Version(NamedTuple):
    """A turn whose answer gives the translation of a pair."""

    turn: int
    pair: Direction


@dataclass
class Dialogue:
    """One dialogue, while it is being written."""

    knowledge: Knowledge
    phrasings: Phrasings
    choose: random.Random
    turns: list[tuple[str, str]] = field(default_factory=list)
    """(what the user says, what the assistant answers)"""
    steps: list[str] = field(default_factory=list)
    """What each turn is."""
    pairs: list[Direction] = field(default_factory=list)
    wishes: list[Wish] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)
    pointed: list[tuple[Draft, str, str]] = field(default_factory=list)
    """(draft, span that the user calls wrong, what the user wants in its place or nothing)"""

    def say(self, key: str, **values: str | Sequence[str]) -> str:
        return self.phrasings.say(self.choose, key, **values)

    def add(self, step: str, requests: Sequence[str], answer: str) -> None:
        """A turn of the user, one request a line, and its answer."""
        self.turns.append(("\n".join(requests), answer))
        self.steps.append(step)

    def add_version(self, step: str, requests: Sequence[str], pair: Direction, lead: str = "") -> None:
        """A turn that is answered by the reference, after a word or two."""
        self.versions.append(Version(len(self.turns), pair))
        if pair not in self.pairs:
            self.pairs.append(pair)
        self.add(step, requests, f"{lead}\n{pair.reference}" if lead else pair.reference)

    def wish(self, pair: Direction, words: Sequence[str]) -> None:
        """Bind the turn that comes next, and all later translations of the pair's line."""
        self.wishes += [Wish(len(self.turns), pair.line, each) for each in words]

    @property
    def lines(self) -> list[int]:
        return list(dict.fromkeys(pair.line for pair in self.pairs))

    def messages(self) -> list[dict[str, str]]:
        return [
            {"role": role, "content": content}
            for turn in self.turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
