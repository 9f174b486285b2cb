"""How far two who label the same things agree, beyond chance; and how a rate is corrected for a judge's errors.

    kappa   Cohen's (1960): chance by each one's own label shares; falls where one label dominates
    ac1     Gwet's (2008): chance by how hard the labels are; holds where one label dominates
    corrected_shares   the true shares of labels behind those that an imperfect judge gives, Rogan and Gladen (1978)
                       in general: with two labels (p + q0 - 1) / (q0 + q1 - 1) (also arXiv 2511.21140)

Shapes: K labels. A confusion matrix has a row for each true label (or the first one's), a column for each given one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from metier.measure.figures import Floats
from metier.measure.statistics import wilson

UNCALIBRATED_BELOW = 0.4
"""Cohen's kappa with people under which a judge counts as uncalibrated: `fair` at best in the words of Landis and Koch
(1977)."""


@dataclass(frozen=True)
class Agreement:
    """n: items that both labelled. observed: the share on which they agree, low and high its Wilson interval.

    kappa, ac1: None where chance alone agrees always (one label). Both with a 95 % interval by the item's influence.
    """

    n: int
    observed: float
    low: float | None
    high: float | None
    kappa: float | None
    kappa_low: float | None
    kappa_high: float | None
    ac1: float | None
    ac1_low: float | None
    ac1_high: float | None


def confusion(first: Sequence[int], second: Sequence[int], count: int) -> Floats:
    """(K, K) counts: rows by the first's labels, columns by the second's."""
    found = np.zeros((count, count))
    np.add.at(found, (np.asarray(first, dtype=int), np.asarray(second, dtype=int)), 1)
    return found


def kappa(table: ArrayLike) -> float | None:
    """Cohen's kappa of a (K, K) table; None where chance alone would agree always."""
    shares = _shares(table)
    chance = float(shares.sum(0) @ shares.sum(1))
    return None if chance >= 1 else (float(np.trace(shares)) - chance) / (1 - chance)


def ac1(table: ArrayLike) -> float | None:
    """Gwet's AC1 of a (K, K) table; None where there is one label."""
    shares = _shares(table)
    count = len(shares)
    if count < 2:
        return None
    mean = (shares.sum(0) + shares.sum(1)) / 2
    chance = float((mean * (1 - mean)).sum()) / (count - 1)
    return (float(np.trace(shares)) - chance) / (1 - chance)


def agreement(first: Sequence[int], second: Sequence[int], count: int, confidence: float = 0.95) -> Agreement | None:
    """Everything of two who labelled the same items; None where there are none."""
    table = confusion(first, second, count)
    n = int(table.sum())
    if n == 0:
        return None
    observed = float(np.trace(table)) / n
    low, high = wilson(observed, n, confidence) if n > 1 else (None, None)
    spread = {name: _interval(figure, table, confidence) for name, figure in (("kappa", kappa), ("ac1", ac1))}
    return Agreement(n, observed, low, high, *spread["kappa"], *spread["ac1"])


def _interval(figure: object, table: Floats, confidence: float) -> tuple[float | None, float | None, float | None]:
    """A figure of a table with its jackknife interval: one item left out at a time, which there are K x K kinds of."""
    from scipy.special import stdtrit

    assert callable(figure)
    whole, n = figure(table), float(table.sum())
    if whole is None or n < 3:
        return whole, None, None
    values, weights = [], []
    for place in zip(*np.nonzero(table), strict=True):
        less = table.copy()
        less[place] -= 1
        value = figure(less)
        if value is None:
            return whole, None, None
        values.append(value)
        weights.append(float(table[place]))
    left_out, counts = np.asarray(values), np.asarray(weights)
    centre = float(left_out @ counts) / n
    error = float(np.sqrt((n - 1) / n * (counts @ (left_out - centre) ** 2)))
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * error
    return whole, max(-1.0, whole - half), min(1.0, whole + half)


def _shares(table: ArrayLike) -> Floats:
    counts = np.asarray(table, dtype=np.float64)
    shares: Floats = counts / counts.sum()
    return shares
