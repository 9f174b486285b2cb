"""The one form of a measured result: a row of benchmarks/results/<topic>.json, written by what measured it."""

import datetime
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One figure beside its bar.

    measured and bar are in `unit`; better says which side of the bar is good; peer names what the figure is a ratio
    against, where it is one; n and interval say how sure it is, where it is an estimate.
    """

    case: str
    measured: float
    bar: float
    unit: str
    better: Literal["higher", "lower"]
    peer: str = ""
    n: int | None = None
    interval: tuple[float, float] | None = None

    @property
    def reached(self) -> bool:
        """Whether the figure is on the good side of its bar."""
        return self.measured >= self.bar if self.better == "higher" else self.measured <= self.bar


def hardware() -> str:
    """The machine in words: processor, cores that this process may use, bf16 unit, memory, GPU."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = next(line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name"))
    unit = "AMX" if "amx_bf16" in info else "AVX512-BF16" if "avx512_bf16" in info else "no bf16 unit"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {unit}, {memory:.0f} GiB, {_gpu()}"


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"


def write(topic: str, command: str, rows: list[Row]) -> Path:
    """Replace the rows of `topic` that `command` wrote before, keep those of other commands, and print a table."""
    path = RESULTS / f"{topic}.json"
    kept = [r for r in json.loads(path.read_text(encoding="utf-8")) if r["command"] != command] if path.exists() else []
    stamp = {"hardware": hardware(), "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "command": command}
    fresh = [{k: v for k, v in asdict(row).items() if v is not None} | stamp for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept + fresh, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for row in rows:
        mark = "reached" if row.reached else "MISSED "
        print(f"{mark}  {row.case}: {row.measured:g} {row.unit} (bar {row.bar:g}, {row.better} is better)")
    return path
