"""95 % intervals by the bootstrap (Efron 1979), which draws as many items with replacement, many times."""

from collections.abc import Sequence

import numpy

RESAMPLES, SEED = 1000, 0


def interval_of_ratio(parts: Sequence[float], wholes: Sequence[float]) -> list[float]:
    """The interval [low, high] of sum(parts) / sum(wholes); a part and its whole are drawn together."""
    parts_N, wholes_N = numpy.array(parts), numpy.array(wholes)
    drawn_RN = numpy.random.default_rng(SEED).integers(len(parts), size=(RESAMPLES, len(parts)))
    return middle_95(parts_N[drawn_RN].sum(axis=1) / wholes_N[drawn_RN].sum(axis=1))


def middle_95(values: numpy.ndarray) -> list[float]:
    """[low, high] between which the middle 95 % of the values lie."""
    return [float(edge) for edge in numpy.percentile(values, (2.5, 97.5))]
