"""Held-out loss by source and by language pair, and sample answers, during training."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy
import torch

from fastling import files
from fastling.config import Config
from fastling.data.conversation import KEYS, Conversation, parse_row
from fastling.data.encoding import Encoder
from fastling.data.packing import make_plan
from fastling.data.rows import read_rows
from fastling.data.store import Store
from fastling.json_files import json_line
from fastling.model.decoding import Decoding
from fastling.model.generation import generate
from fastling.model.llama import Llama
from fastling.training.build import loader_of_rank
from fastling.training.parallel import World


@dataclass(frozen=True)
class Answer:
    """A held-out question, the model's answer, and the answer in the data."""

    question: str
    answer: str
    reference: str


class HeldOut:
    """The held-out data of a run, on which the model is evaluated repeatedly."""

    def __init__(self, config: Config, world: World, store: Store, encoder: Encoder):
        self.config, self.world, self.store, self.encoder = config, world, store, encoder
        length = config.data.sequence_length
        plan = make_plan(
            store.document_tokens,
            store.sources,
            [1.0] * len(store.source_names),
            capacity=length,
            seed=config.seed,
            epochs=1,
        )
        per_rank = max(1, min(config.train.micro_batch_tokens // length, -(-len(plan) // world.size)))
        packs = per_rank * world.size
        self.loader = loader_of_rank(world, store, plan, global_packs=packs, micro_batches=1, loss="token")
        self.questions = _choose_questions(config, store, encoder)

    @torch.no_grad()
    def losses(self, model: Llama, stop_signal: Callable[[], int]) -> dict[str, float] | None:
        """Mean losses by name: eval_loss over all supervised tokens, eval_loss_<source>, eval_loss_<pair>.

        All ranks must call this together. Returns None as soon as one of them receives a stop signal:
        `stop_signal` returns its number, or 0.
        """
        names = [*self.store.source_names, *self.store.pair_names]
        num_sources, num_pairs = len(self.store.source_names), len(self.store.pair_names)
        sums = torch.zeros(num_sources + num_pairs + 1, 2, device=self.world.device)
        for step in self.loader.steps():
            if self.world.any(bool(stop_signal())):
                return None
            batch = step.batches[0]
            _, nll = model.loss_and_nll(batch.to(self.world.device))
            add_sums(sums[:num_sources], batch.sources, nll)
            add_sums(sums[num_sources:], batch.pairs, nll)
        totals = self.world.sum(sums).tolist()
        of_sources = totals[:num_sources]
        everything = sum(total for total, _ in of_sources) / max(1.0, sum(count for _, count in of_sources))
        named = zip(names, totals, strict=False)  # the last group holds rows without a pair
        return {"eval_loss": everything} | {
            f"eval_loss_{name}": total / count for name, (total, count) in named if count
        }

    def answers(self, model: Llama) -> list[Answer]:
        """Greedy answers to a few held-out questions. All ranks must call this together."""
        if not self.questions:
            return []
        generated = generate(
            model,
            [self.encoder.prompt_ids(question) for question, _ in self.questions],
            Decoding(max_new_tokens=self.config.evaluate.sample_tokens),
            stop_ids=set(self.encoder.stop_ids),
        )
        return [
            Answer(question.turns[-1].content, self.encoder.answer(completion.ids), reference)
            for (question, reference), completion in zip(self.questions, generated, strict=True)
        ]


def _choose_questions(config: Config, store: Store, encoder: Encoder) -> list[tuple[Conversation, str]]:
    """(a conversation up to its first question, the answer), spread over the first 1000 of each source."""
    found = []
    room = config.data.sequence_length - config.evaluate.sample_tokens
    for conversation in _first_conversations(store, 1000) if config.evaluate.samples else ():
        has_answer = conversation.turns[0].role == "user" and len(conversation.turns) > 1
        if has_answer and 1 not in conversation.read_only:  # such an answer is no reference
            question = Conversation(conversation.turns[:1], conversation.system)
            if len(encoder.prompt_ids(question)) <= room:
                found.append((question, conversation.turns[1].content))
    count = min(config.evaluate.samples, len(found))
    return [found[i] for i in numpy.linspace(0, len(found) - 1, count).round().astype(int)]


def _first_conversations(store: Store, most: int) -> Iterator[Conversation]:
    """Read the conversations of the first documents of each source, at most so many, from its file."""
    for number, source in enumerate(store.recipe.sources):
        rows = store.rows[store.documents_of(number)][:most].tolist()
        wanted = set(rows)
        for row in islice(read_rows(source.path, KEYS), max(rows, default=-1) + 1):
            if row.index in wanted:
                yield parse_row(row.payload)


def add_sums(sums: torch.Tensor, groups: torch.Tensor, values: torch.Tensor) -> None:
    """Add sum and count of the values in each group to `sums` (groups, 2); `groups` (S,) is on the CPU.

    A batch has a few of perhaps thousands of language pairs, and `sums_by` builds a matrix over all groups.
    """
    present, places = groups.unique(return_inverse=True)
    if len(present):
        found = sums_by(places.to(values.device), values, len(present)).view(-1, 2)
        sums.index_add_(0, present.to(values.device), found)


def sums_by(groups: torch.Tensor, values: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Sum and count of the values in each group, (2 * num_groups,): sum 0, count 0, sum 1, count 1, ...

    `groups` (S,) int64 holds the group of each of the first S values; further values are padding. A product
    with the membership matrix adds in a fixed order, so the result is always the same.
    """
    member = torch.nn.functional.one_hot(groups, num_groups).to(values.dtype)
    return torch.stack([values[: len(groups)] @ member, member.sum(0)], dim=1).flatten()


def keep_answers(answers: list[Answer], path: Path, step: int) -> None:
    """Append answers to `path`, which is samples.jsonl of a run."""
    with files.naming(path), open(path, "a", encoding="utf-8") as file:
        for answer in answers:
            file.write(json_line({"step": step, **vars(answer)}))
