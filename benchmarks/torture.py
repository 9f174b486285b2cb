"""Harms a small run in every way that we know, and counts what survives: `python -m benchmarks.torture [PART...]`.

kills     SIGKILL at random moments of the whole run, and amid saving
corrupt   every single byte of a checkpoint's files changed, and every file cut at every length
full      the disk is full from each write of the run on; files that may not grow past a size; a tmpfs of each size
signals   SIGINT, SIGTERM, SIGUSR1 and the time limit in each kind of loop
races     two runs on one store
moved     a store that is moved while a run is stopped; files and folders that are removed underneath
cost      what saving costs at the default interval (a few minutes, on a quiet machine)

After each fault the store must be whole to the byte, and the run, started again, must end with the same files as one
that nothing happened to. `--short` tries a few of each, in seconds, writes no results and exits 1 where anything is
lost. Rows go to `benchmarks/results/reliability.json`: how many faults were lost, of how many tried.
"""

import argparse
import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, write
from benchmarks.small_run import (
    World,
    doing,
    events,
    finish,
    fork,
    is_sound,
    kill,
    make_world,
    outputs,
    preload,
    said,
    start,
    timed,
    wait,
)
from metier.cli.stopping import StopFlag
from metier.core.errors import MetierError
from metier.core.events import Event

SEED = 2026
Found = Counter[tuple[str, bool]]
"""Faults tried, by what was going on and whether the run survived."""


class Torture:
    """One world, the outputs of its undisturbed run, and fresh stores in it."""

    def __init__(self, folder: Path, *, short: bool) -> None:
        self.short = short
        self.draw = random.Random(SEED)
        self.world = make_world(folder / "world", short=short)
        self._numbers = itertools.count()
        code = preload(self.world, first := self.fresh())
        self.world.log.unlink(missing_ok=True)
        store = self.fresh()
        self.began = time.time()
        with timed() as took:
            code = code or finish(self.world, store)
        if code != 0:
            sys.exit(f"the undisturbed run failed with {code}:\n{said(self.world, store)}")
        self.seconds = took[0]
        self.story = events(self.world)
        self.wanted = outputs(store)
        if outputs(first) != self.wanted:
            sys.exit("two undisturbed runs differ")
        self.reference = store

    def fresh(self) -> Path:
        """A store that is not there yet."""
        self.world.log.unlink(missing_ok=True)
        return self.world.folder / f"store{next(self._numbers)}"

    def survives(self, store: Path, what: str) -> bool:
        """Whether all that is there is whole, and the run goes on to the same end."""
        problem = ""
        if store.exists() and not is_sound(store):
            problem = "something in the store is not whole"
        elif (code := finish(self.world, store)) != 0:
            problem = f"the next run ended with {code}: {said(self.world, store)[-2000:]}"
        elif outputs(store) != self.wanted:
            made = outputs(store)
            problem = f"other outputs: {[name for name in self.wanted if made.get(name) != self.wanted[name]]}"
        elif not is_sound(store):
            problem = "something in the finished store is not whole"
        if problem:
            print(f"LOST after {what} ({store}): {problem}", flush=True)
        else:
            shutil.rmtree(store)
        return not problem


def kills(torture: Torture, count: int) -> Found:
    """SIGKILL, at moments drawn evenly over the run's time; a fifth of them once it is saving."""
    found: Found = Counter()
    saving = [place for place, event in enumerate(torture.story) if event["event"] == "saving"]
    while sum(found.values()) < count:
        store = torture.fresh()
        pid = start(torture.world, store)
        if sum(found.values()) % 5 == 0:
            _wait_for_event(torture.world, pid, torture.draw.choice(saving))
            time.sleep(torture.draw.random() * 0.004)
        else:
            _wait_for_moment(torture, pid)
        if not kill(pid):
            shutil.rmtree(store, ignore_errors=True)
            continue
        at = doing(torture.world)
        found[at, torture.survives(store, f"SIGKILL in {at}")] += 1
    return found


def _wait_for_moment(torture: Torture, pid: int) -> None:
    """Wait for a moment drawn evenly over the time of the undisturbed run.

    A moment is an event and a while after it, so that a run which is slowed down or paused is met everywhere too.
    """
    times = [torture.began, *(event["time"] for event in torture.story if "time" in event)]
    told = [place for place, event in enumerate(torture.story) if "time" in event]
    moment = torture.draw.uniform(times[0], times[-1])
    before = sum(time <= moment for time in times[1:])
    if before:
        _wait_for_event(torture.world, pid, told[before - 1])
    time.sleep(moment - times[before])


