"""Faults that a small run has to survive: a killed process, a damaged checkpoint, a second run, a store that changed.

A fault is a function that does the harm, looks whether everything was survived, and says so. Faults of full disks are
in `full_disk`, requests to stop in `stopping`; `torture` tries them all and counts.
"""

import itertools
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.small_run import (
    World,
    doing,
    events,
    finish,
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
from metier.core.events import Event
from metier.core.store import Store

SEED = 2026
Found = Counter[tuple[str, bool]]
"""Faults tried, by what was going on and whether the run survived."""
Fault = Callable[[], Found]


class Torture:
    """One world, the outputs of its undisturbed run, and fresh stores in it."""

    def __init__(self, folder: Path, *, short: bool = False, wide: bool = False) -> None:
        self.short = short
        self.draw = random.Random(SEED)
        self.world = make_world(folder / "world", short=short, wide=wide)
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

    def without(self, steps: tuple[str, ...]) -> Path:
        """A store in which all is made but these steps, and nothing is kept that they could go on from."""
        store = self.fresh()
        shutil.copytree(self.reference, store)
        for step in steps:
            for key in self.wanted[step]:
                shutil.rmtree(Store(store).objects / key)
            (store / "refs" / "small" / step).unlink()
        shutil.rmtree(Store(store).cache, ignore_errors=True)
        return store

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


def kills(torture: Torture, count: int) -> list[Fault]:
    """SIGKILL, at moments drawn evenly over the run's time; a fifth of them once it is saving."""
    return [partial(_killed, torture, saving=number % 5 == 0) for number in range(count)]


def _killed(torture: Torture, *, saving: bool) -> Found:
    places = [place for place, event in enumerate(torture.story) if event["event"] == "saving"]
    while True:
        store = torture.fresh()
        pid = start(torture.world, store)
        if saving:
            _wait_for_event(torture.world, pid, torture.draw.choice(places))
            time.sleep(torture.draw.random() * 0.004)
        else:
            _wait_for_moment(torture, pid)
        if kill(pid):
            at = doing(torture.world)
            return Counter([(at, torture.survives(store, f"SIGKILL in {at}"))])
        shutil.rmtree(store, ignore_errors=True)  # it was at its end already


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


def corrupt(torture: Torture, step: int) -> list[Fault]:
    """Change every `step`-th byte of a checkpoint of the run, and cut every file at every `step`-th length."""
    return [partial(_damaged, torture)] * (1 if torture.short else 30) + [partial(_corrupt, torture, step)]


def _damaged(torture: Torture) -> Found:
    store = torture.fresh()
    kept = _last_checkpoint(torture, store)
    _change_a_byte(torture.draw.choice(sorted(kept.iterdir())), torture.draw)
    return Counter([("the one before is used", torture.survives(store, f"a changed byte of {kept.name}"))])


def _last_checkpoint(torture: Torture, store: Path) -> Path:
    """That of a run that was killed amid training."""
    nth = torture.draw.randint(3, 6)
    finish(torture.world, store, hear=after(nth, "adapter", "train", lambda: os.kill(os.getpid(), signal.SIGKILL)))
    found = (store / "scratch").rglob("checkpoint-*/manifest.json")
    return max(found, key=lambda path: int(path.parent.name.rpartition("-")[2])).parent


def _change_a_byte(path: Path, draw: random.Random) -> None:
    good = bytearray(path.read_bytes())
    good[draw.randrange(len(good))] ^= draw.randint(1, 255)
    path.write_bytes(good)


def _corrupt(torture: Torture, step: int) -> Found:
    from metier.train.checkpoint import damage

    kept, draw = _last_checkpoint(torture, torture.fresh()), torture.draw
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


def after(nth: int, step: str, event: str, act: Callable[[], None]) -> Callable[[Event], None]:
    """A listener that acts once, at the `nth` such event of that step."""
    left = itertools.count(1)

    def hear(one: Event) -> None:
        if one["step"] == step and one["event"] == event and next(left) == nth:
            act()

    return hear


def races(torture: Torture, count: int) -> list[Fault]:
    """Two runs on one store, the second a little later: each step is made once, and both end well."""
    return [partial(_raced, torture, turn) for turn in range(count)]


def _raced(torture: Torture, turn: int) -> Found:
    store = torture.fresh()
    first = start(torture.world, store)
    time.sleep(torture.draw.random() * torture.seconds * (turn % 4) / 4)
    codes = [wait(start(torture.world, store)), wait(first)]
    made = Counter(event["step"] for event in events(torture.world) if event["event"] == "finished")
    well = codes == [0, 0] and set(made.values()) == {1} and len(made) == len(torture.wanted)
    if not well:
        print(f"LOST in a race: exit codes {codes}, made {dict(made)}, {said(torture.world, store)}", flush=True)
    return Counter([("two runs", torture.survives(store, "a race") and well)])


def moved(torture: Torture, count: int) -> list[Fault]:
    """Stop somewhere and move the store; or remove a file from a finished one; go on."""
    return [partial(_moved, torture)] * count + [partial(_removed, torture, turn) for turn in range(count)]


def _moved(torture: Torture) -> Found:
    store = torture.fresh()
    pid = start(torture.world, store)
    time.sleep(torture.draw.random() * torture.seconds)
    os.kill(pid, signal.SIGTERM)
    wait(pid)
    elsewhere = torture.world.folder / "elsewhere" / store.name
    elsewhere.parent.mkdir(exist_ok=True)
    if store.exists():
        store.rename(elsewhere)
    return Counter([("a moved store", torture.survives(elsewhere, "a move"))])


def _removed(torture: Torture, turn: int) -> Found:
    """Take a file out of a finished store: what it belongs to is made again, or its damage is named."""
    store = torture.fresh()
    shutil.copytree(torture.reference, store)
    files = sorted(path for path in (store / "objects").glob("*/files/**/*") if path.is_file())
    victim = files[turn * 7919 % len(files)]
    victim.unlink()
    if (code := finish(torture.world, store)) != 0:
        print(f"LOST without {victim}: {code}, {said(torture.world, store)}", flush=True)
        return Counter([("something removed", False)])
    return Counter([("something removed", torture.survives(store, f"the removal of {victim.name}"))])
