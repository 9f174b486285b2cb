"""Data sets of the hub, or laid out as it lays them out in a local folder, by the `datasets` library.

Rows are streamed, so nothing larger than a batch is held or stored. The network is used only where a recipe names a hub
id and HF_HUB_OFFLINE is not set. What a branch such as `main` means changes with time: its commit is looked up and
noted, and a recipe that gives the commit as `revision` reads the same rows for ever. No code of a data set is run.
"""

import logging
import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from pydantic import Field

from metier.core.errors import DataError, MissingExtra
from metier.core.stage import Config
from metier.data.files import Note, Problem, Problems, first_line, refuse
from metier.data.formats.table import plain

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ON = {"1", "true", "yes", "on"}


class Hub(Config):
    """A data set of the hub."""

    id: str = Field(min_length=1, pattern=r"^[^\s@:]+$")
    """Its id, `owner/name`, or a local folder that is laid out in the same way."""
    config: str | None = Field(None, min_length=1)
    """Which of its configurations, where it has several."""
    revision: str | None = Field(None, min_length=1)
    """Commit, tag or branch; only a commit stays what it is."""
    split: str = Field("train", min_length=1)
    """Which of its splits."""
    take: int | None = Field(None, ge=1)
    """Read this many rows from the start; all where it is left out."""
    streaming: bool = True
    """Read while it is fetched; off, the whole data set is stored on disk first."""

    @property
    def name(self) -> str:
        """How places name it: the last part of its id and its split."""
        return f"{PurePosixPath(self.id).name}/{self.split}"

    @property
    def place(self) -> PurePath:
        """How errors name it."""
        return PurePosixPath(self.id, *([self.config] if self.config else []), self.split)


def rows(source: Hub, problems: Problems, note: Note) -> Iterator[tuple[int, dict[str, Any]]]:
    """The data set's rows by number from 1. What JSON has no word for becomes text."""
    local = Path(source.id).expanduser().is_dir()
    if local:
        note(
            f"{source.id}: a step does not see when a data set's local folder changes; name files with `path` for that"
        )
    else:
        _check_network(source)
    library = _library()
    number = 0
    try:
        revision = None if local else _commit(source, note)
        for row in islice(_opened(library, source, revision), source.take):
            number += 1
            yield number, {str(name): plain(value) for name, value in row.items()}
    except Exception as error:  # it passes on all that file formats, file systems and HTTP raise
        if isinstance(error, DataError):
            raise
        what, cure = f"the data set cannot be read: {first_line(error)}", _cure(source, error)
        if not number:
            raise DataError(what, where=str(source.place), cure=cure) from error
        problems.add(Problem(what, number + 1, cure=cure, unit="row"))


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", "hub", needed_by="a data set of the hub") from None
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # it tells at length what we tell once
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    return datasets


def _opened(library: Any, source: Hub, revision: str | None) -> Any:
    folder = Path(source.id).expanduser()
    return library.load_dataset(
        str(folder) if folder.is_dir() else source.id,
        source.config,
        revision=revision,
        split=source.split,
        streaming=source.streaming,
    )


def _check_network(source: Hub) -> None:
    """Refuse what cannot be an id of the hub, and any id where the network is off."""
    if source.id.count("/") > 1 or source.id.startswith(("/", ".", "~")):
        refuse(
            source.place, "there is no such folder", value=source.id, cure="write owner/name, or a folder that exists"
        )
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _ON:
        cure = "unset HF_HUB_OFFLINE, or fetch it once and name its folder as `id`"
        refuse(source.place, "the hub is switched off (HF_HUB_OFFLINE)", value=source.id, cure=cure)


def _commit(source: Hub, note: Note) -> str:
    """The commit to read: the one given, or what a branch or tag now stands for, which is noted."""
    if source.revision and _COMMIT.fullmatch(source.revision):
        return source.revision
    from huggingface_hub import HfApi

    commit = str(HfApi().dataset_info(source.id, revision=source.revision).sha)
    note(f"{source.id}: {source.revision or 'main'} is now {commit}; `revision: {commit}` keeps reading this")
    return commit


def _cure(source: Hub, error: Exception) -> str:
    name = type(error).__name__
    if "NotFound" in name:
        return "check id and revision; private ones need a token (HF_TOKEN)"
    if "split" in str(error).lower():
        return "name one of its splits with `split`"
    if "config" in str(error).lower():
        return "name one of its configurations with `config`"
    return (
        f"check id, split and network ({name})"
        if not Path(source.id).is_dir()
        else f"check the folder's files ({name})"
    )
