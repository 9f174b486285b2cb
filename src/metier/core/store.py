"""The content-addressed store: what a step made, kept under a key that says what it was made from.

    <store>/objects/<kind>-<digest12>/   run.json  events.jsonl  files/  measured/
    <store>/refs/<recipe>/<step>         the key that the step last produced
    <store>/scratch/<kind>-<digest12>/   build/ (written aside) and state/ (resumable), deleted on success
    <store>/cache/                       what may be deleted at any time: token ids by content
    <store>/running/                     a lock file for each run under way, which clearing up respects
    <store>/elsewhere.json               only in the mirror of a store behind a URL: see `metier.core.elsewhere`

An object is written aside, flushed to disk and renamed into place last, so it is whole or absent. Two processes that
want the same object take turns behind a lock file; the second finds it made. `files/` is deterministic and hashed
into the record; `measured/` (latency, memory) and `events.jsonl` are not part of the artifact's digest.

Whether all outputs are there with their sizes is looked at each time an object is found: one that something cut or took
away is made again. Their contents are read by `metier store verify` alone (`metier.core.upkeep`).
"""

import errno
import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from metier.core import remote
from metier.core.disk import flush, flush_folder, locked, write_whole
from metier.core.elsewhere import Elsewhere, mirror_of
from metier.core.errors import MetierError, StoreError
from metier.core.fingerprint import Json, digest, file_digest, tree

RECORD = "run.json"
SEAL = "seal"
"""The record's key for the digest of all else in it."""
GONE = "gone-"
"""What folders are called while they are deleted."""
CURE_FULL = "free some space or name another store with --store, then run again: what is made already is kept"
CURE_GONE = "run the same command again: what is missing is made again"


@dataclass(frozen=True)
class Key:
    """An artifact's name: its kind and the sha256 of all that it is made from."""

    kind: str
    digest: str

    @classmethod
    def of(cls, kind: str, identity: Json) -> "Key":
        """The key of what `identity` (stage, version, config, input keys) describes."""
        return cls(kind, digest(identity))

    def __str__(self) -> str:
        return f"{self.kind}-{self.digest[:12]}"


@dataclass(frozen=True)
class Artifact:
    """A finished object in the store."""

    folder: Path

    @property
    def key(self) -> str:
        """`<kind>-<digest12>`."""
        return self.folder.name

    @property
    def files(self) -> Path:
        """The deterministic outputs."""
        return self.folder / "files"

    @property
    def measured(self) -> Path:
        """What depended on clock and machine."""
        return self.folder / "measured"

    @cached_property
    def record(self) -> dict[str, Any]:
        """The parsed `run.json`."""
        return _read_record(self.folder / RECORD)

    def loss(self) -> str:
        """What something took away or cut since it was made, in a few words; empty where nothing. Reads no contents."""
        for name, made in self.record.get("outputs", {}).items():
            path = self.files / name
            if not path.is_file():
                return f"files/{name} is gone"
            if path.stat().st_size != made["size"]:
                return f"files/{name} has {path.stat().st_size} bytes, not {made['size']}"
        return ""

    def events(self) -> Iterator[dict[str, Any]]:
        """The step's events, oldest first."""
        path = self.folder / "events.jsonl"
        if path.exists():
            with path.open(encoding="utf-8") as file:
                yield from (json.loads(line) for line in file)


@dataclass(frozen=True)
class Workspace:
    """Where an object is being built. Only `Store.build` makes one."""

    key: Key
    build: Path
    state: Path

    @property
    def files(self) -> Path:
        """The future `files/`."""
        return self.build / "files"

    @property
    def measured(self) -> Path:
        """The future `measured/`."""
        return self.build / "measured"

    @property
    def events(self) -> Path:
        """The future `events.jsonl`."""
        return self.build / "events.jsonl"


def store_folder(place: str | Path) -> Path:
    """Where a store lies on this machine: the folder, or the mirror of the one at a URL. Raises InputError where nobody
    can open that."""
    return mirror_of(place) if isinstance(place, str) and remote.is_url(place) else Path(place)


