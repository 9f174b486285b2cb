"""Time, memory, versions and machine for the record."""

import json

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


def test_the_record_names_versions_and_machine():
    assert {"python", "metier", "torch"} <= versions().keys()
    assert machine()["cores"] >= 1
    json.dumps([versions(), machine(), now()])
