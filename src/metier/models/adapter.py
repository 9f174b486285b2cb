"""Low-rank adapters (LoRA): check the settings against a model, put one on, and merge it into the weights.

LoRA adds to a frozen matrix W the product B A of two thin matrices of rank r, scaled by alpha / r (Hu et al. 2021,
arXiv 2106.09685); rsLoRA scales by alpha / sqrt(r) (arXiv 2312.03732), DoRA trains the norms of W's columns apart from
its directions (arXiv 2402.09353). Refuses targets that are not there, a rank above a layer's dimension, and a tied
output head (merging would change the embeddings too). Costs r x (in + out) parameters a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from metier.core.errors import ModelError
from metier.models.anatomy import ALL_LINEAR
from metier.models.anatomy import check_targets as check_against
from metier.models.load import Loaded, quiet
from metier.models.new_rows import names_of
from metier.models.shape import anatomy, linear_layers

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoraSettings:
    """A low-rank adapter.

    r: rank. alpha: the update is scaled by alpha / r. dropout: on the adapter's input while training. targets: names of
    linear layers, or parts of them (`q_proj`, `self_attn.q_proj`, `layers.0.self_attn.q_proj`), or all but the output
    head. rslora: scale by alpha / sqrt(r). dora: train directions and norms apart. rank_pattern: other ranks for the
    layers whose name, or its end from a dot on, a regular expression matches whole; at most one may match.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = ALL_LINEAR
    rslora: bool = False
    dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)


def check_targets(model: "PreTrainedModel", settings: LoraSettings, *, where: str = "lora") -> tuple[str, ...]:
    """The names of the layers that the adapter goes on, as PEFT takes them. `shape.skeleton(config)` will do as model.

    where: the setting's place in the recipe, for the message. Raises ModelError for a target that matches no layer, a
    rank above the smaller side of a target, a tied output head, and values that mean nothing (r < 1, dropout >= 1).
    """
    if settings.r < 1:
        raise ModelError("a rank is at least 1", where=f"{where}.r", value=settings.r, cure="try 8 or 16")
    if not 0 <= settings.dropout < 1:
        raise ModelError("a share from 0 to below 1", where=f"{where}.dropout", value=settings.dropout, cure="try 0.05")
    return check_against(
        anatomy(model),
        targets=settings.targets,
        r=settings.r,
        rank_pattern=settings.rank_pattern,
        where=where,
    )


def add_lora(model: "PreTrainedModel", settings: LoraSettings, new_ids: Sequence[int] = ()) -> "PeftModel":
    """Put a fresh adapter on a model (changed in place) and freeze the rest. Until trained it changes no output.

    new_ids: of tokens, one after another, whose rows train and are saved with it.

    Its factors are float32, whatever type the model's weights are held in; the model's layers may be quantised.
    Its random half is drawn from torch's global generator: seed that before. Raises ModelError like `check_targets`.
    """
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers.pytorch_utils import Conv1D

    targets = check_targets(model, settings)
    hit = [m for name, m in linear_layers(model).items() if any(f".{name}".endswith(f".{t}") for t in targets)]
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(targets),
        rank_pattern=dict(settings.rank_pattern),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        # Conv1D keeps its weight as (in, out)
        fan_in_fan_out=bool(hit) and all(isinstance(module, Conv1D) for module in hit),
        bias="none",
        trainable_token_indices=names_of(model, new_ids) if new_ids else None,
    )
    with quiet():
        return get_peft_model(model, config)


def merge(loaded: Loaded) -> "PreTrainedModel":
    """The plain model that an adapter makes of its base: W + scale B A written into the weights.

    Changes the loaded model in place (it must not be used after). A model without an adapter comes back as it is.
    Raises ModelError unless the weights are float32, where the sum is exact to about 1e-6, and finite.
    """
    from peft import PeftModel

    model = loaded.model
    if not isinstance(model, PeftModel):
        return model
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes != {torch.float32}:
        raise ModelError(
            "an adapter is merged in float32 only",
            where=str(loaded.folder),
            value=sorted(str(dtype) for dtype in dtypes),
            cure="load it with dtype=torch.float32 and cast the result",
        )
    try:
        with quiet():
            merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(
            f"the adapter cannot be merged ({error})", where=str(loaded.folder), cure="train it again"
        ) from error
    return merged.eval()
