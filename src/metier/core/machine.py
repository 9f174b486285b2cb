"""What a step will take, and what is known of the machine that it will run on. Imports nothing heavy.

    <store>/machine.json   device, the numeric type that `precision: auto` means, operations a second by type, and the
                           share of them that training reached; written by `metier doctor` and after training steps

The file is a cache of measurements: without it memory and disk are still estimated, times are not.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from typing import Any

from metier.core.disk import write_whole

FILE = "machine.json"
CGROUPS = Path("/sys/fs/cgroup")
PROCESSOR = Path("/proc/cpuinfo")
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
NEAR = 2.0
"""A share of the peak that was reached at one width is taken for others up to so many times wider or narrower."""


@dataclass(frozen=True)
class Estimate:
    """What a step will take, before it runs.

    memory: bytes by what holds them, at the moment when most is held. disk: bytes by what they are for. seconds: None
    on a machine that was not measured yet. about: the data is not made yet, so that its size is guessed.
    note: what else is to be known beforehand.
    """

    memory: Mapping[str, float]
    disk: Mapping[str, float]
    seconds: float | None
    about: bool = False
    note: str = ""

    @property
    def memory_bytes(self) -> float:
        """The peak."""
        return sum(self.memory.values())

    @property
    def disk_bytes(self) -> float:
        """All that is written, while the step runs."""
        return sum(self.disk.values())


@dataclass(frozen=True)
class Machine:
    """Where a step will run.

    memory_bytes: what a process of ours can get now; of a GPU's memory what was free when it was measured. device: cpu
    or cuda. auto: what `precision: auto` means for a model wide enough to gain. peaks: operations a second of large
    matrix products, by type (fp32, bf16, fp16, int8). reached: the share of the peak that training reached, by what was
    run ("bf16", "bf16+int8") and the model's width.
    processes: how many share a step, here and on other machines.
    """

    memory_bytes: float
    device: str
    auto: str
    peaks: Mapping[str, float] = field(default_factory=dict)
    reached: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    processes: int = 1

    @classmethod
    def here(cls, store: Path | None = None) -> "Machine":
        """This machine, with what a store remembers of it."""
        known = _read(store / FILE) if store is not None else {}
        device = known.get("device", "cpu")
        return cls(
            float(known.get("gpu_bytes") or free_memory()) if device == "cuda" else free_memory(),
            device,
            known.get("auto", "bf16" if says_bf16() else "fp32"),
            known.get("peaks", {}),
            known.get("reached", {}),
        )

    def share_reached(self, work: str, width: int) -> float | None:
        """The share of the peak reached before by such work at the nearest width, if one is near."""
        distances = {abs(log(int(known) / width)): share for known, share in self.reached.get(work, {}).items()}
        if not distances or min(distances) > log(NEAR):
            return None
        return distances[min(distances)]


def remember(store: Path, learned: Mapping[str, Any]) -> None:
    """Add what was measured to the store's machine.json: mappings are merged, other values replaced."""
    path = store / FILE
    merged = _merged(_read(path), learned)
    store.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(merged, indent=1, allow_nan=False) + "\n")


def says_bf16() -> bool:
    """Whether the processor names a bf16 unit among its flags (Linux on x86; elsewhere unknown, so no)."""
    if not PROCESSOR.is_file():
        return False
    with PROCESSOR.open(encoding="utf-8") as file:
        flags = next((line for line in file if line.startswith("flags")), "")
    return not BF16_FLAGS.isdisjoint(flags.split())


def free_memory() -> float:
    """Bytes that this process can hold in all: what is free, within the container's limit, and what it has already."""
    import psutil

    own = psutil.Process().memory_info().rss
    return float(min(psutil.virtual_memory().available, _left_in_container()) + own)


def _left_in_container() -> float:
    """Bytes below the control group's limit; cached files that it can drop do not count as used."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        if (CGROUPS / limit).is_file() and (CGROUPS / used).is_file():
            allowed = (CGROUPS / limit).read_text(encoding="utf-8").strip()
            if allowed == "max":
                return float("inf")
            stat = dict(line.split() for line in (CGROUPS / limit).with_name("memory.stat").open(encoding="utf-8"))
            files = sum(int(stat.get(name, 0)) for name in ("inactive_file", "active_file"))
            return float(int(allowed) - int((CGROUPS / used).read_text(encoding="utf-8")) + files)
    return float("inf")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # a cache that was cut short: measure again
        return {}
    return known if isinstance(known, dict) else {}


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **old,
        **{
            key: _merged(old[key], value) if isinstance(value, Mapping) and isinstance(old.get(key), dict) else value
            for key, value in new.items()
        },
    }