class Store:
    """A store below `root`. Making the object writes nothing; the folder appears with the first artifact."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @cached_property
    def elsewhere(self) -> Elsewhere | None:
        """What the store is the mirror of, or None."""
        return Elsewhere.of(self.root)

    @property
    def objects(self) -> Path:
        """Finished artifacts."""
        return self.root / "objects"

    @property
    def cache(self) -> Path:
        """What stages keep for each other and can make again."""
        return self.root / "cache"

    def find(self, key: Key) -> Artifact | None:
        """The finished artifact under `key`, or None, also where some of it is lost.

        Raises StoreError where its record is unreadable or another's.
        """
        folder = self.objects / str(key)
        if not self._brought(str(key)):
            return None
        artifact = Artifact(folder)
        if artifact.record.get("digest") != key.digest:
            raise StoreError(
                "the artifact's record belongs to another digest",
                where=str(folder / RECORD),
                cure=f"delete the folder {folder} and run again",
            )
        return None if artifact.loss() else artifact

    def _brought(self, key: str) -> bool:
        """Whether an object is there; of a store elsewhere it is brought, or put there where only the mirror has it."""
        folder = self.objects / key
        there = (folder / RECORD).exists()
        if self.elsewhere is None:
            return there
        if not there or Artifact(folder).loss():
            return self.elsewhere.pull(key)
        self.elsewhere.push(key)  # what could not be reached when it was finished
        return True

    def get(self, key: str) -> Artifact | None:
        """The finished artifact of that name, or None."""
        return Artifact(self.objects / key) if self._brought(key) else None

    def ref(self, recipe: str, step: str) -> Artifact | None:
        """What `step` of `recipe` last produced, or None where it never did or the object is gone."""
        key = self.ref_key(recipe, step)
        return self.get(key) if key else None

    def ref_key(self, recipe: str, step: str) -> str | None:
        """The name of what `step` of `recipe` last produced, whether or not it is still there."""
        if self.elsewhere is not None:
            return self.elsewhere.ref(recipe, step)
        path = self.root / "refs" / recipe / step
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None

    def set_ref(self, recipe: str, step: str, key: str) -> None:
        """Remember `key` as what `step` of `recipe` last produced."""
        if self.ref_key(recipe, step) == key:
            return
        if self.elsewhere is not None:
            self.elsewhere.set_ref(recipe, step, key)
            return
        path = self.root / "refs" / recipe / step
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, key + "\n")

    @contextmanager
    def build(self, key: Key, on_wait: Callable[[], None] = lambda: None) -> Iterator[Workspace]:
        """Hold the lock of `key` and yield an empty workspace for it. `state/` keeps what an earlier try left there.

        While another process holds the lock, `on_wait` is called twice a second and may raise. Whoever waited should
        `find` the key again before building. On any exit without `commit`, the half-built files go and `state/` stays.
        """
        home = self.root / "scratch" / str(key)
        workspace = Workspace(key, home / "build", home / "state")
        with self.guarded():
            home.parent.mkdir(parents=True, exist_ok=True)
            with locked(home.with_name(f"{key}.lock"), on_wait):
                shutil.rmtree(workspace.build, ignore_errors=True)
                for folder in (workspace.files, workspace.measured, workspace.state):
                    folder.mkdir(parents=True, exist_ok=True)
                try:
                    with self._followed(workspace):
                        yield workspace
                finally:
                    shutil.rmtree(workspace.build, ignore_errors=True)
                    _remove_empty(workspace.state, home)

    @contextmanager
    def _followed(self, workspace: Workspace) -> Iterator[None]:
        """Of a store elsewhere, what a step keeps to go on from is brought first, and put there as it changes."""
        if self.elsewhere is None:
            yield
            return
        key = str(workspace.key)
        self.elsewhere.pull_state(key, workspace.state)
        with self.elsewhere.following(key, workspace.state):
            yield
        if (self.objects / key / RECORD).exists():
            self.elsewhere.drop_state(key)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn errors that are about the disk or the store's own files into a StoreError that says what to do."""
        try:
            yield
        except Exception as error:
            told = self._told(error)
            if told is None:
                raise
            raise told from error

    def _told(self, error: Exception) -> StoreError | None:
        """What an error says about the store, or None: a step may meet others."""
        if isinstance(error, MetierError):
            return None
        name = getattr(error, "filename", None)
        where = str(name) if isinstance(name, str | Path) else None
        if _is_full(error):
            return StoreError(
                f"cannot write the store: {_reason(error)}", where=where or str(self.root), cure=CURE_FULL
            )
        inside = where is not None and Path(where).absolute().is_relative_to(self.root)
        if not isinstance(error, OSError) or not (inside or error.errno == errno.EROFS):
            return None
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return StoreError(
                "a file of the store is gone: something removed it while it was used", where=where, cure=CURE_GONE
            )
        return StoreError(
            f"cannot write the store: {_reason(error)}",
            where=where or str(self.root),
            cure="check the folder's permissions, or name another store with --store",
        )

    @contextmanager
    def in_use(self, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold a sign that a run works here, which `alone` respects.

        on_wait: called twice a second while somebody is alone; may raise.
        """
        sign = self.running / f"{secrets.token_hex(8)}.lock"
        self.running.mkdir(parents=True, exist_ok=True)
        with locked(self._alone, on_wait):
            lock = FileLock(sign)
            lock.acquire()
        try:
            with nullcontext() if self.elsewhere is None else self.elsewhere.in_use():
                yield
        finally:
            lock.release()
            sign.unlink(missing_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep new runs out while something is deleted. Raises StoreError where one is under way."""
        self.running.mkdir(parents=True, exist_ok=True)
        with locked(self._alone):
            for sign in sorted(self.running.glob("*.lock")):
                try:
                    with FileLock(sign, timeout=0):
                        pass
                except Timeout as error:
                    raise StoreError(
                        "a run is using the store", where=str(self.root), cure="try again when it has ended"
                    ) from error
                sign.unlink(missing_ok=True)  # of a run that was killed
            if self.elsewhere is not None:
                self.elsewhere.check_alone()
            yield

    @property
    def running(self) -> Path:
        """The signs of runs under way."""
        return self.root / "running"

    @property
    def _alone(self) -> Path:
        return self.root / "alone.lock"

    def commit(self, workspace: Workspace, record: dict[str, Json]) -> Artifact:
        """Flush the workspace with its record (digest and hashes of the outputs added) and rename it into place."""
        outputs = {n: {"size": p.stat().st_size, "sha256": file_digest(p)} for n, p in tree(workspace.files).items()}
        full = {**record, "digest": workspace.key.digest, "outputs": outputs}
        full[SEAL] = digest(full)
        (workspace.build / RECORD).write_text(record_text(full), encoding="utf-8")
        flush(workspace.build)
        target = self.objects / str(workspace.key)
        self.objects.mkdir(parents=True, exist_ok=True)
        if target.exists() and (not (target / RECORD).exists() or Artifact(target).loss()):
            self.discard(target)
        if not target.exists():
            workspace.build.rename(target)
            flush_folder(self.objects)
        shutil.rmtree(workspace.state, ignore_errors=True)
        if self.elsewhere is not None:
            self.elsewhere.push(str(workspace.key))
        return Artifact(target)

    def discard(self, folder: Path) -> None:
        """Delete a folder of the store, here and elsewhere; nobody sees half of it."""
        if self.elsewhere is not None:
            (self.elsewhere.discard if folder.parent == self.objects else self.elsewhere.drop_state)(folder.name)
            if not folder.exists():
                return
        gone = self.root / "scratch" / f"{GONE}{secrets.token_hex(8)}"
        gone.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(gone)
        shutil.rmtree(gone)


def record_text(record: Mapping[str, Json]) -> str:
    """A record as it stands in its file."""
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NUMBERS = "|".join(map(str, sorted(_FULL)))
_TELLS = re.compile(rf"os error ({_NUMBERS})\b|No space left|\d+ requested and \d+ written")
"""How libraries say so that raise errors of their own: safetensors (in Rust), NumPy."""


def _is_full(error: Exception) -> bool:
    """Whether an error means that the disk, a quota or a limit on the size of files is used up."""
    number = error.errno if isinstance(error, OSError) else None
    return number in _FULL or (number is None and bool(_TELLS.search(str(error))))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _remove_empty(*folders: Path) -> None:
    """Remove those folders that hold nothing."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"the artifact's record cannot be read ({error})",
            where=str(path),
            cure=f"delete the folder {path.parent} and run again",
        ) from error
    if not isinstance(record, dict):
        raise StoreError("the artifact's record is not a JSON object", where=str(path), cure="delete its folder")
    return record
