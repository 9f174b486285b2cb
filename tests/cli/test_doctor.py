"""`metier doctor` says what it measured and chose, and keeps the speeds."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from metier.core.machine import Machine
from metier.train import varlen
from metier.train.fast import native, ops
from metier.train.precision import Precision

doctor = import_module("metier.cli.doctor")  # the package holds a command of the same name
SPEEDS = doctor.Speeds(torch.device("cpu"), Precision("bf16", "fast"), {"fp32": 1e11, "bf16": 4e11, "int8": 8e11}, 2.0)


def test_doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "measure", lambda: SPEEDS)
    doctor.examine(tmp_path / "store")
    out = capsys.readouterr().out
    for word in (
        "metier",
        "python",
        "torch",
        "memory",
        "disk",
        "cpu",
        "gpu",
        "extra eval",
        "extra quant",
        "extra track",
    ):
        assert word in out
    assert "400 in bf16 (4.0 x), 800 in int8 (8.0 x)" in out
    assert "bf16: fast" in out
    kept = json.loads((tmp_path / "store" / "machine.json").read_text())
    assert kept == {"device": "cpu", "auto": "bf16", "peaks": SPEEDS.peaks}
    assert Machine.here(tmp_path / "store").peaks == SPEEDS.peaks


def test_it_measures_every_type():
    threads = torch.get_num_threads()
    found = doctor.measure()
    assert {"fp32", "bf16", "int8"} <= found.peaks.keys()
    assert found.ratio("fp32") == 1
    assert found.int8_gain > 0
    assert torch.get_num_threads() == threads


def test_what_quantising_means_follows_from_the_speeds():
    fast = doctor.quantize_lines(SPEEDS, has_bitsandbytes=True)
    assert "2.0 x as fast as bf16 here" in fast[0]
    assert "faster and smaller" in fast[0]
    slow = doctor.quantize_lines(replace(SPEEDS, int8_gain=0.5), has_bitsandbytes=False)
    assert "smaller, not faster" in slow[0]
    assert all("needs the extra quant" in line for line in slow[1:])


@pytest.mark.parametrize(
    ("device", "found", "said"),
    [
        ("cpu", None, "could not be built"),
        ("cpu", print, "of our own"),
        ("cuda", None, "C compiler"),
        ("cuda", print, "of our own"),
    ],
)
def test_whether_our_kernels_are_used(device: str, found: object, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ops, "native" if device == "cpu" else "kernels", lambda: found)
    monkeypatch.setattr(native, "compiler", lambda: "cc")
    assert said in doctor.kernels_line(torch.device(device))


def test_without_a_compiler_it_says_what_one_would_give(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ops, "native", lambda: None)
    monkeypatch.setattr(native, "compiler", lambda: None)
    assert "gcc" in doctor.kernels_line(torch.device("cpu"))


@pytest.mark.parametrize(
    ("device", "has_kernel", "capability", "said"),
    [
        ("cpu", True, None, "in strips of queries"),
        ("cuda", False, None, "this torch has no flash kernel"),
        ("cuda", True, (7, 5), "needs compute capability 8.0"),
        ("cuda", True, (8, 0), "in one call"),
    ],
)
def test_how_rows_attend_follows_from_the_machine(
    device: str, has_kernel: bool, capability: tuple[int, int] | None, said: str, monkeypatch: pytest.MonkeyPatch
):
    varlen.runs_on.cache_clear()
    monkeypatch.setattr(varlen, "kernel", lambda: print if has_kernel else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert said in doctor.attention_line(torch.device(device))
    varlen.runs_on.cache_clear()
