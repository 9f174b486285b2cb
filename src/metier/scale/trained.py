"""A step on a Ray cluster: a task of its own, or, where it trains, a Ray Train job whose workers are a team.

The first worker of a team writes where the step writes.

Ray places and starts the workers, forms their group and notices when one is lost. It then starts all of them again, and
the stage goes on from its own last checkpoint, as it does after any stop: on the same number of workers with the same
bits. Nothing is kept in Ray. What the stage says on the way (events, its result, why it gave up) goes through an actor
that this process asks four times a second, and a request to stop goes back on the same way.

An error that would come again (bad data, a loss that is not finite) ends the job at once; only what may have been a
worker's death is tried again.
"""

import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metier.core.errors import Interrupted, TrainingError
from metier.core.events import Event, Events
from metier.core.measure import PeakMemory
from metier.core.stage import STOP, Context, Stage
from metier.core.team import Ran, Team
from metier.core.workers import SPREAD
from metier.scale.board import Board
from metier.scale.crew import GO_ON, of_group, told
from metier.scale.link import PATIENCE, backend, failure, raised, threads
from metier.scale.spread import RaySpread, options, ours

if TYPE_CHECKING:
    from metier.scale.cluster import Cluster

LOOK_SECONDS = 0.25
SLOW_SECONDS = 30.0
"""From when on a job that has no worker says so."""
RESTARTS = 5
RAY_FOLDER = "ray"
LAST_WORDS = 5.0


def train(cluster: "Cluster", stage: Stage, ctx: Context, count: int, each: Mapping[str, float]) -> Ran:
    """Run a step with so many workers, each with these resources, as a Ray Train job.

    Raises what the stage raises, Interrupted where that was asked for, and TrainingError where workers are lost more
    often than they may be.
    """
    import ray

    if stage.preparation(ctx) is not None:
        alone(cluster, stage, ctx, {"CPU": 0.0}, _every_cpu(cluster), prepare=True)
    folder = ctx.scratch.absolute() / RAY_FOLDER
    asked = {"workers": count, "each": dict(each), "restarts": _restarts(stage), "storage": str(folder)}

    def start(job: dict[str, Any]) -> Any:
        return ray.remote(conduct).options(num_cpus=0, max_retries=0).remote(job, asked)

    try:
        return _followed(start, stage, ctx, _Watch(cluster, ctx, count, each), None)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def alone(
    cluster: "Cluster",
    stage: Stage,
    ctx: Context,
    each: Mapping[str, float],
    spread: RaySpread | None,
    *,
    prepare: bool = False,
) -> Ran:
    """Run a step in one process of the cluster that takes this much; spread: who helps it. prepare: only what may be
    done before it. Raises as `train`."""
    import ray

    asked = options(each) | {"max_retries": _restarts(stage)}

    def start(job: dict[str, Any]) -> Any:
        return ray.remote(carry_out).options(**asked).remote({**job, "prepare": prepare})

    return _followed(start, stage, ctx, _Watch(cluster, ctx, 1, each), spread)


def _every_cpu(cluster: "Cluster") -> RaySpread:
    """All CPUs of the cluster, one a worker."""
    return RaySpread(max(1, int(sum(node.has.get("CPU", 0.0) for node in cluster.nodes))), False)


def _restarts(stage: Stage) -> int:
    return RESTARTS if stage.resources is None or stage.resources.restarts is None else stage.resources.restarts


def _followed(
    start: Callable[[dict[str, Any]], Any], stage: Stage, ctx: Context, watch: "_Watch", spread: RaySpread | None
) -> Ran:
    """Start a job, pass on what it says, and give what it made."""
    import ray
    from ray.exceptions import RayError

    from metier.scale.cluster import lost

    board = ray.remote(Board).options(num_cpus=0, max_restarts=0).remote()
    place = str(ctx.out.parent.absolute())
    job = {"told": told(stage, ctx), "folder": place, "board": board, "env": ours(), "spread": spread}
    running = start({**job, "prepare": False})
    try:
        while True:
            finished, _ = ray.wait([running], timeout=LOOK_SECONDS)
            found = ray.get(board.look.remote(ctx.stop()))
            watch.hear(found)
            if finished:
                return _result(found, _ending(running), ctx, watch)
    except RayError as error:
        raise lost(error) from error
    finally:
        with contextlib.suppress(RayError):
            ray.cancel(running, force=True)
            ray.kill(board)


