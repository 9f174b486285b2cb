"""Statistics against scipy and textbook values, and by simulation: do intervals cover, and do tests stay silent?"""

import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from metier.measure import statistics as st
from metier.measure.figures import Figure

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
def test_mcnemar_is_the_binomial_with_what_was_seen_counted_half(left: int, right: int):
    n = left + right
    expected = stats.binomtest(left, n).pvalue if n else 1.0
    assert st.mcnemar(left, right, exact=True) == pytest.approx(expected, abs=1e-9)
    seen = stats.binom.pmf(left, n, 0.5) if n else 0.0
    beyond = 2 * stats.binom.cdf(min(left, right), n, 0.5) - seen if n else 1.0
    assert st.mcnemar(left, right) == pytest.approx(min(1.0, beyond), abs=1e-9)


def test_students_interval_is_scipys_where_nothing_is_skewed():
    values = RNG(20).normal(0.3, 0.2, 40)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    rows = np.column_stack([values, np.ones(40)])
    assert st.student(rows, skewed=False) == pytest.approx((expected.low, expected.high), abs=1e-12)
    nearly = st.student(rows)
    assert nearly == pytest.approx((expected.low, expected.high), abs=0.01)


def test_halls_map_is_undone_and_symmetric_in_its_signs():
    for skewness in (-3.0, -0.4, 1e-9, 0.8, 5.0):
        for t in (-0.4, -0.05, 0.0, 0.2):
            assert st._unmapped(st._mapped(t, skewness, 30), skewness, 30) == pytest.approx(t, abs=1e-6)
    values = skewed(RNG(21), 60)
    low, high = st.student(np.column_stack([values, np.ones(60)])) or (0.0, 0.0)
    mirrored = st.student(np.column_stack([1 - values, np.ones(60)])) or (0.0, 0.0)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)
    long = np.append(np.zeros(30), [0.5, 1.0])
    low, high = st.student(np.column_stack([long, np.ones(32)])) or (0.0, 0.0)
    assert high - long.mean() > 1.5 * (long.mean() - low), "it reaches to where the tail is"


def test_a_ratios_interval_is_fiellers():
    rng = RNG(22)
    size = rng.lognormal(4, 0.5, 25)
    value = size * rng.normal(2, 0.3, 25)
    low, high = st.student(np.column_stack([value, size]), skewed=False) or (0.0, 0.0)
    for end in (low, high):
        residuals = value - end * size
        t = residuals.mean() / (residuals.std(ddof=1) / math.sqrt(25))
        assert abs(t) == pytest.approx(stats.t.ppf(0.975, 24), abs=1e-6)
    wild = np.column_stack([[1.0, 2.0, 90.0], [1.0, 1.0, 40.0]])
    assert st.student(wild) is None
    assert st.mean_interval(wild[:, 0], weights=wild[:, 1]).method == "too few items"


