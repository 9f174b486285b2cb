"""Looking after a store: is all that it holds what was written, and what does nobody need any more.

`verify` reads every byte of every artifact, about a second a gigabyte. `clear` deletes what no ref reaches: a ref is
what a step of a recipe last produced, and it reaches what that was made from. It refuses to work beside a run, and
where a record that it has to follow cannot be read. Both leave the cache alone, which anybody may delete at any time.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from metier.core.elsewhere import Elsewhere
from metier.core.errors import StoreError
from metier.core.fingerprint import digest, file_digest, tree
from metier.core.store import GONE, RECORD, SEAL, Artifact, Store, record_text

IDENTITY = ("kind", "version", "produces", "identity")
"""The parts of a record that its digest is made from."""


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written."""

    key: str
    where: str
    what: str


@dataclass
class Found:
    """What `verify` read. lost: refs, as `recipe/step`, whose artifact is gone: it is made again when asked for."""

    objects: int = 0
    files: int = 0
    size: int = 0
    damage: list[Damage] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def damaged(self) -> list[str]:
        """The names of the artifacts that are damaged."""
        return list(dict.fromkeys(one.key for one in self.damage))


def verify(store: Store, on_object: Callable[[str], None] = lambda _key: None) -> Found:
    """Hash everything again and hold it against the records. on_object: told each name before it is read."""
    found = Found()
    if store.elsewhere is not None:
        return _verify_elsewhere(store, store.elsewhere, found, on_object)
    for folder in _objects(store):
        on_object(folder.name)
        found.objects += 1
        for where, what in _faults(folder, found):
            found.damage.append(Damage(folder.name, str(where), what))
    found.lost = [name for name, key in _refs(store) if store.get(key) is None]
    return found


def _verify_elsewhere(store: Store, elsewhere: Elsewhere, found: Found, on_object: Callable[[str], None]) -> Found:
    """The same of a store behind a URL: every object is fetched, looked at and let go again."""
    keys = elsewhere.whole()
    for key in keys:
        on_object(key)
        found.objects += 1
        with TemporaryDirectory(dir=store.root) as aside:
            folder = Path(aside) / key
            elsewhere.fetch(f"objects/{key}", folder)
            for where, what in _faults(folder, found):
                place = f"{elsewhere.url}/objects/{key}/{where.relative_to(folder).as_posix()}"
                found.damage.append(Damage(key, place, what))
    found.lost = [name for name, key in elsewhere.refs() if key not in keys]
    return found


def _faults(folder: Path, found: Found) -> Iterator[tuple[Path, str]]:
    artifact = Artifact(folder)
    path = folder / RECORD
    if not path.is_file():
        yield path, "the record is gone"
        return
    try:
        record = artifact.record
    except StoreError as error:
        yield path, error.what
        return
    if (wrong := _wrong_record(folder, record)) is not None:
        yield path, wrong
        return  # what it says of the files need not be so
    there = tree(artifact.files)
    outputs = record.get("outputs")
    if not isinstance(outputs, dict) or not all(isinstance(made, dict) for made in outputs.values()):
        yield path, "the record does not say what the files are"
        return
    for name, made in outputs.items():
        file = there.pop(name, None)
        if file is None:
            yield artifact.files / name, "the file is gone"
            continue
        found.files += 1
        found.size += (size := file.stat().st_size)
        if size != made.get("size"):
            yield file, f"it has {size} bytes, and had {made.get('size')}"
        elif file_digest(file) != made.get("sha256"):
            yield file, "its contents have changed"
    for file in there.values():
        yield file, "the record knows nothing of it"


def _wrong_record(folder: Path, record: dict[str, Any]) -> str | None:
    """What is wrong with a record, if anything. Records of format 1 have no seal."""
    if SEAL not in record and record.get("format", 1) != 1:
        return "the record's seal is gone"
    rest = {name: value for name, value in record.items() if name != SEAL}
    written = (folder / RECORD).read_text(encoding="utf-8") == record_text(record)
    if SEAL in record and not (written and record[SEAL] == digest(rest)):
        return "the record has changed"
    if not folder.name.endswith(f"-{str(record.get('digest'))[:12]}"):
        return "the record belongs to another artifact"
    if all(name in record for name in IDENTITY):
        made_from = {name: record[name] for name in IDENTITY}
        return None if digest(made_from) == record["digest"] else "the record's config is not what it was made from"
    return None


