"""Figures out of samples: percentiles, medians of rounds, and what counts as noise between them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

PERCENTILES = (50, 95, 99)


def percentile(sample: Sequence[float], part: float) -> float:
    """The smallest value that is not below `part` percent of the sample (nearest rank).

    Raises ValueError for an empty sample: nothing measured is not zero.
    """
    if not sample:
        raise ValueError("an empty sample has no percentiles")
    ordered = sorted(sample)
    return ordered[max(0, math.ceil(len(ordered) * part / 100) - 1)]


def spread(name: str, sample: Sequence[float]) -> dict[str, float]:
    """`name.min`, `.p50`, `.p95`, `.p99` and `.max`; nothing of an empty sample."""
    if not sample:
        return {}
    ordered = sorted(sample)
    return {
        f"{name}.min": ordered[0],
        **{f"{name}.p{part}": percentile(ordered, part) for part in PERCENTILES},
        f"{name}.max": ordered[-1],
    }


def median(sample: Sequence[float]) -> float:
    return statistics.median(sample)


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median over the rounds of each figure that every round has."""
    if not rounds:
        return {}
    shared = [name for name in rounds[0] if all(name in each for each in rounds)]
    return {name: statistics.median(each[name] for each in rounds) for name in shared}