def _ending(running: Any) -> str | None:
    """Why a job ended, where that is no result."""
    import ray
    from ray.exceptions import RayError

    try:
        why = ray.get(running)
    except RayError as error:
        return " ".join(str(error).split())[:400]
    return None if why is None else str(why)


def _result(found: Mapping[str, Any], error: str | None, ctx: Context, watch: "_Watch") -> Ran:
    if found["failed"] is not None:
        rank, said = found["failed"]
        if said["kind"] == "Interrupted":
            ctx.check_stop()
            raise Interrupted(said["what"], cure=said.get("cure"))
        raise raised(rank, said)
    if found["done"] is None:
        what = f"workers were lost {watch.times} times, more often than resources.restarts allows"
        raise TrainingError(
            what if watch.times else "the workers could not be started", value=error, where="resources", cure=GO_ON
        )
    return Ran(found["done"]["metrics"], found["done"]["peak_bytes"])


@dataclass
class _Watch:
    """Passes on what the workers say, and says itself what becomes of them."""

    cluster: "Cluster"
    ctx: Context
    count: int
    each: Mapping[str, float]
    times: int = 0
    _running: dict[int, dict[str, Any]] = field(default_factory=dict)
    _told_slow: bool = False

    def hear(self, found: Mapping[str, Any]) -> None:
        """Raises TrainingError where no worker has been heard of for too long."""
        for who in found["starts"]:
            self._begin(who)
        for event in found["events"]:
            self.ctx.events.pass_on(event)
        if found["done"] is None and found["failed"] is None:
            self._check_silence(float(found["silent"]))

    def _begin(self, who: dict[str, Any]) -> None:
        if not self._running:
            self.times += 1
            if self.times > 1:
                self.ctx.events.warning(
                    f"a worker was lost: {'all begin' if self.count > 1 else 'the step begins'} again from what was "
                    f"kept last (time {self.times - 1})"
                )
        self._running[who["rank"]] = who
        if len(self._running) == self.count:
            workers = [self._running[rank] for rank in sorted(self._running)]
            self.ctx.events.emit("workers", workers=workers)
            self._running = {}
            self._told_slow = False

    def _check_silence(self, seconds: float) -> None:
        from metier.scale.cluster import nodes, shown

        patience = float(os.environ.get("METIER_PATIENCE", PATIENCE))
        if seconds < min(SLOW_SECONDS, patience) or (self._told_slow and seconds < patience):
            return
        wanted = f"{self.count} x {shown(self.each)}"
        has = "; ".join(f"{node.host}: {shown(node.has)}" for node in nodes())
        gone = sorted({node.host for node in self.cluster.nodes} - {node.host for node in nodes()})
        where = f" ({', '.join(gone)} has disappeared)" if gone else ""
        if seconds >= patience:
            raise TrainingError(
                f"no worker was heard of for {seconds:.0f} s{where}: {wanted} find no room, or do not start",
                where="resources",
                value=has,
                cure=f"bring the machines back, or ask for less; then {GO_ON}",
            )
        self._told_slow = True
        self.ctx.events.note(f"waiting for workers{where}: {wanted} of {has}")


# ---- on the cluster --------------------------------------------------------------------------------------------------


