"""Refinements that a model has to write: style, grammar, length, suggestions, and a simulated user.

A dialogue begins with a translation from the corpus. Each further turn is written by a model behind a server,
from a prompt that is a file anyone can edit. A dialogue keeps its turns up to the first that fails a check,
and is dropped if that is the first turn written.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from importlib import resources
from itertools import islice
from pathlib import Path
from string import Template

from fastling.interactive.languages import tidy
from fastling.interactive.turn_checks import Rejected, Seed, check_turn
from fastling.remote import BudgetSpent, Message, NoAnswer, Server, read_prompt

KINDS = ("style", "grammar", "length", "suggestion", "simulation")
PLACES = {"source", "translation", "source_language", "target_language", "user_language", "dialogue"}
MOST_TOKENS = 700


@dataclass
class Counts:
    """Counts of what became of the seeds."""

    kept: Counter = field(default_factory=Counter)  # dialogues, by kind
    rejected: Counter = field(default_factory=Counter)  # turns, by reason
    unasked: int = 0  # seeds for which the budget had no tokens left
    useless: int = 0  # seeds without a result since the last kept dialogue


def load_prompts(folder: Path | None) -> dict[str, Template]:
    """The prompt of each kind, from `folder` where it has one, else from the package.

    Raises UserError for a file that cannot be read or has an unknown placeholder.
    """
    prompts = {}
    for kind in KINDS:
        built_in = resources.files("fastling.interactive") / "prompts" / f"{kind}.txt"
        chosen = folder / f"{kind}.txt" if folder and (folder / f"{kind}.txt").exists() else built_in
        prompts[kind] = read_prompt(chosen, PLACES, option="--generator-prompts")
    return prompts


@dataclass
class Writer:
    """Writes dialogues from seeds, by asking a server."""

    server: Server
    prompts: dict[str, Template]
    language_names: dict[str, str]
    counts: Counts
    seed: int
    turns: tuple[int, int] = (1, 3)
    window: int = 256
    """How many dialogues are written at a time."""

    async def dialogues(self, seeds: Iterable[Seed]) -> AsyncIterator[dict]:
        """Yield the dialogues of the seeds that could be kept, in the order of the seeds."""
        seeds = iter(seeds)
        while batch := list(islice(seeds, self.window)):
            for row in await asyncio.gather(*map(self.write, batch)):
                if row is not None:
                    yield row

    async def write(self, start: Seed) -> dict | None:
        """The dialogue of one seed, as a row; None if no turn of it could be kept."""
        chance = random.Random(f"{self.seed} {start.number}")
        kind = chance.choice(KINDS)
        messages = [
            {"role": "user", "content": start.request},
            {"role": "assistant", "content": start.translation},
        ]
        try:
            for turn in range(chance.randint(*self.turns)):
                messages += await self._next_turn(start, kind, messages, turn)
        except (Rejected, NoAnswer) as reason:
            self.counts.rejected[str(reason)] += 1
        except BudgetSpent:
            self.counts.unasked += len(messages) == 2
        if len(messages) == 2:
            return None
        self.counts.kept[kind] += 1
        return {
            "id": f"{start.source_lang}-{start.target_lang}-{kind}-{start.number}",
            "messages": messages,
            "type": kind,
            "pair": f"{start.source_lang}-{start.target_lang}",
            "user_lang": start.user_lang,
            "generator": self.server.model,
            **start.provenance,
        }

    async def _next_turn(self, start: Seed, kind: str, messages: list[Message], turn: int) -> list[Message]:
        prompt = self.prompts[kind].substitute(
            source=start.source,
            translation=messages[-1]["content"],
            source_language=self.language_names[start.source_lang],
            target_language=self.language_names[start.target_lang],
            user_language=self.language_names[start.user_lang],
            dialogue="\n".join(f"{message['role']}: {message['content']}" for message in messages),
        )
        text = await self.server.ask(
            [{"role": "user", "content": prompt}],
            temperature=0.8,
            seed=self.seed + turn,
            most_tokens=MOST_TOKENS,
        )
        written = parse_turn(text)
        check_turn(written, kind, start, messages)
        return [
            {"role": "user", "content": tidy(written["request"], start.user_lang)},
            {"role": "assistant", "content": tidy(written["answer"], start.target_lang)},
        ]


def parse_turn(text: str) -> dict:
    """{"request": str, "answer": str} from a model's text, which may have words around it.

    Raises Rejected if there is no such object in it.
    """
    text = text.rpartition("</think>")[2]
    if not text.strip():
        raise Rejected("empty or cut off")
    start = text.find("{")
    if start < 0:
        raise Rejected("no whole JSON object")
    try:
        found, _ = json.JSONDecoder().raw_decode(text, start)
        json.dumps(found, ensure_ascii=False).encode()  # a lone surrogate can be neither sent nor stored
    except (ValueError, RecursionError):
        raise Rejected("no whole JSON object") from None
    if not all(isinstance(found.get(k), str) for k in ("request", "answer")):
        raise Rejected("no request and answer in it")
    if not found["request"].strip() or not found["answer"].strip():
        raise Rejected("empty or cut off")
    return found
