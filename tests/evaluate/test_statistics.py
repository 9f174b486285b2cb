"""Statistics against scipy and textbook values, and by simulation: do intervals cover, and do tests stay silent?"""

import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from metier.evaluate import statistics as st

RNG = np.random.default_rng


def skewed(rng: np.random.Generator, n: int) -> np.ndarray:
    """Scores like token F1: many zeros, some ones, the rest between. Mean 0.49."""
    kind = rng.random(n)
    return np.where(kind < 0.3, 0.0, np.where(kind < 0.5, 1.0, rng.beta(2, 2.5, n) * 1.3 % 1))


# --- against references


@pytest.mark.parametrize(("share", "n"), [(0.0, 10), (0.3, 20), (1.0, 7), (0.5, 500)])
def test_wilson_is_scipys(share: float, n: int):
    expected = stats.binomtest(round(share * n), n).proportion_ci(0.95, "wilson")
    assert st.wilson(share, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_bootstrap_is_scipys_bca():
    """At a confidence that undoes our widening for small samples, the interval is scipy's."""
    values = skewed(RNG(1), 80)
    widened = float(special.ndtr(special.stdtrit(79, 0.975) * math.sqrt(80 / 79)))
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="BCa", confidence_level=2 * widened - 1, rng=RNG(2)
    ).confidence_interval
    rows = np.column_stack([values, np.ones(80)])
    assert st.bootstrap(rows, st.ratio, resamples=20_000) == pytest.approx((expected.low, expected.high), abs=2e-3)


@pytest.mark.parametrize(("left", "right"), [(0, 0), (1, 0), (3, 3), (10, 2), (0, 9), (140, 100)])
def test_mcnemar_is_the_exact_binomial(left: int, right: int):
    expected = stats.binomtest(left, left + right).pvalue if left + right else 1.0
    assert st.mcnemar(left, right) == pytest.approx(expected, abs=1e-9)


def test_few_differences_are_permuted_exactly():
    d = RNG(3).normal(0.5, 1, 10)
    flips = np.array(list(itertools.product([-1, 1], repeat=10)))
    expected = np.mean(np.abs(flips @ d) >= abs(d.sum()) - 1e-9)
    assert st.permutation(d) == pytest.approx(expected, abs=1e-12)
    assert st.permutation(np.append(d, [0.0, 0.0])) == pytest.approx(expected, abs=1e-12)


