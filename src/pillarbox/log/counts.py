"""Bounded counts for metrics: histograms with fixed buckets, and counts by a label of which only the first names are kept."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

# Upper bounds in seconds, for the time from acceptance to delivery, and from the end of content to its commit.
DELIVERY_S = (0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
ACCEPT_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
# A counter must not fall: a name that has a label keeps it, and those that come later are "other".
MOST_NAMES = 100
OTHER = "other"
# Places of an outcome in a count by name.
OUTCOMES = ("delivered", "deferred", "bounced")


def new_histogram(bounds: Sequence[float]) -> list[float]:
    """A count for each bucket, the one without a bound, and the sum of all values."""
    return [0.0] * (len(bounds) + 2)


def observe(histogram: list[float], bounds: Sequence[float], value: float) -> None:
    """Counts one value."""
    histogram[bisect_left(bounds, value)] += 1
    histogram[-1] += value


def count_outcome(counts: dict[str, list[float]], name: str, state: str) -> None:
    """Counts one outcome under a name; expired recipients count as bounced."""
    row = counts.get(name)
    if row is None:
        if len(counts) >= MOST_NAMES:
            name = OTHER
        row = counts.setdefault(name, [0.0] * len(OUTCOMES))
    row[0 if state == "delivered" else 1 if state == "deferred" else 2] += 1
