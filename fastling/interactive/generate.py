"""A corpus -> a file of dialogues that begin with a good pair and continue with turns that a model writes."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fastling.interactive.build import Recipe, Tally, check_some_built, distinct_pairs, whole_or_absent
from fastling.interactive.gates import check_pair
from fastling.interactive.pairs import Pair
from fastling.interactive.refinements import Counts, Seed, Writer, load_prompts
from fastling.json_files import json_line
from fastling.remote import Server

MOST_USELESS = 256
"""After this many consecutive dialogues that could not be kept, the model is not asked again."""


def write_generated(
    recipe: Recipe,
    out: Path,
    *,
    total: int,
    count: int | None,
    open_server: Callable[[], Server],
    prompts_folder: Path | None = None,
    progress: Callable[[int, int], None] = lambda lines, tokens: None,
) -> tuple[Tally, Counts, int]:
    """Write a file of dialogues, whole or not at all; return (what was read, what came of it, tokens paid).

    Pairs are drawn, spread evenly over the `total` lines, until `count` dialogues are kept. `progress` is
    called with the number of the line and the tokens paid so far. Raises UserError, and RunError if the
    server cannot be used; its answers until then are in the cache.
    """
    draw, counts = Draw(recipe, total), Counts()
    names = recipe.phrasings[min(recipe.phrasings)].names
    prompts = load_prompts(prompts_folder)

    async def write() -> int:
        server = open_server()  # within the loop that its client belongs to
        try:
            with whole_or_absent(out) as file:
                writer = Writer(server, prompts, names, counts, recipe.seed)
                async for row in _until_enough(draw, writer, count):
                    file.write(json_line(row))
                    progress(draw.line, server.tokens)
                rejects = draw.tally.rejects + counts.rejected
                check_some_built(counts.kept.total(), draw.tally.pairs, rejects, counts.unasked)
            return server.tokens
        finally:
            await server.close()

    tokens = asyncio.run(write())
    return draw.tally, counts, tokens


async def _until_enough(draw: "Draw", writer: Writer, count: int | None) -> AsyncIterator[dict]:
    """Yield dialogues from `count` pairs, then from further pairs for those that could not be kept.

    It ends earlier when there are no pairs left, when the budget is spent, or when the model writes nothing
    that can be kept.
    """
    counts = writer.counts
    while True:
        kept, begun = counts.kept.total(), draw.begun
        async for row in writer.dialogues(draw.seeds(None if count is None else count - kept)):
            yield row
        more, tried = counts.kept.total() - kept, draw.begun - begun
        counts.useless = 0 if more else counts.useless + tried
        if count in (None, kept + more) or not tried or counts.unasked or counts.useless >= MOST_USELESS:
            return


@dataclass
class Draw:
    """Draws pairs that pass every gate, for the first turns of dialogues; no pair is drawn twice."""

    recipe: Recipe
    total: int
    """Lines of the corpus."""
    tally: Tally = field(default_factory=Tally)
    begun: int = 0
    line: int = 0
    """Number of the line that was drawn last."""
    _looked_at: set[int] = field(default_factory=set)

    def seeds(self, count: int | None) -> Iterator[Seed]:
        """Yield at most `count` seeds, spread evenly over the lines, from pairs not looked at before."""
        drawn = 0
        # a second reading is not counted again
        tally = Tally() if self._looked_at else self.tally
        for _, pairs in distinct_pairs(self.recipe.knowledge.corpus, tally):
            for pair in pairs:
                due = count is None or drawn < -(-count * min(pair.line, self.total) // self.total)
                if not due or pair.line in self._looked_at:
                    continue
                self._looked_at.add(pair.line)
                if reason := check_pair(pair, self.recipe.knowledge, self.recipe.exclusion):
                    self.tally.rejects[reason] += 1
                    continue
                drawn, self.begun, self.line = drawn + 1, self.begun + 1, pair.line
                yield _seed(self.recipe, pair)


def _seed(recipe: Recipe, pair: Pair) -> Seed:
    """The first turn, drawn from a seed of the pair's own line."""
    corpus = recipe.knowledge.corpus
    choose = random.Random(f"{recipe.seed} {pair.line} generated")
    user_language = choose.choice(sorted(recipe.phrasings))
    turned = corpus.directed(pair, choose.choice(corpus.languages))
    request = recipe.phrasings[user_language].say(choose, "translate", target=turned.target, text=turned.text)
    provenance = {
        "source_file": corpus.first.name,
        "target_file": corpus.second.name,
        "lines": [pair.line],
    }
    return Seed(
        pair.line, turned.text, turned.reference, turned.origin, turned.target, user_language, request,
        provenance,
    )  # fmt: skip