def test_many_differences_are_permuted_like_scipy():
    d = RNG(4).normal(0.15, 1, 120)
    expected = stats.permutation_test(
        (d, np.zeros(120)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=RNG(5),
    ).pvalue
    assert st.permutation(d) == pytest.approx(expected, abs=0.012)


def test_a_permutation_p_is_never_zero_and_one_without_differences():
    assert st.permutation(np.full(200, 0.3)) == pytest.approx(1 / (1 + st.PERMUTATIONS))
    assert st.permutation(np.zeros(50)) == 1.0


def test_holm_by_hand():
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert st.holm([0.6, 0.5]) == [1.0, 1.0]
    assert st.holm([]) == []


def test_bonett_price_by_hand():
    differences = [1.0] * 8 + [-1.0] * 3 + [0.0] * 29
    gain, loss = 9 / 42, 4 / 42
    half = 1.959964 * math.sqrt((gain + loss - (gain - loss) ** 2) / 42)
    assert st.bonett_price(differences) == pytest.approx((gain - loss - half, gain - loss + half), abs=1e-6)


def test_the_detectable_difference_is_detected_four_times_in_five():
    n, runs = 150, 1000
    rng = RNG(6)
    detectable = st.minimum_detectable(1 / math.sqrt(n))
    d = rng.normal(detectable, 1, (runs, n))
    found = np.abs(d.mean(1)) > 1.96 * d.std(1, ddof=1) / math.sqrt(n)
    assert 0.76 < found.mean() < 0.84


def test_the_standard_error_is_that_of_a_mean_or_of_a_ratio():
    rng = RNG(7)
    values = rng.normal(size=60)
    plain = np.column_stack([values, np.ones(60)])
    assert st.standard_error(plain) == pytest.approx(values.std(ddof=1) / math.sqrt(60))
    weights = rng.integers(50, 500, 400).astype(float)
    rows = np.column_stack([weights * rng.normal(2, 0.3, 400), weights])
    replicates = st.ratio(st.resampled_totals(rows, 4000, 1))
    assert st.standard_error(rows) == pytest.approx(replicates.std(), rel=0.06)


# --- behaviour


def test_everything_is_seeded():
    values = skewed(RNG(8), 60)
    assert st.mean_interval(values, seed=3) == st.mean_interval(values, seed=3)
    assert st.mean_interval(values, seed=3) != st.mean_interval(values, seed=4)
    other = skewed(RNG(9), 60)
    assert st.compare(values, other, seed=3) == st.compare(values, other, seed=3)


def test_chunks_do_not_change_what_is_drawn_on_average(monkeypatch: pytest.MonkeyPatch):
    rows = np.column_stack([skewed(RNG(10), 50), np.ones(50)])
    whole = st.bootstrap(rows, st.ratio)
    monkeypatch.setattr(st, "CHUNK", 50 * 7)
    assert st.bootstrap(rows, st.ratio) == pytest.approx(whole, abs=0.02)
    assert 0 < st.permutation(rows[:, 0] - 0.4) < 1


def test_what_says_nothing_claims_nothing():
    one = st.mean_interval([0.4], bounded=True)
    assert (one.low, one.high) == (None, None)
    pair = st.compare([1.0], [0.0], binary=True)
    assert (pair.difference.low, pair.p, pair.detectable) == (None, 1.0, None)
    assert st.verdict(1.0, None, None, 0.001) == "no evidence of a difference"


def test_scores_without_spread_still_have_a_width():
    zeros = st.mean_interval(np.zeros(30), bounded=True)
    assert zeros.low == 0
    assert 0.05 < (zeros.high or 0) < 0.2
    same = st.compare(np.full(30, 0.5), np.full(30, 0.5), bounded=True)
    assert same.difference.low is not None
    assert same.difference.low < 0 < (same.difference.high or 0)
    assert same.p == 1.0
    assert (same.detectable or 0) > 0
    all_won = st.compare(np.ones(6), np.zeros(6), binary=True)
    assert all_won.difference.estimate == 1.0
    assert (all_won.difference.high, all_won.p) == (1.0, pytest.approx(2 / 64))


def test_pairs_must_match():
    with pytest.raises(ValueError, match="one length"):
        st.compare([1, 2], [1, 2, 3])


def test_clusters_widen_what_repeats_itself():
    values = np.repeat(skewed(RNG(11), 40), 10)
    naive = st.mean_interval(values)
    clustered = st.mean_interval(values, clusters=[str(i // 10) for i in range(400)])
    assert clustered.estimate == pytest.approx(naive.estimate)
    assert clustered.method == "cluster bca"
    width = lambda i: i.high - i.low  # noqa: E731
    assert width(clustered) > 2.5 * width(naive)
    shuffled = st.compare(values, values[::-1], clusters=[str(i // 10) for i in range(400)])
    assert shuffled.test == "permutation"


def test_weights_make_a_ratio():
    nll, size = np.array([10.0, 90.0, 20.0, 40.0]), np.array([10.0, 30.0, 20.0, 10.0])
    assert st.mean_interval(nll, weights=size).estimate == pytest.approx(160 / 70)
    assert st.compare(nll, nll - size, weights=size).difference.estimate == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("difference", "low", "high", "p", "higher", "word"),
    [
        (0.2, 0.1, 0.3, 0.01, True, "better"),
        (0.2, 0.1, 0.3, 0.01, False, "worse"),
        (-0.2, -0.3, -0.1, 0.01, True, "worse"),
        (-0.2, -0.3, -0.1, 0.01, False, "better"),
        (0.2, 0.1, 0.3, 0.05, True, "no evidence of a difference"),
        (0.2, -0.01, 0.4, 0.01, True, "no evidence of a difference"),
    ],
)
def test_verdicts(difference: float, low: float, high: float, p: float, higher: bool, word: str):
    assert st.verdict(difference, low, high, p, higher_is_better=higher) == word


# --- by simulation (seeded: these do not flicker)

RUNS = 1000


def covered(intervals: list[st.Interval], truth: float) -> float:
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


def test_bootstrap_intervals_cover_the_truth():
    truth = skewed(RNG(0), 2_000_000).mean()
    rng = RNG(12)
    intervals = [st.mean_interval(skewed(rng, 100), bounded=True, resamples=600, seed=i) for i in range(RUNS)]
    assert 0.93 <= covered(intervals, truth) <= 0.97


def test_ratio_intervals_cover_the_truth():
    rng = RNG(13)

    def documents() -> tuple[np.ndarray, np.ndarray]:
        size = rng.lognormal(5, 0.6, 100)
        return size * (1.2 + 0.3 * rng.standard_gamma(2, 100) / 2), size

    truth = 1.5  # the rate does not depend on the size
    intervals = [st.mean_interval(v, weights=w, resamples=600, seed=i) for i in range(RUNS) for v, w in [documents()]]
    assert 0.93 <= covered(intervals, truth) <= 0.97


@pytest.mark.parametrize("share", [0.1, 0.5, 0.85])
def test_wilson_intervals_cover_the_truth(share: float):
    hits = RNG(14).binomial(120, share, RUNS)
    inside = [low <= share <= high for low, high in (st.wilson(h / 120, 120) for h in hits)]
    assert 0.93 <= np.mean(inside) <= 0.98  # a share of 120 takes few values, so coverage moves in steps


def test_intervals_of_paired_outcomes_cover_the_truth():
    rng = RNG(15)
    drawn = rng.choice([1.0, 0.0, -1.0], p=[0.25, 0.6, 0.15], size=(RUNS, 100))
    inside = [low <= 0.1 <= high for low, high in map(st.bonett_price, drawn)]
    assert 0.93 <= np.mean(inside) <= 0.97


def test_null_comparisons_of_scores_raise_few_false_alarms(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(st, "PERMUTATIONS", 1000)
    rng = RNG(16)
    alarms = words = 0
    for i in range(RUNS):
        hard = skewed(rng, 80)
        left, right = (np.where(rng.random(80) < 0.4, skewed(rng, 80), hard) for _ in range(2))
        p = st.permutation(left - right, seed=i, flips=1000)
        low, high = st.bootstrap(np.column_stack([left - right, np.ones(80)]), st.ratio, resamples=600, seed=i)
        alarms += p < 0.05
        words += st.verdict(float((left - right).mean()), low, high, p) != "no evidence of a difference"
    assert 0.03 <= alarms / RUNS <= 0.07
    assert words <= alarms
    assert words / RUNS >= 0.02, "asking for both must not make the verdict blind"


def test_null_comparisons_of_outcomes_raise_few_false_alarms():
    """The exact test is conservative: outcomes are few and whole."""
    rng = RNG(17)
    left, right = rng.random((2, RUNS, 200)) < 0.5
    only_left, only_right = (left & ~right).sum(1), (~left & right).sum(1)
    alarms = np.mean([st.mcnemar(int(a), int(b)) < 0.05 for a, b in zip(only_left, only_right, strict=True)])
    assert 0.02 <= alarms <= 0.06


def test_holm_keeps_the_family_silent():
    p = RNG(18).random((RUNS, 20))
    assert np.mean([min(st.holm(list(row))) < 0.05 for row in p]) <= 0.07
