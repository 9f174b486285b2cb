"""What is known of models and data before anything is loaded. Imports nothing heavy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metier.core.errors import ModelError
from metier.core.stage import Context
from metier.models.anatomy import Anatomy, known
from metier.models.builtin import plain_config

SAME_VOCABULARY = "use a model with the same tokenizer, such as the one that was pruned"


def check_teacher(folder: Path, teacher: Path) -> None:
    """Raise ModelError where a teacher has not as many tokens as the model in `folder`. Reads no weights."""
    wanted, found = (plain_config(one).get("vocab_size") for one in (folder, teacher))
    if wanted != found:
        raise ModelError(
            f"the teacher has another vocabulary than the model, of {wanted} tokens",
            where="teacher",
            value=f"{found} tokens",
            cure=SAME_VOCABULARY,
        )


def anatomy_of(folder: Path, config: Mapping[str, Any]) -> Anatomy:
    """What a model is made of: from its config.json, else (with torch, in seconds) from a model without weights."""
    found = known(config)
    if found is not None:
        return found
    from metier.models.load import read_config
    from metier.models.shape import anatomy, skeleton

    return anatomy(skeleton(read_config(folder)))


def context_of(config: Mapping[str, Any]) -> int:
    """The longest sequence that a model was built for. Raises ModelError where its config does not say."""
    for name in ("max_position_embeddings", "n_positions"):
        if isinstance(config.get(name), int):
            return int(config[name])
    raise ModelError(
        "the model's config does not give its context",
        where="config.json",
        value=config.get("model_type"),
        cure="use a model whose config.json has max_position_embeddings",
    )


def cache_of(ctx: Context) -> Path:
    """Where token ids are kept: for every step of the store, else for this one."""
    return (ctx.cache or ctx.scratch) / "tokens"


def has_rows(path: Path) -> bool:
    """Whether a split's file is there and not empty."""
    return path.is_file() and path.stat().st_size > 0
