"""Figures of samples: percentiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
