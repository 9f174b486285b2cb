"""A disk that is full: from each write on, for files past a size, and a small file system; then there is room again."""

import errno
import itertools
import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults import Fault, Found, Torture
from benchmarks.small_run import finish, fork, is_sound, outputs, said, wait


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


def full(torture: Torture, most: int) -> list[Fault]:
    """The disk is full from each write of each step on, or from `most` of them, evenly spaced; and in two other ways.

    Of the run's writes, one after the other, a tenth is tried from an empty store; of each step's, every one is, where
    the others are made already: the same harm, without all that comes before and after it.
    """
    alone = most == 1
    few = (most + 9) // 10
    writes = _writes(torture, torture.fresh())
    found: list[Fault] = [
        partial(_write, torture, nth, writes, None) for nth in _spread(writes // 2 if alone else 1, writes, few)
    ]
    for step in () if alone else torture.wanted:
        count = _writes(torture, torture.without((step,)))
        found += [partial(_write, torture, nth, count, step) for nth in _spread(1, count, most)]
    sizes = [path.stat().st_size for path in torture.reference.rglob("*") if path.is_file()]
    largest, used = max(sizes), sum(sizes)
    found += [partial(_grown, torture, size) for size in _spread(largest // 2 if alone else 2_000, largest, few)]
    if _mounts():
        found += [partial(_small, torture, size) for size in _spread(used // 2 if alone else 16_384, used, few)]
    return found


def _writes(torture: Torture, store: Path) -> int:
    """How many writes a run on that store makes; the store is removed."""
    count = torture.world.folder / "writes"
    count.unlink(missing_ok=True)
    finish(torture.world, store, before=partial(starve, 0, store, count))
    shutil.rmtree(store)
    return count.stat().st_size


def _write(torture: Torture, nth: int, writes: int, step: str | None) -> Found:
    """step: the only one that is to be made; None: all of them."""
    store = torture.fresh() if step is None else torture.without((step,))
    code = finish(torture.world, store, before=partial(starve, nth, store))
    survived = _starved(torture, store, code, f"write {nth} of {writes} of {step or 'the run'} on")
    return Counter([("a write" if step is None else f"a write of {step}", survived)])


def _grown(torture: Torture, size: int) -> Found:
    store = torture.fresh()
    code = finish(torture.world, store, before=partial(_limit, size))
    return Counter([("a file past a size", _starved(torture, store, code, f"files of more than {size} bytes"))])


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


def _mounts() -> bool:
    """Whether this machine lets us make a file system."""
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode
    )


def _small(torture: Torture, size: int) -> Found:
    """A real full disk: a file system in memory of that size."""
    store = torture.fresh()
    code = wait(fork(partial(_on_small_disk, torture, store, size), torture.world.folder / f"{store.name}.err"))
    if code != 0:
        print(f"LOST on a disk of {size} bytes: {said(torture.world, store)[-2000:]}", flush=True)
    shutil.rmtree(store, ignore_errors=True)
    return Counter([("a full file system", code == 0)])


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
