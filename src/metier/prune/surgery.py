"""Take heads, channels and blocks out of a model's weights, by name; the result is loaded by stock classes.

Plain functions from a state dict to the one of the smaller model; nothing is computed, so what is kept keeps its bits.
Costs a copy of the tensors that become smaller. Refuses nothing: `methods` did.

Shapes: H query heads, G key/value heads, D head width, C hidden, F channels. Linear weights are (out, in), GPT-2's
(in, out).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from metier.models.load import from_weights, read_config
from metier.prune.anatomy import Cut, Shape, cut_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

State = dict[str, Tensor]
Chosen = Mapping[int, Sequence[int]]
"""Block -> the units that are taken from it, ascending. For layers: one key, -1."""
PREFIX = {True: "transformer.h", False: "model.layers"}
"""Where the blocks lie in a state dict: GPT-2's, Llama's."""
OUT = {True: "attn.c_proj", False: "self_attn.o_proj"}
"""The layer through which heads reach the residual stream."""
DOWN = {True: "mlp.c_proj", False: "mlp.down_proj"}
"""The layer through which channels do."""


def out_projection(block: nn.Module, shape: Shape) -> nn.Module:
    """The layer that heads' outputs go into."""
    return block.get_submodule(OUT[shape.is_gpt2])


def down_projection(block: nn.Module, shape: Shape) -> nn.Module:
    """The layer that an MLP's channels go into."""
    return block.get_submodule(DOWN[shape.is_gpt2])


def matrix(layer: nn.Module) -> Tensor:
    """A linear layer's weight as (out, in): a view, which can be written to."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.data if isinstance(layer, nn.Linear) else weight.data.t()


def kept_inputs(cut: Cut, shape: Shape, taken: Sequence[int]) -> list[int]:
    """The inputs of a block's output projection (heads) or down projection (width) that are kept, in order."""
    if cut.what == "width":
        gone = set(taken)
        return [channel for channel in range(shape.inner) if channel not in gone]
    heads = set(heads_of(cut, shape, taken))
    return [at for head in range(shape.heads) if head not in heads for at in _span(head, shape.head)]


def heads_of(cut: Cut, shape: Shape, taken: Sequence[int]) -> list[int]:
    """The query heads that units are. Units of `groups` are key/value groups; of `heads` and `queries` heads."""
    if cut.what != "groups":
        return list(taken)
    return [group * shape.queries + query for group in taken for query in range(shape.queries)]


def smaller(model: "PreTrainedModel", folder: Path, cut: Cut, shape: Shape, chosen: Chosen) -> "PreTrainedModel":
    """The model without what was chosen, made by its stock class; `model` must not be used after.

    folder: of the model, whose config.json the new config is made of; named in errors.
    """
    state = {name: parameter.detach() for name, parameter in model.state_dict().items()}
    before = read_config(folder)
    kept_layers: tuple[int, ...] | None = None
    if cut.what == "layers":
        kept_layers = tuple(i for i in range(shape.depth) if i not in set(chosen.get(-1, ())))
        state = without_layers(state, shape, kept_layers)
    else:
        for block, taken in chosen.items():
            if taken:
                edit = {"heads": zero_heads, "groups": without_heads, "queries": without_heads, "width": without_width}
                edit[cut.what](state, block, cut, shape, taken)
    raw = cut_config(before.to_dict(), cut, kept_layers)
    dtype = next(p.dtype for p in model.parameters())
    config = type(before).from_dict(raw)
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    del model
    made = from_weights(folder, config, state)
    made.config.dtype = dtype
    return made


def zero_heads(state: State, block: int, cut: Cut, shape: Shape, taken: Sequence[int]) -> None:
    """Set the weights of heads to zero: what they read, and what they add. Keys and values go where no head is left."""
    heads = heads_of(cut, shape, taken)
    rows = _rows(heads, shape.head)
    place = f"{PREFIX[shape.is_gpt2]}.{block}"
    if shape.is_gpt2:
        columns = [side * shape.hidden + at for side in range(3) for at in rows]
        _zero(state, f"{place}.attn.c_attn.weight", columns, 1)
        _zero(state, f"{place}.attn.c_attn.bias", columns, 0)
        _zero(state, f"{place}.attn.c_proj.weight", rows, 0)
        return
    _zero(state, f"{place}.self_attn.o_proj.weight", rows, 1)
    lost = [g for g in range(shape.groups) if set(range(g * shape.queries, (g + 1) * shape.queries)) <= set(heads)]
    shared = _rows(lost, shape.head)
    for layer, places in (("q_proj", rows), ("k_proj", shared), ("v_proj", shared)):
        for kind in ("weight", "bias"):
            _zero(state, f"{place}.self_attn.{layer}.{kind}", places, 0)


def without_heads(state: State, block: int, cut: Cut, shape: Shape, taken: Sequence[int]) -> None:
    """Remove heads: whole groups with their keys and values, or query heads alone."""
    place = f"{PREFIX[False]}.{block}.self_attn"
    gone = set(heads_of(cut, shape, taken))
    rows = _rows((h for h in range(shape.heads) if h not in gone), shape.head)
    groups = range(shape.groups) if cut.what == "queries" else [g for g in range(shape.groups) if g not in set(taken)]
    _keep(state, f"{place}.o_proj.weight", rows, 1)
    for layer, places in (
        ("q_proj", rows),
        ("k_proj", _rows(groups, shape.head)),
        ("v_proj", _rows(groups, shape.head)),
    ):
        for kind in ("weight", "bias"):
            _keep(state, f"{place}.{layer}.{kind}", places, 0)


def without_width(state: State, block: int, cut: Cut, shape: Shape, taken: Sequence[int]) -> None:
    """Remove channels of an MLP."""
    kept = kept_inputs(cut, shape, taken)
    place = f"{PREFIX[shape.is_gpt2]}.{block}.mlp"
    if shape.is_gpt2:
        _keep(state, f"{place}.c_fc.weight", kept, 1)
        _keep(state, f"{place}.c_fc.bias", kept, 0)
        _keep(state, f"{place}.c_proj.weight", kept, 0)
        return
    for layer in ("gate_proj", "up_proj"):
        for kind in ("weight", "bias"):
            _keep(state, f"{place}.{layer}.{kind}", kept, 0)
    _keep(state, f"{place}.down_proj.weight", kept, 1)


def without_layers(state: State, shape: Shape, kept: Sequence[int]) -> State:
    """The weights of the kept blocks under their new numbers, and all that is no block's."""
    prefix = PREFIX[shape.is_gpt2]
    numbers = {f"{prefix}.{old}": f"{prefix}.{new}" for new, old in enumerate(kept)}
    left: State = {}
    for name, value in state.items():
        if not name.startswith(f"{prefix}."):
            left[name] = value
            continue
        block = ".".join(name.split(".")[:3])
        if block in numbers:
            left[numbers[block] + name[len(block) :]] = value
    return left


def _span(unit: int, size: int) -> range:
    return range(unit * size, (unit + 1) * size)


def _rows(units: Iterable[int], size: int) -> list[int]:
    return [at for unit in units for at in _span(unit, size)]


def _keep(state: State, name: str, places: Sequence[int], side: int) -> None:
    if name in state:
        value = state[name]
        state[name] = value.index_select(side, torch.tensor(places, dtype=torch.long, device=value.device))


def _zero(state: State, name: str, places: Sequence[int], side: int) -> None:
    if name in state and places:
        value = state[name]
        state[name] = value.index_fill(side, torch.tensor(places, dtype=torch.long, device=value.device), 0.0)
