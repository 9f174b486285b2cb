"""The numeric type follows from what the machine says, a wide margin in speed, and the model's width."""

import time

import pytest
import torch

from metier.core.errors import InputError
from metier.train import precision

GPU = torch.device("cuda", 0)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch):
    def say(*, unit: bool, ratio: float) -> None:
        monkeypatch.setattr(precision, "has_bf16_unit", lambda: unit)
        monkeypatch.setattr(precision, "bf16_over_fp32", lambda: ratio)

    return say


@pytest.mark.parametrize(
    ("wanted", "width", "unit", "ratio", "name"),
    [
        ("auto", 256, True, 4.0, "bf16"),
        ("auto", 256, True, 1.1, "fp32"),
        ("auto", 256, False, 4.0, "fp32"),
        ("auto", 32, True, 4.0, "fp32"),
        ("fp32", 256, True, 4.0, "fp32"),
        ("bf16", 32, False, 0.5, "bf16"),
    ],
)
def test_choice_on_a_cpu(cpu, wanted: precision.Wanted, width: int, unit: bool, ratio: float, name: str):
    cpu(unit=unit, ratio=ratio)
    chosen = precision.choose(wanted, width=width)
    assert (chosen.name, chosen.device.type, chosen.scaler) == (name, "cpu", False)
    assert chosen.why


@pytest.mark.parametrize(
    ("capability", "name"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")]
)
def test_choice_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    chosen = precision.choose("auto", width=256, device=GPU)
    assert (chosen.name, chosen.scaler, chosen.device) == (name, name == "fp16", GPU)
    assert f"{capability[0]}.{capability[1]}" in chosen.why


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(InputError, match="precision: fp16 on a CPU") as caught:
        precision.choose("fp16", width=256)
    assert "precision: auto" in str(caught.value)


def test_bf16_on_an_old_gpu_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(InputError, match="no bf16 arithmetic"):
        precision.choose("bf16", width=256, device=GPU)


def test_bf16_that_will_be_slow_says_so(cpu):
    cpu(unit=False, ratio=0.5)
    assert "slow" in precision.choose("bf16", width=256).why


def test_the_types_and_their_contexts():
    x = torch.ones(2, 2)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        chosen = precision.Precision(name, "asked for")
        assert chosen.dtype == dtype
        with chosen.autocast():
            assert (x @ x).dtype == dtype


def test_the_probe_is_short_and_asked_once():
    precision.bf16_over_fp32.cache_clear()
    first = precision.bf16_over_fp32()
    started = time.perf_counter()
    assert precision.bf16_over_fp32() == first > 0
    assert time.perf_counter() - started < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_the_peak_is_what_a_plain_timing_finds(dtype: torch.dtype):
    peak = precision.gemm_peak(torch.device("cpu"), dtype)
    assert 1e8 < peak < 1e15
    assert precision.gemm_peak(torch.device("cpu"), dtype) == peak


def test_products_count_in_the_type_that_they_are_timed_in():
    found = precision._product(precision.CPU, torch.int8)()
    assert found.dtype == torch.int32
    assert found.unique().numel() > 1000  # a GPU multiplies constants faster than it ever is else
    assert precision._product(precision.CPU, torch.bfloat16)().dtype == torch.bfloat16
