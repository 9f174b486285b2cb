"""The numeric type follows from what the machine says and the model's width."""

import pytest

from metier.train import precision


@pytest.mark.parametrize(
    ("wanted", "width", "hardware", "name"),
    [
        ("auto", 256, True, "bf16"),
        ("auto", 256, False, "fp32"),
        ("auto", 32, True, "fp32"),
        ("fp32", 256, True, "fp32"),
        ("bf16", 32, False, "bf16"),
    ],
)
def test_choice(monkeypatch: pytest.MonkeyPatch, wanted: precision.Name, width: int, hardware: bool, name: str):
    monkeypatch.setattr(precision, "fast_bf16", lambda: hardware)
    chosen = precision.choose(wanted, width=width)
    assert chosen.name == name
    assert chosen.why


def test_bf16_that_will_be_slow_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "fast_bf16", lambda: False)
    assert "slow" in precision.choose("bf16", width=256).why
