"""Weights & Biases, offline only: `<out>/<recipe>/wandb/`, one W&B run for each step, its key as the id.

Nothing is sent. `mode="offline"` alone does not hold to that: a process of wandb 0.31 still looks up a host name, to
report how wandb itself does, unless the environment says otherwise before wandb starts (seen in its system calls). So
both variables are set here, over whatever the user has set; uploading is the user's own `wandb sync`. Git state, code,
console output, installed packages, machine statistics, host and user name are kept out of the files.

Costs half a second to a second for the import, and a helper process while the run lasts.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metier.core.errors import MissingExtra
from metier.track.tracker import Tracker

ENVIRONMENT = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}
SETTINGS = {
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "console": "off",
    "silent": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": 1.0,  # seconds that a kill may cost; 15 left alone
    "host": "",
    "username": "",
    "email": "",
}

HEADER, PIECE, BLOCK = 7, 7, 32768
"""Bytes of a `.wandb` file's header, of a piece's and of a block."""


class WeightsAndBiases(Tracker):
    """Writes below `folder`/wandb. Raises MissingExtra where the package is not installed.

    recipe: W&B's project. configs: what each step was asked to do, W&B's run config.
    """

    def __init__(self, folder: Path, recipe: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        os.environ.update(ENVIRONMENT)
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise MissingExtra("wandb", "track", needed_by="--track wandb") from error
        self._wandb = wandb
        self._folder, self._recipe, self._configs = folder, recipe, configs
        self.what = f"wandb sync {folder / 'wandb'}/offline-run-*  (uploads; until then all is here)"

    def begin(self, step: str, key: str) -> Mapping[str, int]:
        """A W&B run; one that goes on is a further folder with the same id, which `wandb sync` joins."""
        place = self._folder / "wandb"
        place.mkdir(parents=True, exist_ok=True)  # wandb moves to a temporary folder where it finds none
        config = dict(self._configs[step])
        last = last_steps(place, key)
        self._run = self._wandb.init(
            dir=str(self._folder),
            project=self._recipe,
            id=key,
            name=step,
            job_type=str(config.get("kind", "")),
            config=config,
            mode="offline",
            resume="allow",
            reinit="create_new",
            settings=self._wandb.Settings(**SETTINGS),
        )
        return last

    def write(self, values: Mapping[str, float], *, at: int, time: float) -> None:  # noqa: ARG002 - wandb keeps its own
        """Log the values in the row of that step."""
        self._run.log(dict(values), step=at)

    def end(self, *, failed: bool) -> None:
        """Finish the W&B run."""
        self._run.finish(exit_code=int(failed))

    def close(self) -> None:
        """Wait for the helper process, which writes on after `finish` has returned, and end it."""
        self._wandb.teardown()


def last_steps(place: Path, key: str) -> dict[str, int]:
    """The last optimizer step of each curve in what W&B runs of that id have left in `place`."""
    last: dict[str, int] = {}
    for path in place.glob(f"offline-run-*/run-{key}.wandb"):
        for row in rows(path):
            last |= {name: max(last.get(name, -1), int(row["_step"])) for name in row if not name.startswith("_")}
    return last


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The logged rows of a `.wandb` file as plain values, wandb's own under names with an underscore in front."""
    for record in records(path):
        if record.HasField("history"):
            yield {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}


def records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file, up to where it was cut off: 7 bytes of header, then LevelDB's log format.

    Blocks of 32 KiB; a piece has a checksum (4 bytes), a size (2) and a type (1: whole, 2 to 4: first, middle, last).
    A piece never crosses a block's end: what is left there is filled with zeros.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), HEADER, b""
    while at + PIECE <= len(data):
        _, size, kind = struct.unpack_from("<IHB", data, at)
        if kind == 0 or at % BLOCK > BLOCK - PIECE:
            at += BLOCK - at % BLOCK
            continue
        if at + PIECE + size > len(data):
            return
        whole += data[at + PIECE : at + PIECE + size]
        at += PIECE + size
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""
