"""What a model is made of: its parameters, decoder blocks, linear layers, head, and which of them are trained.

Works on any decoder that keeps its blocks in one list (Llama, Mistral, Qwen, Gemma, GPT-2, GPT-NeoX, OPT ...); refuses
others. Costs nothing: no tensor is read, so models on the meta device will do.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from metier.core.errors import ModelError
from metier.models.anatomy import Anatomy, matching

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

BLOCK_LISTS = ("layers", "h", "blocks")
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")


def plain_name(module: nn.Module) -> str:
    """The name of a module's class; that of one whose weights FSDP2 shards is not the one that it makes of it."""
    return type(module).__name__.removeprefix("FSDP")


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; a tied weight counts once. total: an adapter's included. trained: those that learn."""

    trained: int
    total: int

    @property
    def share(self) -> float:
        """Trained of total, 0 to 1."""
        return self.trained / self.total


def count_parameters(model: nn.Module) -> Parameters:
    """How many parameters a model has and trains. A quantised weight counts as what it stands for, however packed."""
    packed = {id(m.weight): m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear)}
    # parameters() yields a tied weight once
    numbers = [(packed.get(id(p), p.numel()), p.requires_grad) for p in model.parameters()]
    return Parameters(sum(n for n, trains in numbers if trains), sum(n for n, _ in numbers))


def skeleton(config: "PretrainedConfig") -> "PreTrainedModel":
    """A model of that shape without any weights (on the meta device): milliseconds and no memory at any size."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def cast_(parameters: Iterable[nn.Parameter], dtype: "torch.dtype") -> None:
    """Hold parameters in another type, in place. `model.to(dtype)` would round what rotary positions come from too."""
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)


def is_tied(model: "PreTrainedModel") -> bool:
    """Whether the output head and the input embeddings are one matrix."""
    return output_head(model).weight is input_embeddings(model).weight


def input_embeddings(model: "PreTrainedModel") -> nn.Embedding:
    """The token embeddings, weight (vocabulary, hidden); where some rows train apart, without these."""
    found = _plain(model.get_input_embeddings())
    assert isinstance(found, nn.Embedding)
    return found


def output_head(model: "PreTrainedModel") -> nn.Linear:
    """The layer that scores the vocabulary, weight (vocabulary, hidden); where some rows train apart, without these."""
    found = _plain(model.get_output_embeddings())
    assert isinstance(found, nn.Linear)
    return found


def _plain(module: nn.Module) -> nn.Module:
    """An embedding or head without PEFT's wrapper for rows that train apart (`models.new_rows`)."""
    if isinstance(module, nn.Embedding | nn.Linear):
        return module
    from metier.models.new_rows import beneath

    return beneath(module)


def blocks(model: "PreTrainedModel") -> nn.ModuleList:
    """The decoder blocks, first to last. Raises ModelError for a model that keeps them otherwise."""
    return _blocks(model)[1]


def linear_layers(model: "PreTrainedModel") -> dict[str, nn.Module]:
    """Every linear layer (nn.Linear, and GPT-2's Conv1D) except the output head, by its full name, in model order."""
    from transformers.pytorch_utils import Conv1D

    head = output_head(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def linear_names(model: "PreTrainedModel") -> tuple[str, ...]:
    """The last parts of the linear layers' names, each once: q_proj, k_proj ... or c_attn, c_proj, c_fc."""
    return tuple(dict.fromkeys(name.rpartition(".")[2] for name in linear_layers(model)))


def sides(layer: nn.Module) -> tuple[int, int]:
    """What goes into a linear layer and what comes out, in features."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    weight = layer.weight  # Conv1D keeps it as (in, out)
    assert isinstance(weight, Tensor)
    return weight.shape[0], weight.shape[1]


def anatomy(model: "PreTrainedModel") -> Anatomy:
    """The layers and parameters of a model by name; `skeleton(config)` will do."""
    head = output_head(model)
    return Anatomy(
        depth=len(blocks(model)),
        linear={name: sides(layer) for name, layer in linear_layers(model).items()},
        head=next(name for name, module in model.named_modules() if module is head),
        head_sides=sides(head),
        tied=is_tied(model),
        parameters=tuple(name for name, _ in model.named_parameters(remove_duplicate=False)),
    )


def freeze_all_but(
    model: "PreTrainedModel", last: int, *, head: bool = True, patterns: Iterable[str] = ()
) -> Parameters:
    """Train only the last `last` blocks, the final norm, with `head` the output head, and what `patterns` match.

    patterns: regular expressions searched in the full parameter names. A tied head is the input embeddings too: where
    it is trained, they are, as one matrix; it stays tied. Raises ModelError for more blocks than there are, a pattern
    that matches nothing, or nothing left to train.
    """
    prefix, layers = _blocks(model)
    if not 0 <= last <= len(layers):
        raise ModelError(
            f"the model has {len(layers)} blocks", where="freeze.blocks", value=last, cure=f"use 0 to {len(layers)}"
        )
    wanted = [re.escape(f"{prefix}.{i}.") for i in range(len(layers) - last, len(layers))]
    parent, _, _ = prefix.rpartition(".")
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    wanted += [re.escape(f"{parent}.{norm}.") for norm in FINAL_NORMS]
    keep = re.compile("^(?:" + "|".join(wanted) + ")")
    chosen = {name for name in names if keep.match(name)} | matching(names, patterns, where="freeze.patterns")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in chosen:
            parameter.requires_grad_(True)
    if head:
        output_head(model).requires_grad_(True)
    parameters = count_parameters(model)
    if parameters.trained == 0:
        raise ModelError("everything is frozen", where="freeze", cure="train at least one block, or the head")
    return parameters


def _blocks(model: "PreTrainedModel") -> tuple[str, nn.ModuleList]:
    depth = getattr(model.config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in BLOCK_LISTS and len(module) == depth:
            return name, module
    raise ModelError(
        "the model's decoder blocks cannot be found",
        value=type(model).__name__,
        cure="use a decoder built like Llama or GPT-2, with its blocks in one list",
    )
