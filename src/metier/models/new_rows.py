"""Rows of the embeddings that train while the rest of the matrix stays as it is: the new tokens of an extended model.

PEFT's trainable tokens do the wrapping, so that what is saved is what PEFT reads: beside the frozen matrix W (V, C)
stands a float32 matrix (n, C) with the new rows' values, which replace W's. An output head that is tied to the
embeddings has the same one. PEFT's own forward copies W for each call; training here does without (`train.forward`),
and a loaded adapter has its rows put into the matrix (`settle`).

Refuses, through PEFT, a base with fewer rows. Costs n x C numbers a matrix that is not tied.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from metier.models.load import quiet
from metier.models.shape import input_embeddings, is_tied, output_head

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class NewRows:
    """values: (n, C), float32, trained. first: the id of the first of them."""

    values: nn.Parameter
    first: int

    @property
    def span(self) -> slice:
        """Their places in the matrix."""
        return slice(self.first, self.first + len(self.values))

    def into(self, matrix: Tensor) -> Tensor:
        """The matrix (V, C) with these rows in it, in place and in its type."""
        matrix[self.span] = self.values.detach().to(matrix.dtype)
        return matrix


def new_rows(module: nn.Module) -> NewRows | None:
    """The rows that train in an embedding or an output head; None where none are apart."""
    layer = _layer(module)
    if layer is None:
        return None
    (name,) = layer.active_adapters
    ids = layer.token_indices[name]
    return NewRows(layer.trainable_tokens_delta[name], ids[0])


def beneath(module: nn.Module) -> nn.Module:
    """The embedding or output head itself, frozen where it has new rows."""
    layer = _layer(module)
    found: nn.Module = module if layer is None else layer.base_layer
    return found


def embedded(module: nn.Module, ids: Tensor) -> Tensor:
    """(N,) ids to (N, C), in the type of the frozen matrix; only the new rows get a gradient."""
    fresh = new_rows(module)
    if fresh is None:
        plain: Tensor = module(ids)
        return plain
    x: Tensor = beneath(module)(ids)
    at = ids - fresh.first
    where = ((at >= 0) & (at < len(fresh.values))).nonzero()[:, 0]
    return x.index_copy(0, where, F.embedding(at[where], fresh.values).to(x.dtype))


def names_of(model: "PreTrainedModel", ids: Sequence[int]) -> dict[str, list[int]]:
    """What PEFT calls the matrices, each with the ids that train: the embeddings, and a head that is not tied."""
    wanted = [input_embeddings(model)] if is_tied(model) else [input_embeddings(model), output_head(model)]
    names = [name for module in wanted for name, found in model.named_modules() if found is module]
    return {name.rpartition(".")[2]: list(ids) for name in names}


def add_rows(model: "PreTrainedModel", ids: Sequence[int]) -> "PeftModel":
    """Let the rows of `ids` (one after another) train and nothing else, in place."""
    from peft import TaskType, TrainableTokensConfig, get_peft_model

    names = list(names_of(model, ids))
    config = TrainableTokensConfig(task_type=TaskType.CAUSAL_LM, token_indices=list(ids), target_modules=names)
    with quiet():
        return get_peft_model(model, config)


def settle(model: nn.Module) -> None:
    """Put the rows of a loaded adapter into the matrices, so that its forward pass need not copy these every time."""
    for layer in {id(found): found for found in map(_layer, list(model.modules())) if found is not None}.values():
        layer.merge()


def _layer(module: nn.Module) -> Any:
    """PEFT's layer of trainable tokens around an embedding or a head, or None."""
    if type(module) in (nn.Embedding, nn.Linear):
        return None
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.utils.other import TrainableTokensWrapper

    if isinstance(module, TrainableTokensWrapper):
        module = module.token_adapter
    return module if isinstance(module, TrainableTokensLayer) else None
