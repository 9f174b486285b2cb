"""A store behind a URL (s3://bucket/prefix), worked on through a local one: its mirror.

    <url>/objects/<key>/...        as in a local store; run.json is written last, so an object is whole or not there
    <url>/refs/<recipe>/<step>     one small file: the last writer's stands, whole
    <url>/scratch/<key>/...        what a step that is under way keeps to go on from: its checkpoints, as they are made
    <url>/running/<token>          a sign of each run, written again every minute, which clearing up respects

    <cache>/metier/stores/<name>-<digest>/    the mirror: a store like any other, and `elsewhere.json` with the URL

What is asked for is pulled to the mirror by its key, where its sizes and digests are held against the record; what is
finished is pushed. A mirror may be deleted at any time. Two machines that make the same artifact at a time both make
it: the same bytes, as what lies under a key follows from it. Each call costs a request or two, some tens of
milliseconds, and the time of the bytes; a store without a URL costs one look at a file.
"""

import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from metier.core import remote
from metier.core.disk import write_whole
from metier.core.errors import InputError, MetierError, StoreError
from metier.core.fingerprint import file_digest, tree

FILE = "elsewhere.json"
RECORD = "run.json"
MANIFEST = "manifest.json"
"""What a checkpoint is written with last; one without it is none."""
CHECKPOINT = "checkpoint-"
LOOK_SECONDS = 2.0
"""How often it is looked whether there is a new checkpoint."""
SIGN_SECONDS, SIGN_LASTS = 60.0, 300.0
"""How often a run's sign is written, and how old one may be for its run to count as under way."""
MOST_STATE = 64 << 20
"""Bytes of a file of a step's state, besides checkpoints, up to which it is pushed."""


def mirror_of(url: str) -> Path:
    """The local store that stands for the one at a URL. Asks nothing of a network, and writes nothing.

    Raises MissingExtra where a package is missing, InputError for a kind of URL that nobody opens.
    """
    url = url.rstrip("/")
    name = PurePosixPath(remote.protocol_of(url)) / url.partition("://")[2]
    folder = _cache() / f"{'-'.join(name.parts)[:60]}-{sha256(url.encode()).hexdigest()[:8]}"
    remote.opened(url)
    _named[folder] = url
    return folder


_named: dict[Path, str] = {}
"""Mirrors that were named in this process: each is written down when its URL was reached."""


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "metier" / "stores"


