"""Agreement beyond chance and corrected rates, against sklearn, hand calculation and known confusion matrices."""

import numpy as np
import pytest

from metier.measure.agreement import ac1, agreement, confusion, kappa
from metier.measure.corrected import corrected, rogan_gladen, solve


@pytest.mark.parametrize("count", [2, 3, 5])
def test_kappa_is_that_of_sklearn(count: int):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(count)
    for _ in range(20):
        a = rng.integers(0, count, 50)
        b = np.where(rng.random(50) < 0.6, a, rng.integers(0, count, 50))
        assert kappa(confusion(a, b, count)) == pytest.approx(metrics.cohen_kappa_score(a, b))
        assert confusion(a, b, count).tolist() == metrics.confusion_matrix(a, b, labels=range(count)).tolist()


def test_ac1_is_that_of_a_hand_calculation():
    """Where one label dominates, kappa collapses and AC1 does not."""
    table = [[118, 5], [2, 0]]
    observed, share = 118 / 125, (123 + 120) / 250
    chance = 2 * share * (1 - share)
    assert chance == pytest.approx(0.054432)
    assert ac1(table) == pytest.approx((observed - chance) / (1 - chance))
    assert ac1(table) == pytest.approx(0.940777, abs=1e-6)
    assert kappa(table) == pytest.approx((0.944 - 0.94528) / (1 - 0.94528))
    assert ac1([[40, 9], [6, 45]]) == pytest.approx((0.85 - 0.49875) / 0.50125)


def test_perfect_no_and_one_label_agreement():
    found = agreement([0, 1, 2, 0], [0, 1, 2, 0], 3)
    assert found is not None
    assert (found.observed, found.kappa, found.ac1, found.n) == (1.0, 1.0, 1.0, 4)
    assert agreement([], [], 3) is None
    one = agreement([0, 0, 0], [0, 0, 0], 3)
    assert one is not None
    assert one.kappa is None  # chance alone agrees always
    assert one.ac1 == pytest.approx(1.0)


def test_intervals_of_kappa_hold_the_truth():
    rng, true, held = np.random.default_rng(0), None, 0
    joint = np.array([[0.45, 0.1], [0.1, 0.35]])
    true = kappa(joint)
    for _ in range(300):
        cells = rng.choice(4, 120, p=joint.ravel())
        found = agreement((cells // 2).tolist(), (cells % 2).tolist(), 2)
        assert found is not None
        held += found.kappa_low <= true <= found.kappa_high
    assert 0.92 <= held / 300 <= 0.98


def test_two_labels_are_rogan_and_gladens_case():
    table = [[80, 20], [10, 40]]  # q0 = 0.8, q1 = 0.8
    solved = solve([120, 80], table)
    assert solved is not None
    assert solved[1] == pytest.approx(rogan_gladen(0.4, 0.8, 0.8))
    assert rogan_gladen(0.4, 0.8, 0.8) == pytest.approx(1 / 3)
    assert solve([120, 80], [[50, 50], [25, 25]]) is None  # a judge that tells nothing
    assert solve([120, 80], [[50, 50], [0, 0]]) is None


def test_a_perfect_judge_needs_no_correction_and_a_known_one_is_corrected():
    found = corrected([600, 400], [[100, 0], [0, 100]])
    assert found is not None
    assert found.shares == pytest.approx((0.6, 0.4), abs=0.02)
    rates = np.array([[0.9, 0.05, 0.05], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
    truth = np.array([0.5, 0.3, 0.2])
    exact = corrected(truth @ rates * 1e6, rates * 1e6)
    assert exact is not None
    assert exact.shares == pytest.approx(truth, abs=0.005)
    assert exact.solved == pytest.approx(truth, abs=1e-9)
    assert exact.plain == pytest.approx(truth @ rates)


def test_own_labels_narrow_the_interval_and_nothing_gives_none():
    table = [[40, 5], [6, 29]]
    own = corrected([260, 140], table, table)
    others = corrected([260, 140], table)
    assert own is not None
    assert others is not None
    assert (own.design, own.labelled, others.design, others.labelled) == ("own", 80, "borrowed", 0)
    assert own.high[0] - own.low[0] < others.high[0] - others.low[0]
    assert corrected([260, 140], [[0, 0], [0, 0]]) is None
    assert corrected([260, 140], [[9, 1], [0, 0]]) is None
    assert corrected([260, 140], table, table) == own  # seeded


def test_own_labels_cover_the_truth():
    """A short form; `python -m benchmarks.judges` measures 93-97 % in many more studies."""
    rng, held = np.random.default_rng(1), 0
    rates, truth = np.array([[0.9, 0.1], [0.25, 0.75]]), np.array([0.7, 0.3])
    for study in range(120):
        true = (rng.random(300) < truth[1]).astype(int)
        said = (rng.random(300) > rates[true, 0]).astype(int)
        table = confusion(true[:80], said[:80], 2)
        found = corrected(np.bincount(said, minlength=2), table, table, seed=study)
        assert found is not None
        held += found.low[1] <= truth[1] <= found.high[1]
    assert held / 120 >= 0.9
