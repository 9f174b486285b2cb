"""Find the model that a reference names: a built-in, a local folder, or a hub id that is already in the local cache.

Refuses what could not be loaded later (no configuration, pickled weights, a missing shard, an adapter without a base),
so that a recipe fails while it is planned and not after an hour of training. Reads no weights, imports no torch and
never goes to the network. Costs a hash of the folder's files, unless the caller passes a remembering digest.
"""

import json
import os
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from metier.core.errors import ModelError
from metier.core.fingerprint import digest, file_digest
from metier.core.stage import Source

BUILTIN: dict[str, Path] = {"seedling": Path(__file__).parent / "seedling"}
"""The models that come with the package, by name."""

STAND_INS: dict[str, str] = {
    "tiny-llama": "llama",
    "tiny-gpt2": "gpt2",
    "tiny-phi3": "phi3",
    "tiny-gemma": "gemma",
    "tiny-gemma3": "gemma3_text",
    "tiny-falcon": "falcon",
    "tiny-opt": "opt",
    "tiny-bert": "bert",
}
"""Tiny models with random weights for smoke runs (`metier.models.standins`), by name: transformers' name of each's
architecture. They are made when they are first named, in the folder METIER_CACHE or ~/.cache/metier."""
CACHE = "METIER_CACHE"
STAND_INS_FORMAT = "stand-ins-1"
"""The folder that holds them; another where they would be made differently."""

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
BASE = "base.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_MODEL_FILES = {".json", ".safetensors", ".jinja", ".model", ".txt"}
PICKLED = {".bin", ".pt", ".pth", ".ckpt"}
_HUB_ID = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*(?:@[\w.-]+)?")


def resolve(ref: str, root: Path, file_digest_of: Callable[[Path], str] = file_digest) -> Source:
    """What a model reference names, checked.

    A built-in name comes first (`./seedling` is the folder of that name), then a folder relative to `root`, then a hub
    id, `org/name` or `org/name@revision`, looked up in the local Hugging Face cache only. `file_digest_of` gives the
    sha256 of one file; pass `FileDigests(...).file` to hash each file once. The source's digest covers the files that
    loading reads and, for an adapter, its base; that of a hub snapshot is its commit hash, which its link names too.

    Raises ModelError where nothing is found or what is found cannot be loaded.
    """
    if ref in BUILTIN or ref in STAND_INS:
        folder = BUILTIN[ref] if ref in BUILTIN else stand_in(ref)
        check_folder(folder)
        return Source(ref, (folder,), ref, folder_digest(folder, file_digest_of))
    folder = (root / Path(ref).expanduser()).resolve()
    if folder.is_dir():
        _check_outside(folder)
        return Source(ref, (folder,), str(folder), folder_digest(folder, file_digest_of))
    if folder.is_file():
        raise ModelError("a model is a folder, and this is a file", where=str(folder), cure=_cure_for_file(folder))
    if _HUB_ID.fullmatch(ref):
        snapshot = cached_snapshot(ref)
        if snapshot is not None:
            _check_outside(snapshot)
            repository = ref.partition("@")[0]
            return Source(ref, (snapshot,), f"{repository}@{snapshot.name}", snapshot.name)
    raise ModelError("there is no such model", value=ref, cure=_cure_for_missing(ref, folder))


def _check_outside(folder: Path) -> None:
    """As `check_folder`, and that an adapter belongs to the base that it names."""
    check_folder(folder)
    if is_adapter(folder):
        from metier.models.fitting import check_fits

        check_fits(folder)


def cache_folder() -> Path:
    """Where what is made once for this machine is kept."""
    return Path(os.environ.get(CACHE) or "~/.cache/metier").expanduser().absolute()


def stand_in(name: str) -> Path:
    """The folder of a tiny model; making it, where it is not there yet, takes seconds and torch."""
    folder = cache_folder() / STAND_INS_FORMAT / name
    if not folder.is_dir():
        from metier.models.standins import make

        make(STAND_INS[name], folder)
    return folder


def follow(link: str, folder: Path) -> Path:
    """The folder that a link inside `folder` means: a built-in name, a path relative to `folder` or a cached hub id."""
    return resolve(link, folder).path


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def base_link(folder: Path) -> str:
    """What an adapter was trained on: `base` in base.json, or what PEFT wrote if another program made the adapter."""
    if (folder / BASE).is_file():
        name, field = BASE, "base"
    else:
        name, field = ADAPTER_CONFIG, "base_model_name_or_path"
    link = read_json(folder / name).get(field)
    if not isinstance(link, str) or not link:
        raise ModelError(
            "the adapter does not say which model it belongs to",
            where=str(folder / name),
            value=link,
            cure=f'write {{"base": "<name, folder or hub id>"}} into {folder / BASE}',
        )
    return link


