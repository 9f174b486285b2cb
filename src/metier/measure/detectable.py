"""How small a difference so many questions can show, before any is asked. Imports nothing heavy.

The true difference that a two-sided test finds in 80 of 100 studies is (z of the error rate + z of the power) x the
standard deviation of a paired difference / sqrt(n). Nothing was measured yet, so that deviation is assumed, and said:

    right or wrong      0.5: each contender right half the time, and the two agreeing as at a correlation of 0.5. Worst
    scores from 0 to 1  0.35: what token F1 and its like have with a third of the answers at 0 and a fifth at 1

Once scores are made, each comparison carries the figure that its own differences give (`detectable`).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

RIGHT_OR_WRONG = 0.5
SCORES = 0.35
PLAUSIBLE = 0.10
"""A gain that a user hopes to see; where it is below what can be shown, that is worth a warning."""


@dataclass(frozen=True)
class Detectable:
    """The smallest difference that `n` questions can show. corrected: if all comparisons of the step need correction
    (Holm's first and hardest step); the same where there is one comparison, None where their number is not known."""

    n: int
    outcomes: float
    scores: float
    corrected: float | None

    @property
    def misses_plausible_gains(self) -> bool:
        """Whether a gain of ten points on right or wrong answers would mostly go unseen."""
        return self.outcomes > PLAUSIBLE


def smallest(n: int, deviation: float, *, error: float = 0.05, power: float = 0.8) -> float:
    """The true difference that a two-sided test of `n` pairs finds with this power."""
    normal = NormalDist()
    return (normal.inv_cdf(1 - error / 2) + normal.inv_cdf(power)) * deviation / math.sqrt(n)


def detectable(n: int, *, comparisons: int | None = 1, error: float = 0.05) -> Detectable:
    """What `n` questions can show, of which so many comparisons are made."""
    corrected = None if comparisons is None else smallest(n, RIGHT_OR_WRONG, error=error / max(1, comparisons))
    return Detectable(n, smallest(n, RIGHT_OR_WRONG, error=error), smallest(n, SCORES, error=error), corrected)
