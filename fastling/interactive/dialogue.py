"""A dialogue under construction: its turns, and what each of them promises, for the gates to check."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fastling.interactive.drafts import Draft
from fastling.interactive.knowledge import Knowledge
from fastling.interactive.pairs import Direction
from fastling.interactive.phrasings import Phrasings

SENDING_DRAFTS = ("correct_draft", "which_better")
"""Steps whose turn shows a faulty draft."""


class Wish(NamedTuple):
    """Words that every translation of a line must contain from a turn on."""

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
    """The kind of each turn."""
    pairs: list[Direction] = field(default_factory=list)
    wishes: list[Wish] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)
    pointed: list[tuple[Draft, str, str]] = field(default_factory=list)
    """(draft, the words that the user calls wrong, the user's replacement for them, or "")"""
    said: set[str] = field(default_factory=set)
    """Phrasings already used: no two requests of a dialogue have the same wording."""

    def say(self, key: str, **values: str | Sequence[str]) -> str:
        """A sentence of the phrasings, as `Phrasings.say` draws it."""
        return self.phrasings.say(self.choose, key, self.said, **values)

    def add(self, step: str, requests: Sequence[str], answer: str) -> None:
        """Add a turn: the user's requests, one on each line, and the answer."""
        self.turns.append(("\n".join(requests), answer))
        self.steps.append(step)

    def add_version(self, step: str, requests: Sequence[str], pair: Direction, lead: str = "") -> None:
        """Add a turn that is answered by the pair's reference, below a line with `lead` if there is one."""
        self.versions.append(Version(len(self.turns), pair))
        if pair not in self.pairs:
            self.pairs.append(pair)
        self.add(step, requests, f"{lead}\n{pair.reference}" if lead else pair.reference)

    def wish(self, pair: Direction, words: Sequence[str]) -> None:
        """Bind the turn that is added next, and all later translations of the pair's line, to these words."""
        self.wishes += [Wish(len(self.turns), pair.line, each) for each in words]

    @property
    def lines(self) -> list[int]:
        """Numbers of the lines that the dialogue uses, each once."""
        return list(dict.fromkeys(pair.line for pair in self.pairs))

    def messages(self) -> list[dict[str, str]]:
        """The turns as OpenAI's messages."""
        return [
            {"role": role, "content": content}
            for turn in self.turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]

    def record(self) -> list[dict | None]:
        """What is known of each turn, to score other answers by; None for a turn that translates nothing.

        line, language: those of the text that is asked for, which is the answer without its lead and a line
        feed. errors, if the user sends a draft: the places in which it differs from the reference; `start`
        counts characters. constraints: words that the text must contain, since which turn, and by which step.
        """
        senders = [turn for turn, step in enumerate(self.steps) if step in SENDING_DRAFTS]
        drafts = dict(zip(senders, self.drafts, strict=True))
        turns: list[dict | None] = [None] * len(self.turns)
        for turn, pair in self.versions:
            known: dict = {"line": pair.line, "language": pair.target}
            if lead := self.turns[turn][1].removesuffix(pair.reference).removesuffix("\n"):
                known["lead"] = lead
            if turn in drafts:
                known["errors"] = [drafts[turn].record()]
            elif self.steps[turn] == "no_change":
                known["errors"] = []
            if bound := [wish for wish in self.wishes if wish.line == pair.line and wish.turn <= turn]:
                known["constraints"] = [
                    {"words": wish.words, "turn": wish.turn, "step": self.steps[wish.turn]} for wish in bound
                ]
            turns[turn] = known
        return turns
