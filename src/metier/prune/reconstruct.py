"""Block-wise reconstruction: what is left is refitted, so that blocks give again what they gave before.

The same calibration data goes through the model before and after, block by block. Where heads or channels were taken,
the projection behind them is solved anew by least squares, so that the residual stream comes as near as it can to that
of the model before, errors from below included; where a layer was taken, the projection of the one before it. There is
no training loop and no learning rate; a ridge towards the weights as they were keeps directions that the data does not
show. Related: the layer-wise problem of Hubara et al. 2021 (arXiv 2006.10518) and SparseGPT (arXiv 2301.00774).

Costs both models in memory, the hidden states of the samples twice, and K x K numbers of 8 bytes for K inputs.

Shapes: N tokens, K kept inputs of a projection, C hidden.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from metier.models.shape import blocks, sides
from metier.prune.anatomy import Cut, Shape
from metier.prune.stream import Pieces, Stream
from metier.prune.surgery import Chosen, down_projection, kept_inputs, matrix, out_projection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RIDGE = 0.01
"""Of the ridge: this share of the mean square of the inputs."""


@torch.no_grad()
def reconstruct_(
    model: "PreTrainedModel",
    before: "PreTrainedModel",
    shape: Shape,
    cut: Cut,
    chosen: Chosen,
    ids: Pieces,
    *,
    check_stop: Callable[[], None] = lambda: None,
    on_block: Callable[[int, int], None] = lambda _done, _all: None,
) -> None:
    """Refit a pruned model's projections in place. before: the model that it was made of. shape: of `before`.

    chosen: what was taken. ids: of calibration data.
    """
    gone = set(chosen.get(-1, ())) if cut.what == "layers" else set()
    kept = [index for index in range(shape.depth) if index not in gone]
    new, old = Stream(model, ids, check_stop), Stream(before, ids, check_stop)
    for index in range(kept[0]):
        old.hidden = old.run(blocks(before)[index])
    for place, index in enumerate(kept):
        block = blocks(model)[place]
        after = kept[place + 1] if place + 1 < len(kept) else shape.depth
        taken = chosen.get(index, ())
        if taken and cut.what in ("heads", "groups", "queries"):
            layer = out_projection(block, shape)
            inputs = kept_inputs(cut, shape, taken) if cut.what == "heads" else list(range(sides(layer)[0]))
            _refit(new, block, layer, _attended(old, blocks(before)[index], shape), inputs, attention=True)
        for passed in range(index, after):
            old.hidden = old.run(blocks(before)[passed])
        if (taken and cut.what == "width") or after > index + 1:
            layer = down_projection(block, shape)
            _refit(new, block, layer, old.hidden, list(range(sides(layer)[0])), attention=False)
        new.hidden = new.run(block)
        on_block(place + 1, len(kept))


def _attended(stream: Stream, block: nn.Module, shape: Shape) -> list[Tensor]:
    """The residual stream behind a block's attention, of each batch."""
    outs: list[Tensor] = []
    hook = out_projection(block, shape).register_forward_hook(lambda _m, _i, out: outs.append(out))
    try:
        stream.run(block)
    finally:
        hook.remove()
    return [hidden + out.view_as(hidden) for hidden, out in zip(stream.hidden, outs, strict=True)]


def _refit(
    stream: Stream, block: nn.Module, layer: nn.Module, wanted: Sequence[Tensor], inputs: list[int], *, attention: bool
) -> None:
    """Solve a projection so that the residual stream behind it comes near `wanted`, of each batch.

    inputs: its inputs that are kept. attention: it ends the attention, not the block.
    """
    ins: list[Tensor] = []
    outs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _m, _i, out: outs.append(out))
    try:
        ends = stream.run(block, {layer: ins.append})
    finally:
        hook.remove()
    columns, weight, bias = torch.tensor(inputs), matrix(layer), layer.bias
    gram = torch.zeros(len(inputs), len(inputs), dtype=torch.float64)
    toward = torch.zeros(len(inputs), len(weight), dtype=torch.float64)
    for x, out, begin, end, want in zip(ins, outs, stream.hidden, ends, wanted, strict=True):
        stood = begin if attention else end - out.view_as(end)
        missing = (want - stood).flatten(0, -2).double()
        if isinstance(bias, Tensor):
            missing -= bias.double()
        kept = x.index_select(1, columns).double()
        gram += kept.t() @ kept
        toward += kept.t() @ missing
    ridge = RIDGE * float(gram.diagonal().mean())
    gram.diagonal().add_(ridge)
    start = weight.index_select(1, columns).double().t()
    solved = torch.linalg.solve(gram, toward + ridge * start)
    weight.index_copy_(1, columns, solved.t().to(weight.dtype))
