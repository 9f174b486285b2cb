"""The processes that are not the first: each runs its part of the steps that process 0 names, and writes no result.

Under torchrun `metier run` becomes one by itself; `metier run --processes N` starts them as `python -m
metier.scale.follow`. Such a one leaves signals to process 0, and ends with it.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from metier.core.errors import Interrupted, MetierError, StoreError
from metier.core.events import Events
from metier.core.stage import Context, Source, Stage
from metier.core.team import Team
from metier.core.workers import leave_signals
from metier.scale.link import Link, hello, join, threads

FOREVER = 1e9
LOOK_SECONDS = 10.0
"""How long a file that process 0 wrote may take to be seen through a network's file system."""
ENDED = 20.0


def main() -> None:
    """A helper that `metier run --processes` started."""
    leave_signals()
    sys.exit(follow())


def follow(stop: Callable[[], bool] = lambda: False) -> int:
    """Help until process 0 says that all is done. Returns the exit code."""
    try:
        link = _connected()
    except RuntimeError:  # process 0 has gone before this one was there
        return 1
    over = link.beat()
    try:
        _help(link, stop)
    except Interrupted:
        _wait_for_end(link)  # process 0 still writes its checkpoint; torchrun would end it with the first that ends
        return Interrupted.exit_code
    except MetierError as error:
        _tell(link, error)
        return error.exit_code
    except BaseException as error:
        _tell(link, error)
        raise
    finally:
        over.set()
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def _tell(link: Link, error: BaseException) -> None:
    try:
        link.fail(error)
    except RuntimeError:  # nobody is there to be told
        return


def _connected() -> Link:
    store, rank, size = next(iter(dist.rendezvous("env://")))  # type: ignore[attr-defined]
    return Link(store, rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))


def _help(link: Link, stop: Callable[[], bool]) -> None:
    link.tell(f"hello/{link.rank}", hello())
    path = Path(link.hear("look", stop=stop))
    link.tell(f"sees/{link.rank}", _sees(path))
    link.hear("go", seconds=FOREVER, stop=stop)
    join(link, int(os.environ.get("LOCAL_RANK", link.rank)))
    number = 0
    while True:
        told = link.hear(f"step/{number}", seconds=FOREVER, stop=stop)
        if told is None:
            return
        with tempfile.TemporaryDirectory(prefix="metier-") as folder:
            stage, ctx = context(told, Path(folder), Team(link.rank, link.size, link.local_size), stop)
            check_sources(ctx)
            link.tell(f"ready/{number}/{link.rank}", True)
            torch.set_num_threads(threads(link.local_size))
            stage.run(ctx)
        number += 1


def context(
    told: Mapping[str, Any], folder: Path, team: Team | None, stop: Callable[[], bool], events: Events | None = None
) -> tuple[Stage, Context]:
    """The stage and what it sees: its results go to a folder of its own."""
    from metier.stages import CATALOGUE

    stage = CATALOGUE[told["kind"]].model_validate(told["config"])
    sources = {value: _source(one) for value, one in told["sources"].items()}
    out, measured = folder / "files", folder / "measured"
    out.mkdir(exist_ok=True)
    measured.mkdir(exist_ok=True)
    scratch, cache = Path(told["scratch"]), Path(told["cache"]) if told["cache"] else None
    events = events or Events(told["step"])
    return stage, Context(told["step"], out, measured, scratch, events, sources, stop, cache, team)


def _source(one: Mapping[str, Any]) -> Source:
    before = tuple(map(_source, one["made_from"]))
    return Source(one["name"], tuple(map(Path, one["paths"])), one["link"], one["digest"], before, one["produces"])


def check_sources(ctx: Context) -> None:
    """Raise StoreError where what the step reads or writes is not here."""
    for path in (ctx.scratch, *(path for source in ctx.sources.values() for path in source.paths)):
        if not _sees(path):
            raise StoreError(
                "this machine does not see what the step needs",
                where=str(path),
                cure="put store, models and data on a file system that all machines mount at the same place",
            )


def _sees(path: Path) -> bool:
    until = time.monotonic() + LOOK_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def _wait_for_end(link: Link) -> None:
    try:
        link.hear("end", seconds=ENDED)
    except (RuntimeError, TimeoutError):
        return


if __name__ == "__main__":
    main()
