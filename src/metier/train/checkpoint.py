"""The state of a training run on disk, so that a stopped run goes on where it was and ends with the same bits.

    checkpoint-<step>/   tensors.safetensors (trained weights, optimizer moments, best weights so far), or a file of
                         each process with the shards that it held (`sharded`)
                         state.json (counters, scale, log, place in the data, and what the run is made from)
                         manifest.json (size and sha256 of all, and of itself)

Written aside, files and folders flushed, renamed; then older ones go, but for one from at least `BACK` steps before
(and the one that is to follow it): a damaged one is refused by name and the one before is gone on with, and training
that went astray has somewhere to go back to. The best weights so far lie in each. Refuses state made from another
config or other data, by field; other code or threads only warn, as they may change the last bits and nothing else. No
pickle. There is no random state to keep: dropout is seeded by (seed, step, micro-step) and the order of the data by
(seed, epoch), so what packing left over follows from the epoch.

Costs three times the trained parameters in float32, twelve bytes each (six with 8-bit moments), four more with a best;
on disk two of them, three where steps are slow, and the one that is being written. Time is held under `SHARE` of the
run's: the longer one takes to write, the longer until the next.
"""

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from metier.core.errors import InputError, shorten
from metier.core.fingerprint import canonical, digest, file_digest

PREFIX = "checkpoint-"
TENSORS = "tensors.safetensors"
STATE = "state.json"
MANIFEST = "manifest.json"
ASIDE, GONE = "aside-", "gone-"
MADE_FROM = "made_from"
FORMAT = 2
BACK = 20
"""How many steps before the newest one the other that is kept lies, at least."""
SHARE = 0.02
"""The largest share of the time that writing takes."""

EVERY_SECONDS = 60.0
"""Seconds between checkpoints, at least; METIER_CHECKPOINT_SECONDS says otherwise."""

Warn = Callable[[str], None]


