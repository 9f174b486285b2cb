"""Figures of a set of items that are no mean but a function of sums, such as corpus BLEU or macro-F1.

Because all of it follows from sums over items, items can be resampled (intervals) and exchanged between two contenders
(tests) without measuring anything again. Imports nothing heavy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
else:
    Floats = Any

Statistic = Callable[[Floats], Floats]
"""From sums (..., K) to the figure (...)."""


@dataclass(frozen=True)
class Figure:
    """totals: (n, K), what each item adds. statistic: from sums over items, (..., K), to the figure, (...)."""

    totals: Floats
    statistic: Statistic

    def of(self, items: Sequence[int]) -> "Figure":
        """The figure of some of the items."""
        return Figure(self.totals[list(items)], self.statistic)

    @property
    def value(self) -> float:
        """The figure of all items."""
        return float(self.statistic(self.totals.sum(0)))
