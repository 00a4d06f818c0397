"""95 % bootstrap intervals (Efron 1979): the items are resampled with replacement many times."""

from collections.abc import Sequence

import numpy

RESAMPLES, SEED = 1000, 0


def interval_of_ratio(parts: Sequence[float], wholes: Sequence[float]) -> list[float]:
    """The interval [low, high] of sum(parts) / sum(wholes); each part is resampled with its whole."""
    parts_N, wholes_N = numpy.array(parts), numpy.array(wholes)
    generator, ratios = numpy.random.default_rng(SEED), []
    for _ in range(RESAMPLES):  # one at a time: all at once would take 16 kB for each item
        drawn_N = generator.integers(len(parts), size=len(parts))
        ratios.append(parts_N[drawn_N].sum() / wholes_N[drawn_N].sum())
    return middle_95(ratios)


def middle_95(values: Sequence[float]) -> list[float]:
    """[low, high] between which the middle 95 % of the values lie."""
    return [float(edge) for edge in numpy.percentile(values, (2.5, 97.5))]
