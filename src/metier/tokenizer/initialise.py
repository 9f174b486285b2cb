"""Rows for new tokens in the input embeddings and the output head, made of the old tokenizer's pieces.

    mean         the mean of the pieces' rows (on a par with costlier ways: arXiv 2407.05841)
    weighted     the same, each piece by its letters
    description  the mean of the rows of what is written about the token; the mean of its pieces where nothing is
    random       normal, with the mean and deviation that old rows have in each dimension: what to be better than

Each row then gets the mean norm of the rows that it is made of (random: of all old rows): a mean of different vectors
is shorter than they are, and a short output row is a token that is never chosen. Pieces are always the old tokenizer's:
the new one would make the token of itself. Tied matrices are one, and stay so.

Shapes: V old rows, n new tokens, C hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from metier.models.load import quiet
from metier.models.shape import input_embeddings, is_tied, output_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

How = Literal["mean", "weighted", "description", "random"]


@dataclass(frozen=True)
class Recipe:
    """What each new row is made of.

    made_of: for each new token the old ids and their weights, which sum to 1. how: random ignores them.
    """

    how: How
    made_of: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]
    match_norms: bool = True
    seed: int = 0


def resize(model: "PreTrainedModel", recipe: Recipe, *, first: int, rows: int) -> None:
    """Give the model `rows` rows, of which those of the new tokens start at `first`, in place; rows after them are 0.

    Old rows keep their bits. rows: at least first + n; more than the tokenizer has ids is padding.
    """
    old_in, old_out = input_embeddings(model).weight.detach(), output_head(model).weight.detach()
    tied = is_tied(model)
    fresh = new_rows(old_in[:first], recipe)
    fresh_out = fresh if tied else new_rows(old_out[:first], recipe)
    with quiet():
        model.resize_token_embeddings(rows, mean_resizing=False)
    for matrix, values in ((input_embeddings(model).weight, fresh), (output_head(model).weight, fresh_out)):
        with torch.no_grad():
            matrix[first : first + len(values)] = values.to(matrix.dtype)
            matrix[first + len(values) :] = 0
    assert is_tied(model) == tied


def new_rows(old: Tensor, recipe: Recipe) -> Tensor:
    """(n, C) in float32 from old rows (V, C)."""
    if recipe.how == "random":
        wide = old.float()
        generator = torch.Generator().manual_seed(recipe.seed)
        drawn = torch.randn(len(recipe.made_of), old.shape[1], generator=generator)
        made = drawn * wide.std(0) + wide.mean(0)
        norms = wide.norm(dim=1).mean().expand(len(made))
    else:
        made = torch.stack([_mixed(old, ids, weights) for ids, weights in recipe.made_of])
        norms = torch.stack([old[list(ids)].float().norm(dim=1).mean() for ids, _ in recipe.made_of])
    if recipe.match_norms:
        made = made * (norms / made.norm(dim=1).clamp(min=1e-12))[:, None]
    return made


def _mixed(old: Tensor, ids: Sequence[int], weights: Sequence[float]) -> Tensor:
    return (old[list(ids)].float() * torch.tensor(weights)[:, None]).sum(0)


def evenly(count: int) -> tuple[float, ...]:
    """Weights of a plain mean."""
    return (1 / count,) * count


def by_letters(texts: Sequence[str]) -> tuple[float, ...]:
    """Weights of pieces by their letters; one without any counts as one."""
    sizes = [max(1, len(text.strip())) for text in texts]
    return tuple(size / sum(sizes) for size in sizes)
