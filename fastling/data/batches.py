"""Packs -> batches: flat streams without a batch dimension, made on the CPU.

Everything a step needs to know in numbers (lengths, counts, weights) is worked out here, so that the
device is never asked for a value.

Shapes: T tokens of the stream, D documents, S supervised positions.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy
import torch
from torch.nn.functional import pad

from fastling.data.packing import Plan, deal
from fastling.data.store import Store

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """One micro-batch."""

    tokens: torch.Tensor
    """(T,) int64."""
    labels: torch.Tensor
    """(T,) int64: the next token where it is supervised, else -100."""
    positions: torch.Tensor
    """(T,) int32, from 0 in every document."""
    cu_seqlens: torch.Tensor
    """(D + 1,) int32 borders of documents."""
    max_seqlen: int
    lengths: list[int]
    """Tokens of each document, on the host."""
    loss_index: torch.Tensor
    """(S,) int64: positions whose label is supervised."""
    weights: torch.Tensor
    """(S,) float32: the loss is the sum of weight * negative log-likelihood; over a whole step they
    add up to 1."""
    sources: torch.Tensor
    """(S,) int64: source of each."""
    pairs: torch.Tensor
    """(S,) int64: language pair of each; the last number stands for none."""

    def to(self, device: torch.device) -> "Batch":
        """A copy on the device; with pinned memory, without waiting for it."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """A copy in memory that a GPU can read by itself."""
        return self._with_each(torch.Tensor.pin_memory)

    def _with_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: change(value) for name, value in tensors.items()})

    def rounded(self, multiple: int) -> "Batch":
        """The same loss with T and S filled up to multiples, so that few sizes come, again and again.

        Documents of zeros, none longer than the longest, fill up the stream, and its last token, with
        weight 0, the rows; `sources` and `pairs` stay those of the real rows, which come first.
        """
        more_tokens, more_rows = (-len(each) % multiple for each in (self.tokens, self.loss_index))
        whole, rest = divmod(more_tokens, self.max_seqlen)
        lengths = [*self.lengths, *[self.max_seqlen] * whole, *[rest] * bool(rest)]
        positions = [torch.arange(length, dtype=torch.int32) for length in lengths[len(self.lengths) :]]
        last = len(self.tokens) + more_tokens - 1  # no token comes after it, so it is never supervised
        return replace(
            self,
            tokens=pad(self.tokens, (0, more_tokens)),
            labels=pad(self.labels, (0, more_tokens), value=IGNORED),
            positions=torch.cat([self.positions, *positions]),
            cu_seqlens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
            lengths=lengths,
            loss_index=pad(self.loss_index, (0, more_rows), value=last),
            weights=pad(self.weights, (0, more_rows)),
        )


@dataclass(frozen=True)
class Step:
    """The share of one rank in one optimizer step, and facts about the whole step."""

    batches: list[Batch]
    tokens: int
    """Real tokens of the step over all ranks."""
    supervised_tokens: int
    packs: int
    """Packs of the step, empty ones counted."""
    squared_tokens: int
    """Sum of squared document lengths, for the work that causal attention needs."""


class Normaliser:
    """Weights of supervised tokens such that a step's add up to 1 by token, turn or sample."""

    def __init__(self, store: Store, loss: str):
        self.loss = loss
        self.units = {
            "token": store.document_supervised,
            "turn": store.document_turns,
            "sample": numpy.ones(len(store), dtype=numpy.int64),
        }[loss]

    def total(self, documents: numpy.ndarray) -> int:
        """Units (tokens, turns or samples) of some documents."""
        return int(self.units[documents].sum())

    def weights(self, spans: numpy.ndarray, total: int) -> numpy.ndarray:
        """(supervised,) float32 weights of one document, turn after turn."""
        sizes = (spans[:, 1] - spans[:, 0]).astype(numpy.int64)  # times the step's turns they pass 32 bits
        share = {"token": numpy.ones_like(sizes), "turn": sizes, "sample": sizes.sum().repeat(len(sizes))}
        return numpy.repeat(1 / (share[self.loss] * total), sizes).astype(numpy.float32)


