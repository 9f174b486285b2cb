"""Single weights set to zero, by size, by Wanda or by RIA, anywhere or two of every four.

    magnitude   the size of a weight, compared within its layer
    wanda       times the root mean square of what goes into it, within its output (Sun et al. 2024, arXiv 2306.11695)
    ria         its share of its input's and of its output's weights, times the square root of that, within its output
                (Zhang et al. 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for LLMs", ICLR)

Blocks are taken in order, so that what goes into one follows from what was taken below. The output head and the
embeddings keep all. Costs one layer's scores and, but for magnitude, two passes over the calibration data. The files
keep their size.

Shapes: O outputs, K inputs of a layer.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from metier.models.shape import blocks, linear_layers
from metier.prune.anatomy import Cut
from metier.prune.stream import Look, Pieces, Stream
from metier.prune.surgery import matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rank = Literal["wanda", "ria", "magnitude"]
TINY = 1e-12


@torch.no_grad()
def thin_(
    model: "PreTrainedModel",
    cut: Cut,
    rank: Rank,
    ids: Pieces | None,
    *,
    check_stop: Callable[[], None] = lambda: None,
    on_block: Callable[[int, int], None] = lambda _done, _all: None,
) -> None:
    """Set the weights of a model's blocks to zero, in place. ids: of calibration data, for all but magnitude.

    Of a 2:4 cut that leaves blocks whole, those are taken whose weights lose the smallest share of their scores.
    """
    parts = _parts(model)
    chosen = set(_least_hurt(model, parts, cut, rank, ids, check_stop)) if cut.what == "2:4" else set(range(len(parts)))
    stream = _stream(model, rank, ids, check_stop)
    for index, block in enumerate(blocks(model)):
        check_stop()
        norms = _norms(stream, block, parts[index])
        for layer in parts[index] if index in chosen else ():
            weight = matrix(layer)
            weight.masked_fill_(dropped(scores_of(weight, norms.get(layer), rank), cut, rank), 0.0)
        if stream is not None:
            stream.hidden = stream.run(block)
        on_block(index + 1, len(parts))


def _parts(model: "PreTrainedModel") -> list[list[nn.Module]]:
    """The linear layers of each block."""
    inside = [set(block.modules()) for block in blocks(model)]
    layers = list(linear_layers(model).values())
    return [[layer for layer in layers if layer in modules] for modules in inside]


def _stream(model: "PreTrainedModel", rank: Rank, ids: Pieces | None, check_stop: Callable[[], None]) -> Stream | None:
    if rank == "magnitude":
        return None
    assert ids is not None
    return Stream(model, ids, check_stop)


def _norms(stream: Stream | None, block: nn.Module, layers: list[nn.Module]) -> dict[nn.Module, Tensor]:
    """Root mean square of each input of each layer, (K,)."""
    if stream is None:
        return {}
    sums: dict[nn.Module, Tensor] = {}
    counts: dict[nn.Module, int] = {}

    def look(layer: nn.Module) -> Look:
        def add(x: Tensor) -> None:
            sums[layer] = sums.get(layer, torch.zeros(())) + x.float().square().sum(0).double()
            counts[layer] = counts.get(layer, 0) + len(x)

        return add

    stream.run(block, {layer: look(layer) for layer in layers})
    return {layer: (total / counts[layer]).sqrt().float() for layer, total in sums.items()}


def scores_of(weight: Tensor, norms: Tensor | None, rank: Rank) -> Tensor:
    """How much each weight matters, (O, K). norms: the root mean square of each input, (K,); None for magnitude."""
    size = weight.float().abs()
    if norms is None:
        return size
    if rank == "wanda":
        return size * norms
    shares = (size / size.sum(side, keepdim=True).clamp(min=TINY) for side in (0, 1))
    return sum(shares, torch.zeros(())) * norms.sqrt()


def dropped(scores: Tensor, cut: Cut, rank: Rank) -> Tensor:
    """Which weights go, (O, K). Of equal scores the first go."""
    if cut.what == "2:4":
        fours = scores.reshape(len(scores), -1, 4)
        order = fours.argsort(dim=-1, stable=True)
        return torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, order[..., :2], True).view_as(scores)
    rows = scores.reshape(1, -1) if rank == "magnitude" else scores
    count = int(rows.shape[1] * cut.taken)
    order = rows.argsort(dim=-1, stable=True)
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(-1, order[:, :count], True).view_as(scores)


def _least_hurt(
    model: "PreTrainedModel",
    parts: list[list[nn.Module]],
    cut: Cut,
    rank: Rank,
    ids: Pieces | None,
    check_stop: Callable[[], None],
) -> list[int]:
    """The blocks that a 2:4 cut takes: all, or those that lose the smallest share of their scores."""
    if cut.taken >= len(parts):
        return list(range(len(parts)))
    stream = _stream(model, rank, ids, check_stop)
    losses = []
    for index, block in enumerate(blocks(model)):
        norms = _norms(stream, block, parts[index])
        lost = whole = 0.0
        for layer in parts[index]:
            scores = scores_of(matrix(layer), norms.get(layer), rank)
            lost += float(scores[dropped(scores, cut, rank)].sum())
            whole += float(scores.sum())
        losses.append(lost / whole)
        if stream is not None:
            stream.hidden = stream.run(block)
    return sorted(sorted(range(len(parts)), key=lambda i: (losses[i], i))[: int(cut.taken)])