@dataclass
class Checkpoints:
    """The checkpoints of one run below `folder`.

    every_seconds: the least time between two that nobody asked for; 0: after every step. made_from: what the run is
    made from, as JSON: `config` and `data` must be the same for it to go on, what else is there should. warn: told of
    what is damaged or made by other code.
    """

    folder: Path
    every_seconds: float = EVERY_SECONDS
    made_from: Mapping[str, Any] = field(default_factory=dict)
    warn: Warn = lambda _: None
    _last: float = field(default_factory=time.monotonic)
    _took: float = 0.0
    _started: float = 0.0
    _whole: set[Path] = field(default_factory=set)

    def due(self) -> bool:
        """Whether it is time for one."""
        rest = max(self.every_seconds, self._took / SHARE) if self.every_seconds else 0.0
        return time.monotonic() - self._last >= rest

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write the state after `step` optimizer steps, then delete those that are not needed any more."""
        self._started = time.monotonic()
        if not self.has(step):
            aside = self.begin(step)
            try:
                _save_tensors(dict(tensors), aside / TENSORS)
                self.finish(step, state)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
            return
        self.finish(step, None)

    def has(self, step: int) -> bool:
        """Whether the state after so many steps is there, whole."""
        return self._is_whole(self.folder / f"{PREFIX}{step}")

    def begin(self, step: int) -> Path:
        """An empty folder to write tensors to, in files that end in .safetensors, before `finish`."""
        self._started = time.monotonic()
        for left in (*self.folder.glob(f"{ASIDE}*"), *self.folder.glob(f"{GONE}*")):  # by a process that died
            shutil.rmtree(left, ignore_errors=True)
        aside = self.folder / f"{ASIDE}{PREFIX}{step}"
        aside.mkdir(parents=True)
        return aside

    def finish(self, step: int, state: Mapping[str, Any] | None) -> None:
        """Make a checkpoint of what was written since `begin` (None: it is there), and delete older ones."""
        if state is not None:
            self._seal(self.folder / f"{PREFIX}{step}", {**state, MADE_FROM: dict(self.made_from)})
        self._forget(step)
        self._last = time.monotonic()
        self._took = self._last - self._started

    def load(self, at_most: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and state of the newest whole one, or None where there is none. at_most: the latest step.

        A damaged one is named in a warning and passed over. Raises InputError for one made from something else.
        """
        step = self.newest(at_most)
        return None if step is None else self.read(step)

    def newest(self, at_most: int | None = None) -> int | None:
        """The step of the newest whole one; as `load`."""
        for folder in reversed(self._all()):
            if at_most is not None and _step(folder) > at_most:
                continue
            harm = damage(folder)
            if harm is not None:
                self.warn(f"{folder} is damaged, so it is not used: {harm}; going on from the one before, if any")
                continue
            self._compare(json.loads((folder / STATE).read_text(encoding="utf-8"))[MADE_FROM], folder)
            return _step(folder)
        return None

    def read(self, step: int, like: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and state of the one of that step, which `newest` named. like: as in `sharded.read`."""
        folder = self.folder / f"{PREFIX}{step}"
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        del state[MADE_FROM]
        if not like and (folder / TENSORS).is_file():
            return load_file(folder / TENSORS), state
        from metier.train.sharded import read

        return read(folder, like or {}), state

    def drop_after(self, step: int) -> None:
        """Delete those of later steps: training goes another way from here."""
        for folder in reversed(self._all()):
            if _step(folder) > step:
                self._remove(folder)

    def _is_whole(self, folder: Path) -> bool:
        """Looks at the bytes of each once only."""
        if folder not in self._whole and folder.exists() and damage(folder) is None:
            self._whole.add(folder)
        return folder in self._whole

    def _remove(self, folder: Path) -> None:
        """Rename, then delete: what is half deleted when the process dies is no checkpoint any more."""
        self._whole.discard(folder)
        gone = self.folder / f"{GONE}{folder.name}"
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _seal(self, target: Path, state: Mapping[str, Any]) -> None:
        aside = self.folder / f"{ASIDE}{target.name}"
        (aside / STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
        names = [*sorted(path.name for path in aside.iterdir() if path.name != STATE), STATE]
        for name in names:
            _flush(aside / name)
        (aside / MANIFEST).write_text(_manifest({name: _facts(aside / name) for name in names}), "utf-8")
        _flush(aside / MANIFEST)
        _flush(aside)
        if target.exists():  # damaged
            self._remove(target)
        aside.rename(target)
        _flush(self.folder)
        self._whole.add(target)

    def _forget(self, newest: int) -> None:
        """Delete what is not needed beside that of `newest`, which is whole.

        Kept are the last whole one from `BACK` steps before, or the first, and the first after it: where checkpoints
        are nearer together than that, it will be the one from `BACK` steps before.
        """
        whole = [folder for folder in self._all() if _step(folder) < newest and self._is_whole(folder)]
        old = [folder for folder in whole if _step(folder) <= newest - BACK]
        near = whole[len(old) :]
        kept = {*old[-1:], *near[:1]}
        for folder in self._all():
            if _step(folder) != newest and folder not in kept:
                self._remove(folder)

    def _compare(self, made_from: Mapping[str, Any], folder: Path) -> None:
        """Raise InputError where config or data differ, by field; warn where something else does."""
        now = json.loads(json.dumps(self.made_from))
        for part in sorted({*made_from, *now}):
            found = list(differences(made_from.get(part), now.get(part), part))
            if not found:
                continue
            if part in ("config", "data"):
                raise InputError(
                    "this state was made from something else: " + ", ".join(found),
                    where=str(folder),
                    cure=f"put it back as it was, or delete {self.folder} to begin anew",
                )
            self.warn(f"{folder} was made with other {part} ({', '.join(found)}): the last bits may come out otherwise")

    def _all(self) -> list[Path]:
        found = [path for path in self.folder.glob(f"{PREFIX}*") if re.fullmatch(rf"{PREFIX}\d+", path.name)]
        return sorted(found, key=_step)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint: which file is missing, of another size or with other bytes. None where whole."""
    try:
        text = (folder / MANIFEST).read_bytes().decode("utf-8")
        files = json.loads(text)["files"]
        if text != _manifest(files) or STATE not in files or len(files) < 2:
            return f"{MANIFEST} is not as it was written"
        for name, facts in files.items():
            size = (folder / name).stat().st_size
            if size != facts["size"]:
                return f"{name} has {size} bytes instead of {facts['size']}"
            if file_digest(folder / name) != facts["sha256"]:
                return f"{name} is not as it was written (sha256)"
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read ({error.strerror})"
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{MANIFEST} is not as it was written"
    return None


def differences(old: Any, new: Any, where: str) -> Iterator[str]:
    """In words, each field in which two JSON values differ, as deep as both are mappings."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*new, *old]):
            yield from differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
    elif old != new:
        yield f"{where} {shorten(old, 60)} -> {shorten(new, 60)}"


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix(PREFIX))


def _facts(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


def _manifest(files: Mapping[str, Any]) -> str:
    """Its only text: read back, anything else is damage. Its own digest stands in it."""
    told = {"files": files, "format": FORMAT}
    return canonical({**told, "sha256": digest(told)}) + "\n"


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """As `save_file`, with the system's errors as what they are."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number) if code else str(error), str(path)) from error


def _flush(path: Path) -> None:
    """fsync a file or folder."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
