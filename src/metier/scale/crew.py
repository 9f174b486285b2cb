"""Process 0's side: starts or finds the others, sees that they fit together, and has them help with a step.

    metier run RECIPE --processes N                      starts N - 1 others on this machine, once a step needs them
    torchrun --nproc-per-node N -m metier run RECIPE     N are there already, on one machine or several

Refuses at the start, by name: other versions of anything that matters, a store that one machine does not see, more
processes than GPUs, a number of processes that an optimizer step's blocks cannot be dealt to. Where a process fails or
disappears, the run stops with what is known of it; the last checkpoint is there to go on from.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Self

import torch
import torch.distributed as dist

from metier.core.errors import InputError, MetierError, StoreError, TrainingError
from metier.core.stage import Context, Source, Stage
from metier.core.store import Store
from metier.core.team import Ran, Team
from metier.scale.link import Link, backend, compare, hello, join, raised, threads

LAST_WORDS = 10.0
"""Seconds that the others have to say what went wrong, and to end."""
GO_ON = "run the same command again: it goes on from the last checkpoint"


class Crew:
    """The other processes, inside a `with` block.

    size: how many processes there are with this one. found: torchrun started them already.
    """

    places = False

    def __init__(self, size: int, store: Store, *, found: bool = False) -> None:
        self.size = size
        self._store = store
        self._found = found
        self._link: Link | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._steps = 0

    def __enter__(self) -> Self:
        if self._found:
            self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        link, self._link = self._link, None
        if link is not None:
            with contextlib.suppress(RuntimeError):  # torchrun's store may be gone
                link.tell(f"step/{self._steps}", None)
                link.tell("end", True)
        until = time.monotonic() + LAST_WORDS
        for child in self._children:
            try:
                child.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if dist.is_initialized():
            dist.destroy_process_group()

    def processes(self, stage: Stage) -> int:  # noqa: ARG002
        """As `metier.core.team.Helpers` says."""
        return self.size

    def check(self, stage: Stage) -> None:
        """Nothing is asked of a machine here."""

    def run(self, stage: Stage, ctx: Context) -> Ran:
        """As `metier.core.team.Helpers` says."""
        if not stage.several:
            return Ran(stage.run(ctx))
        with self.together(stage, ctx) as inside:
            return Ran(stage.run(inside))

    @contextlib.contextmanager
    def together(self, stage: Stage, ctx: Context) -> Iterator[Context]:
        """Within it all processes run the stage, each with its place in `Context.team`.

        Raises InputError where they do not fit together, and what made another process fail.
        """
        before = torch.get_num_threads()
        link = self._link or self._begin()
        number, self._steps = self._steps, self._steps + 1
        link.tell(f"step/{number}", told(stage, ctx))
        try:
            for rank in link.others:
                link.hear(f"ready/{number}/{rank}", stop=ctx.stop)
            torch.set_num_threads(threads(link.local_size))
            yield replace(ctx, team=Team(0, link.size, link.local_size))
        except (RuntimeError, TimeoutError) as error:
            raise self._failure(link, error) from error
        finally:
            torch.set_num_threads(before)

    def _begin(self) -> Link:
        link = self._connected() if self._found else self._started()
        self._link = link
        link.alive = lambda: self._look(link)
        link.tell("hello/0", hello())
        try:
            compare([link.hear(f"hello/{rank}") for rank in range(link.size)])
            self._show_store(link)
            backend(link.local_size)
            link.tell("go", True)
            join(link, 0)
        except (RuntimeError, TimeoutError) as error:
            raise self._failure(link, error) from error
        return link

    def _connected(self) -> Link:
        store, _, size = next(iter(dist.rendezvous("env://")))  # type: ignore[attr-defined]
        return Link(store, 0, size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))

    def _started(self) -> Link:
        backend(self.size)  # before anything is started
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        here = os.environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "WORLD_SIZE": str(self.size),
            "LOCAL_WORLD_SIZE": str(self.size),
        }
        if sys.platform == "linux":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            here.setdefault("GLOO_SOCKET_IFNAME", "lo")
        for rank in range(1, self.size):
            own = here | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            self._children.append(subprocess.Popen([sys.executable, "-m", "metier.scale.follow"], env=own))
        return Link(store, 0, self.size, self.size)

    def _show_store(self, link: Link) -> None:
        """Raise StoreError where a process does not see a file that this one puts into the store."""
        self._store.running.mkdir(parents=True, exist_ok=True)
        token = self._store.running / f"{secrets.token_hex(8)}.seen"
        token.touch()
        try:
            link.tell("look", str(token))
            blind = [rank for rank in link.others if not link.hear(f"sees/{rank}")]
        finally:
            token.unlink(missing_ok=True)
        if blind:
            hosts = sorted({link.hear(f"hello/{rank}")["host"] for rank in blind})
            raise StoreError(
                f"process {', '.join(map(str, blind))} on {', '.join(hosts)} does not see the store",
                where=str(self._store.root),
                cure="put the store on a file system that all machines mount at the same place: --store DIR",
            )

    def _look(self, link: Link) -> None:
        """Raise what made another process fail."""
        for rank, said in link.failures().items():
            raise raised(rank, said)
        for rank, child in enumerate(self._children, 1):
            if child.poll() not in (None, 0):
                raise TrainingError(f"process {rank} {_ending(child.returncode)}", cure=GO_ON)

    def _failure(self, link: Link, error: Exception) -> MetierError | Exception:
        """What another process says of why the work together failed, else what is known of it; else the error."""
        text = str(error)
        if not (isinstance(error, TimeoutError | dist.DistError) or of_group(text)):
            return error
        until = time.monotonic() + LAST_WORDS / 2
        while time.monotonic() < until:
            try:
                self._look(link)
            except MetierError as told:
                return told
            time.sleep(0.1)
        gone = [f"process {rank} on {link.hear(f'hello/{rank}')['host']}" for rank in link.silent()]
        missing = [f"process {rank}" for rank in link.others if not link.store.check([f"hello/{rank}"])]
        if missing:
            return InputError(
                f"{', '.join(missing)} did not come within the time",
                where="processes",
                cure="start all of them, and look whether machines reach MASTER_ADDR and MASTER_PORT",
            )
        who = f"{', '.join(gone)} has disappeared" if gone else "the processes lost one another"
        return TrainingError(who, value=text.splitlines()[0][:200], cure=GO_ON)


def crew(processes: int | None, store: Store) -> "contextlib.AbstractContextManager[Crew | None]":
    """The processes that the environment or `processes` tells of, or nobody. Raises InputError where both do."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1 and "RANK" in os.environ:
        if processes is not None:
            raise InputError(
                f"torchrun started {size} processes already",
                where="--processes",
                value=processes,
                cure="leave --processes out, or run without torchrun",
            )
        return Crew(size, store, found=True)
    return contextlib.nullcontext() if processes is None or processes == 1 else Crew(processes, store)


def told(stage: Stage, ctx: Context) -> dict[str, object]:
    """A step as another process can run it."""
    kind = str(type(stage).model_fields["kind"].default)
    return {
        "kind": kind,
        "config": {**stage.model_dump(mode="json", exclude_unset=True), "kind": kind},
        "step": ctx.step,
        "scratch": str(ctx.scratch.absolute()),
        "cache": str(ctx.cache.absolute()) if ctx.cache else None,
        "sources": {value: _source(one) for value, one in ctx.sources.items()},
    }


def _source(one: Source) -> dict[str, object]:
    return {
        "name": one.name,
        "paths": [str(path.absolute()) for path in one.paths],
        "link": one.link,
        "digest": one.digest,
        "made_from": [_source(before) for before in one.made_from],
        "produces": one.produces,
    }


def _ending(code: int) -> str:
    return f"was killed (signal {-code})" if code < 0 else f"ended with exit code {code}"


def of_group(text: str) -> bool:
    """Whether a RuntimeError comes from the group: gloo's and nccl's have no class of their own."""
    return any(word in text.lower() for word in ("gloo", "nccl", "connection", "peer", "tcpstore", "timed out"))
