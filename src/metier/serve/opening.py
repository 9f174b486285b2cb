"""From names to hosts: which models are served, in which numbers, and which of them share a base.

A name is a recipe's step (`sleep-stress/specialist`), a built-in, a folder or a hub id in the local cache, as for
`metier chat`. Adapters whose base is served too, or is another adapter's base, share its weights. Refuses names that
are no model, and two that would be called the same.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metier.core.errors import InputError, ModelError
from metier.models.builtin import base_link, follow, is_adapter, read_json
from metier.serve.gguf import SUFFIX, load_gguf
from metier.serve.hosting import Host

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Numbers = Literal["auto", "fp32", "bf16", "int8"]
SMALL_BYTES = 200_000_000
"""Weights below that are served in float32, as a recipe's answers are made: a few more milliseconds, the same words."""


@dataclass(frozen=True)
class Wanted:
    """A model to serve. name: what requests call it."""

    name: str
    folder: Path


def open_hosts(
    wanted: Sequence[Wanted], *, numbers: Numbers = "auto", slots: int = 8, waiting: int = 64
) -> dict[str, Host]:
    """Load everything: name -> the host that speaks for it. Raises InputError before anything is loaded."""
    _check_names(wanted)
    families: dict[Path, list[Wanted]] = defaultdict(list)
    for one in wanted:
        families[_root(one.folder)].append(one)
    hosts: dict[str, Host] = {}
    for root, members in families.items():
        if root.suffix == SUFFIX:
            loaded: Any = load_gguf(root)
            host = Host({one.name: loaded for one in members}, slots=1, waiting=waiting)
            hosts |= {member.name: host for member in members}
            continue
        host = _open_family(root, members, numbers, slots=slots, waiting=waiting)
        hosts |= {member.name: host for member in members}
    return {one.name: hosts[one.name] for one in wanted}


def _check_names(wanted: Sequence[Wanted]) -> None:
    if not wanted:
        raise InputError("there is no model to serve", cure="name one: `metier serve quickstart/specialist`")
    names = [one.name for one in wanted]
    for name in names:
        if names.count(name) > 1:
            raise InputError("two models have the same name", value=name, cure="name each once")


def _root(folder: Path) -> Path:
    """The base that an adapter shares with others; a model that stands alone is its own."""
    if folder.suffix == SUFFIX or not is_adapter(folder):
        return folder.resolve()
    base = follow(base_link(folder), folder)
    if is_adapter(base) or _own_rows(folder):
        return folder.resolve()
    return base.resolve()


def _own_rows(folder: Path) -> bool:
    """Whether an adapter brings embeddings of its own, so that it cannot stand beside others on one base."""
    config = read_json(folder / "adapter_config.json")
    return bool(config.get("trainable_token_indices") or config.get("modules_to_save"))


def _open_family(root: Path, members: Sequence[Wanted], numbers: Numbers, *, slots: int, waiting: int) -> Host:
    from metier.models.load import Loaded, add_adapters, load, read_config

    if numbers == "auto" and sum(path.stat().st_size for path in root.glob("*.safetensors")) < SMALL_BYTES:
        numbers = "fp32"
    dtype, quantized = _numbers(numbers, int(read_config(root).hidden_size))
    adapters = {one.name: one.folder for one in members if one.folder.resolve() != root}
    if quantized and is_adapter(root):
        raise ModelError(
            "an adapter with embeddings of its own cannot be served in int8",
            where=str(root),
            cure="merge it first (a `merge` step), or serve it with --dtype bf16",
        )
    base = load(root, dtype=dtype)
    if quantized:
        from metier.train.int8 import quantize_

        quantize_(base.model)
    _to_device(base.model)
    loaded: dict[str, Loaded] = dict(add_adapters(base, adapters)) if adapters else {}
    model = next(iter(loaded.values())).model if loaded else base.model
    for one in members:
        if one.name not in loaded:
            loaded[one.name] = Loaded(model, base.tokenizer, base.folder)
    return Host({one.name: loaded[one.name] for one in members}, slots=slots, waiting=waiting)


def _numbers(numbers: Numbers, width: int) -> "tuple[torch.dtype, bool]":
    """The type of the weights that are loaded, and whether they are held in int8."""
    import torch

    from metier.train.precision import best_device, choose

    if numbers == "int8":
        return (torch.float32 if best_device().type == "cpu" else torch.bfloat16), True
    found = choose(numbers, width=width, device=best_device())
    return found.dtype, False


def _to_device(model: "PreTrainedModel") -> None:
    from metier.train.precision import best_device

    device = best_device()
    if device.type != "cpu":
        model.to(device)
