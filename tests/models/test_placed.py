"""Where a loaded model goes: a GPU with room, else it stays; and memory that nobody holds is given back."""

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fakes import save_tiny
from metier.models import placed
from metier.models.load import Loaded, load
from metier.train import precision

ELSEWHERE = torch.device("meta")
"""Stands for a GPU: a device that every torch has, and that is not the CPU."""


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    return load(save_tiny(tmp_path / "tiny"))


def a_gpu(monkeypatch: pytest.MonkeyPatch, *, free: int) -> None:
    monkeypatch.setattr(placed, "best_device", lambda: ELSEWHERE)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 2 * free))


def test_without_a_gpu_it_stays(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert placed.best_device() == placed.CPU
    assert placed.place(loaded) is loaded
    assert loaded.model.device == placed.CPU


def test_a_gpu_with_room_gets_it(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    a_gpu(monkeypatch, free=10**12)
    told: list[str] = []
    assert placed.place(loaded, told.append).model.device == ELSEWHERE
    assert not told


def test_a_gpu_without_room_is_told_of(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(value.numel() * value.element_size() for value in loaded.model.state_dict().values())
    a_gpu(monkeypatch, free=size)  # no room for what is computed
    told: list[str] = []
    assert placed.place(replace(loaded, folder=Path("a/specialist")), told.append).model.device == placed.CPU
    assert len(told) == 1
    assert told[0].startswith("specialist: ")
    assert "do not fit the GPU's free" in told[0]


def test_one_place_knows_the_best_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert placed.best_device() == torch.device("cuda", 0) == precision.best_device()


def test_memory_is_given_back(tmp_path: Path) -> None:
    held = [load(save_tiny(tmp_path / "tiny"))]
    model = weakref.ref(held[0].model)
    held[0].model.circle = held[0].model  # type: ignore[assignment]
    held.clear()
    placed.free()
    assert model() is None
    assert not torch.cuda.is_initialized()  # a process that never used a GPU does not wake it
