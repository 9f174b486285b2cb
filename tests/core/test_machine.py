"""What is remembered of a machine, and what an estimate adds up to."""

from pathlib import Path

import psutil
import pytest

from metier.core import machine
from metier.core.machine import Estimate, Machine, free_memory, remember, says_bf16


def test_an_estimate_adds_up():
    estimate = Estimate({"weights": 3.0, "base": 1.0}, {"model": 2.0, "checkpoints": 5.0}, None)
    assert (estimate.memory_bytes, estimate.disk_bytes) == (4, 7)


def test_nothing_is_known_of_a_machine_at_first(tmp_path: Path):
    here = Machine.here(tmp_path / "absent")
    assert (here.peaks, here.reached, here.device) == ({}, {}, "cpu")
    assert here.memory_bytes > 1e8
    assert not (tmp_path / "absent").exists()


def test_what_is_learned_is_added_to_what_is_known(tmp_path: Path):
    store = tmp_path / "store"
    remember(store, {"auto": "bf16", "peaks": {"fp32": 1.0, "bf16": 4.0}})
    remember(store, {"peaks": {"bf16": 5.0}, "reached": {"bf16": {"256": 0.2}}})
    remember(store, {"reached": {"bf16": {"2048": 0.6}}})
    here = Machine.here(store)
    assert here.auto == "bf16"
    assert here.peaks == {"fp32": 1.0, "bf16": 5.0}
    assert here.reached == {"bf16": {"256": 0.2, "2048": 0.6}}
    assert [p.name for p in store.iterdir()] == [machine.FILE]


def test_the_share_reached_is_taken_from_a_near_width_only():
    here = Machine(1e9, "cpu", "bf16", {}, {"bf16": {"256": 0.2, "2048": 0.6}})
    assert here.share_reached("bf16", 256) == 0.2
    assert here.share_reached("bf16", 1536) == 0.6
    assert here.share_reached("bf16", 64) is None
    assert here.share_reached("fp32", 256) is None


def test_a_damaged_file_is_measured_anew(tmp_path: Path):
    (tmp_path / machine.FILE).write_text('{"auto": "b')
    assert Machine.here(tmp_path).peaks == {}
    remember(tmp_path, {"peaks": {"fp32": 1.0}})
    assert Machine.here(tmp_path).peaks == {"fp32": 1.0}


@pytest.mark.parametrize(("flags", "found"), [("fma avx512_bf16", True), ("amx_bf16 fma", True), ("avx512f", False)])
def test_the_processor_says_whether_it_has_bf16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, found: bool
):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "PROCESSOR", tmp_path / "cpuinfo")
    assert says_bf16() is found
    monkeypatch.setattr(machine, "PROCESSOR", tmp_path / "absent")
    assert says_bf16() is False


@pytest.mark.parametrize(
    "names", [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")]
)
def test_a_container_has_its_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]):
    limit, used = (tmp_path / name for name in names)
    limit.parent.mkdir(exist_ok=True)
    limit.write_text("300000000\n")
    used.write_text("250000000\n")
    limit.with_name("memory.stat").write_text("inactive_file 40000000\nactive_file 10000000\nanon 5\n")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    assert machine._left_in_container() == 100e6
    assert free_memory() == pytest.approx(100e6 + psutil.Process().memory_info().rss, rel=0.1)
    if limit.name == "memory.max":
        limit.write_text("max\n")
        assert free_memory() > 100e6
