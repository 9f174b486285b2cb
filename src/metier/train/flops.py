"""How much arithmetic a micro-step needs: the numerator of utilisation, whatever the code computes besides."""

from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

from metier.models.new_rows import new_rows
from metier.models.shape import blocks
from metier.train.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIRST = frozenset({"q_proj", "k_proj", "v_proj", "c_attn"})
"""The layers that read a block's input."""
KEYS = frozenset({"k_proj", "v_proj", "c_attn"})
"""The layers that the last block computes for every token."""


def count(model: "PreTrainedModel", row: Row, *, frozen: int, cached: bool) -> float:
    """Operations (multiply and add counted apart) of the matrix products that a row's loss and gradients need.

    Each matrix: twice its size a token forward; as much for the gradient to its input, where something before it
    trains; as much for its own gradient, where it trains. Attention: four times heads x head_dim for each pair of a
    query and a key that it may see, and twice that backward. The last block's queries, output projection and MLP, and
    the head, count at targets only; the frozen lower blocks (`frozen` of them) forward only, if `cached` not at all.
    """
    tokens = row.prefix + sum(end - start for _, start, end in row.parts)
    targets = len(row.sources)
    total = 0.0
    layers = blocks(model)
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = 4 * config.num_attention_heads * width
    for index, layer in enumerate(layers):
        if index < frozen and cached:
            continue
        before = any(p.requires_grad for p in model.get_input_embeddings().parameters()) or _norms_train(layer)
        last = index == len(layers) - 1
        learns = index >= frozen
        for name, module in layer.named_modules():
            if not isinstance(module, nn.Linear | Conv1D):
                continue
            path = name.split(".")
            at_sources = last and not KEYS.intersection(path)
            # what reads the first trained block's input passes nothing on, but for an adapter's outer side
            passes_on = learns and (index > frozen or before or "lora_B" in path or not FIRST.intersection(path))
            trained = module.weight.requires_grad
            total += (targets if at_sources else tokens) * 2.0 * _size(module) * (1 + passes_on + trained)
        total += heads * _pairs(row, only_sources=last) * (3 if learns else 1)
    below = frozen < len(layers)
    for name, module in model.get_output_embeddings().named_modules():  # an adapter's layer has three inside
        if isinstance(module, nn.Linear):
            passes_on = below or "lora_B" in name.split(".")
            total += targets * 2.0 * _size(module) * (1 + passes_on + module.weight.requires_grad)
    fresh = new_rows(model.get_output_embeddings())
    if fresh is not None:
        total += targets * 2.0 * fresh.values.numel()
    return total


def _norms_train(layer: nn.Module) -> bool:
    """Whether anything of a block trains that is not in a linear layer: then its first layers pass a gradient on."""
    modules = (module for module in layer.modules() if not isinstance(module, nn.Linear | Conv1D))
    return any(p.requires_grad for module in modules for p in module.parameters(recurse=False))


def _size(module: nn.Module) -> int:
    """The entries of its matrix, however they are packed."""
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features
    return int(module.weight.numel())  # type: ignore[operator]


def _pairs(row: Row, *, only_sources: bool) -> float:
    """Pairs of a query and a key that it sees."""
    if only_sources:
        return float((row.positions[row.sources] + 1).sum())
    ends = [row.prefix, *(end for _, _, end in row.parts)]
    return float((row.positions[: ends[-1]] + 1).sum())
