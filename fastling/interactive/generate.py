"""A corpus -> dialogues whose further turns a model writes: seeds from good pairs, a file of what passes."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from fastling.interactive.build import Recipe, Tally, distinct_pairs, whole_or_absent
from fastling.interactive.gates import check_pair
from fastling.interactive.refinements import Counts, Seed, load_prompts, refine
from fastling.remote import Server


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
    """Write a file of dialogues, whole or not at all; return what was read, what came of it, tokens paid.

    `count` bounds how many dialogues are begun, spread evenly over the lines. Raises UserError, and RunError
    where the server cannot be used; what it has answered until then is in its cache.
    """
    tally, counts = Tally(), Counts()
    names = recipe.phrasings[min(recipe.phrasings)].names
    prompts = load_prompts(prompts_folder)
    lines_read = 0

    def watched() -> Iterator[Seed]:
        nonlocal lines_read
        for seed in _seeds(recipe, tally, total, count):
            lines_read = seed.number
            yield seed

    async def write() -> int:
        server = open_server()  # within the loop that its client belongs to
        try:
            with whole_or_absent(out) as file:
                async for row in refine(watched(), server, prompts, names, counts, seed=recipe.seed):
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    progress(lines_read, server.tokens)
            return server.tokens
        finally:
            await server.close()

    tokens = asyncio.run(write())
    return tally, counts, tokens


def _seeds(recipe: Recipe, tally: Tally, total: int, count: int | None) -> Iterator[Seed]:
    """The first turns of dialogues, of pairs that pass every gate, each drawn from a seed of its own line."""
    corpus, begun = recipe.knowledge.corpus, 0
    for _, pairs in distinct_pairs(corpus, tally):
        for pair in pairs:
            due = count is None or begun < -(-count * min(pair.line, total) // total)
            if not due:
                continue
            if reason := check_pair(pair, recipe.knowledge, recipe.exclusion):
                tally.rejects[reason] += 1
                continue
            choose = random.Random(f"{recipe.seed} {pair.line} generated")
            user_language = choose.choice(sorted(recipe.phrasings))
            turned = corpus.directed(pair, choose.choice(corpus.languages))
            request = recipe.phrasings[user_language].say(
                choose, "translate", target=turned.target, text=turned.text
            )
            provenance = {
                "source_file": corpus.first.name,
                "target_file": corpus.second.name,
                "lines": [pair.line],
            }
            begun += 1
            yield Seed(
                pair.line, turned.text, turned.reference, turned.origin, turned.target, user_language,
                request, provenance,
            )  # fmt: skip
