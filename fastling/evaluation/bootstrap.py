"""95 % intervals by the bootstrap (Efron 1979), which draws as many items with replacement, many times."""

from collections.abc import Sequence

import numpy

RESAMPLES, SEED = 1000, 0


def interval_of_ratio(parts: Sequence[float], wholes: Sequence[float]) -> list[float]:
    """The interval [low, high] of sum(parts) / sum(wholes); a part and its whole are drawn together."""
    parts_N, wholes_N = numpy.array(parts), numpy.array(wholes)
    generator, ratios = numpy.random.default_rng(SEED), []
    for _ in range(RESAMPLES):  # one at a time: all at once would take 16 kB for each item
        drawn_N = generator.integers(len(parts), size=len(parts))
        ratios.append(parts_N[drawn_N].sum() / wholes_N[drawn_N].sum())
    return middle_95(ratios)


def middle_95(values: Sequence[float]) -> list[float]:
    """[low, high] between which the middle 95 % of the values lie."""
    return [float(edge) for edge in numpy.percentile(values, (2.5, 97.5))]
