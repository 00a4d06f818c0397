"""The share of communication in a step: from intervals as a profiler tells them."""

import math

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.communication import length_of_union, shares

ENDS = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted).map(tuple)


@given(st.lists(ENDS))
def test_the_length_of_a_union_is_the_moments_in_any_of_it(intervals):
    moments = {moment for start, end in intervals for moment in range(start, end)}
    assert length_of_union(intervals) == len(moments)


def test_on_a_gpu_what_computing_hides_does_not_count_as_alone():
    events = [
        ("ncclDevKernel_AllGather_RING_LL", (0.0, 4000.0)),
        ("ncclDevKernel_ReduceScatter", (3000.0, 6000.0)),
        ("gemm", (1000.0, 2000.0)),
        ("gemm", (5000.0, 9000.0)),
    ]
    found = shares(events, is_gpu=True)
    assert list(found) == ["of these, communication", "of these, communication alone"]
    assert list(found.values()) == [6.0, 4.0]


def test_a_cpu_waits_for_every_collective():
    events = [("gloo:all_gather", (0.0, 500.0)), ("aten::mm", (400.0, 900.0))]
    assert shares(events, is_gpu=False) == {"of these, communication": 0.5}
    assert math.isclose(sum(shares([], is_gpu=False).values()), 0.0)
