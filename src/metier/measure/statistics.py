"""How sure one can be: intervals, paired tests, correction for many comparisons, and the verdict in words.

Everything is seeded, vectorised, and takes whole clusters (documents, entities) for its units, so that items that
belong together do not pass for independent ones. A mean is the total of the values over the total of the weights, so
that one function serves scores (weight 1) and bits per byte (weight: a document's bytes).

    0/1 outcomes        Wilson's interval; mid-p McNemar test, the paired interval of Bonett and Price
    mean of scores      empirical likelihood with a part of an item at either end (`likelihood`)
    mean of counts      Student's t with Hall's correction for skewness
    ratios, clusters    Student's t of the residuals (Fieller)
    paired differences  of scores empirical likelihood, else Student's t; sign-flip permutation test
    figures of a set    BCa bootstrap interval; exchange of answers (corpus BLEU, macro-F1)
    all comparisons     Holm; a verdict needs both the corrected test and the interval

Why means are not bootstrapped: on scores as they are met (many zeros, some ones, long tails) BCa intervals that say
95 % held the truth in as few as 89 % of studies of 50 items; these hold it in 94 to 96 (`benchmarks/statistics.py`
measures both). Where units differ in size, what skewness a sample has is mostly noise, and correcting for it would do
harm. Why mid-p: the exact McNemar test raises 1 to 4 false alarms in 100 where 5 are allowed; mid-p uses the same
binomial distribution and comes near 5 (Fagerland et al. 2013, who recommend it).

Refuses nothing: fewer than two clusters have no interval, and no test rejects on them.
Shapes: G clusters, R resamples, K columns of totals.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, ndtr, ndtri, stdtrit

from metier.measure import likelihood
from metier.measure.figures import Figure, Floats, Statistic

Verdict = Literal["better", "worse", "no evidence of a difference"]

LIKELIHOOD = "empirical likelihood"
TOO_FEW = "too few items"
"""The method of an interval that is none."""

PERMUTATIONS = 20_000
"""Sign flips drawn: a p-value reaches down to 5e-5, so Holm over a thousand comparisons can still reject at 0.05."""

EXCHANGES = 5_000
"""Exchanges drawn for a figure of a set, which costs more than a sum."""

EXACT_FLIPS = 14
"""Up to so many nonzero differences all sign flips (16,384) are enumerated instead."""

CHUNK = 4_000_000
"""Numbers drawn at once, which bounds memory at about 100 MB."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; low and high are None where too few clusters say nothing."""

    estimate: float
    low: float | None
    high: float | None
    method: str


@dataclass(frozen=True)
class Comparison:
    """A contender against another, on the same items. difference: contender minus other.

    p: two-sided, uncorrected. detectable: the smallest true difference that so many items show in 80 of 100 studies.
    """

    difference: Interval
    p: float
    test: str
    detectable: float | None


def ratio(totals: Floats) -> Floats:
    """First column over the second: the weighted mean of the items."""
    result: Floats = totals[..., 0] / totals[..., 1]
    return result


def cluster_totals(columns: ArrayLike, clusters: Sequence[Hashable] | None) -> Floats:
    """Sums of (items, K) columns within each cluster, (G, K), in order of first appearance."""
    values = np.asarray(columns, dtype=np.float64)
    if clusters is None:
        return values
    index: dict[Hashable, int] = {}
    places = [index.setdefault(c, len(index)) for c in clusters]
    totals = np.zeros((len(index), values.shape[1]))
    np.add.at(totals, places, values)
    return totals


def mean_interval(
    values: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    clusters: Sequence[Hashable] | None = None,
    bounded: bool = False,
    binary: bool = False,
    confidence: float = 0.95,
) -> Interval:
    """The (weighted) mean of the values with its interval.

    weights: the mean is sum(values) / sum(weights). clusters: a label an item; equal ones are one unit.
    binary: the values are 0 and 1, and without clusters the interval is Wilson's. bounded: they lie in [0, 1]: the
    interval is that of the empirical likelihood, and Wilson's, which holds for them too, where none differs.
    """
    totals = _totals(values, weights, clusters)
    estimate = float(ratio(totals.sum(0)))
    if len(totals) < 2:
        return Interval(estimate, None, None, TOO_FEW)
    shares = (bounded or binary) and weights is None
    if shares and ((binary and clusters is None) or _flat(totals)):
        return Interval(estimate, *wilson(estimate, len(totals), confidence), "wilson")
    if shares and clusters is None:
        return Interval(estimate, *likelihood.of_scores(totals[:, 0], _z(confidence) ** 2), LIKELIHOOD)
    return _student(
        totals, clusters, confidence, (0.0, 1.0) if shares else None, skewed=weights is None and clusters is None
    )