# ---- clearing up ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needless:
    """An artifact that no ref reaches, or what a stopped step keeps to go on from. step: `recipe/step`, if known."""

    folder: Path
    size: int
    step: str = ""


@dataclass
class Cleared:
    """What is not needed, and was deleted unless it was a rehearsal.

    kept: how many artifacts stay. unfinished: what steps that were stopped keep to go on from. cache: bytes of it.
    """

    objects: list[Needless]
    unfinished: list[Needless]
    kept: int
    cache: int


def clear(store: Store, *, dry_run: bool = False, unfinished: bool = False) -> Cleared:
    """Delete what no ref reaches; with `unfinished`, also what stopped steps would go on from. dry_run: only look.

    Raises StoreError where a run is under way, or a record that a ref reaches cannot be read.
    """
    if store.elsewhere is None and not store.objects.is_dir() and not (store.root / "scratch").is_dir():
        return Cleared([], [], 0, _size(store.cache))
    if dry_run:
        return _needless(store)
    with store.guarded(), store.alone():
        found = _needless(store)
        for one in [*found.objects, *(found.unfinished if unfinished else ())]:
            store.discard(one.folder)
        _sweep(store)
    return found


def _needless_elsewhere(store: Store, elsewhere: Elsewhere) -> Cleared:
    """As `_needless`, of a store behind a URL: from its records alone."""
    records = {key: json.loads(elsewhere.record(key) or b"{}") for key in elsewhere.whole()}
    reached = _reached((key for _, key in elsewhere.refs()), records.get)
    left = [key for key in records if key not in reached]
    half = elsewhere.leftovers()
    objects = [
        Needless(store.objects / key, elsewhere.size(f"objects/{key}"), _step_of(records.get(key, {})))
        for key in (*left, *half)
    ]
    states = [Needless(store.root / "scratch" / key, size) for key, size in sorted(elsewhere.states().items())]
    return Cleared(objects, states, len(records) - len(left), _size(store.cache))


def _needless(store: Store) -> Cleared:
    if store.elsewhere is not None:
        return _needless_elsewhere(store, store.elsewhere)

    def record(key: str) -> dict[str, Any] | None:
        artifact = store.get(key)
        return None if artifact is None else artifact.record

    reached = _reached((key for _, key in _refs(store)), record)
    objects = [
        Needless(folder, _size(folder), _step(folder)) for folder in _objects(store) if folder.name not in reached
    ]
    left = [Needless(path, size) for path in _folders(store.root / "scratch") if (size := _size(path))]
    left = [one for one in left if not one.folder.name.startswith(GONE)]
    return Cleared(objects, left, sum(1 for _ in _objects(store)) - len(objects), _size(store.cache))


def _sweep(store: Store) -> None:
    """Half-deleted folders, and locks that nobody holds: no run is under way."""
    scratch = store.root / "scratch"
    for path in _folders(scratch):
        if path.name.startswith(GONE):
            store.discard(path)
    for lock in scratch.glob("*.lock"):
        lock.unlink()


def _reached(refs: Iterable[str], record_of: Callable[[str], dict[str, Any] | None]) -> set[str]:
    """The names of all artifacts that a ref reaches, there or not."""
    reached: set[str] = set()
    waiting = list(refs)
    while waiting:
        key = waiting.pop()
        if key in reached:
            continue
        reached.add(key)
        record = record_of(key)
        if record is not None:
            waiting += _made_from(record)
    return reached


def _made_from(record: dict[str, Any]) -> Iterator[str]:
    """The names of the artifacts that one was made from."""
    for given in record.get("inputs", {}).values():
        link = str(given["link"])
        if link.startswith("../../"):
            yield link.split("/")[2]


def _refs(store: Store) -> Iterator[tuple[str, str]]:
    """Every ref as `recipe/step`, with its key."""
    folder = store.root / "refs"
    for path in sorted(folder.glob("*/*")):
        if path.is_file() and not path.name.startswith("."):
            yield path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8").strip()


def _step(folder: Path) -> str:
    """`recipe/step` that made an artifact, as far as its record can be read."""
    try:
        return _step_of(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return ""


def _step_of(record: Any) -> str:
    told = isinstance(record, dict) and "recipe" in record and "step" in record
    return f"{record['recipe']}/{record['step']}" if told else ""


def _objects(store: Store) -> Iterator[Path]:
    return _folders(store.objects)


def _folders(parent: Path) -> Iterator[Path]:
    return iter(sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else ())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in tree(folder).values()) if folder.is_dir() else 0
