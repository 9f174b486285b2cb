"""The allocator keeps what is freed within the block only, and other systems are left alone."""

import ctypes
import platform

import pytest

from metier.train.memory import (
    DEFAULTS,
    MMAP_MAX,
    MMAP_THRESHOLD,
    TOP_PAD,
    TRIM_THRESHOLD,
    kept_memory,
    returned_memory,
)


class Recorder:
    def __init__(self) -> None:
        self.options: dict[int, int] = {}
        self.trimmed = 0

    def mallopt(self, option: int, value: int) -> int:
        self.options[option] = value
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.trimmed += 1
        return 1


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: recorder)
    return recorder


def test_within_it_nothing_is_mapped_or_trimmed_and_afterwards_all_is_as_before(
    monkeypatch: pytest.MonkeyPatch, libc: Recorder
):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    with kept_memory():
        assert libc.options.keys() == {TRIM_THRESHOLD, TOP_PAD, MMAP_MAX}
        assert libc.options[MMAP_MAX] == 0
        assert libc.trimmed == 0
    assert libc.options == DEFAULTS
    assert libc.trimmed == 1


def test_returned_memory_maps_every_large_tensor_by_itself(monkeypatch: pytest.MonkeyPatch, libc: Recorder):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    with returned_memory():
        assert libc.options[MMAP_THRESHOLD] == 2**20
        assert MMAP_MAX not in libc.options
    assert libc.options == DEFAULTS


def test_it_is_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch, libc: Recorder):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    with pytest.raises(KeyError), kept_memory():
        raise KeyError
    assert libc.options == DEFAULTS


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch, libc: Recorder):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    with kept_memory():
        pass
    assert not libc.options
    assert libc.trimmed == 0


def test_this_machine_takes_it():
    with kept_memory():
        assert bytearray(2**20)[-1] == 0
