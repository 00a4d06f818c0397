"""A corpus -> a file of dialogues: streamed, on all cores, with the same result for any number of cores.

The main process reads the lines in chunks and drops repeated pairs. Workers make dialogues from the chunks,
seeding each one's random numbers by its first line. The main process writes the requested number of them, in
order.
"""

import contextlib
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TextIO

from fastling.errors import RunError, UserError
from fastling.interactive.dialogue import SENDING_DRAFTS, Dialogue
from fastling.interactive.diversity import Diversity, own_words
from fastling.interactive.drafts import drawn_order
from fastling.interactive.exclusion import Exclusion
from fastling.interactive.gates import check_dialogue, check_pair, check_third
from fastling.interactive.knowledge import Knowledge
from fastling.interactive.pairs import Corpus, Pair, fingerprint
from fastling.interactive.phrasings import Phrasings
from fastling.interactive.rules import BUILDERS, NEEDS_TWO, directed, follow_up
from fastling.json_files import json_line
from fastling.locks import takes
from fastling.workers import ahead, start_workers

LINES_PER_CHUNK = 1000
FEW_CHUNKS = 6
"""With fewer chunks than this, starting processes would take longer than the work."""
RESERVE = 1.3
"""A chunk makes this many times its share of the dialogues, to compensate for chunks that yield too few."""
LINES = (5, 3, 1.5, 0.5)
LINES_WHERE_TWO = (0, 5, 3, 2)
"""Weights of dialogues with one, two, three and four lines; the second list is for kinds that need two."""
TRIED = 300
"""How many pairs are tried to find out how often a kind is possible."""


@dataclass(frozen=True)
class Recipe:
    """Everything but its lines that a dialogue depends on."""

    knowledge: Knowledge
    exclusion: Exclusion
    phrasings: Mapping[str, Phrasings]
    """Language of the user -> its sentences."""
    mix: Mapping[str, float]
    """Kind -> its share of the dialogues."""
    seed: int


class Made(NamedTuple):
    """One dialogue."""

    kind: str
    steps: tuple[str, ...]
    user_language: str
    pair: str
    row: str
    """A line of JSON, its end included."""
    requests: tuple[str, ...]
    """What the user says in each turn, without the sentences of the corpus."""


@dataclass
class Tally:
    """Counts of what was read, and of the dialogues made from it."""

    pairs: int = 0
    kinds: Counter = field(default_factory=Counter)
    steps: Counter = field(default_factory=Counter)
    user_languages: Counter = field(default_factory=Counter)
    directions: Counter = field(default_factory=Counter)
    rejects: Counter = field(default_factory=Counter)
    diversity: Diversity = field(default_factory=Diversity)

    @property
    def dialogues(self) -> int:
        """Number of dialogues."""
        return self.kinds.total()

    def add(self, made: Made) -> None:
        """Count one dialogue."""
        self.kinds[made.kind] += 1
        self.steps.update(made.steps)
        self.user_languages[made.user_language] += 1
        self.directions[made.pair] += 1
        self.diversity.add(made.kind, made.requests)

    @property
    def drafts(self) -> int:
        """Number of turns in which the user shows a draft, good or faulty."""
        return sum(self.steps[step] for step in ("no_change", *SENDING_DRAFTS))

    @property
    def right_drafts(self) -> float:
        """Share of the drafts that need no change."""
        return self.steps["no_change"] / self.drafts if self.drafts else 0.0


# One dialogue ---------------------------------------------------------------------------------------


class Slot(NamedTuple):
    """The neighbouring lines of one dialogue, and what is drawn for it."""

    pairs: Sequence[Pair]
    kinds: Sequence[str]
    """In the order in which they are tried."""
    choose: random.Random
    """Seeded by the first line."""


def make_dialogue(recipe: Recipe, slot: Slot, rejects: Counter) -> Made | None:
    """A dialogue that begins with the first pair, of the first possible kind; None if no kind is possible."""
    pairs, kinds, choose = slot
    user_language = choose.choice(sorted(recipe.phrasings))
    origin = choose.choice(recipe.knowledge.corpus.languages)
    for kind in kinds:
        if kind in NEEDS_TWO and len(pairs) < 2:
            continue
        dialogue = Dialogue(recipe.knowledge, recipe.phrasings[user_language], choose)
        turned = directed(recipe.knowledge.corpus, pairs, origin)
        if not BUILDERS[kind](dialogue, turned):
            continue
        if kind != "continue_text":
            follow_up(dialogue, turned[1:])
        if reason := check_dialogue(dialogue):
            rejects[reason] += 1
            continue
        return _made(recipe, kind, dialogue, user_language)
    return None