def rule_of_three(n: int, confidence: float = 0.95) -> float:
    """The share below which a rate lies where it was not met once among `n`: 3 / n at 95 % (Hanley and
    Lippman-Hand 1983), -ln(1 - confidence) / n; at most 1."""
    return min(1.0, -math.log(1 - confidence) / n)


def compare(
    left: ArrayLike,
    right: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    clusters: Sequence[Hashable] | None = None,
    bounded: bool = False,
    binary: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Mean of `left` minus mean of `right`, item by item: left[i] and right[i] are about the same thing.

    0/1 outcomes: McNemar's test, and the interval of Bonett and Price (2012). Anything else, and what comes in
    clusters: sign-flip permutation and Student's interval of the paired differences; of bounded scores that of the
    empirical likelihood or, where they differ by the same everywhere, Bonett and Price's, which has a width.
    """
    a, b = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values must be of one length, not {a.shape} and {b.shape}")
    totals = _totals(a - b, weights, clusters)
    estimate = float(ratio(totals.sum(0)))
    outcomes = binary and weights is None and clusters is None
    if outcomes:
        test, p = "mcnemar mid-p", mcnemar(int(np.sum(a > b)), int(np.sum(a < b)))
    else:
        test, p = "permutation", permutation(totals[:, 0], seed=seed)
    if len(totals) < 2:
        return Comparison(Interval(estimate, None, None, TOO_FEW), p, test, None)
    shares = (bounded or binary) and weights is None
    spread = standard_error(totals, bounded=shares and clusters is None)
    detectable = minimum_detectable(spread, confidence=confidence)
    if outcomes or (shares and _flat(totals)):
        units = totals[:, 0] / totals[:, 1]
        interval = Interval(estimate, *bonett_price(units, confidence), "bonett-price")
    elif shares and clusters is None and len(totals) >= likelihood.LEAST_DIFFERENCES:
        level = float(stdtrit(len(totals) - 1, 0.5 + confidence / 2)) ** 2
        interval = Interval(estimate, *likelihood.of_differences(totals[:, 0], level), LIKELIHOOD)
    else:
        interval = _student(totals, clusters, confidence, (-1.0, 1.0) if shares else None, skewed=False)
    return Comparison(interval, p, test, detectable)


def _student(
    totals: Floats,
    clusters: Sequence[Hashable] | None,
    confidence: float,
    limits: tuple[float, float] | None,
    skewed: bool,
) -> Interval:
    estimate = float(ratio(totals.sum(0)))
    found = student(totals, confidence, skewed=skewed)
    if found is None:
        return Interval(estimate, None, None, TOO_FEW)
    low, high = found if limits is None else (max(limits[0], found[0]), min(limits[1], found[1]))
    name = "hall" if skewed else "student"
    return Interval(estimate, low, high, name if clusters is None else f"cluster {name}")


def figure_interval(
    figure: Figure,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """A figure of a whole set, such as corpus BLEU, with its interval by resampling items or clusters."""
    totals = cluster_totals(figure.totals, clusters)
    if len(totals) < 2:
        return Interval(figure.value, None, None, TOO_FEW)
    low, high = bootstrap(totals, figure.statistic, confidence=confidence, resamples=resamples, seed=seed)
    return Interval(figure.value, low, high, _bootstrap_name(clusters))


def compare_figures(
    left: Figure,
    right: Figure,
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """One contender's figure minus another's on the same items, both figures being the same function of sums.

    Test: whose answer is whose is exchanged item by item (approximate randomisation, Noreen 1989). Interval: items are
    resampled in pairs.
    """
    if left.totals.shape != right.totals.shape:
        raise ValueError(f"paired items must be the same, not {left.totals.shape} and {right.totals.shape}")
    columns = left.totals.shape[1]

    def gap(sums: Floats) -> Floats:
        return left.statistic(sums[..., :columns]) - left.statistic(sums[..., columns:])

    totals = cluster_totals(np.hstack([left.totals, right.totals]), clusters)
    estimate = left.value - right.value
    p = exchange(totals[:, :columns], totals[:, columns:], left.statistic, seed=seed)
    if len(totals) < 2:
        return Comparison(Interval(estimate, None, None, TOO_FEW), p, "exchange", None)
    low, high = bootstrap(totals, gap, confidence=confidence, resamples=resamples, seed=seed)
    spread = float(np.std(gap(totals.sum(0) - totals)) * math.sqrt(len(totals) - 1))  # leaving out one at a time
    interval = Interval(estimate, low, high, _bootstrap_name(clusters))
    return Comparison(interval, p, "exchange", minimum_detectable(spread, confidence=confidence))


def wilson(share: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of `n`. Also holds for means of values in [0, 1], conservatively:
    their variance is at most that of 0/1 values with the same mean.
    """
    z = _z(confidence)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bonett_price(differences: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of paired differences in [-1, 1]: one item more that speaks for either side, then normal.

    For 0/1 outcomes exactly the adjusted Wald interval of Bonett and Price (2012); it never has zero width.
    """
    padded = np.append(np.asarray(differences, dtype=np.float64), [1.0, -1.0])
    mean = float(padded.mean())
    half = _z(confidence) * float(padded.std()) / math.sqrt(len(padded))
    return max(-1.0, mean - half), min(1.0, mean + half)


def student(totals: ArrayLike, confidence: float = 0.95, *, skewed: bool = True) -> tuple[float, float] | None:
    """Interval of a ratio of totals (G, 2): Student's t. skewed: its skewness is taken out by Hall's cubic map (1992).

    A candidate r is in the interval where the mean of `value - r * weight` is not told from 0 (Fieller 1954): a ratio
    is no harder than a mean, and nothing is approximated about its denominator. None where weights vary so much that
    no candidate on one side is out of the question. Values that all agree have an interval without width.
    """
    rows = np.asarray(totals, dtype=np.float64)
    count = len(rows)
    centre = float(ratio(rows.sum(0)))
    limit = float(stdtrit(count - 1, 0.5 + confidence / 2)) / math.sqrt(count - 1)
    if _flat(rows):
        return centre, centre
    if np.ptp(rows[:, 1]) == 0:
        values = rows[:, 0] / rows[0, 1]
        deviation, skewness = _shape(values, skewed=skewed)
        below, above = (_unmapped(side * limit, skewness, count) * deviation for side in (1, -1))
        return centre - below, centre - above
    low, high = (_crossing(rows, centre, side * limit, skewed=skewed) for side in (1, -1))
    return None if low is None or high is None else (low, high)


def _crossing(rows: Floats, centre: float, level: float, *, skewed: bool) -> float | None:
    """The candidate ratio at which the mapped t of the residuals comes to `level`; it falls as the ratio rises."""
    from scipy.optimize import brentq

    def excess(candidate: float) -> float:
        residuals = rows[:, 0] - candidate * rows[:, 1]
        deviation, skewness = _shape(residuals, skewed=skewed)
        if deviation == 0:
            return math.copysign(math.inf, float(residuals.mean()))
        return _mapped(float(residuals.mean()) / deviation, skewness, len(rows)) - level

    step = standard_error(rows) * (-1 if level > 0 else 1)
    for _ in range(20):
        if (excess(centre + step) > 0) == (level > 0):
            return float(brentq(excess, centre, centre + step, xtol=1e-12, rtol=1e-10))
        step *= 2
    return None


def _shape(values: Floats, *, skewed: bool) -> tuple[float, float]:
    """Standard deviation over n, and skewness with the small-sample factor of Joanes and Gill (1998)."""
    count = len(values)
    away = values - values.mean()
    deviation = math.sqrt(float(np.mean(away**2)))
    if deviation == 0 or not skewed:
        return deviation, 0.0
    factor = math.sqrt(count * (count - 1)) / (count - 2) if count > 2 else 0.0
    return deviation, factor * float(np.mean(away**3)) / deviation**3


def _mapped(t: float, skewness: float, count: int) -> float:
    """Hall's map: nearly symmetric, and monotone, so that it can be undone."""
    return t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / (6 * count)


def _unmapped(mapped: float, skewness: float, count: int) -> float:
    """The t that `_mapped` takes there: 1 + skewness * (mapped - constant) is the cube of 1 + skewness * t / 3."""
    if abs(skewness) < 1e-6:
        return mapped
    cubed = 1 + skewness * (mapped - skewness / (6 * count))
    return float(3 / skewness * (np.cbrt(cubed) - 1))


def _flat(totals: Floats) -> bool:
    """Whether every unit has the same mean, so that nothing is known of the spread."""
    means = totals[:, 0] / totals[:, 1]
    return bool(np.ptp(means) <= 1e-12 * np.abs(means).max())


def bootstrap(
    totals: ArrayLike, statistic: Statistic, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """BCa bootstrap interval (Efron 1987) of a statistic of column totals, resampling the rows of (G, K) totals.

    The acceleration comes from leaving out one row at a time. Resampling G rows understates their spread, so the
    levels are those of Student's t, widened by sqrt(G / (G - 1)) (Hesterberg 2015): at 100 rows, 1.7 % wider. A
    statistic that every resample gives alike has an interval without width.
    """
    rows = np.asarray(totals, dtype=np.float64)
    whole = rows.sum(0)
    estimate = float(statistic(whole))
    replicates = np.sort(statistic(resampled_totals(rows, resamples, seed)))
    if replicates[0] == replicates[-1]:
        return float(replicates[0]), float(replicates[-1])
    below = (np.sum(replicates < estimate) + np.sum(replicates <= estimate)) / (2 * resamples)
    bias = float(ndtri(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples)))
    influence = statistic(whole - rows)
    influence = influence.mean() - influence
    cubes, squares = float(np.sum(influence**3)), float(np.sum(influence**2))
    acceleration = cubes / (6 * squares**1.5) if squares > 0 else 0.0
    count = len(rows)
    z = np.array([-1.0, 1.0]) * float(stdtrit(count - 1, 0.5 + confidence / 2)) * math.sqrt(count / (count - 1))
    levels = ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))
    low, high = np.quantile(replicates, levels)
    return float(low), float(high)