@dataclass
class Elsewhere:
    """The store at a URL. root: of its mirror.

    Whatever is asked first raises InputError, with the cure, where the URL cannot be reached: credentials or the bucket
    are missing, or nothing answers. Later that is a StoreError.
    """

    url: str
    root: Path
    _opened: tuple[Any, str] | None = None
    _pushed: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path) -> "Elsewhere | None":
        """What a folder is the mirror of; None for a store of its own."""
        path = root / FILE
        if root in _named:
            return cls(_named[root], root)
        return cls(str(json.loads(path.read_text(encoding="utf-8"))["url"]), root) if path.is_file() else None

    # ---- objects and refs --------------------------------------------------------------------------------------------

    def pull(self, key: str) -> bool:
        """Bring an object to the mirror, whole; False where there is none. Raises StoreError where it is damaged."""
        record = self._read(f"objects/{key}/{RECORD}")
        if record is None:
            return False
        outputs: dict[str, Any] = json.loads(record).get("outputs", {})
        aside = self.root / "scratch" / f"pulled-{secrets.token_hex(8)}"
        try:
            self.fetch(f"objects/{key}", aside)
            for name, made in outputs.items():
                path = aside / "files" / name
                if not path.is_file() or file_digest(path) != made["sha256"]:
                    raise StoreError(
                        f"files/{name} is gone or not as it was written",
                        where=f"{self.url}/objects/{key}",
                        cure="run `metier store verify --remove` and the recipe again: it is made anew",
                    )
            target = self.root / "objects" / key
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                shutil.rmtree(target)
            aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return True

    def has(self, key: str) -> bool:
        """Whether an object is there, whole."""
        return self._read(f"objects/{key}/{RECORD}") is not None

    def push(self, key: str) -> None:
        """Put a finished object there, its record last. One that is there already stays."""
        if self.has(key):
            return
        files = tree(self.root / "objects" / key)
        for name in sorted(files, key=lambda name: name == RECORD):
            self._put(files[name], f"objects/{key}/{name}")

    def whole(self) -> list[str]:
        """The objects that are whole."""
        found = self._names("objects")
        return sorted({name.split("/")[0] for name in found if name.endswith(f"/{RECORD}") and name.count("/") == 1})

    def leftovers(self) -> list[str]:
        """Objects that a writer who died left without a record."""
        return sorted({name.split("/")[0] for name in self._names("objects")} - set(self.whole()))

    def record(self, key: str) -> bytes | None:
        """An object's record as it stands there."""
        return self._read(f"objects/{key}/{RECORD}")

    def size(self, below: str) -> int:
        """Bytes of all files below a place."""
        return sum(self._names(below).values())

    def discard(self, key: str) -> None:
        """Delete an object, its record first: nobody sees half of it."""
        self._remove([f"objects/{key}/{RECORD}"])
        self._remove([f"objects/{key}/{name}" for name in self._names(f"objects/{key}")])

    def ref(self, recipe: str, step: str) -> str | None:
        """What a step last produced."""
        found = self._read(f"refs/{recipe}/{step}")
        return None if found is None else found.decode().strip()

    def set_ref(self, recipe: str, step: str, key: str) -> None:
        """Remember what a step last produced: a file is replaced whole, by whoever is last."""
        self._write(f"refs/{recipe}/{step}", f"{key}\n".encode())

    def refs(self) -> list[tuple[str, str]]:
        """Every ref as `recipe/step`, with its key."""
        found = ((name, self._read(f"refs/{name}")) for name in sorted(self._names("refs")))
        return [(name, key.decode().strip()) for name, key in found if key is not None]

    # ---- what a step under way keeps ---------------------------------------------------------------------------------

    def pull_state(self, key: str, state: Path) -> None:
        """Bring what a step keeps to go on from, as far as the mirror has not got it or less of it."""
        found = self._names(f"scratch/{key}")
        whole = {name.split("/")[0] for name in found if name.endswith(f"/{MANIFEST}")}
        wanted = {top for top in whole if not (state / top / MANIFEST).is_file()}
        for name in sorted(found, key=lambda name: name.endswith(f"/{MANIFEST}")):
            size = found[name]
            top = name.split("/")[0]
            here = state / name
            if top.startswith(CHECKPOINT) and top not in wanted:
                continue
            if here.is_file() and (top.startswith(CHECKPOINT) or here.stat().st_size >= size):
                continue
            aside = state / f".{secrets.token_hex(4)}"
            try:
                self._get(f"scratch/{key}/{name}", aside)
                here.parent.mkdir(parents=True, exist_ok=True)
                aside.replace(here)
            finally:
                aside.unlink(missing_ok=True)

    def push_state(self, key: str, state: Path) -> None:
        """Put there what is new of it: small files, and whole checkpoints, their manifests last. Then what is gone here
        goes there."""
        tops = sorted(state.iterdir()) if state.is_dir() else []
        whole = [one for one in tops if one.name.startswith(CHECKPOINT) and (one / MANIFEST).is_file()]
        files = [one for one in tops if one.is_file() and one.suffix in (".json", ".jsonl")]
        for path in files:
            if path.stat().st_size <= MOST_STATE:
                self._put_if_new(path, f"scratch/{key}/{path.name}")
        for folder in whole:
            names = tree(folder)
            for name in sorted(names, key=lambda name: name == MANIFEST):
                self._put_if_new(names[name], f"scratch/{key}/{folder.name}/{name}")
        if not whole:
            return
        kept = {folder.name for folder in whole}
        old = [
            name
            for name in self._names(f"scratch/{key}")
            if name.startswith(CHECKPOINT) and name.split("/")[0] not in kept
        ]
        self._remove([f"scratch/{key}/{name}" for name in sorted(old, key=lambda name: not name.endswith(MANIFEST))])

    def drop_state(self, key: str) -> None:
        """Delete what a step kept: it is finished, or is not to go on."""
        self._remove([f"scratch/{key}/{name}" for name in self._names(f"scratch/{key}")])

    def states(self) -> dict[str, int]:
        """What steps that were stopped keep, in bytes."""
        found: dict[str, int] = {}
        for name, size in self._names("scratch").items():
            key = name.split("/")[0]
            found[key] = found.get(key, 0) + size
        return found

    @contextmanager
    def following(self, key: str, state: Path) -> Iterator[None]:
        """Push a step's state as it changes, on a thread, and once more at the end.

        Raises at the end what the last push met; what earlier ones met is tried again.
        """
        try:
            with _again_and_again(lambda: self.push_state(key, state), LOOK_SECONDS, "state to the store"):
                yield
        finally:
            if any(state.iterdir()) if state.is_dir() else False:
                self.push_state(key, state)

    # ---- runs under way ----------------------------------------------------------------------------------------------

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold a sign that a run works here."""
        name = f"running/{secrets.token_hex(8)}"

        def sign() -> None:
            self._write(name, f"{time.time()}\n".encode())

        sign()
        try:
            with _again_and_again(sign, SIGN_SECONDS, "sign in the store"):
                yield
        finally:
            self._remove([name])

    def check_alone(self) -> None:
        """Raise StoreError where a run is under way anywhere."""
        for name in self._names("running"):
            told = self._read(f"running/{name}")
            if told is not None and time.time() - float(told) < SIGN_LASTS:
                raise StoreError("a run is using the store", where=self.url, cure="try again when it has ended")
            self._remove([f"running/{name}"])

    # ---- files -------------------------------------------------------------------------------------------------------

    @property
    def _system(self) -> tuple[Any, str]:
        if self._opened is None:
            system, path = remote.opened(self.url)
            with remote.told(self.url):
                if remote.protocol_of(self.url) in ("s3", "s3a"):
                    system.call_s3("head_bucket", Bucket=path.split("/", 1)[0])
                else:
                    system.exists(path)
            self.root.mkdir(parents=True, exist_ok=True)
            write_whole(self.root / FILE, json.dumps({"url": self.url}) + "\n")
            self._opened = system, path
        return self._opened

    @contextmanager
    def _told(self, name: str) -> Iterator[tuple[Any, str]]:
        system, path = self._system
        where = f"{self.url}/{name}"
        try:
            with remote.told(where):
                yield system, f"{path}/{name}"
        except InputError as error:  # it was reached at the start, so this is no bad input
            raise StoreError(f"the store: {error.what}", where=where, value=error.value, cure=error.cure) from error

    def _names(self, below: str) -> dict[str, int]:
        """Files below a place, by their names from there, with sizes."""
        with self._told(below) as (system, path):
            try:
                found = system.find(path, detail=True)
            except FileNotFoundError:
                return {}
        cut = len(path.strip("/")) + 1
        return {name.lstrip("/")[cut:]: int(one.get("size") or 0) for name, one in found.items()}

    def _read(self, name: str) -> bytes | None:
        with self._told(name) as (system, path):
            try:
                return bytes(system.cat_file(path))
            except FileNotFoundError:
                return None

    def _write(self, name: str, data: bytes) -> None:
        with self._told(name) as (system, path):
            system.pipe_file(path, data)

    def _put(self, path: Path, name: str) -> None:
        with self._told(name) as (system, target):
            system.put_file(str(path), target)

    def _put_if_new(self, path: Path, name: str) -> None:
        stat = path.stat()
        mark = stat.st_size, stat.st_mtime_ns
        if self._pushed.get(name) != mark:
            self._put(path, name)
            self._pushed[name] = mark

    def _get(self, name: str, path: Path) -> None:
        with self._told(name) as (system, source):
            system.get_file(source, str(path))

    def fetch(self, below: str, folder: Path) -> None:
        """Bring all files below a place."""
        for name in self._names(below):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._get(f"{below}/{name}", path)

    def _remove(self, names: list[str]) -> None:
        for name in names:
            with self._told(name) as (system, path):
                try:
                    system.rm_file(path)
                except FileNotFoundError:
                    continue


@contextmanager
def _again_and_again(work: Callable[[], None], seconds: float, name: str) -> Iterator[None]:
    """Do it every so many seconds, on a thread. What fails is tried again the next time."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(seconds):
            try:
                work()
            except (MetierError, OSError):  # no answer for a while; a checkpoint that goes meanwhile
                continue

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
