"""A Ray cluster: reached or started, its machines looked at, and what Metier computes on it.

    metier run RECIPE --on local            Ray on this machine alone, ended with the run
    metier run RECIPE --on auto             the cluster that this machine belongs to
    metier run RECIPE --on HOST:PORT        the cluster whose head answers there
    metier run RECIPE --on ray://HOST:PORT  the same through Ray's client server

Refuses at the start, by name: an address where no Ray answers, another version of Ray, machines with other versions of
anything that matters or without Metier, a store that a machine does not see, steps that no machine has room for. Ray's
usage statistics, dashboard and metrics are off. Ray itself is imported when a cluster is asked for, never before.
"""

import contextlib
import importlib.util
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from metier.core.errors import InputError, MissingExtra, StoreError, TrainingError
from metier.core.stage import Context, Resources, Stage
from metier.core.store import Store
from metier.core.team import Ran
from metier.scale.link import SAME, compare

LOCAL, AUTO = "local", "auto"
ADDRESS = re.compile(r"(?:ray://)?(?P<host>\[[0-9a-fA-F:]+\]|[^:/\s]+):(?P<port>\d{1,5})")
CONNECT_SECONDS = 5.0
TRIES = 3
LOOK_SECONDS = 120.0
"""How long a machine may take to start a process that says what it has."""
OBJECTS = 200 * 2**20
"""Bytes of shared memory for what tasks of a local Ray give each other."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_metrics_collection": "0",
}
"""What is set before Ray starts, unless the environment says otherwise."""
TOKEN = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
AS_THERE = "set RAY_AUTH_TOKEN, or put ~/.ray/auth_token there, as on its machines"
WRITE = "write local, auto, HOST:PORT or ray://HOST:PORT"


@dataclass(frozen=True)
class Node:
    """One machine of a cluster. has: CPU, GPU (numbers) and memory (bytes), as Ray deals them out."""

    id: str
    host: str
    has: Mapping[str, float]


class Cluster:
    """Reached inside a `with` block. on: as the command line says. processes: workers of a training step that says
    none itself; store: which all machines have to see."""

    places = True

    def __init__(self, on: str, store: Store, processes: int | None = None) -> None:
        check_address(on)
        if importlib.util.find_spec("ray") is None:
            raise MissingExtra("ray", "ray", needed_by="--on")
        self.on = on
        self.nodes: tuple[Node, ...] = ()
        self._store = store
        self._processes = processes
        self._folder: str | None = None

    def __enter__(self) -> Self:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        if self.on != LOCAL and (any(map(os.environ.get, TOKEN)) or (Path.home() / ".ray" / "auth_token").is_file()):
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `ray start` does; Ray reads it when it is imported
        with _handlers():
            self._start() if self.on == LOCAL else self._connect()
        try:
            self.nodes = nodes()
            self._look()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        import ray

        with _handlers():
            ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    # ---- what a run asks for -------------------------------------------------------------------------------------

    def processes(self, stage: Stage) -> int:
        """How many workers train a step."""
        wanted = stage.resources.workers if stage.resources else None
        return wanted or self._processes or 1

    def check(self, stage: Stage) -> None:
        """Raise InputError where no machine, or all together, have room for what a step wants."""
        self.workers_of(stage, self.processes(stage) if stage.several else 1)

    def workers_of(self, stage: Stage, count: int) -> dict[str, float]:
        """What each of so many workers of a step takes, in Ray's names. Raises InputError where they find no room."""
        wanted = stage.resources or Resources()
        gpus = float(stage.several and any(node.has.get("GPU") for node in self.nodes))
        each = {"GPU": gpus if wanted.gpus is None else wanted.gpus}
        each["CPU"] = float(wanted.cpus or (self._share(count, each["GPU"]) if stage.several else 1))
        if wanted.bytes is not None:
            each["memory"] = float(wanted.bytes)
        room = places(self.nodes, each)
        if room < count:
            raise InputError(
                f"{_many(count)} of {shown(each)} find no room: there is room for {room}",
                where="resources",
                value="; ".join(f"{node.host}: {shown(node.has)}" for node in self.nodes),
                cure="ask for less, or for fewer workers, or add machines to the cluster",
            )
        return {name: value for name, value in each.items() if value}

    def _share(self, count: int, gpus: float) -> int:
        """CPUs of a training worker that asks for none: those of a machine, shared by the workers that it gets."""
        may = [node.has for node in self.nodes if node.has.get("GPU", 0.0) >= gpus and node.has.get("CPU")]
        least = min((int(has["CPU"]) for has in may), default=1)
        return max(1, least // -(-count // max(1, len(may))))

    def run(self, stage: Stage, ctx: Context) -> Ran:
        """As `metier.core.team.Helpers` says."""
        from metier.scale.spread import RaySpread
        from metier.scale.trained import alone, train

        if stage.several:
            count = self.processes(stage)
            return train(self, stage, ctx, count, self.workers_of(stage, count))
        each = self.workers_of(stage, 1)
        if not stage.spreads:
            return alone(self, stage, ctx, each, None)
        asked = stage.resources.workers if stage.resources else None
        spread = RaySpread(asked or max(1, places(self.nodes, each)), asked is not None, each)
        return alone(self, stage, ctx, {"CPU": 0.0}, spread)  # it mostly waits for those that help it

    # ---- reaching it ---------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Ray gives its own processes half a minute to start, which a busy machine may not manage at once."""
        import ray
        import torch

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        for left in reversed(range(TRIES)):
            self._folder = tempfile.mkdtemp(prefix="metier-ray-")  # short: sockets lie below it
            try:
                ray.init(
                    address=LOCAL,
                    num_cpus=cores,
                    num_gpus=torch.cuda.device_count(),
                    object_store_memory=OBJECTS,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=self._folder,
                )
            except Exception as error:  # Ray's own is of no other class
                ray.shutdown()
                shutil.rmtree(self._folder, ignore_errors=True)
                if "timed out" not in str(error):
                    raise
                if not left:
                    cure = "look what else this machine is busy with, and run the same command again"
                    raise TrainingError("Ray did not start in time", value=str(error)[:200], cure=cure) from error
            else:
                return

    def _connect(self) -> None:
        import ray
        from ray.exceptions import RayError

        found = ADDRESS.fullmatch(self.on)
        if found is not None:
            self._knock(found["host"].strip("[]"), int(found["port"]))
        try:
            ray.init(address=self.on, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
            raise self._refused(error) from error

    def _knock(self, host: str, port: int) -> None:
        """Ray itself tries for minutes."""
        try:
            socket.create_connection((host, port), CONNECT_SECONDS).close()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> InputError:
        text = " ".join(str(error).split())
        if "ersion mismatch" in text:
            what, cure = "the cluster runs another version of Ray or Python", SAME
        elif "uthentic" in text or "token" in text.lower():
            what, cure = "the cluster does not let us in", AS_THERE
        elif isinstance(error, ConnectionError) and "Failed to connect to Ray cluster" in text:
            what = "something answers there, but it is no head of a Ray cluster, or does not let us in"
            cure = f"name the port that ray start --head tells; {AS_THERE}"
        else:
            what = "no Ray answers there" if self.on != AUTO else "this machine belongs to no Ray cluster"
            cure = "start it (ray start --head), look whether this machine reaches it, or run with --on local"
        return InputError(f"{what} ({text[:160]})", where="--on", value=self.on, cure=cure)

    # ---- looking at it -------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Raise InputError or StoreError where the machines do not fit together or do not see the store."""
        self._store.running.mkdir(parents=True, exist_ok=True)
        token = self._store.running / f"{secrets.token_hex(8)}.seen"
        token.touch()
        try:
            check_nodes(ask(self.nodes, str(token.absolute())), self._store)
        finally:
            token.unlink(missing_ok=True)


def check_address(on: str) -> None:
    """Raise InputError for what is no address of a cluster."""
    if on in (LOCAL, AUTO):
        return
    found = ADDRESS.fullmatch(on)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise InputError("this is no address of a Ray cluster", where="--on", value=on, cure=WRITE)


def nodes() -> tuple[Node, ...]:
    """The machines of the cluster that are alive."""
    import ray

    return tuple(
        Node(one["NodeID"], one["NodeManagerHostname"], {k: one["Resources"].get(k, 0.0) for k in TAKEN})
        for one in ray.nodes()
        if one["Alive"]
    )


TAKEN = ("CPU", "GPU", "memory")


def places(found: Sequence[Node], each: Mapping[str, float]) -> int:
    """How many workers that take so much there is room for, each on one machine."""
    return sum(
        min((int(node.has.get(name, 0.0) / value) for name, value in each.items() if value), default=1)
        for node in found
    )


def shown(resources: Mapping[str, float]) -> str:
    """`2 CPUs, 1 GPU, 16.0 GB`."""
    said = [f"{n:g} {name}{'' if n == 1 else 's'}" for name in ("CPU", "GPU") if (n := resources.get(name, 0.0))]
    if memory := resources.get("memory", 0.0):
        said.append(f"{memory / 1e9:.1f} GB")
    return ", ".join(said) or "nothing"


def _many(count: int) -> str:
    return "a worker" if count == 1 else f"{count} workers"


def ask(found: Sequence[Node], token: str) -> list[dict[str, Any]]:
    """What each machine says of itself, the one with the head first; `error` where it could not."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    said = []
    for node in found:
        place = NodeAffinitySchedulingStrategy(node.id, soft=False)
        said.append(ray.remote(num_cpus=0, max_retries=1, scheduling_strategy=place)(asked()).remote(token))
    answers: list[dict[str, Any]] = []
    for node, one in zip(found, said, strict=True):
        try:
            answers.append({**ray.get(one, timeout=LOOK_SECONDS), "host": node.host})
        except (RayError, TimeoutError) as error:
            answers.append({"host": node.host, "error": " ".join(str(error).split())[:200]})
    return answers


def asked() -> Callable[[str], dict[str, Any]]:
    """What is run on each machine. It goes there whole, as Metier may not be there."""

    def look(token: str) -> dict[str, Any]:
        import time

        try:
            from metier.scale.link import hello
        except ImportError as error:
            return {"error": f"Metier cannot be imported ({error})"}
        until = time.monotonic() + 10.0
        while not (seen := Path(token).exists()) and time.monotonic() < until:
            time.sleep(0.2)
        return {**hello(), "sees": seen}

    return look


def check_nodes(answers: Sequence[Mapping[str, Any]], store: Store) -> None:
    """Raise InputError where machines lack Metier or have other versions than this process, StoreError where one does
    not see the store."""
    from metier.scale.link import hello

    if wrong := [f"{one['host']}: {one['error']}" for one in answers if "error" in one]:
        raise InputError(
            "machines of the cluster cannot run Metier", where="--on", value="; ".join(wrong), cure=f"{SAME} there"
        )
    compare([hello(), *map(dict, answers)])
    if blind := sorted({one["host"] for one in answers if not one["sees"]}):
        raise StoreError(
            f"{', '.join(blind)} {'does' if len(blind) == 1 else 'do'} not see the store",
            where=str(store.root.absolute()),
            cure="put the store on a file system that all machines mount at the same place: --store DIR",
        )


@contextlib.contextmanager
def _handlers() -> Iterator[None]:
    """Ray takes over a signal that asks a run to stop: give it back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def lost(error: Exception) -> TrainingError:
    """A cluster that is no longer there, as the run says it."""
    return TrainingError(
        "the Ray cluster is lost",
        value=" ".join(str(error).split())[:200],
        cure="run the same command again: it goes on from the last checkpoint",
    )
