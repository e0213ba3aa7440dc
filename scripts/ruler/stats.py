"""Medians, percentiles and spread of a few samples. Pure."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Summary:
    median: float
    low: float
    high: float
    count: int

    @property
    def spread(self) -> float:
        """Half the range, as a share of the median: 0.05 reads "within 5 % either way, roughly"."""
        return (self.high - self.low) / 2 / abs(self.median) if self.median else 0.0

    def as_dict(self) -> dict[str, float]:
        return {**asdict(self), "spread": self.spread}


def summarise(samples: Sequence[float]) -> Summary | None:
    if not samples:
        return None
    return Summary(statistics.median(samples), min(samples), max(samples), len(samples))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest sample that at least `share` of all do not exceed. `ordered` is sorted, not empty."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def ratio(value: float | None, reference: float | None) -> float | None:
    """None where either is missing, or where the reference is nothing to divide by."""
    if value is None or reference is None or reference <= 0:
        return None
    return value / reference
