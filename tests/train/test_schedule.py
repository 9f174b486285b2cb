"""The learning rate as a function of the step, and what decays."""

import pytest
import torch

from metier.train.optimizers import groups
from metier.train.schedule import share_of_peak


def rates(total: int, **settings: object) -> list[float]:
    options = {"shape": "cosine", "warmup": 0.2, "floor": 0.1, **settings}
    return [share_of_peak(step, total, **options) for step in range(total)]


def test_it_rises_to_the_peak_and_ends_at_the_floor():
    found = rates(10)
    assert found[:2] == [0.5, 1.0]
    assert found[2] == 1.0
    assert found[-1] == pytest.approx(0.1)
    assert found[2:] == sorted(found[2:], reverse=True)


def test_linear_and_constant():
    assert rates(5, shape="linear", warmup=0.0, floor=0.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert rates(4, shape="constant", warmup=0.5) == [0.5, 1.0, 1.0, 1.0]


def test_wsd_stays_at_the_peak_and_falls_at_the_end():
    assert rates(10, shape="wsd", warmup=0.2, floor=0.0, decay=0.4) == [0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0.0]
    assert rates(20, shape="wsd", warmup=0.0, floor=0.1) == pytest.approx([1.0] * 18 + [0.55, 0.1])
    assert rates(4, shape="wsd", warmup=0.5, floor=0.2, decay=1.0) == pytest.approx([0.5, 1.0, 0.6, 0.2])


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.01, 0.9])
def test_short_runs_never_train_at_zero(shape: str, total: int, warmup: float):
    assert all(0.1 <= rate <= 1 for rate in rates(total, shape=shape, warmup=warmup))


def test_only_matrices_decay():
    matrix, norm = torch.zeros(2, 2), torch.zeros(2)
    assert groups([norm, matrix], 0.1) == [
        {"params": [matrix], "weight_decay": 0.1},
        {"params": [norm], "weight_decay": 0.0},
    ]
    assert len(groups([matrix], 0.1)) == 1
