"""How important each head, channel and block is: what is taken is what matters least.

    activation   the root mean square of what a unit adds to the residual stream, over the calibration data
    gradient     the mean size of (output x gradient of the loss), to first order what the loss would change by without
                 the unit (Michel et al. 2019, arXiv 1905.10650; Molchanov et al. 2019, arXiv 1906.10771)
    magnitude    the norm of a unit's weights; no data
    influence    of blocks: 1 - cosine of what goes in and what comes out (Men et al. 2024, arXiv 2403.03853)

Costs one pass over the calibration data; with gradient forward and backward, whose activations of one batch are held.

Shapes: N tokens, K inputs of a layer, H heads, D head width, C hidden.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metier.models.shape import blocks, input_embeddings
from metier.prune.anatomy import Cut, Shape
from metier.prune.methods import Importance
from metier.prune.stream import Pieces, Stream, looking
from metier.prune.surgery import PREFIX, Chosen, down_projection, heads_of, matrix, out_projection

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Scores = list[list[float]]
"""For each block a score of each unit; of blocks themselves one list with a score of each."""
Check = Callable[[], None]


def scores(
    model: "PreTrainedModel",
    shape: Shape,
    cut: Cut,
    how: Importance,
    ids: Pieces | None,
    *,
    check_stop: Check = lambda: None,
) -> Scores:
    """The scores of a cut's units. ids: of calibration data, where `how` or layers need it."""
    if cut.what == "layers":
        assert ids is not None
        return [influence(model, ids, check_stop)]
    of_heads = cut.what != "width"
    if how == "magnitude":
        plain = [_weights(model, shape, block, of_heads=of_heads) for block in range(shape.depth)]
    else:
        assert ids is not None
        measure = _by_activation if how == "activation" else _by_gradient
        plain = measure(model, shape, ids, of_heads=of_heads, check_stop=check_stop)
    if cut.what == "groups":
        return [[sum(row[h] for h in heads_of(cut, shape, [g])) for g in range(shape.groups)] for row in plain]
    return plain


def choose(found: Scores, shape: Shape, cut: Cut) -> Chosen:
    """The units of the lowest scores, as many as the cut takes from each block; of equal ones the first."""
    taken = int(cut.taken)
    if cut.what == "layers":
        return {-1: _lowest(found[0], taken)}
    if cut.what == "queries":
        return {block: _of_each_group(found[block], shape, taken) for block in cut.blocks}
    return {block: _lowest(found[block], taken) for block in cut.blocks}


@torch.no_grad()
def influence(model: "PreTrainedModel", ids: Pieces, check_stop: Check = lambda: None) -> list[float]:
    """Each block's influence, 0 where it changes no direction of the residual stream."""
    stream = Stream(model, ids, check_stop)
    found = []
    for block in blocks(model):
        after = stream.run(block)
        pairs = zip(stream.hidden, after, strict=True)
        alike = [torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).flatten() for a, b in pairs]
        found.append(1 - float(torch.cat(alike).mean()))
        stream.hidden = after
    return found


def _lowest(row: Sequence[float], count: int) -> list[int]:
    return sorted(sorted(range(len(row)), key=lambda unit: (row[unit], unit))[:count])


def _of_each_group(row: Sequence[float], shape: Shape, count: int) -> list[int]:
    found: list[int] = []
    for group in range(shape.groups):
        first = group * shape.queries
        found += [first + unit for unit in _lowest(row[first : first + shape.queries], count)]
    return found


def _projections(model: "PreTrainedModel", shape: Shape, *, of_heads: bool) -> list[nn.Module]:
    """The layer of each block that its units go into."""
    find = out_projection if of_heads else down_projection
    return [find(block, shape) for block in blocks(model)]


@torch.no_grad()
def _by_activation(model: "PreTrainedModel", shape: Shape, ids: Pieces, *, of_heads: bool, check_stop: Check) -> Scores:
    """Root mean square of each unit's product with its columns of the projection."""
    layers = _projections(model, shape, of_heads=of_heads)
    size = shape.head if of_heads else 1
    count = shape.heads if of_heads else shape.inner
    sums = [torch.zeros(count, size, size, dtype=torch.float64) for _ in layers]
    tokens = 0

    def look(at: int) -> Callable[[Tensor], None]:
        def add(x: Tensor) -> None:
            parts = x.float().view(len(x), count, size)
            if size == 1:
                sums[at][:, 0, 0] += parts[:, :, 0].square().sum(0).double().cpu()
            else:
                sums[at] += torch.einsum("nhd,nhe->hde", parts, parts).double().cpu()

        return add

    with looking({layer: look(at) for at, layer in enumerate(layers)}):
        for batch in ids:
            check_stop()
            model(input_ids=batch, use_cache=False, logits_to_keep=1)
            tokens += batch.numel()
    found = []
    for layer, gram in zip(layers, sums, strict=True):
        columns = matrix(layer).double().cpu().view(-1, count, size)  # (C, units, size)
        products = torch.einsum("chd,hde,che->h", columns, gram, columns)
        found.append((products / tokens).clamp(min=0).sqrt().tolist())
    return found


def _by_gradient(model: "PreTrainedModel", shape: Shape, ids: Pieces, *, of_heads: bool, check_stop: Check) -> Scores:
    """Mean over tokens of |sum over a unit of output x gradient of the next tokens' loss|."""
    layers = _projections(model, shape, of_heads=of_heads)
    count = shape.heads if of_heads else shape.inner
    sums = [torch.zeros(count, dtype=torch.float64) for _ in layers]

    def watch(at: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]

            def add(gradient: Tensor) -> None:
                products = (x.detach() * gradient).flatten(0, -2).view(-1, count, x.shape[-1] // count)
                sums[at] += products.sum(-1).abs().sum(0).double().cpu()

            x.register_hook(add)  # type: ignore[no-untyped-call]

        return hook

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    hooks = [layer.register_forward_pre_hook(watch(at)) for at, layer in enumerate(layers)]
    try:
        for batch in ids:
            check_stop()
            embedded = input_embeddings(model)(batch).requires_grad_(True)
            logits: Any = model(inputs_embeds=embedded, use_cache=False).logits
            nll = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
            )
            torch.autograd.backward(nll)
    finally:
        for hook in hooks:
            hook.remove()
    tokens = sum(batch.numel() for batch in ids)
    return [(row / tokens).tolist() for row in sums]


@torch.no_grad()
def _weights(model: "PreTrainedModel", shape: Shape, block: int, *, of_heads: bool) -> list[float]:
    """The norm of each unit's weights: what it reads with and what it adds."""
    state: Mapping[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    place = f"{PREFIX[shape.is_gpt2]}.{block}"
    if of_heads:
        out = matrix(out_projection(blocks(model)[block], shape)).square().sum(0)
        if shape.is_gpt2:
            reads = state[f"{place}.attn.c_attn.weight"].square().sum(0).view(3, -1).sum(0)
        else:
            reads = state[f"{place}.self_attn.q_proj.weight"].square().sum(1)
        return (out + reads).view(shape.heads, -1).sum(1).sqrt().tolist()
    down = matrix(down_projection(blocks(model)[block], shape)).square().sum(0)
    if shape.is_gpt2:
        return (down + state[f"{place}.mlp.c_fc.weight"].square().sum(0)).sqrt().tolist()
    gates = [state[f"{place}.mlp.{name}.weight"].square().sum(1) for name in ("gate_proj", "up_proj")]
    return (down + gates[0] + gates[1]).sqrt().tolist()
