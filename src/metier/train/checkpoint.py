"""The state of a training run on disk, so that a stopped run goes on where it was and ends with the same bits.

    checkpoint-<step>/   tensors.safetensors (trained weights, optimizer moments, best weights so far)
                         state.json (counters and logs)

Written aside, flushed, renamed; then older ones are deleted, so there is always a whole one. No pickle. There is no
random state to keep: dropout is seeded by (seed, step, micro-step) and the order of the data by (seed, epoch).
Costs three times the trained parameters in float32, twelve bytes each (six with 8-bit moments), four more with a best.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

PREFIX = "checkpoint-"
TENSORS = "tensors.safetensors"
STATE = "state.json"


@dataclass
class Checkpoints:
    """The checkpoints of one run below `folder`. every_seconds: the least time between two that nobody asked for."""

    folder: Path
    every_seconds: float = 60.0
    _last: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Whether it is time for one."""
        return time.monotonic() - self._last >= self.every_seconds

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write the state after `step` optimizer steps, then delete older ones."""
        target = self.folder / f"{PREFIX}{step}"
        if not target.exists():
            aside = self.folder / f"aside-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            save_file(dict(tensors), aside / TENSORS)
            (aside / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
            for path in (aside / TENSORS, aside / STATE):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            aside.rename(target)
        for other in self._all():
            if other != target:
                shutil.rmtree(other)
        self._last = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and state of the newest one, or None where there is none."""
        found = self._all()
        if not found:
            return None
        newest = found[-1]
        state: dict[str, Any] = json.loads((newest / STATE).read_text(encoding="utf-8"))
        return load_file(newest / TENSORS), state

    def _all(self) -> list[Path]:
        found = self.folder.glob(f"{PREFIX}*")
        return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))