def resampled_totals(rows: Floats, resamples: int, seed: int) -> Floats:
    """Column totals (R, K) of `resamples` draws of G rows with replacement."""
    rng = np.random.default_rng(seed)
    count = len(rows)
    found = np.empty((resamples, rows.shape[1]))
    step = max(1, CHUNK // count)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(0, count, size=(size, count)) + np.arange(size)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        found[start : start + size] = times @ rows
    return found


def mcnemar(only_left: int, only_right: int, *, exact: bool = False) -> float:
    """Two-sided p of McNemar's test (1947) from the numbers of discordant pairs: binomial with share 1/2.

    Mid-p: what was observed counts half. exact: the conservative p, in which it counts whole.
    """
    n, fewer = only_left + only_right, min(only_left, only_right)
    if not n:
        return 1.0
    whole = 2 * float(bdtr(fewer, n, 0.5))
    if exact:
        return min(1.0, whole)
    observed = whole if not fewer else whole - 2 * float(bdtr(fewer - 1, n, 0.5))
    return min(1.0, whole - observed / 2)


def permutation(differences: ArrayLike, *, seed: int = 0, flips: int = PERMUTATIONS) -> float:
    """Two-sided p of the paired permutation test: the sign of each difference is flipped at random.

    All 2^m flips of m <= EXACT_FLIPS nonzero differences are enumerated; beyond, (1 + as extreme) / (1 + flips)
    (Phipson and Smyth 2010), which is never 0.
    """
    nonzero = np.asarray(differences, dtype=np.float64)
    nonzero = nonzero[nonzero != 0]
    if not len(nonzero):
        return 1.0
    extreme = abs(nonzero.sum()) - 1e-9 * np.abs(nonzero).sum()  # sums in another order differ by rounding
    if len(nonzero) <= EXACT_FLIPS:
        bits = np.arange(2 ** len(nonzero))[:, None] >> np.arange(len(nonzero)) & 1
        return float(np.mean(np.abs((1 - 2 * bits) @ nonzero) >= extreme))
    rng = np.random.default_rng(seed)
    eights = np.pad(nonzero, (0, -len(nonzero) % 8)).reshape(-1, 8)
    signed_sums = eights @ (1 - 2 * (np.arange(256)[None, :] >> np.arange(8)[:, None] & 1))
    place = np.arange(len(eights))
    as_extreme = 0
    step = max(1, CHUNK // len(eights))
    for start in range(0, flips, step):  # a random byte is the signs of eight differences: eight times fewer additions
        drawn = rng.integers(0, 256, (min(step, flips - start), len(eights)), np.uint8)
        as_extreme += int(np.sum(np.abs(signed_sums[place, drawn].sum(1)) >= extreme))
    return (1 + as_extreme) / (1 + flips)


def exchange(left: Floats, right: Floats, statistic: Statistic, *, seed: int = 0, draws: int = EXCHANGES) -> float:
    """Two-sided p for two contenders' totals (G, K): each row changes sides at random, and the figures are compared."""
    observed = abs(float(statistic(left.sum(0)) - statistic(right.sum(0))))
    if np.array_equal(left, right):
        return 1.0
    rng = np.random.default_rng(seed)
    moved, both = right - left, left.sum(0) + right.sum(0)
    as_extreme = 0
    step = max(1, CHUNK // len(left))
    for start in range(0, draws, step):
        sides = rng.integers(0, 2, (min(step, draws - start), len(left)), np.uint8)
        one = left.sum(0) + sides @ moved
        gaps = np.abs(statistic(one) - statistic(both - one))
        as_extreme += int(np.sum(gaps >= observed - 1e-12))
    return (1 + as_extreme) / (1 + draws)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (1979), in the order given: any dependence, no false alarm among all."""
    adjusted = [0.0] * len(p)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = highest
    return adjusted


def standard_error(totals: ArrayLike, *, bounded: bool = False) -> float:
    """Standard error of a ratio of totals (G, 2), linearised. bounded: as if one item more spoke for either side."""
    rows = np.asarray(totals, dtype=np.float64)
    if bounded:
        rows = np.vstack([rows, [[1.0, 1.0], [-1.0, 1.0]]])
    value, weight = rows.sum(0)
    residuals = rows[:, 0] - value / weight * rows[:, 1]
    count = len(rows)
    return float(np.sqrt(np.sum(residuals**2) * count / (count - 1)) / weight)


def minimum_detectable(standard_error: float, *, confidence: float = 0.95, power: float = 0.8) -> float:
    """The true difference that a two-sided test at 1 - confidence finds with this power, before any correction."""
    return (_z(confidence) + float(ndtri(power))) * standard_error


def verdict(
    difference: float,
    low: float | None,
    high: float | None,
    p_holm: float,
    *,
    higher_is_better: bool = True,
    confidence: float = 0.95,
) -> Verdict:
    """The comparison in words. A difference is claimed where the corrected test rejects and the interval excludes 0."""
    excludes_zero = low is not None and high is not None and (low > 0 or high < 0)
    if not excludes_zero or p_holm >= round(1 - confidence, 12):  # 1 - 0.95 is a little above 0.05
        return "no evidence of a difference"
    return "better" if (difference > 0) == higher_is_better else "worse"


def _totals(values: ArrayLike, weights: ArrayLike | None, clusters: Sequence[Hashable] | None) -> Floats:
    column = np.asarray(values, dtype=np.float64)
    under = np.ones_like(column) if weights is None else np.asarray(weights, dtype=np.float64)
    return cluster_totals(np.column_stack([column, under]), clusters)


def _bootstrap_name(clusters: Any) -> str:
    return "bca" if clusters is None else "cluster bca"


def _z(confidence: float) -> float:
    return float(ndtri(0.5 + confidence / 2))