def share_of(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def test_a_figure_of_a_set_is_resampled_and_exchanged():
    rng = RNG(23)
    left, right = (Figure(np.column_stack([skewed(rng, 120) + more, np.ones(120)]), share_of) for more in (0.2, 0.0))
    alone, gap = st.figure_interval(left), st.compare_figures(left, right)
    assert alone.estimate == pytest.approx(left.totals[:, 0].mean())
    assert alone.low == pytest.approx(st.mean_interval(left.totals[:, 0]).low, abs=0.02)
    plain = st.compare(left.totals[:, 0], right.totals[:, 0])
    assert gap.difference.estimate == pytest.approx(plain.difference.estimate)
    assert gap.p == pytest.approx(plain.p, abs=0.01)
    assert gap.detectable == pytest.approx(plain.detectable, rel=0.02)
    assert st.compare_figures(left, left).p == 1.0
    assert st.figure_interval(left, clusters=["same"] * 120).low is None
    with pytest.raises(ValueError, match="must be the same"):
        st.compare_figures(left, right.of(range(5)))


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
    other = skewed(RNG(9), 60)
    assert st.compare(values, other, seed=3) == st.compare(values, other, seed=3)
    figures = [Figure(np.column_stack([v, np.ones(60)]), share_of) for v in (values, other)]
    assert st.compare_figures(*figures, seed=3) == st.compare_figures(*figures, seed=3)
    assert st.figure_interval(figures[0], seed=3) != st.figure_interval(figures[0], seed=4)


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
    assert (pair.difference.low, pair.p, pair.detectable) == (None, 0.5, None)
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
    assert (all_won.difference.high, all_won.p) == (1.0, pytest.approx(1 / 64))
    together = st.mean_interval(np.ones(40), binary=True, clusters=[i // 10 for i in range(40)])
    assert (together.method, together.high) == ("wilson", 1.0)
    assert (together.low or 1) < 0.6, "four entities, not forty items"


def test_pairs_must_match():
    with pytest.raises(ValueError, match="one length"):
        st.compare([1, 2], [1, 2, 3])


def test_clusters_widen_what_repeats_itself():
    values = np.repeat(skewed(RNG(11), 40), 10)
    naive = st.mean_interval(values)
    clustered = st.mean_interval(values, clusters=[str(i // 10) for i in range(400)])
    assert clustered.estimate == pytest.approx(naive.estimate)
    assert clustered.method == "cluster student"
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

RUNS = 2000
LOW, HIGH = 0.94 - 0.005, 0.96 + 0.005
"""94 to 96 of 100, and what 2,000 runs leave to chance; `python -m benchmarks.statistics` has more kinds and runs."""


def covered(intervals: list[st.Interval], truth: float) -> float:
    return float(np.mean([i.low is not None and i.low <= truth <= i.high for i in intervals]))


def documents(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(nats, bytes) of documents whose sizes differ widely, at 1.5 nats a byte."""
    size = rng.lognormal(5, 0.9, n)
    return size * (1.2 + 0.3 * rng.standard_gamma(2, n) / 2), size


def alike(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two contenders of the same worth, which agree on three questions in five."""
    hard = skewed(rng, n)
    left, right = (np.where(rng.random(n) < 0.4, skewed(rng, n), hard) for _ in range(2))
    return left, right


@pytest.mark.parametrize("n", [50, 200])
def test_intervals_of_means_cover_the_truth(n: int):
    truth = skewed(RNG(0), 2_000_000).mean()
    rng = RNG(12)
    assert LOW <= covered([st.mean_interval(skewed(rng, n), bounded=True) for _ in range(RUNS)], truth) <= HIGH


@pytest.mark.parametrize("n", [30, 200])
def test_intervals_of_ratios_cover_the_truth(n: int):
    rng = RNG(13)
    found = [st.mean_interval(v, weights=w) for _ in range(RUNS // 2) for v, w in [documents(rng, n)]]
    assert 0.935 <= covered(found, 1.5) <= 0.97


def test_intervals_of_clusters_cover_the_truth():
    rng = RNG(24)
    truth = 0.5
    found = []
    for _ in range(RUNS // 2):
        places = np.repeat(np.arange(40), rng.integers(1, 9, 40))
        known = rng.beta(1.2, 1.2, 40)[places]
        right = (rng.random(len(places)) < known).astype(float)
        found.append(st.mean_interval(right, binary=True, clusters=places.tolist()))
    assert 0.935 <= covered(found, truth) <= 0.965


def test_wilson_intervals_cover_the_truth():
    """At one share coverage moves in steps; over the shares that are met it is what it says."""
    rng = RNG(14)
    for n in (50, 200, 500):
        shares = rng.uniform(0.05, 0.95, 10_000)
        hits = rng.binomial(n, shares)
        ends = [st.wilson(hit / n, n) for hit in range(n + 1)]
        inside = [ends[hit][0] <= share <= ends[hit][1] for hit, share in zip(hits, shares, strict=True)]
        assert 0.94 <= np.mean(inside) <= 0.96


@pytest.mark.parametrize("n", [50, 200, 500])
def test_intervals_of_paired_outcomes_cover_the_truth(n: int):
    drawn = RNG(15).choice([1.0, 0.0, -1.0], p=[0.25, 0.6, 0.15], size=(RUNS, n))
    inside = [low <= 0.1 <= high for low, high in map(st.bonett_price, drawn)]
    assert LOW <= np.mean(inside) <= HIGH


@pytest.mark.parametrize("n", [50, 200])
def test_null_comparisons_of_scores_raise_few_false_alarms(n: int):
    rng = RNG(16)
    alarms = words = inside = 0
    for i in range(RUNS):
        left, right = alike(rng, n)
        p = st.permutation(left - right, seed=i, flips=1000)
        low, high = st.student(np.column_stack([left - right, np.ones(n)]), skewed=False) or (0.0, 0.0)
        alarms += p < 0.05
        inside += low <= 0 <= high
        words += st.verdict(float((left - right).mean()), low, high, p) != "no evidence of a difference"
    assert 0.04 <= alarms / RUNS <= 0.06
    assert LOW <= inside / RUNS <= HIGH
    assert words <= alarms
    assert words / RUNS >= 0.03, "asking for both must not make the verdict blind"


@pytest.mark.parametrize("n", [50, 200, 500])
def test_null_comparisons_of_outcomes_raise_few_false_alarms(n: int):
    """The exact test raises too few to see what is there; mid-p comes near what it says."""
    drawn = RNG(17).multinomial(n, [0.15, 0.15, 0.7], 5 * RUNS)[:, :2]
    pairs, times = np.unique(drawn, axis=0, return_counts=True)
    alarms, exact = (
        sum(int(t) for (a, b), t in zip(pairs.tolist(), times, strict=True) if st.mcnemar(a, b, exact=how) < 0.05)
        for how in (False, True)
    )
    assert 0.04 <= alarms / (5 * RUNS) <= 0.06
    assert 0.02 <= exact / (5 * RUNS) <= 0.045


def test_null_comparisons_of_figures_raise_few_false_alarms():
    rng = RNG(25)
    alarms = 0
    for i in range(RUNS):
        left, right = (np.column_stack([scores, np.ones(60)]) for scores in alike(rng, 60))
        alarms += st.exchange(left, right, share_of, seed=i, draws=300) < 0.05
    assert 0.04 <= alarms / RUNS <= 0.06


def test_holm_keeps_the_family_silent():
    p = RNG(18).random((RUNS, 20))
    assert np.mean([min(st.holm(list(row))) < 0.05 for row in p]) <= 0.07
