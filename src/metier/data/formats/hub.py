"""Data sets of the hub, or laid out as it lays them out in a local folder, by the `datasets` library.

Rows are streamed, so nothing larger than a batch is held or stored. The network is used only where a recipe names a hub
id and HF_HUB_OFFLINE is not set. No code of a data set is run.

A step that is made already is not made again, so what it was made from may not change unseen. A folder's files count by
their contents, as any file's do. Of the hub only a commit stays what it is: anything else is refused, with the commit
that it stands for now, to be written into the recipe.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NoReturn

from pydantic import Field, model_validator

from metier.core.errors import DataError, MissingExtra
from metier.core.stage import Config, FilePattern
from metier.data.files import Problem, Problems, first_line, refuse
from metier.data.formats.table import plain

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ON = {"1", "true", "yes", "on"}


class Hub(Config):
    """A data set of the hub, or a folder that is laid out like one."""

    id: str | None = Field(None, min_length=1, pattern=r"^[^\s@:]+$")
    """Its id, `owner/name`."""
    folder: FilePattern | None = None
    """A local folder that is laid out in the same way, instead of an id."""
    config: str | None = Field(None, min_length=1)
    """Which of its configurations, where it has several."""
    revision: str | None = Field(None, min_length=1)
    """The commit to read, needed with `id`. Branches and tags move; the error that refuses them names the commit."""
    split: str = Field("train", min_length=1)
    """Which of its splits."""
    take: int | None = Field(None, ge=1)
    """Read this many rows from the start; all where it is left out."""
    streaming: bool = True
    """Read while it is fetched; off, the whole data set is stored on disk first."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "Hub":
        if (self.id is None) == (self.folder is None):
            raise ValueError("a data set has either an `id` on the hub or a local `folder`")
        if self.folder is not None and self.revision is not None:
            raise ValueError("`revision` has no effect with a `folder`: leave it out")
        return self

    @property
    def named(self) -> str:
        """Its id or folder, as written."""
        return self.id or str(self.folder)

    @property
    def name(self) -> str:
        """How places name it: the last part of its id and its split."""
        return f"{PurePosixPath(self.named).name}/{self.split}"

    @property
    def place(self) -> PurePath:
        """How errors name it."""
        return PurePosixPath(self.named, *([self.config] if self.config else []), self.split)

    def at(self, paths: Sequence[Path]) -> "Hub":
        """The same with its folder as a whole path. paths: the files that were found below it. Raises DataError."""
        assert self.folder is not None
        ends = Path(self.folder).expanduser().parts
        above = (path for path in (paths[0], *paths[0].parents) if all(p.is_relative_to(path) for p in paths))
        found = next(
            (path for path in above if path.is_dir() and path.parts[len(path.parts) - len(ends) :] == ends), None
        )
        if found is None:
            cure = "name a folder; files of their own are named with `path`"
            refuse(self.place, "this is no folder", value=self.folder, cure=cure)
        return self.model_copy(update={"folder": str(found)})


def rows(source: Hub, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """The data set's rows by number from 1. What JSON has no word for becomes text."""
    if source.folder is None:
        _check_network(source)
    library = _library()
    number = 0
    try:
        revision = None if source.folder else _commit(source)
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
    return library.load_dataset(
        source.named,
        source.config,
        revision=revision,
        split=source.split,
        streaming=source.streaming,
    )


def _check_network(source: Hub) -> None:
    """Refuse what cannot be an id of the hub, and any id where the network is off."""
    name = source.named
    if Path(name).expanduser().is_dir() or name.count("/") > 1 or name.startswith(("/", ".", "~")):
        cure = f"write owner/name, or {{folder: {name}}} for a folder beside the recipe"
        refuse(source.place, "this is no id of the hub", value=name, cure=cure)
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _ON:
        cure = "allow the network with HF_HUB_OFFLINE=0, or fetch it once and name its folder: hub: {folder: ...}"
        refuse(source.place, "the hub is switched off (HF_HUB_OFFLINE)", value=name, cure=cure)


def _commit(source: Hub) -> str:
    """The commit to read. Refuses anything else, naming what it now stands for."""
    if not (source.revision and _COMMIT.fullmatch(source.revision)):
        _refuse_unpinned(source)
    return source.revision


def _refuse_unpinned(source: Hub) -> NoReturn:
    from huggingface_hub import HfApi

    commit = str(HfApi().dataset_info(source.named, revision=source.revision).sha)
    branch = repr(source.revision) if source.revision else "no revision is given, and the branch 'main'"
    what = f"{branch} may change, and a step that is made already would not notice"
    refuse(source.place, what, value=source.revision, cure=f"pin what it is now: revision: {commit}")


def _cure(source: Hub, error: Exception) -> str:
    name = type(error).__name__
    if "NotFound" in name:
        return "check id and revision; private ones need a token (HF_TOKEN)"
    if "split" in str(error).lower():
        return "name one of its splits with `split`"
    if "config" in str(error).lower():
        return "name one of its configurations with `config`"
    return f"check the folder's files ({name})" if source.folder else f"check id, split and network ({name})"
