"""Packs -> batches: flat streams without a batch dimension, made on the CPU.

All numbers that a step needs on the host (lengths, counts, weights) are computed here, so that a step never
waits for a value from the device.

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
    """(S,) int64: number of the source of each supervised position."""
    pairs: torch.Tensor
    """(S,) int64: number of the language pair of each; one past the last pair stands for none."""

    def to(self, device: torch.device) -> "Batch":
        """A copy on the device. From pinned memory the copy is asynchronous."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> "Batch":
        """A copy in pinned memory, which a GPU reads without the CPU."""
        return self._with_each(torch.Tensor.pin_memory)

    def _with_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: change(value) for name, value in tensors.items()})

    def rounded(self, multiple: int) -> "Batch":
        """A batch with the same loss whose T and S are multiples of `multiple`, so that few sizes occur.

        The stream is padded with documents of zeros, none longer than `max_seqlen`; the supervised rows are
        padded with the stream's last token at weight 0. `sources` and `pairs` keep the length of the
        real rows, which come first.
        """
        more_tokens, more_rows = (-len(each) % multiple for each in (self.tokens, self.loss_index))
        whole, rest = divmod(more_tokens, self.max_seqlen)
        lengths = [*self.lengths, *[self.max_seqlen] * whole, *[rest] * bool(rest)]
        positions = [torch.arange(length, dtype=torch.int32) for length in lengths[len(self.lengths) :]]
        last = len(self.tokens) + more_tokens - 1  # it has no successor, so it is never supervised
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
    """Packs of the step, including empty ones."""
    squared_tokens: int
    """Sum of squared document lengths, which causal attention's work depends on."""


class Normaliser:
    """Weights of supervised tokens, which add up to 1 in a step and are equal by token, turn or sample."""

    def __init__(self, store: Store, loss: str):
        self.loss = loss
        self.units = {
            "token": store.document_supervised,
            "turn": store.document_turns,
            "sample": numpy.ones(len(store), dtype=numpy.int64),
        }[loss]

    def total(self, documents: numpy.ndarray) -> int:
        """The number of units (tokens, turns or samples) in some documents."""
        return int(self.units[documents].sum())

    def weights(self, spans: numpy.ndarray, total: int) -> numpy.ndarray:
        """(supervised,) float32 weights of one document's supervised tokens, turn by turn."""
        sizes = (spans[:, 1] - spans[:, 0]).astype(numpy.int64)  # times the step's turns they exceed 32 bits
        share = {"token": numpy.ones_like(sizes), "turn": sizes, "sample": sizes.sum().repeat(len(sizes))}
        return numpy.repeat(1 / (share[self.loss] * total), sizes).astype(numpy.float32)


def make_batch(store: Store, documents: numpy.ndarray, normaliser: Normaliser, total: int) -> Batch:
    """Concatenate documents. Without any, make one token without a label, since every rank must take part."""
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
    """Loads the steps of one rank. Step n depends only on n, so a run can begin at any step.

    global_packs packs a step are split over `ranks` ranks and `micro_batches` micro-batches each, with empty
    packs where the numbers do not divide evenly. Sizes of micro-batches are rounded up to multiples of
    `round_to`.
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
        """Step `number`, counted from 0. Packs past the end of the plan are empty, and so are those added
        where a step's packs do not divide evenly."""
        first = number * self.global_packs
        packs = [self.plan.pack(index) for index in range(first, first + self.global_packs)]
        packs += [self.plan.documents[:0]] * (-len(packs) % (self.ranks * self.micro_batches))
        squares = [int((self.document_tokens[pack] ** 2).sum()) for pack in packs]
        documents = numpy.concatenate(packs)
        total = self.normaliser.total(documents)
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

    def steps(self, start: int = 0) -> Iterator[Step]:
        """Yield steps from `start` on, in order; the next one is prepared while the current one runs."""
        stop = len(self)
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
            ahead = thread.submit(self.step, start) if start < stop else None
            for number in range(start, stop):
                current = ahead.result()
                ahead = thread.submit(self.step, number + 1) if number + 1 < stop else None
                yield current
