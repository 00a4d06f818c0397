"""Intervals by the bootstrap."""

import tracemalloc

import numpy
import pytest

from fastling.evaluation.bootstrap import RESAMPLES, SEED, interval_of_ratio


def test_the_interval_holds_the_middle_of_the_ratios_of_resamples():
    parts, wholes = [3.0, 1.0, 4.0, 1.0, 5.0], [2.0, 7.0, 1.0, 8.0, 2.0]
    drawn = numpy.random.default_rng(SEED).integers(5, size=(RESAMPLES, 5))
    ratios = numpy.array(parts)[drawn].sum(axis=1) / numpy.array(wholes)[drawn].sum(axis=1)
    assert interval_of_ratio(parts, wholes) == pytest.approx(numpy.percentile(ratios, (2.5, 97.5)))


def test_resamples_are_not_all_held_in_memory():
    values = [1.0] * 5000
    tracemalloc.start()
    try:
        assert interval_of_ratio(values, values) == [1, 1]
        assert tracemalloc.get_traced_memory()[1] < RESAMPLES * len(values)
    finally:
        tracemalloc.stop()