def make_batch(store: Store, documents: numpy.ndarray, normaliser: Normaliser, total: int) -> Batch:
    """Documents laid end to end. Without any, one token and nothing to learn: every rank takes part."""
    tokens, labels, positions, weights, lengths, supervised = [], [], [], [], [], []
    for number in documents.tolist():
        ids, spans = store.document(number)
        target = numpy.full(len(ids), IGNORED, dtype=numpy.int64)
        for start, stop in spans.tolist():
            target[start - 1 : stop - 1] = ids[start:stop]  # shifted: a position predicts the next
        tokens.append(ids.astype(numpy.int64))
        labels.append(target)
        positions.append(numpy.arange(len(ids), dtype=numpy.int32))
        weights.append(normaliser.weights(spans, total))
        lengths.append(len(ids))
        supervised.append(len(weights[-1]))
    if not lengths:
        tokens, positions = [numpy.zeros(1, numpy.int64)], [numpy.zeros(1, numpy.int32)]
        labels, weights, lengths = [numpy.full(1, IGNORED)], [numpy.zeros(0, numpy.float32)], [1]
    label_row = numpy.concatenate(labels)
    loss_index = numpy.flatnonzero(label_row != IGNORED)
    supervised = numpy.array(supervised, dtype=numpy.int64)
    pairs = store.pairs[documents].astype(numpy.int64)
    pairs[pairs < 0] = len(store.pair_names)
    sources = store.sources[documents].astype(numpy.int64)
    return Batch(
        tokens=torch.from_numpy(numpy.concatenate(tokens)),
        labels=torch.from_numpy(label_row),
        positions=torch.from_numpy(numpy.concatenate(positions)),
        cu_seqlens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        max_seqlen=max(lengths),
        lengths=lengths,
        loss_index=torch.from_numpy(loss_index),
        weights=torch.from_numpy(numpy.concatenate(weights)),
        sources=torch.from_numpy(numpy.repeat(sources, supervised)),
        pairs=torch.from_numpy(numpy.repeat(pairs, supervised)),
    )


class Loader:
    """The steps of one rank. Step n depends on n alone, so any step can be the first.

    global_packs packs a step are split over `ranks` ranks and `micro_batches` micro-batches each, with empty
    packs where they do not share evenly. Sizes of micro-batches are rounded up to multiples of `round_to`.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        *,
        global_packs: int,
        ranks: int,
        rank: int,
        micro_batches: int,
        loss: str,
        pin: bool = False,
        round_to: int = 1,
    ):
        self.store, self.plan, self.pin, self.round_to = store, plan, pin, round_to
        self.global_packs = global_packs
        self.ranks, self.rank, self.micro_batches = ranks, rank, micro_batches
        self.normaliser = Normaliser(store, loss)
        self.document_tokens = store.document_tokens
        self.supervised = store.document_supervised

    def __len__(self) -> int:
        return -(-len(self.plan) // self.global_packs)

    def step(self, number: int) -> Step:
        """Step `number`, counted from 0; packs past its last, and past the plan's, are empty."""
        first = number * self.global_packs
        packs = [self.plan.pack(index) for index in range(first, first + self.global_packs)]
        packs += [self.plan.documents[:0]] * (-len(packs) % (self.ranks * self.micro_batches))
        squares = [int((self.document_tokens[pack] ** 2).sum()) for pack in packs]
        documents = numpy.concatenate(packs)
        total = max(1, self.normaliser.total(documents))
        mine = deal(numpy.array(squares), self.ranks, self.micro_batches)[self.rank]
        batches = [
            make_batch(
                self.store, numpy.concatenate([packs[i] for i in chosen]), self.normaliser, total
            ).rounded(self.round_to)
            for chosen in mine
        ]
        return Step(
            batches=[batch.pin() for batch in batches] if self.pin else batches,
            tokens=int(self.document_tokens[documents].sum()),
            supervised_tokens=int(self.supervised[documents].sum()),
            packs=self.global_packs,
            squared_tokens=sum(squares),
        )

    def steps(self, start: int = 0, stop: int | None = None) -> Iterator[Step]:
        """Steps in order, the next one made while the current one runs."""
        stop = len(self) if stop is None else stop
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
            ahead = thread.submit(self.step, start) if start < stop else None
            for number in range(start, stop):
                current = ahead.result()
                ahead = thread.submit(self.step, number + 1) if number + 1 < stop else None
                yield current
