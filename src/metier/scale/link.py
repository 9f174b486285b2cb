"""How the processes of a run find each other and what they tell each other: a key-value store that process 0 serves.

    hello/<rank>          versions, host and process of each; the same in all but the last two
    look, sees/<rank>     a file that process 0 put into the store, and whether a process finds it
    go                    all fit together: form the group
    step/<n>              what to run next, as JSON (null: that was all); ready/<n>/<rank>: it can be
    failed/<rank>         what made a process give up
    beat/<rank>           counted up every few seconds for as long as the process lives

torchrun serves the store itself and tells of it in the environment; else process 0 does, on this machine alone.
"""

import json
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from metier.core.errors import InputError, Interrupted, MetierError, StoreError, TrainingError
from metier.core.fingerprint import digest, file_digest, tree
from metier.core.measure import versions

POLL = 0.05
BEAT = 2.0
SILENT = 4 * BEAT
START_SECONDS = 300.0
"""How long processes are waited for at the start."""
PATIENCE = 600.0
"""Seconds that a process waits for the others in the midst of a step; METIER_PATIENCE says otherwise."""
CLASSES = {cls.__name__: cls for cls in (InputError, Interrupted, StoreError, TrainingError)}
SAME = "install the same versions everywhere (pip install -c constraints.txt)"


@dataclass
class Link:
    """One process's end. store: reached by all. alive: raises where a process is known to have ended."""

    store: Any
    rank: int
    size: int
    local_size: int
    alive: Callable[[], None] = lambda: None
    _seen: dict[int, tuple[bytes, float]] = field(default_factory=dict)

    def tell(self, key: str, value: Any) -> None:
        """Put JSON under a key."""
        self.store.set(key, json.dumps(value))

    def hear(self, key: str, *, seconds: float = START_SECONDS, stop: Callable[[], bool] = lambda: False) -> Any:
        """The JSON under a key, waited for. Raises what `alive` raises, TimeoutError, Interrupted where asked to."""
        until = time.monotonic() + seconds
        while not self.store.check([key]):
            self.alive()
            if stop():
                raise Interrupted("stopped on request", cure="run the same command again: it goes on from here")
            if time.monotonic() > until:
                raise TimeoutError(key)
            time.sleep(POLL)
        return json.loads(self.store.get(key))

    @property
    def others(self) -> range:
        """The ranks that process 0 leads."""
        return range(1, self.size)

    def failures(self) -> dict[int, dict[str, Any]]:
        """What processes said before they gave up."""
        return {r: self.hear(f"failed/{r}") for r in range(self.size) if self.store.check([f"failed/{r}"])}

    def fail(self, error: BaseException) -> None:
        """Say why this process gives up."""
        self.tell(f"failed/{self.rank}", failure(error))

    def beat(self) -> threading.Event:
        """Count up every few seconds, on a thread that ends when the event is set, or with the store."""
        over = threading.Event()

        def work() -> None:
            count = 0
            while not over.is_set():
                try:
                    self.store.set(f"beat/{self.rank}", str(count))
                except RuntimeError:  # process 0 has gone
                    return
                count += 1
                over.wait(BEAT)

        threading.Thread(target=work, name="heartbeat", daemon=True).start()
        return over

    def silent(self) -> list[int]:
        """The processes whose heart stands still: takes some seconds to find out."""
        ranks = [r for r in self.others if self.store.check([f"beat/{r}"])]
        before = {r: self.store.get(f"beat/{r}") for r in ranks}
        until = time.monotonic() + SILENT
        while time.monotonic() < until and before:
            time.sleep(BEAT / 2)
            before = {r: beat for r, beat in before.items() if self.store.get(f"beat/{r}") == beat}
        return sorted(before)


def failure(error: BaseException) -> dict[str, Any]:
    """An error as it is told to another process, which makes one of it again with `raised`."""
    told: dict[str, Any] = {"kind": type(error).__name__, "what": str(error), "host": socket.gethostname()}
    if isinstance(error, MetierError):
        told |= {"what": error.what, "where": error.where, "value": _shown(error.value), "cure": error.cure}
    return told


def _shown(value: object) -> Any:
    return value if isinstance(value, str | int | float) or value is None else str(value)


def raised(rank: int, told: dict[str, Any]) -> MetierError:
    """A failure in another process as an error of this one."""
    what = f"process {rank} on {told['host']}: {told['what']}"
    cls = CLASSES.get(told["kind"], TrainingError)
    if told["kind"] in ("RecipeError", "DataError", "ModelError", "MissingExtra"):
        cls = InputError
    return cls(what, where=told.get("where"), value=told.get("value"), cure=told.get("cure"))


def hello() -> dict[str, Any]:
    """What has to be the same in all processes, and who this one is."""
    return {"same": {**versions(), "code": code()}, "host": socket.gethostname(), "process": os.getpid()}


@cache
def code() -> str:
    """A digest of this package's own modules."""
    package = Path(__file__).parents[1]
    return digest({name: file_digest(path) for name, path in tree(package).items() if path.suffix == ".py"})[:12]


def compare(greetings: Sequence[dict[str, Any]]) -> None:
    """Raise InputError where processes run other versions than process 0, with all that differs."""
    first = greetings[0]["same"]
    found = []
    for rank, greeting in enumerate(greetings):
        other = greeting["same"]
        names = [name for name in sorted({*first, *other}) if first.get(name) != other.get(name)]
        if names:
            theirs = ", ".join(f"{name} {other.get(name)} (process 0 has {first.get(name)})" for name in names)
            found.append(f"process {rank} on {greeting['host']} has {theirs}")
    if found:
        raise InputError("the processes run different versions: " + "; ".join(found), where="processes", cure=SAME)


def backend(local_size: int) -> str:
    """gloo, with nccl where each process of this machine has a GPU. Raises InputError where some would have none."""
    if not torch.cuda.is_available():
        return "gloo"
    gpus = torch.cuda.device_count()
    if local_size > gpus:
        raise InputError(
            f"there are {gpus} GPUs on {platform.node()} for {local_size} processes",
            where="processes",
            value=local_size,
            cure=f"use at most {gpus} processes a machine, or hide the GPUs with CUDA_VISIBLE_DEVICES=",
        )
    return "cpu:gloo,cuda:nccl"


def join(link: Link, local_rank: int) -> None:
    """Form the group of all processes: all must call it."""
    kind = backend(link.local_size)
    if "nccl" in kind:
        torch.cuda.set_device(local_rank)
    seconds = float(os.environ.get("METIER_PATIENCE", PATIENCE))
    store = dist.PrefixStore("group", link.store)  # type: ignore[attr-defined]
    dist.init_process_group(kind, store=store, rank=link.rank, world_size=link.size, timeout=timedelta(seconds=seconds))


def threads(local_size: int) -> int:
    """Threads that each process of this machine computes with, unless OMP_NUM_THREADS says."""
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // local_size)
