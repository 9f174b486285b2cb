"""Look at a model on the hub, and fetch it: the only place that does. Only `metier fetch` comes here.

Sizes, access and the kind of weights are asked for first, so that what cannot be had, loaded or stored is refused
before anything is fetched. Only files that loading reads are fetched, at the commit that was looked at. No code is run.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metier.core.errors import EndpointError, InputError, MetierError, ModelError, together
from metier.models.builtin import PICKLED, cached_snapshot, check_folder

OFF = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
WANTED = (".json", ".safetensors", ".jinja", ".model", ".txt")
"""What is fetched, from the top folder of a repository and of sentence-transformers' `1_Pooling` alone."""
SPARE = 1.05
"""Times what is fetched that has to be free on disk."""


@dataclass(frozen=True)
class Found:
    """What the hub says of a model. files: those to fetch, with their bytes. here: the cache has it already."""

    ref: str
    commit: str
    files: Mapping[str, int]
    here: bool = False

    @property
    def bytes(self) -> int:
        """To be fetched."""
        return 0 if self.here else sum(self.files.values())


def check_open(environment: Mapping[str, str] = os.environ) -> None:
    """Raise InputError where the network is switched off. Reaches nothing."""
    for name in OFF:
        if environment.get(name, "").strip().lower() in ("1", "true", "yes", "on"):
            cure = f"{name}=0 opens it for one command: {name}=0 metier fetch ..."
            raise InputError("the hub cannot be reached: the network is switched off", where=name, cure=cure)


def in_cache(ref: str) -> Found | None:
    """A model that the local cache holds whole, or None. Reaches nothing."""
    folder = cached_snapshot(ref)
    if folder is None:
        return None
    try:
        check_folder(folder)
    except ModelError:
        return None
    return Found(ref, folder.name, {}, here=True)


def look(refs: Iterator[str] | list[str], api: Any = None) -> list[Found]:
    """What the hub says of each model. api: an HfApi. Raises one error for all that cannot be fetched."""
    found: list[Found] = []
    errors: list[MetierError] = []
    for ref in refs:
        try:
            found.append(in_cache(ref) or _look(ref, api or _api()))
        except (InputError, EndpointError) as error:
            errors.append(error)
    if errors:
        raise together(errors)
    return found


def check_disk(found: list[Found], cache: Path | None = None, free: Callable[[Path], int] | None = None) -> None:
    """Raise InputError where what is to be fetched does not fit. cache: where it will lie; free: bytes left there."""
    place = cache or cache_folder()
    existing = next(folder for folder in (place, *place.parents) if folder.is_dir())
    left = free(existing) if free else shutil.disk_usage(existing).free
    wanted = sum(one.bytes for one in found)
    if wanted * SPARE > left:
        largest = max(found, key=lambda one: one.bytes)
        raise InputError(
            f"too little disk: {wanted / 1e9:.1f} GB are to be fetched, and {left / 1e9:.1f} GB are free in {existing}",
            value=f"{largest.ref} {largest.bytes / 1e9:.1f} GB",
            cure="free some, or set HF_HOME to a folder on a larger disk; contenders and judges can be left out of the "
            "recipe",
        )


def fetch(found: Found) -> Path:
    """Fetch what was looked at into the local cache, and return its folder. Raises EndpointError."""
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    repository = found.ref.partition("@")[0]
    try:
        return Path(snapshot_download(repository, revision=found.commit, allow_patterns=list(found.files)))
    except (HfHubHTTPError, HTTPError, OSError) as error:
        cure = "run the same command again: what is fetched already is kept"
        raise EndpointError(f"fetching stopped ({_line(error)})", where=found.ref, cure=cure) from error


def cache_folder() -> Path:
    """Where the hub's files lie."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()


def _look(ref: str, api: Any) -> Found:
    from httpx import HTTPError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    repository, _, revision = ref.partition("@")
    try:
        info = api.model_info(repository, revision=revision or None, files_metadata=True)
        api.auth_check(repository)
    except GatedRepoError as error:
        raise ModelError(
            "the model is gated, and this account may not read it",
            value=ref,
            cure="ask for access on its page on the hub, and give a token of that account in HF_TOKEN",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError("the hub has no such revision of the model", value=ref, cure="check what follows @") from error
    except RepositoryNotFoundError as error:
        cure = "check the name; a private model needs a token of its owner in HF_TOKEN"
        raise ModelError(
            "the hub has no such model, or none that this account may see", value=ref, cure=cure
        ) from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        cure = "check the network, and try again"
        raise EndpointError(f"the hub did not answer ({_line(error)})", where=ref, cure=cure) from error
    sizes = {str(one.rfilename): int(one.size or 0) for one in info.siblings or ()}
    return Found(ref, str(info.sha), _wanted(ref, sizes))


def _wanted(ref: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """The files that loading reads. Raises ModelError where there are no weights that it would."""
    top = {name: size for name, size in sizes.items() if "/" not in name or name.startswith("1_Pooling/")}
    files = {name: size for name, size in top.items() if name.endswith(WANTED)}
    if not any(name.endswith(".safetensors") for name in files):
        pickled = [name for name in top if Path(name).suffix in PICKLED]
        what = "the model has no weights as safetensors" + (", only pickled ones" if pickled else "")
        cure = "use another model, or another revision of it (org/name@revision)"
        if pickled:
            repository = ref.partition("@")[0]
            cure = (
                f"`hf download {repository}`, then `metier convert FILE FOLDER` (it reads nothing but weights), and "
                "name that folder in the recipe"
            )
        raise ModelError(what, value=ref, cure=cure)
    return files


def _line(error: Exception) -> str:
    said = str(error).strip().splitlines()
    return said[0] if said else type(error).__name__
