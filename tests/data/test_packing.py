"""Packs and plans: full, complete, and the same for any number of ranks (P6)."""

import collections
import random
import tracemalloc

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastling.data.packing import Plan, best_fit, deal, epoch_documents, make_plan, shuffled_sources


def slow_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The bin of each item by best-fit decreasing, one item at a time, by looking at every bin for it.

    Of bins that are equally full it takes the one that was filled last.
    """
    bins = [-1] * len(lengths)
    fills: list[int] = []
    touched: list[int] = []
    for turn, item in enumerate(sorted(range(len(lengths)), key=lambda item: -lengths[item])):
        fitting = [number for number, fill in enumerate(fills) if fill + lengths[item] <= capacity]
        if not fitting:
            fitting = [len(fills)]
            fills.append(0)
            touched.append(turn)
        bins[item] = max(fitting, key=lambda number: (fills[number], touched[number]))
        fills[bins[item]] += lengths[item]
        touched[bins[item]] = turn
    return bins


def lognormal(count: int, capacity: int = 2048) -> numpy.ndarray:
    draw = numpy.random.default_rng(0)
    return numpy.clip(draw.lognormal(5.5, 1.0, count), 8, capacity).astype(numpy.int64)


@given(lengths=st.lists(st.integers(1, 30), max_size=60), spare=st.integers(0, 20))
def test_best_fit_is_best_fit_decreasing(lengths, spare):
    capacity = max(lengths, default=1) + spare
    bins = best_fit(numpy.array(lengths, dtype=numpy.int64), capacity)
    assert bins.tolist() == slow_best_fit(lengths, capacity)


def test_packs_of_real_lengths_are_full():
    lengths = lognormal(20_000)
    fills = numpy.bincount(best_fit(lengths, 2048), weights=lengths)
    assert fills.mean() > 0.99 * 2048 and fills.max() <= 2048


# Epochs and weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.25, 0.5, 1, 1.5, 2, 2.5, 0.01])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_weights_are_kept_over_epochs_and_no_document_is_favoured(weight, size):
    orders = shuffled_sources(numpy.array([0] * 5 + [1] * size), 2, seed=3)
    seen = collections.Counter()
    for epoch in range(12):
        chosen = epoch_documents(orders, [1.0, weight], epoch).tolist()
        assert sorted(each for each in chosen if each < 5) == list(range(5))
        seen.update(each for each in chosen if each >= 5)
        counts = [seen[number] for number in range(5, 5 + size)]
        assert max(counts) - min(counts) <= 1
        assert abs(sum(counts) - weight * size * (epoch + 1)) <= 0.5


def test_half_a_weight_shows_every_document_once_in_two_epochs():
    orders = shuffled_sources(numpy.zeros(10, dtype=numpy.int16), 1, seed=0)
    first, second = (epoch_documents(orders, [0.5], epoch).tolist() for epoch in (0, 1))
    assert len(first) == 5
    assert sorted(first + second) == list(range(10))


def test_a_source_is_looked_for_and_shuffled_once_in_a_plan(monkeypatch):
    """Not among all documents for each of thousands of sources, nor again in each of many short epochs."""
    lengths, shuffled = lognormal(300), []
    draw = numpy.random.default_rng

    def counted(seed: list[int]):
        shuffled.append(tuple(seed))
        return draw(seed)

    monkeypatch.setattr(numpy.random, "default_rng", counted)
    sources = numpy.arange(300) % 100
    make_plan(lengths, sources, [0.1] * 100, capacity=2048, seed=7, epochs=30)
    of_sources = [seed for seed in shuffled if len(seed) == 2]
    assert of_sources == [(7, source) for source in range(100)]


def test_orders_of_sources_hold_each_document_once_where_sources_are_mixed_or_empty():
    orders = shuffled_sources(numpy.array([3, 0, 3, 1, 0], dtype=numpy.int16), 5, seed=0)
    assert [sorted(order.tolist()) for order in orders] == [[1, 4], [3], [], [0, 2], []]


# Plans --------------------------------------------------------------------------------------------


def test_a_plan_takes_a_few_bytes_for_each_document_and_no_object_for_each_pack():
    lengths = numpy.random.default_rng(0).integers(200, 1800, 1000)
    tracemalloc.start()
    try:
        plan = make_plan(lengths, numpy.zeros(1000, numpy.int16), [1.0], capacity=2048, seed=0, epochs=20)
        assert tracemalloc.get_traced_memory()[1] < 50 * len(plan.documents)
    finally:
        tracemalloc.stop()


def plan_of(count: int = 300, **changes) -> Plan:
    sources = numpy.arange(count, dtype=numpy.int16) % 2
    return make_plan(
        lognormal(count), sources, [1.0, 1.0], **{"capacity": 2048, "seed": 1, "epochs": 2, **changes}
    )


def packs(plan: Plan) -> list[list[int]]:
    return [plan.pack(number).tolist() for number in range(len(plan))]


def test_a_plan_is_a_pure_function_of_its_arguments():
    random.seed(5)
    numpy.random.seed(5)
    first = packs(plan_of())
    numpy.random.seed(6)
    assert packs(plan_of()) == first
    for changes in ({"seed": 2}, {"capacity": 2049}):
        assert packs(plan_of(**changes)) != first
    assert packs(plan_of(epochs=1)) == first[: len(plan_of(epochs=1))]  # a longer run starts as a shorter one


def test_every_epoch_has_every_document_once_in_another_order():
    plan = plan_of()
    one, two = plan.packs_per_epoch
    halves = packs(plan)[:one], packs(plan)[one:]
    assert len(halves[1]) == two
    for half in halves:
        assert sorted(document for pack in half for document in pack) == list(range(300))
    assert halves[0] != halves[1]
    lengths = lognormal(300)
    assert all(lengths[pack].sum() <= 2048 for pack in packs(plan))


def test_packs_are_shuffled_so_that_long_documents_do_not_come_first():
    lengths = lognormal(3000)
    plan = make_plan(lengths, numpy.zeros(3000, numpy.int16), [1.0], capacity=2048, seed=0, epochs=1)
    documents = numpy.array([len(pack) for pack in packs(plan)])
    half = len(documents) // 2
    assert abs(documents[:half].mean() - documents[half:].mean()) < 1


def test_a_number_of_packs_takes_as_many_epochs_as_it_needs():
    one = len(plan_of(epochs=1))
    plan = plan_of(epochs=None, packs=one + 1)
    assert len(plan) == one + 1
    assert len(plan.packs_per_epoch) == 2
    assert packs(plan) == packs(plan_of(epochs=2))[: one + 1]


def test_epoch_counts_passes_over_the_data():
    plan = Plan(numpy.arange(6), numpy.arange(7), (4, 2))
    assert [plan.epoch(packs) for packs in range(8)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.0]


def test_an_epoch_without_a_pack_counts_all_the_same():
    """A weight of 0.3 shows one document in the second of three epochs."""
    plan = make_plan(numpy.array([5]), numpy.array([0]), [0.3], capacity=8, seed=0, epochs=3)
    assert plan.packs_per_epoch == (0, 1, 0)
    assert plan.epoch(0) == 0.0
    assert plan.epoch(1) == 2.0


def test_past_the_end_packs_are_empty():
    plan = plan_of()
    assert plan.pack(len(plan)).tolist() == []
    assert plan.pack(len(plan) + 5).tolist() == []


# Shares of ranks ----------------------------------------------------------------------------------


@given(
    costs=st.lists(st.integers(0, 100), min_size=1, max_size=6),
    ranks=st.integers(1, 8),
    micro_batches=st.integers(1, 4),
)
def test_every_pack_goes_to_one_rank_and_every_rank_gets_as_many(costs, ranks, micro_batches):
    costs = numpy.array(costs * ranks * micro_batches)
    dealt = deal(costs, ranks, micro_batches)
    assert [[len(packs) for packs in rank] for rank in dealt] == [
        [len(costs) // (ranks * micro_batches)] * micro_batches
    ] * ranks
    everything = [pack for rank in dealt for packs in rank for pack in packs]
    assert sorted(everything) == list(range(len(costs)))


def test_the_work_is_shared_evenly_in_every_micro_batch():
    """All ranks wait for the slowest in each micro-batch: long, if packs were dealt as they come."""
    lengths = lognormal(3000)
    costs = numpy.bincount(best_fit(lengths, 2048), weights=lengths**2)[:256]
    costs = numpy.random.default_rng(0).permutation(costs)
    ranks, micro_batches = 8, 4
    dealt = deal(costs, ranks, micro_batches)
    shared = numpy.array([[costs[packs].sum() for packs in rank] for rank in dealt])
    plain = costs.reshape(ranks, micro_batches, -1).sum(-1)
    round_robin = numpy.sort(costs)[::-1].reshape(micro_batches, -1, ranks).sum(1).T
    waited, plainly, in_turn = ((work.max(0) - work.mean(0)).sum() for work in (shared, plain, round_robin))
    assert waited < 0.1 * plainly
    assert waited < 0.5 * in_turn
    assert waited < 0.05 * costs.sum() / ranks