def conduct(job: dict[str, Any], asked: Mapping[str, Any]) -> str | None:
    """A task beside the workers: the job from its start to its end. Returns why it ended, where that is no result."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    each = asked["each"]
    trainer = TorchTrainer(
        work,
        train_loop_config=job,
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if each.get("GPU") else "gloo",
            timeout_s=int(float(os.environ.get("METIER_PATIENCE", PATIENCE))),
        ),
        scaling_config=ScalingConfig(
            num_workers=asked["workers"], use_gpu=bool(each.get("GPU")), resources_per_worker=each
        ),
        run_config=RunConfig(
            name=f"{time.time_ns():x}",
            storage_path=asked["storage"],
            failure_config=FailureConfig(max_failures=asked["restarts"]),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        return " ".join(str(error).split())[:400]
    return None


def work(job: dict[str, Any]) -> None:
    """One worker of a Ray Train job: the stage, with its place among the others."""
    import ray.train
    import torch

    place = ray.train.get_context()
    team = Team(place.get_world_rank(), place.get_world_size(), place.get_local_world_size())
    if torch.cuda.is_available():
        backend(1)
    torch.set_num_threads(threads(team.local_size))
    carry_out(job, team)


def carry_out(job: dict[str, Any], team: Team = Team(0, 1, 1)) -> None:  # noqa: B008 - frozen
    """A step, or what prepares it, in this process. What comes of it is told to the board; raises only what may be
    another process's death."""
    import ray

    from metier.scale.follow import check_sources, context

    board = job["board"]
    os.environ.update(job["env"])
    ray.get(board.start.remote({"rank": team.rank, "host": socket.gethostname(), "process": os.getpid()}))
    try:
        with _place(job, team.rank) as folder, _line(board, job["told"]["step"], team.rank) as (events, stop):
            tokens = STOP.set(stop), SPREAD.set(job["spread"])
            try:
                stage, ctx = context(job["told"], folder, team if team.size > 1 else None, stop, events)
                check_sources(ctx)
                with PeakMemory() as memory:
                    metrics = _prepared(stage, ctx) if job["prepare"] else stage.run(ctx)
            finally:
                STOP.reset(tokens[0])
                SPREAD.reset(tokens[1])
        if team.rank == 0:
            ray.get(board.finish.remote({"metrics": dict(metrics), "peak_bytes": memory.peak_bytes}))
    except BaseException as error:  # raised again where the recipe runs
        if team.size > 1 and _may_be_a_death(error):
            until = time.monotonic() + LAST_WORDS
            while ray.get(board.failed.remote()) is None:  # else another has said why
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
            return
        ray.get(board.fail.remote(team.rank, failure(error)))


def _prepared(stage: Stage, ctx: Context) -> Mapping[str, float]:
    work = stage.preparation(ctx)
    if work is not None:
        work()
    return {}


def _may_be_a_death(error: BaseException) -> bool:
    """Whether an error is how a worker notices that another one is gone."""
    import torch.distributed as dist
    from ray.exceptions import RayError

    if not dist.is_initialized():  # Ray has ended the group already, in the midst of whatever this worker did
        return True
    return isinstance(error, dist.DistError | RayError | ConnectionError) or (
        isinstance(error, RuntimeError) and of_group(str(error))
    )


@contextlib.contextmanager
def _place(job: Mapping[str, Any], rank: int) -> Iterator[Path]:
    """Where a worker writes: the first into the step's workspace, the others where nobody reads."""
    if rank == 0:
        folder = Path(job["folder"])
        for name in ("files", "measured"):  # of a worker that was lost
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir(parents=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="metier-") as name:
        yield Path(name)


@contextlib.contextmanager
def _line(board: Any, step: str, rank: int) -> Iterator[tuple[Events, Callable[[], bool]]]:
    """The first worker's events, passed on by a thread, and whether the run was asked to stop."""
    import ray

    waiting: list[Event] = []
    lock, over, stop = threading.Lock(), threading.Event(), threading.Event()

    def keep(event: Event) -> None:
        with lock:
            waiting.append(event)

    def exchange() -> None:
        with lock:
            ready, waiting[:] = list(waiting), []
        if ray.get(board.exchange.remote(ready)):
            stop.set()

    def loop() -> None:
        while not over.wait(LOOK_SECONDS):
            exchange()

    thread = threading.Thread(target=loop, name="line", daemon=True)
    thread.start()
    try:
        yield Events(step, listeners=[keep] if rank == 0 else []), stop.is_set
    finally:
        over.set()
        thread.join()
        exchange()