def _wait_for_event(world: World, pid: int, place: int) -> None:
    """Wait until the run told its event at this place (from 0), or ended."""
    while not world.log.exists() or world.log.read_bytes().count(b"\n") <= place:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.002)


def corrupt(torture: Torture, step: int) -> Found:
    """Change every `step`-th byte of a checkpoint of the run, and cut every file at every `step`-th length."""
    found: Found = Counter()
    for _ in range(1 if torture.short else 30):
        store = torture.fresh()
        kept = _last_checkpoint(torture, store)
        _change_a_byte(torture.draw.choice(sorted(kept.iterdir())), torture.draw)
        found["the one before is used", torture.survives(store, f"a changed byte of {kept.name}")] += 1
    return found + _corrupt(_last_checkpoint(torture, torture.fresh()), step, torture.draw)


def _last_checkpoint(torture: Torture, store: Path) -> Path:
    """That of a run that was killed amid training."""
    nth = torture.draw.randint(3, 6)
    finish(torture.world, store, hear=_after(nth, "adapter", "train", lambda: os.kill(os.getpid(), signal.SIGKILL)))
    found = (store / "scratch").rglob("checkpoint-*/manifest.json")
    return max(found, key=lambda path: int(path.parent.name.rpartition("-")[2])).parent


def _change_a_byte(path: Path, draw: random.Random) -> None:
    good = bytearray(path.read_bytes())
    good[draw.randrange(len(good))] ^= draw.randint(1, 255)
    path.write_bytes(good)


def _corrupt(kept: Path, step: int, draw: random.Random) -> Found:
    from metier.train.checkpoint import damage

    assert damage(kept) is None
    found: Found = Counter()
    for path in sorted(kept.iterdir()):
        good = path.read_bytes()
        first = draw.randrange(step)
        with path.open("r+b") as file:
            for place in range(first, len(good), step):
                os.pwrite(file.fileno(), bytes([good[place] ^ draw.randint(1, 255)]), place)
                found[f"byte of {path.name}", damage(kept) is not None] += 1
                os.pwrite(file.fileno(), good[place : place + 1], place)
            for length in range(len(good) - 1, -1, -step):
                file.truncate(length)
                found[f"{path.name} cut", damage(kept) is not None] += 1
        path.write_bytes(good)
        path.rename(path.with_name("away"))
        found[f"{path.name} away", damage(kept) is not None] += 1
        path.with_name("away").rename(path)
    assert damage(kept) is None
    return found


# ---- a full disk ---------------------------------------------------------------------------------------------------


def starve(nth: int, folder: Path, count: Path | None = None) -> None:
    """From the `nth` file opened for writing, folder made, rename or flush below `folder` on, the disk is full.

    count: where each of them is counted, by a byte; then none fails.
    """
    done = itertools.count(1)
    ticks = None if count is None else os.open(count, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name not in ("open", "os.mkdir", "os.rename"):
            return
        if name == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        place = arguments[1] if name == "os.rename" else arguments[0]
        if not isinstance(place, str | os.PathLike) or not str(os.fspath(place)).startswith(str(folder)):
            return
        if ticks is not None:
            os.write(ticks, b".")
        elif next(done) >= nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))

    sys.addaudithook(hook)  # a forked process of its own: hooks cannot be taken back


