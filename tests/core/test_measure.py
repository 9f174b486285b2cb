"""Time, memory, versions and machine for the record."""

import json
import mmap
import sys

import pytest

from metier.core.measure import PeakMemory, Stopwatch, machine, now, versions


def test_peak_memory_sees_what_was_freed_again():
    with PeakMemory() as before:
        pass
    with PeakMemory() as memory:
        block = bytearray(80_000_000)
        block[::4096] = b"x" * len(block[::4096])
        watch = Stopwatch()
        while watch.seconds < 0.3:
            pass
        del block
    assert memory.peak_bytes - before.peak_bytes > 60_000_000


def test_a_spike_shorter_than_a_look_counts_for_every_block_around_it():
    with PeakMemory() as outer:
        with PeakMemory() as first, mmap.mmap(-1, 80_000_000) as block:  # new pages, whatever the heap has free
            for page in range(0, len(block), 4096):
                block[page] = 1
        with PeakMemory() as second:
            pass
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells the exact peak")
    assert first.peak_bytes - second.peak_bytes > 60_000_000
    assert outer.peak_bytes >= first.peak_bytes


def test_the_record_names_versions_and_machine():
    assert {"python", "metier", "torch"} <= versions().keys()
    assert machine()["cores"] >= 1
    json.dumps([versions(), machine(), now()])