def plain_config(folder: Path) -> dict[str, Any]:
    """The config.json of a model, or of what an adapter stands on."""
    while is_adapter(folder):
        folder = follow(base_link(folder), folder)
    return read_json(folder / CONFIG)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder. Raises ModelError naming the file where it is absent or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"the model has no {path.name}", where=str(path.parent), cure=_CURE_INCOMPLETE) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"the file cannot be read ({error})", where=str(path), cure=_CURE_INCOMPLETE) from error
    if not isinstance(value, dict):
        raise ModelError("the file is not a JSON object", where=str(path), value=value, cure=_CURE_INCOMPLETE)
    return value


def check_folder(folder: Path) -> None:
    """Raise ModelError unless a folder holds a configuration and weights as safetensors. Reads no weights."""
    if not folder.is_dir():
        raise ModelError("the model's folder does not exist", where=str(folder), cure=_CURE_INCOMPLETE)
    if is_adapter(folder):
        read_json(folder / ADAPTER_CONFIG)
        base_link(folder)
        _check_weights(folder, [ADAPTER_WEIGHTS])
        return
    if not (folder / CONFIG).is_file():
        raise ModelError(
            "the folder holds no model",
            where=str(folder),
            cure=f"it needs {CONFIG} and {WEIGHTS} (or {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS})",
        )
    read_json(folder / CONFIG)
    _check_weights(folder, weight_files(folder))


def weight_files(folder: Path) -> list[str]:
    """The names of the safetensors files of a whole model: one, or the shards that its index lists, sorted."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [WEIGHTS]
    placed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ModelError("the index lists no weights", where=str(folder / INDEX), cure=_CURE_INCOMPLETE)
    return sorted({str(name) for name in placed.values()})


def folder_digest(folder: Path, file_digest_of: Callable[[Path], str] = file_digest) -> str:
    """sha256 over the files that loading a model reads, by name, and over an adapter's base.

    Those of sentence-transformers say in folders such as `1_Pooling` how tokens become one vector: they count too.

    A link to a neighbour in the store (`../../<key>/files`) names its content already, so it is not followed.
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _MODEL_FILES)
    files += sorted(p for p in folder.glob("[0-9]_*/*") if p.is_file() and p.suffix in _MODEL_FILES)
    parts: dict[str, Any] = {path.relative_to(folder).as_posix(): file_digest_of(path) for path in files}
    if is_adapter(folder):
        link = base_link(folder)
        parts["base"] = link if link.startswith("../") else resolve(link, folder, file_digest_of).digest
    return digest(parts)


def cached_snapshot(ref: str) -> Path | None:
    """The folder of a hub id's snapshot in the local cache, or None. Never goes to the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository, _, revision = ref.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


_CURE_INCOMPLETE = "copy or download the model again: it is incomplete or damaged"


def _check_weights(folder: Path, names: Iterable[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
    if pickled and not any(folder.glob("*.safetensors")):
        raise ModelError(
            "the weights are pickled, which is unsafe to load, and there are none as safetensors",
            where=str(folder / pickled[0]),
            cure=f"convert them once: `metier convert {folder / pickled[0]} NEW_FOLDER` reads nothing but weights",
        )
    raise ModelError("the model's weights are missing", where=str(folder / missing[0]), cure=_CURE_INCOMPLETE)


def _cure_for_file(path: Path) -> str:
    if path.suffix == ".gguf":
        return "give the transformers folder that the GGUF file was made from"
    if path.suffix in PICKLED:
        return f"pickles are not loaded; `metier convert {path} NEW_FOLDER` reads nothing but weights"
    return f"give the folder that holds it: {path.parent}"


def _cure_for_missing(ref: str, folder: Path) -> str:
    close = get_close_matches(ref, sorted(BUILTIN), n=1, cutoff=0.6)
    cures = [f"did you mean {close[0]!r}?"] if close else []
    cures.append(f"built in: {', '.join(sorted(BUILTIN))}; no folder {folder}")
    if _HUB_ID.fullmatch(ref):
        repository, _, revision = ref.partition("@")
        command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
        cures.append(
            "not in the local Hugging Face cache: `metier fetch` looks whether a recipe's models fit here, and fetches "
            f"them; this one alone comes with `{command}`; `--smoke` needs none"
        )
    return "; ".join(cures)