def full(torture: Torture, most: int) -> Found:
    """The disk is full from each write on, or from `most` of them, evenly spaced; and in two other ways."""
    found: Found = Counter()
    count = torture.world.folder / "writes"
    store = torture.fresh()
    finish(torture.world, store, before=partial(starve, 0, store, count))
    writes = count.stat().st_size
    for nth in _spread(1 if most > 1 else writes // 2, writes, most):
        store = torture.fresh()
        code = finish(torture.world, store, before=partial(starve, nth, store))
        found["a write", _starved(torture, store, code, f"write {nth} of {writes} on")] += 1
    largest = max(path.stat().st_size for path in torture.reference.rglob("*") if path.is_file())
    for size in _spread(2_000 if most > 1 else largest // 2, largest, (most + 9) // 10):
        store = torture.fresh()
        code = finish(torture.world, store, before=partial(_limit, size))
        found["a file past a size", _starved(torture, store, code, f"files of more than {size} bytes")] += 1
    return found + _tmpfs(torture, (most + 9) // 10)


def _spread(low: int, high: int, most: int) -> Iterator[int]:
    count = min(most, high - low + 1)
    yield from sorted({low + (high - low) * place // max(1, count - 1) for place in range(count)})


def _limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _starved(torture: Torture, store: Path, code: int, what: str) -> bool:
    """Whether the message was clear, and all goes on when there is room again."""
    text = said(torture.world, store)
    if code not in (0, 1) or (code == 1 and not ("cannot write the store" in text and "cure:" in text)):
        print(f"LOST, {what}: exit code {code}, {text[-2000:]}", flush=True)
        return False
    return torture.survives(store, what)


def _tmpfs(torture: Torture, most: int) -> Found:
    """A real full disk: a file system in memory of each size, where this machine lets us make one."""
    found: Found = Counter()
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        return found
    used = sum(path.stat().st_size for path in torture.reference.rglob("*") if path.is_file())
    for size in _spread(16_384 if most > 1 else used // 2, used, most):
        store = torture.fresh()
        code = wait(fork(partial(_on_small_disk, torture, store, size), torture.world.folder / f"{store.name}.err"))
        if code != 0:
            print(f"LOST on a disk of {size} bytes: {said(torture.world, store)[-2000:]}", flush=True)
        found["a full file system", code == 0] += 1
        shutil.rmtree(store, ignore_errors=True)
    return found


def _on_small_disk(torture: Torture, store: Path, size: int) -> int:
    """In a process of its own: run until the disk is full, make it larger, and go on."""
    from benchmarks.small_run import go

    _mount(size, store)
    code = go(torture.world, store)
    clear = code == 0 or (code == 1 and "cannot write the store" in said(torture.world, store))
    whole = is_sound(store)
    _mount(256_000_000, store, again=True)
    after = go(torture.world, store)
    same = after == 0 and outputs(store) == torture.wanted and is_sound(store)
    print(f"exit code {code}, told {clear}, whole {whole}, then {after}, the same {same}", file=sys.stderr)
    return 0 if clear and whole and same else 98


def _mount(size: int, store: Path, *, again: bool = False) -> None:
    """Mount a small file system at the store, for this process alone; again: change its size."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size}".encode()
    if again:
        if libc.mount(b"tmpfs", str(store).encode(), b"tmpfs", 32, options):  # MS_REMOUNT
            raise OSError(ctypes.get_errno(), "remount")
        return
    user, group = os.getuid(), os.getgid()
    if libc.unshare(0x10000000 | 0x00020000):  # CLONE_NEWUSER | CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    store.mkdir()
    if libc.mount(b"tmpfs", str(store).encode(), b"tmpfs", 0, options):
        raise OSError(ctypes.get_errno(), "mount")


# ---- signals -------------------------------------------------------------------------------------------------------

LOOPS: dict[str, Callable[[Event], bool]] = {
    "data": lambda e: e["step"] in ("texts", "pairs") and e["event"] == "progress",
    "synthesis": lambda e: e["step"] == "recalled" and e["event"] == "progress",
    "tokens": lambda e: e["event"] == "progress" and str(e.get("task", "")).startswith("encode"),
    "cache building": lambda e: e["step"] == "reader" and e["event"] == "train" and e["at"] <= e["total"] / 2,
    "training": lambda e: e["step"] == "adapter" and e["event"] == "train",
    "dev loss": lambda e: e["event"] == "dev",
    "generation": lambda e: e["event"] == "answers_so_far" and e["done"] < e["total"],
    "choosing": lambda e: e["step"] == "choices" and e["event"] == "progress",
    "scores": lambda e: e["step"] == "scores" and e["event"] == "started",
    "likelihood": lambda e: e["step"] == "likelihood" and e["event"] == "progress",
}
"""Each kind of loop by the events that it tells."""
WAYS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, None)
"""None: the time limit."""


def signals(torture: Torture, count: int) -> Found:
    """In each kind of loop, `count` times: the run stops with 75 and goes on to the same end."""
    found: Found = Counter()
    turns = itertools.count()
    for name, is_in in list(LOOPS.items())[:: 4 if torture.short else 1]:
        places = sum(map(is_in, torture.story))
        if not places:
            print(f"LOST: the run has no loop of the kind {name}")
            found[name, False] += 1
        for turn in range(count if places else 0):
            found[name, _stopped(torture, name, is_in, turn % places + 1, WAYS[next(turns) % len(WAYS)])] += 1
    return found


def _stopped(torture: Torture, name: str, is_in: Callable[[Event], bool], nth: int, way: signal.Signals | None) -> bool:
    store = torture.fresh()
    flag = StopFlag(minutes=60)
    left = itertools.count(1)

    def hear(event: Event) -> None:
        if is_in(event) and next(left) == nth:
            if way is None:
                flag._deadline = 0.0
            else:
                os.kill(os.getpid(), way)

    code = finish(torture.world, store, hear=hear, flag=flag)
    last = not any(is_in(event) for event in _rest(torture.story, is_in, nth))
    if code != 75 and not (code == 0 and last):
        told = said(torture.world, store)
        print(f"LOST: {way or 'time limit'} in {name} ended with {code}: {told[-2000:]}", flush=True)
        return False
    return torture.survives(store, f"{way or 'time limit'} in {name}")


def _rest(story: list[Event], is_in: Callable[[Event], bool], nth: int) -> list[Event]:
    places = [place for place, event in enumerate(story) if is_in(event)]
    return story[places[nth - 1] + 1 :]


def _after(nth: int, step: str, event: str, act: Callable[[], None]) -> Callable[[Event], None]:
    left = itertools.count(1)

    def hear(one: Event) -> None:
        if one["step"] == step and one["event"] == event and next(left) == nth:
            act()

    return hear


# ---- others --------------------------------------------------------------------------------------------------------


def races(torture: Torture, count: int) -> Found:
    """Two runs on one store, the second a little later: each step is made once, and both end well."""
    found: Found = Counter()
    for turn in range(count):
        store = torture.fresh()
        first = start(torture.world, store)
        time.sleep(torture.draw.random() * torture.seconds * (turn % 4) / 4)
        codes = [wait(start(torture.world, store)), wait(first)]
        made = Counter(event["step"] for event in events(torture.world) if event["event"] == "finished")
        well = codes == [0, 0] and set(made.values()) == {1} and len(made) == len(torture.wanted)
        if not well:
            print(f"LOST in a race: exit codes {codes}, made {dict(made)}, {said(torture.world, store)}", flush=True)
        found["two runs", torture.survives(store, "a race") and well] += 1
    return found


def moved(torture: Torture, count: int) -> Found:
    """Stop somewhere; move the store, or remove a file from it; go on."""
    found: Found = Counter()
    for turn in range(count):
        store = torture.fresh()
        pid = start(torture.world, store)
        time.sleep(torture.draw.random() * torture.seconds)
        os.kill(pid, signal.SIGTERM)
        wait(pid)
        elsewhere = torture.world.folder / "elsewhere" / store.name
        elsewhere.parent.mkdir(exist_ok=True)
        if store.exists():
            store.rename(elsewhere)
        found["a moved store", torture.survives(elsewhere, "a move")] += 1
        found["something removed", _removed(torture, turn)] += 1
    return found


def _removed(torture: Torture, turn: int) -> bool:
    """Take a file out of a finished store: what it belongs to is made again, or its damage is named."""
    store = torture.fresh()
    shutil.copytree(torture.reference, store)
    files = sorted(path for path in (store / "objects").glob("*/files/**/*") if path.is_file())
    victim = files[turn * 7919 % len(files)]
    victim.unlink()
    if (code := finish(torture.world, store)) != 0:
        print(f"LOST without {victim}: {code}, {said(torture.world, store)}", flush=True)
        return False
    return torture.survives(store, f"the removal of {victim.name}")


def cost(torture: Torture) -> list[Row]:
    """The share of the time of training that saving takes, at the default interval, on the seedling's whole weights."""
    out = torture.world.folder / "cost.json"
    code = wait(fork(partial(_cost, torture.world.folder / "cost", out), torture.world.folder / "cost.err"))
    if code != 0:
        sys.exit((torture.world.folder / "cost.err").read_text())
    told = json.loads(out.read_text())
    what = f"{told['saves']} checkpoints of {told['bytes'] / 1e6:.0f} MB in {told['seconds']:.0f} s of training"
    case = f"checkpoints: {what} (seedling, whole weights, default interval)"
    return [Row(case, told["share"], 0.03, "of training time", "lower")]


def _cost(folder: Path, out: Path) -> int:
    import metier.train.job as job
    from metier.core.store import Store
    from metier.pipeline import run
    from metier.recipe import load_recipe

    saved: list[float] = []
    size = 0

    class Timed(job.Checkpoints):
        def save(self, step: int, tensors: Any, state: Any) -> None:
            nonlocal size
            began = time.monotonic()
            super().save(step, tensors, state)
            saved.append(time.monotonic() - began)
            size = sum(path.stat().st_size for path in (self.folder / f"checkpoint-{step}").iterdir())

    job.Checkpoints = Timed  # type: ignore[misc]
    folder.mkdir()
    draw = random.Random(0)
    words = [f"word{number}" for number in range(500)]
    rows = [{"text": " ".join(draw.choices(words, k=150))} for _ in range(4000)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(
        "name: cost\nsteps:\n  texts: {kind: documents, sources: [{path: texts.jsonl}]}\n"
        "  reader: {kind: pretrain, model: seedling, documents: texts, learning_rate: 1.0e-3}\n"
    )
    began = [0.0]

    def hear(event: Event) -> None:
        if event["event"] == "train" and not began[0]:
            began[0] = time.monotonic()
            stop._deadline = began[0] + 200

    with StopFlag(minutes=60) as stop:
        try:
            run(load_recipe(folder / "recipe.yaml"), Store(folder / "store"), listeners=[hear], stop=stop)
        except MetierError as error:
            if error.exit_code != 75:
                raise
            saved.pop()  # the one that was asked for
    seconds = time.monotonic() - began[0]
    out.write_text(json.dumps({"share": sum(saved) / seconds, "seconds": seconds, "saves": len(saved), "bytes": size}))
    return 0


# ---- all of it -----------------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[Callable[[Torture, int], Found], int, int]] = {
    "kills": (kills, 200, 2),
    "corrupt": (corrupt, 1, 4001),
    "full": (full, 1000, 1),
    "signals": (signals, 20, 1),
    "races": (races, 50, 1),
    "moved": (moved, 20, 1),
}
"""Each part, and how many faults of a kind it tries in the long form and in the short one; corrupt: the stride."""
CASES = {
    "kills": "SIGKILL at random moments",
    "corrupt": "changed bytes and cuts of a checkpoint not noticed",
    "full": "a full disk",
    "signals": "a request to stop in each kind of loop",
    "races": "two runs on one store",
    "moved": "a moved store, or a file removed from it",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join([*PARTS, "cost"]))
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--count", type=int, help="instead of the usual number")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - {*PARTS, "cost"}:
        parser.error(f"unknown: {unknown.pop()}")
    with tempfile.TemporaryDirectory(prefix="metier-torture-") as folder:
        torture = Torture(Path(folder), short=asked.short)
        lost = sum(_part(torture, name, asked) for name in asked.parts or PARTS)
    if lost:
        sys.exit(f"{lost} lost")


def _part(torture: Torture, name: str, asked: argparse.Namespace) -> int:
    if name == "cost":
        write("reliability", "python -m benchmarks.torture cost", cost(torture))
        return 0
    try_it, long, short = PARTS[name]
    found = try_it(torture, asked.count or (short if asked.short else long))
    tried, lost = sum(found.values()), sum(count for (_, survived), count in found.items() if not survived)
    for what in sorted({what for what, _ in found}):
        good, bad = found[what, True], found[what, False]
        print(f"{name:8} {what:28} {good + bad:7} tried {good:7} survived", flush=True)
    print(json.dumps({"part": name, "tried": tried, "lost": lost}), flush=True)
    if not asked.short and asked.count is None:
        row = Row(f"{CASES[name]}: lost, of {tried} tried", lost, 0, "faults", "lower", n=tried)
        write("reliability", f"python -m benchmarks.torture {name}", [row])
    return lost


if __name__ == "__main__":
    main()
