"""Calibration data on its way through a model, one block at a time.

What goes into the first block is caught once; then blocks are run one by one, so that what a block reads can follow
what was changed below it. Costs the hidden states of all samples in memory: samples x tokens x hidden x 4 bytes.

Shapes: B samples of a batch, T tokens, C hidden, K inputs of a layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metier.models.shape import blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pieces = Sequence[Tensor]
"""Token ids of calibration data, in batches (B, T): within one all are as long as one another."""
Others = tuple[list[Any], dict[str, Any]]
"""What a block is called with beside its hidden states, by place and by name."""
Look = Callable[[Tensor], None]
"""Looks at what goes into a layer: (tokens, K)."""


class _CaughtError(Exception):
    """The first block was reached."""


class Stream:
    """The samples' hidden states before some block. check_stop: asked between batches; may raise."""

    def __init__(self, model: "PreTrainedModel", ids: Pieces, check_stop: Callable[[], None] = lambda: None) -> None:
        self._check_stop = check_stop
        caught = [_first_input(model, batch) for batch in ids]
        self.hidden: list[Tensor] = [hidden for hidden, _ in caught]
        self._others = [others for _, others in caught]

    @torch.no_grad()
    def run(self, block: nn.Module, looks: Mapping[nn.Module, Look] | None = None) -> list[Tensor]:
        """What the block makes of the hidden states, which stay as they are. looks: at the inputs of its layers."""
        with looking(looks or {}):
            found = []
            for hidden, (listed, named) in zip(self.hidden, self._others, strict=True):
                self._check_stop()
                out = block(hidden, *listed, **named)
                found.append(out if isinstance(out, Tensor) else out[0])
        return found


@contextmanager
def looking(looks: Mapping[nn.Module, Look]) -> Iterator[None]:
    """Within it, each of these layers shows what goes into it, flattened to (tokens, K)."""
    hooks = [layer.register_forward_pre_hook(_shown(look)) for layer, look in looks.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _shown(look: Look) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        look(inputs[0].detach().flatten(0, -2))

    return hook


@torch.no_grad()
def _first_input(model: "PreTrainedModel", ids: Tensor) -> tuple[Tensor, Others]:
    """What the first block is called with: its hidden states, and all else."""
    caught: list[tuple[Tensor, Others]] = []

    def catch(_: nn.Module, inputs: Sequence[Any], named: dict[str, Any]) -> None:
        others = {name: value for name, value in named.items() if name != "hidden_states"}
        hidden, *rest = inputs or (named["hidden_states"],)
        caught.append((hidden, (rest, others)))
        raise _CaughtError

    hook = blocks(model)[0].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(input_ids=ids, use_cache=False)
    except _CaughtError:
        return caught[0]
    finally:
        hook.remove()
    raise AssertionError("a model calls its first block")