def _made(recipe: Recipe, kind: str, dialogue: Dialogue, user_language: str) -> Made:
    first, corpus = dialogue.pairs[0], recipe.knowledge.corpus
    pair = f"{first.origin}-{first.target}"
    row = {
        "id": f"{corpus.name}-{first.line}",
        "messages": dialogue.messages(),
        "type": kind,
        "steps": dialogue.steps,
        "turns": dialogue.record(),
        "pair": pair,
        "user_lang": user_language,
        "source_file": corpus.first.name,
        "target_file": corpus.second.name,
        "lines": dialogue.lines,
    }
    if "switch_target" in dialogue.steps:
        row["third_file"] = corpus.third.name
    texts = [text for each in dialogue.pairs for text in (each.text, each.reference)]
    texts += [draft.text for draft in dialogue.drafts]
    requests = tuple(own_words(request, texts) for request, _ in dialogue.turns)
    return Made(kind, tuple(dialogue.steps), user_language, pair, json_line(row), requests)


def even_mix(recipe: Recipe, sample: Sequence[Sequence[Pair]]) -> dict[str, float]:
    """The recipe's mix, with more weight for kinds that are seldom possible, so that they get their share."""
    knowledge, choose = recipe.knowledge, random.Random(recipe.seed)
    phrasings = recipe.phrasings[min(recipe.phrasings)]
    good = [
        [_with_good_third(pair, knowledge, Counter()) for pair in both]
        for run in sample
        for both in zip(run, run[1:], strict=False)
        if not any(check_pair(pair, knowledge, Exclusion()) for pair in both)
    ]
    tried = [good[number * len(good) // TRIED] for number in range(min(TRIED, len(good)))]
    found = {}
    for kind, weight in recipe.mix.items():
        possible = sum(
            BUILDERS[kind](
                Dialogue(knowledge, phrasings, choose),
                directed(knowledge.corpus, pairs, choose.choice(knowledge.corpus.languages)),
            )
            for pairs in tried
        )
        found[kind] = weight / max(0.02, possible / max(1, len(tried)))
    return found


# One chunk ------------------------------------------------------------------------------------------


def make_chunk(recipe: Recipe, pairs: Sequence[Pair], most: int | None) -> tuple[list[Made], Counter]:
    """Return (dialogues of some lines, counts of rejects); in a random order if `most` is a limit."""
    rejects: Counter = Counter()
    slots = list(_slots(recipe, pairs))
    if most is not None and pairs:
        random.Random(f"{recipe.seed} {pairs[0].line} order").shuffle(slots)
    made: list[Made] = []
    for slot in slots:
        if most is not None and len(made) >= most:
            break
        good = []
        for pair in slot.pairs:
            if reason := check_pair(pair, recipe.knowledge, recipe.exclusion):
                rejects[reason] += 1
            else:
                good.append(_with_good_third(pair, recipe.knowledge, rejects))
        if good:
            dialogue = make_dialogue(recipe, slot._replace(pairs=good), rejects)
            if dialogue:
                made.append(dialogue)
            else:
                rejects["no-kind-possible"] += 1
    return made, rejects


def _with_good_third(pair: Pair, knowledge: Knowledge, rejects: Counter) -> Pair:
    """The pair, without its third text if that fails a check; the other two are still used."""
    if not knowledge.corpus.third or not (reason := check_third(pair, knowledge)):
        return pair
    rejects[f"third-{reason}"] += 1
    return pair._replace(third="")


def _slots(recipe: Recipe, pairs: Sequence[Pair]) -> Iterator[Slot]:
    """Divide the lines into runs of neighbouring lines, one per dialogue; every line is in one of them."""
    at = 0
    while at < len(pairs):
        choose = random.Random(f"{recipe.seed} {pairs[at].line}")
        kinds = drawn_order(recipe.mix, choose)
        count = choose.choices((1, 2, 3, 4), LINES_WHERE_TWO if kinds[0] in NEEDS_TWO else LINES)[0]
        yield Slot(pairs[at : at + count], kinds, choose)
        at += count


# The whole ------------------------------------------------------------------------------------------


def write_dialogues(
    recipe: Recipe,
    out: Path,
    *,
    total: int,
    count: int | None = None,
    workers: int = 1,
    progress: Callable[[int], None] = lambda lines: None,
) -> Tally:
    """Write a file of dialogues, whole or not at all: at most `count`, spread evenly over the `total` lines.

    `progress` is called with the number of lines read so far. Raises RunError if no dialogue could be made.
    """
    tally = Tally()
    with whole_or_absent(out) as file:
        for lines, made, rejects in _chunks_made(recipe, tally, total, count, workers):
            tally.rejects += rejects
            # The share of dialogues due by now equals the share of lines read.
            due = None if count is None else -(-count * lines // total) - tally.dialogues
            for each in made[:due]:
                tally.add(each)
                file.write(each.row)
            progress(lines)
        check_some_built(tally.dialogues, tally.pairs, tally.rejects)
    return tally


def check_some_built(dialogues: int, pairs: int, rejects: Counter, unasked: int = 0) -> None:
    """Raise RunError, with the reasons, if no dialogue was built: an empty file is of no use for training."""
    if not dialogues:
        why = [f"{reason} {number:,}" for reason, number in rejects.most_common(5)]
        why += [f"left unasked by the budget {unasked:,}"] if unasked else []
        words = f"not one dialogue could be built from {pairs:,} pairs"
        raise RunError("fastling dialogues", words, f"Not used: {', '.join(why)}." if why else "")


@contextlib.contextmanager
def whole_or_absent(path: Path) -> Iterator[TextIO]:
    """Yield a file to write to. It gets its name when the block ends, and is deleted after an error.

    Raises UserError while another process is writing the same file.
    """
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "a", encoding="utf-8") as file:
        if not takes(file.fileno(), aside):
            what = f"is being written by another process: {path}"
            raise UserError("--out", what, "Wait for it, stop it, or name another file.")
        try:
            file.truncate(0)  # content left by a killed process
            yield file
            file.flush()
            os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def _chunks_made(
    recipe: Recipe, tally: Tally, total: int, count: int | None, workers: int
) -> Iterator[tuple[int, list[Made], Counter]]:
    """(lines read so far, dialogues, rejects) of every chunk, in the order of the files."""
    most = None if count is None else max(4, round(RESERVE * count * LINES_PER_CHUNK / max(1, total)))
    chunks = distinct_pairs(recipe.knowledge.corpus, tally)
    if workers == 1 or total < FEW_CHUNKS * LINES_PER_CHUNK:
        for lines, pairs in chunks:
            yield lines, *make_chunk(recipe, pairs, most)
        return
    fix = "Lower it: each takes its own copy of what was learned of the lines."
    with start_workers(workers, _start_worker, recipe, where="--workers", fix=fix) as pool:
        started = ((lines, pool.submit(_work, pairs, most)) for lines, pairs in chunks)
        for lines, future in ahead(started, 4 * workers):
            yield lines, *future.result()


def distinct_pairs(corpus: Corpus, tally: Tally) -> Iterator[tuple[int, list[Pair]]]:
    """Yield (lines read so far, their pairs without repeats) for every LINES_PER_CHUNK lines."""
    seen: set[bytes] = set()
    chunk: list[Pair] = []
    for number, lines in corpus.lines():
        pair = corpus.tidied(number, lines)
        key = fingerprint(pair.texts)
        tally.pairs += 1
        if pair.first and pair.second and key in seen:
            tally.rejects["duplicate"] += 1
        else:
            seen.add(key)
            chunk.append(pair)
        if number % LINES_PER_CHUNK == 0:
            yield number, chunk
            chunk = []
    if chunk:
        yield tally.pairs, chunk


_recipe: Recipe
"""The recipe of this worker process."""


def _start_worker(recipe: Recipe) -> None:
    global _recipe
    _recipe = recipe


def _work(pairs: Sequence[Pair], most: int | None) -> tuple[list[Made], Counter]:
    return make_chunk(_recipe, pairs, most)
