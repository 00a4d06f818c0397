"""The plan: which documents share a pack, and in which order packs are trained on.

Best-fit decreasing over the whole set (Johnson 1973) to a fixed token budget. The order of packs
is a pure function of the store, the weights, the seed and the budget. It does not depend on ranks,
so any number of them trains on the same global batches, and a step number is enough to resume (P6).
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy


@dataclass(frozen=True)
class Plan:
    """Packs of documents in training order."""

    documents: numpy.ndarray
    """(entries,) int64 document numbers, pack after pack."""
    pack_offsets: numpy.ndarray
    """(packs + 1,) int64 into documents."""
    packs_per_epoch: tuple[int, ...]
    """Packs of each pass over the data."""

    def __len__(self) -> int:
        return len(self.pack_offsets) - 1

    def pack(self, index: int) -> numpy.ndarray:
        """Document numbers of a pack; none for an index past the end, where the last step has empty packs."""
        if index >= len(self):
            return self.documents[:0]
        return self.documents[self.pack_offsets[index] : self.pack_offsets[index + 1]]

    def epoch(self, packs: int) -> float:
        """How many passes over the data the first `packs` packs make."""
        epoch = 0.0
        for number in self.packs_per_epoch:
            if packs <= number:
                return round(epoch + packs / max(1, number), 6)
            packs, epoch = packs - number, epoch + 1
        return epoch

    def most_in_packs(self, of_documents: numpy.ndarray, global_packs: int) -> numpy.ndarray:
        """(global_packs,): at [n - 1], the largest sum of `of_documents` over any n packs of one step.

        `of_documents` (documents,) is a count for each document of the store, such as its supervised tokens.
        """
        until = numpy.concatenate([[0], of_documents[self.documents].astype(numpy.int64).cumsum()])
        of_packs = numpy.zeros((-(-len(self) // global_packs), global_packs), numpy.int64)
        of_packs.flat[: len(self)] = numpy.diff(until[self.pack_offsets])
        return numpy.sort(of_packs, axis=1)[:, ::-1].cumsum(axis=1).max(axis=0)

    def first(self, packs: int) -> "Plan":
        """The plan that ends after the first `packs` packs."""
        offsets = self.pack_offsets[: packs + 1]
        return Plan(self.documents[: offsets[-1]], offsets, self.packs_per_epoch)


def best_fit(lengths: numpy.ndarray, capacity: int) -> numpy.ndarray:
    """Lengths (n,) from 1 to `capacity` -> the bin of each (n,): longest first, into the tightest with room.

    The tightest bin stays the tightest until it has no room for another item of the same length. So each bin
    gets as many as fit, and all bins that are equally tight at once: most of the time goes to sorting.
    """
    order = numpy.argsort(-lengths, kind="stable")
    bins = numpy.empty(len(order), numpy.int64)
    open_bins = _OpenBins(capacity)
    starts = numpy.unique(-lengths[order], return_index=True)[1].tolist()
    for start, stop in pairwise([*starts, len(order)]):
        length = int(lengths[order[start]])
        while start < stop:
            space, chosen = open_bins.take(length, stop - start)
            per_bin = space // length
            items = order[start:stop][: per_bin * len(chosen)]
            bins[items] = numpy.repeat(chosen, per_bin)[: len(items)]
            in_last = len(items) - per_bin * (len(chosen) - 1)
            open_bins.put(chosen[:-1], space - per_bin * length)
            open_bins.put(chosen[-1:], space - in_last * length)
            start += len(items)
    return bins


class _OpenBins:
    """Bins that have room, in stacks by their free space."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._count = 0
        self._stacks: dict[int, list[int]] = {}
        self._spaces: list[int] = []  # keys of the stacks, ascending; at most `capacity`

    def take(self, length: int, items: int) -> tuple[int, Sequence[int]]:
        """Take out the tightest bins with room for a length: as many as there are, or so many items fill.

        Returns their free space and their numbers. If no bin has room, they are new ones.
        """
        position = bisect.bisect_left(self._spaces, length)
        is_new = position == len(self._spaces)
        space = self._capacity if is_new else self._spaces[position]
        most = -(-items // (space // length))
        if is_new:
            self._count += most
            return space, range(self._count - most, self._count)
        stack = self._stacks[space]
        chosen = stack[: -most - 1 : -1]
        del stack[-len(chosen) :]
        if not stack:
            del self._stacks[space], self._spaces[position]
        return space, chosen

    def put(self, bins: Sequence[int], space: int) -> None:
        """Put bins back, which have this free space now."""
        if not (bins and space):
            return
        if space not in self._stacks:
            self._stacks[space] = []
            bisect.insort(self._spaces, space)
        self._stacks[space] += bins


def shuffled_sources(sources: numpy.ndarray, number: int, seed: int) -> list[numpy.ndarray]:
    """Document numbers of each of `number` sources, in a random order that all epochs share.

    `sources` (documents,) is the number of each document's source.
    """
    # Sort once: scanning all documents for each source takes minutes with thousands of sources.
    borders = numpy.bincount(sources, minlength=number).cumsum()[:-1]
    members = numpy.split(numpy.argsort(sources, kind="stable"), borders)
    return [numpy.random.default_rng([seed, source]).permutation(each) for source, each in enumerate(members)]


def epoch_documents(orders: list[numpy.ndarray], weights: list[float], epoch: int) -> numpy.ndarray:
    """Document numbers of one epoch, with each source's documents as often as its weight says.

    `orders` are those of `shuffled_sources`. With a fractional weight the epochs take turns: with 0.5, every
    document comes once in two epochs.
    """
    chosen = []
    for order, weight in zip(orders, weights, strict=True):
        first, last = (round(weight * len(order) * number) for number in (epoch, epoch + 1))
        chosen.append(order[numpy.arange(first, last) % max(1, len(order))])
    return numpy.concatenate(chosen)


def make_plan(
    document_tokens: numpy.ndarray,
    sources: numpy.ndarray,
    weights: list[float],
    *,
    capacity: int,
    seed: int,
    epochs: int | None = None,
    packs: int | None = None,
) -> Plan:
    """Plan `epochs` whole epochs, or `packs` packs, from as many epochs as they take."""
    # One array per epoch, since an object per pack would take hundreds of bytes.
    documents, sizes = [], []
    orders = shuffled_sources(sources, len(weights), seed)
    epoch = planned = 0
    while epoch < epochs if epochs is not None else planned < packs:
        members = epoch_documents(orders, weights, epoch)
        shuffle = numpy.random.default_rng([seed, epoch, 1])
        members = shuffle.permutation(members)  # break ties in length differently in every epoch
        lengths = document_tokens[members]
        bins = best_fit(lengths, capacity)
        sizes_of_bins = numpy.bincount(bins)
        turns = shuffle.permutation(len(sizes_of_bins))
        place = numpy.empty_like(turns)
        place[turns] = numpy.arange(len(turns))
        longest_first_by_bin = place[bins] * (capacity + 1) - lengths
        documents.append(members[numpy.argsort(longest_first_by_bin, kind="stable")])
        sizes.append(sizes_of_bins[turns])
        planned += len(turns)
        epoch += 1
    plan = Plan(
        numpy.concatenate(documents).astype(numpy.int64),
        numpy.concatenate([[0], *sizes]).cumsum(dtype=numpy.int64),
        tuple(map(len, sizes)),
    )
    return plan if packs is None else plan.first(packs)


def deal(costs: numpy.ndarray, ranks: int, micro_batches: int) -> list[list[list[int]]]:
    """Deal the packs of a global batch: [rank][micro-batch] -> indices into `costs`.

    In every micro-batch all ranks wait for the slowest. So each micro-batch takes packs of similar cost, and
    each pack, the costliest first, goes to the rank with the smallest sum so far that has room. len(costs)
    must be a multiple of ranks * micro_batches.
    """
    order = numpy.argsort(-costs, kind="stable").tolist()
    each = len(costs) // (ranks * micro_batches)
    dealt: list[list[list[int]]] = [[[] for _ in range(micro_batches)] for _ in range(ranks)]
    for number in range(micro_batches):
        loads = [0] * ranks
        for pack in order[number * each * ranks : (number + 1) * each * ranks]:
            roomy = [rank for rank in range(ranks) if len(dealt[rank][number]) < each]
            rank = min(roomy, key=loads.__getitem__)
            dealt[rank][number].append(pack)
            loads[rank] += int(costs[pack])
    return dealt
