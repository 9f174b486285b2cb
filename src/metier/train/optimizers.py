"""AdamW, AdamW with moments in 8 bits, or Muon for the matrices inside the blocks with AdamW for everything else.

AdamW is torch's fused one. Its 8-bit form (Dettmers et al. 2022, arXiv 2110.02861) is bitsandbytes', on CPU and CUDA:
moments take two bytes a parameter instead of eight, in blocks of 256 that share a scale; tensors under 4,096 elements
keep theirs in float32.

Muon (Jordan et al. 2024; torch.optim.Muon) replaces a matrix's momentum by the nearest orthogonal matrix, so that
rarely seen directions learn as fast as common ones. It costs five small matrix products a matrix and step, and half of
AdamW's memory. Its updates are scaled to AdamW's size (Liu et al. 2025, arXiv 2502.16982), so one learning rate serves
both.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["adamw", "adamw8bit", "muon"]

BETAS = (0.9, 0.95)
"""AdamW's; 0.95 forgets gradient noise sooner than 0.999 and is what language models are trained with."""


class Optimizers:
    """The optimizers of one run behind one face."""

    def __init__(self, named: Mapping[str, nn.Parameter], kind: Kind, *, learning_rate: float, weight_decay: float):
        hidden = {name for name, p in named.items() if kind == "muon" and is_hidden_matrix(name, p)}
        rest = [p for name, p in named.items() if name not in hidden]
        self._all: list[torch.optim.Optimizer] = []
        if rest:
            self._all.append(_adamw(groups(rest, weight_decay), learning_rate, eight_bit=kind == "adamw8bit"))
        if hidden:
            matrices = [p for name, p in named.items() if name in hidden]
            self._all.append(
                torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )

    def step(self, rate: float) -> None:
        """One step of all at this learning rate."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for optimizer in self._all:
            optimizer.zero_grad(set_to_none=True)

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What is remembered of a parameter, all of it as tensors, none of which shares memory with another."""
        kept = self._owner(parameter).state[parameter]
        # bitsandbytes counts steps in an int, and lets all parameters share one table of its 256 values
        return {
            key: value.contiguous() if key not in ("qmap1", "qmap2") else value.clone()
            for key, value in ((k, v if isinstance(v, Tensor) else torch.tensor(v)) for k, v in kept.items())
        }

    def forget(self) -> None:
        """Remember nothing of any parameter, as before the first step."""
        for optimizer in self._all:
            optimizer.state.clear()

    def restore(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """Put back one entry of `state`."""
        owner = self._owner(parameter)
        counts_in_int = key == "step" and not isinstance(owner, torch.optim.AdamW | torch.optim.Muon)
        owner.state[parameter][key] = int(value) if counts_in_int else value.to(parameter.device)

    def _owner(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        return next(o for o in self._all if any(parameter is p for g in o.param_groups for p in g["params"]))


def _adamw(parameters: list[dict[str, Any]], learning_rate: float, *, eight_bit: bool) -> torch.optim.Optimizer:
    if not eight_bit:
        return torch.optim.AdamW(parameters, lr=learning_rate, betas=BETAS, fused=True)
    from metier.models.quantized import bitsandbytes

    optimizer: torch.optim.Optimizer = bitsandbytes().optim.AdamW8bit(parameters, lr=learning_rate, betas=BETAS)
    return optimizer


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix inside a block: not an embedding, not the output head, not a norm or a bias."""
    return parameter.ndim == 2 and not any(part in name for part in ("embed", "wte", "wpe", "lm_head"))


def groups(parameters: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's parameter groups: weight decay on matrices only, never on norms and biases."""
    every = list(parameters)
    matrices = [p for p in every if p.ndim >= 2]
    others = [p for p in every if p.ndim < 2]
    found = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in found if group["params"]]
