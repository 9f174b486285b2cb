"""Empirical likelihood intervals: their definition, their ends, and that they never leave out the estimate."""

import numpy as np
import pytest
from scipy.optimize import brentq

from metier.measure import likelihood
from metier.measure import statistics as st

Z2 = 1.959963984540054**2


def twice_the_log_ratio(points, weights, mean):
    """By Owen's definition: the multiplier at which the tilted points have that mean."""
    z = points - mean
    low, high = -1 / z.max() + 1e-10, -1 / z.min() - 1e-10
    multiplier = brentq(lambda m: weights @ (z / (1 + m * z)), low, high, xtol=1e-15)
    return 2 * weights @ np.log1p(multiplier * z)


@pytest.mark.parametrize("n", [20, 50, 400])
def test_the_limits_are_where_the_ratio_comes_to_the_level(n):
    rng = np.random.default_rng(n)
    scores = np.where(rng.random(n) < 0.5, 0.0, rng.beta(2, 3, n))
    points, weights = np.append(scores, [0, 1]), np.append(np.ones(n), [0.85, 0.85])
    for limit in likelihood.of_scores(scores, Z2):
        assert twice_the_log_ratio(points, weights, limit) == pytest.approx(Z2, rel=1e-6)
    gaps = scores - rng.permutation(scores)
    most, weight = np.abs(gaps).max(), min(0.5, (n / 500) ** 2)
    points, weights = np.append(gaps, [-most, most]), np.append(np.ones(n), [weight, weight])
    for limit in likelihood.of_differences(gaps, 4.0):
        assert twice_the_log_ratio(points, weights, limit) == pytest.approx(4.0, rel=1e-6)


def test_they_turn_with_the_scores_and_stretch_with_the_differences():
    rng = np.random.default_rng(1)
    scores = rng.beta(1, 6, 60)
    low, high = likelihood.of_scores(scores, Z2)
    assert likelihood.of_scores(1 - scores, Z2) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    gaps = scores - rng.beta(1, 4, 60)
    ends = likelihood.of_differences(gaps, Z2)
    assert likelihood.of_differences(gaps / 10, Z2) == pytest.approx([end / 10 for end in ends], abs=1e-9)


@pytest.mark.parametrize("value", [1e-9, 1e-3, 1.0])
@pytest.mark.parametrize("n", [2, 30, 5000])
def test_a_single_score_that_is_not_0_leaves_the_estimate_inside(value, n):
    scores = np.append(np.zeros(n - 1), value)
    found = st.mean_interval(scores, bounded=True)
    assert found.method == st.LIKELIHOOD
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.estimate < found.high <= 1
    both = st.compare(scores, np.zeros(n), bounded=True).difference
    assert both.low is not None
    assert both.high is not None
    assert -1 <= both.low <= both.estimate <= both.high <= 1


def test_few_differences_and_what_is_no_score_get_students():
    rng = np.random.default_rng(2)
    left, right = rng.random(19), rng.random(19)
    assert st.compare(left, right, bounded=True).difference.method == "student"
    left, right = rng.random(20), rng.random(20)
    assert st.compare(left, right, bounded=True).difference.method == st.LIKELIHOOD
    assert st.compare(left, right).difference.method == "student"
    assert st.mean_interval(left).method == "hall"
    assert st.mean_interval(np.zeros(20), bounded=True).method == "wilson"


def coverage(draw, truth, interval, runs=1500, n=50):
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(runs):
        low, high = interval(draw(rng, n))
        held += low <= truth <= high
    return held / runs


def test_scores_that_are_mostly_0_are_held_as_often_as_is_said():
    """The bounds are three errors of the simulation wide; Student's interval holds 86 % of these, Hall's 93."""

    def weak(rng, n):
        kind = rng.random(n)
        return np.where(kind < 0.7, 0.0, np.where(kind < 0.98, rng.beta(1.5, 8, n), 1.0))

    truth = 0.28 * 1.5 / 9.5 + 0.02
    assert 0.933 <= coverage(weak, truth, lambda values: likelihood.of_scores(values, Z2)) <= 0.967
    level = 2.0095752371292397**2  # of Student's t with 49 degrees of freedom

    def gaps(rng, n):
        kind = rng.random(n)
        middling = np.where(kind < 0.3, 0.0, np.where(kind < 0.5, 1.0, rng.beta(2, 2.5, n)))
        return np.where(rng.random(n) < 0.6, 0.0, middling - weak(rng, n))

    apart = 0.4 * (0.2 + 0.5 * 2 / 4.5 - truth)
    assert 0.933 <= coverage(gaps, apart, lambda values: likelihood.of_differences(values, level)) <= 0.967
