"""The plan: which documents share a pack, and in which order packs are trained on.

Best-fit decreasing over the whole set (Johnson 1973) to a fixed token budget. The order of packs
is a pure function of the store, the weights, the seed and the budget. It does not depend on ranks,
so any number of them trains on the same global batches, and a step number is enough to resume (P6).
"""

import bisect
from dataclasses import dataclass
from itertools import chain

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


def best_fit(lengths: numpy.ndarray, capacity: int) -> list[list[int]]:
    """Indices of `lengths` grouped into bins of at most `capacity`, longest first into the tightest.

    n log n: bins are kept in stacks by free space, and at most `capacity` distinct spaces are sorted.
    """
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}
    spaces: list[int] = []  # distinct free spaces, ascending
    for index in numpy.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        position = bisect.bisect_left(spaces, length)
        if position < len(spaces):
            space = spaces[position]
            chosen = open_bins[space].pop()
            if not open_bins[space]:
                del open_bins[space], spaces[position]
        else:
            space, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(index)
        left = space - length
        if left:
            if left not in open_bins:
                open_bins[left] = []
                bisect.insort(spaces, left)
            open_bins[left].append(chosen)
    return bins


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
        bins = best_fit(document_tokens[members], capacity)
        bins = [bins[number] for number in shuffle.permutation(len(bins))]
        documents.append(members[numpy.fromiter(chain.from_iterable(bins), numpy.int64, len(members))])
        sizes.append(numpy.fromiter(map(len, bins), numpy.int64, len(bins)))
        planned += len(bins)
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
