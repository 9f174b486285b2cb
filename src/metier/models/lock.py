"""`<recipe>.lock`: which commit of each hub model a recipe means, written by its first run.

A name on the hub, or a branch of it, means what the local cache holds last, and a later download moves it. With the
lock the recipe means what it meant, until the lock is deleted or the recipe names a commit (`org/name@commit`). Data
sets of the hub have their commit in the recipe itself. Refuses a lock that cannot be read.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from metier.core.disk import write_whole
from metier.core.errors import InputError
from metier.core.stage import Source
from metier.models.builtin import resolve

MODELS = "models"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def lock_path(recipe: Path) -> Path:
    """Where a recipe's lock lies."""
    return recipe.with_suffix(".lock")


def read_lock(recipe: Path) -> dict[str, str]:
    """The commit of each model that is pinned, by its name in the recipe. Raises InputError."""
    path = lock_path(recipe)
    if not path.is_file():
        return {}
    try:
        models = json.loads(path.read_text(encoding="utf-8"))[MODELS]
        return {str(name): str(commit) for name, commit in models.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"the lock cannot be read ({error})", where=str(path), cure="delete it: the next run pins anew"
        ) from error


def resolve_pinned(ref: str, root: Path, lock: Mapping[str, str], file_digest_of: Callable[[Path], str]) -> Source:
    """As `resolve`, of the commit that the lock names where it names one."""
    if ref in lock and not (root / ref).exists():
        found = resolve(f"{_of(ref)}@{lock[ref]}", root, file_digest_of)
        return Source(ref, found.paths, found.link, found.digest)
    return resolve(ref, root, file_digest_of)


def pin(recipe: Path, sources: Iterable[Source]) -> None:
    """Add the hub models among `sources` to the lock, those that name no commit themselves."""
    lock = read_lock(recipe)
    linked = [(one.name, *one.link.partition("@")) for one in sources if one.link != one.name]
    found = {name: commit for name, place, _, commit in linked if _COMMIT.fullmatch(commit) and _of(name) == place}
    if found.items() <= lock.items():
        return
    path = lock_path(recipe)
    try:
        write_whole(path, json.dumps({MODELS: dict(sorted({**lock, **found}.items()))}, indent=1) + "\n")
    except OSError as error:
        cure = "make the recipe's folder writable, or name a revision in the recipe: org/name@commit"
        raise InputError(f"the lock cannot be written ({error.strerror})", where=str(path), cure=cure) from error


def _of(name: str) -> str:
    """The repository that a hub model's name means."""
    return name.partition("@")[0]
