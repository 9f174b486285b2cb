"""Linear layers with a frozen weight and a low-rank adapter: one autograd step for all that read the same input.

y_i = x W_i^T + b_i + s_i (drop(x) A_i^T) B_i^T, the formula of LoRA (arXiv 2106.09685) as PEFT computes it. Only x and the
thin products are kept. W may be of any storage (`Weight`): a parameter in another type is cast as it is used. What has no
plain formula here (DoRA, bitsandbytes) goes through its own module.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from metier.train.int8 import Int8Linear


class Weight(Protocol):
    """A frozen or trained matrix (out, in), however it is stored."""

    parameter: Tensor
    """What may be trained; the others are frozen."""

    def forward(self, x: Tensor) -> Tensor:
        """x (N, in) times its transpose: (N, out)."""

    def backward(self, dy: Tensor, into: Tensor | None) -> Tensor:
        """dy (N, out) times it: (N, in), added to `into` where there is one."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix of floating point numbers. turned: stored as (in, out)."""

    parameter: Tensor
    turned: bool = False

    def in_type(self, dtype: torch.dtype) -> Tensor:
        """(out, in)."""
        cast = self.parameter.detach().to(dtype)
        return cast.t() if self.turned else cast

    def forward(self, x: Tensor) -> Tensor:
        """x (N, in) times its transpose: (N, out)."""
        return F.linear(x, self.in_type(x.dtype))

    def backward(self, dy: Tensor, into: Tensor | None) -> Tensor:
        """dy (N, out) times it: (N, in)."""
        weight = self.in_type(dy.dtype)
        return dy @ weight if into is None else into.addmm_(dy, weight)


@dataclass(frozen=True, eq=False)
class Adapter:
    """A (r, in), B (out, r), s = alpha / r."""

    a: nn.Parameter
    b: nn.Parameter
    scale: float
    dropout: float


@dataclass(frozen=True, eq=False)
class Linear:
    """One layer of a block. module: what it stands for."""

    module: nn.Module
    weight: Weight
    bias: Tensor | None
    adapter: Adapter | None


def resolve(module: nn.Module) -> Linear | None:
    """The layer behind a module, or None for one that only its own forward computes."""
    from peft.tuners.lora.layer import Linear as LoraLinear
    from transformers.pytorch_utils import Conv1D

    adapter, base = None, module
    if isinstance(module, LoraLinear):
        base = module.get_base_layer()
        names = module.active_adapters
        plain = len(names) == 1 and not (module.disable_adapters or module.merged or any(module.lora_variant.values()))
        if not plain or module.lora_bias.get(names[0], False):
            return None
        (name,) = names
        drop = module.lora_dropout[name]
        share = drop.p if isinstance(drop, nn.Dropout) else 0.0
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        adapter = Adapter(a, b, float(module.scaling[name]), share)
    if type(base) is nn.Linear:
        return Linear(module, Dense(base.weight), base.bias, adapter)
    if type(base) is Conv1D:
        return Linear(module, Dense(base.weight, turned=True), base.bias, adapter)
    if isinstance(base, Int8Linear):
        return Linear(module, base.frozen, base.bias, adapter)
    return None


class Group:
    """Layers that read the same input. Those without a formula here go through `fallback(module, x)`."""

    def __init__(self, modules: Sequence[nn.Module], fallback: Callable[[nn.Module, Tensor], Tensor]):
        found = [resolve(module) for module in modules]
        self.linears = tuple(linear for linear in found if linear is not None)
        self.whole = len(self.linears) == len(found)
        self._modules = modules
        self._fallback = fallback

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """x (N, in) through each layer: (N, out) of each."""
        if not self.whole:
            return tuple(self._fallback(module, x) for module in self._modules)
        training = self._modules[0].training
        flat = [t for linear in self.linears for t in _tensors(linear)]
        outs: tuple[Tensor, ...] = _Project.apply(x, self.linears, training, *flat)  # type: ignore[no-untyped-call]
        return outs


def _tensors(linear: Linear) -> tuple[Tensor | None, ...]:
    """The four that may need a gradient."""
    adapter = linear.adapter
    return (
        linear.weight.parameter,
        linear.bias,
        None if adapter is None else adapter.a,
        None if adapter is None else adapter.b,
    )


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, linears: tuple[Linear, ...], training: bool, *flat: Tensor) -> tuple[Tensor, ...]:
        outs, thins = [], []
        share = max((linear.adapter.dropout for linear in linears if linear.adapter), default=0.0) if training else 0.0
        kept = torch.rand(x.shape, device=x.device) >= share if share else None
        dropped = x if kept is None else x * kept / (1 - share)
        for linear in linears:
            y = linear.weight.forward(x)
            if linear.bias is not None:
                y += linear.bias
            if linear.adapter is not None:
                thin = F.linear(dropped, linear.adapter.a.to(x.dtype))
                y.addmm_(thin, linear.adapter.b.to(x.dtype).t(), alpha=linear.adapter.scale)
                thins.append(thin)
            outs.append(y)
        ctx.linears, ctx.share = linears, share
        ctx.save_for_backward(x, kept, *thins)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        x, kept, *thins = ctx.saved_tensors
        share: float = ctx.share
        dropped = x if kept is None else x * kept / (1 - share)
        wants_x: bool = ctx.needs_input_grad[0]
        dx: Tensor | None = None
        through: Tensor | None = None  # what comes through the dropout
        found: list[Tensor | None] = []
        thin_of = iter(thins)
        for index, (linear, dy) in enumerate(zip(ctx.linears, grads, strict=True)):
            wants_weight, wants_bias = ctx.needs_input_grad[3 + 4 * index : 5 + 4 * index]
            found.append(_weight_grad(linear.weight, dy, x) if wants_weight else None)
            found.append(dy.sum(0, dtype=torch.float32).to(linear.bias.dtype) if wants_bias else None)
            if wants_x:
                dx = linear.weight.backward(dy, dx)
            if linear.adapter is None:
                found += [None, None]
                continue
            thin, adapter = next(thin_of), linear.adapter
            d_thin = (dy @ adapter.b.to(dy.dtype)).mul_(adapter.scale)
            found.append((d_thin.t() @ dropped).to(adapter.a.dtype))
            found.append((dy.t() @ thin).to(adapter.b.dtype).mul_(adapter.scale))
            if wants_x:
                a = adapter.a.to(dy.dtype)
                if kept is None and dx is not None:
                    dx.addmm_(d_thin, a)
                else:
                    through = d_thin @ a if through is None else through.addmm_(d_thin, a)
        if through is not None and dx is not None:
            dx += through * kept / (1 - share)
        return dx, None, None, *found


def _weight_grad(weight: Weight, dy: Tensor, x: Tensor) -> Tensor:
    turned = isinstance(weight, Dense) and weight.turned
    grad = x.t() @ dy if turned else dy.t() @ x
    return grad.to(weight.parameter.dtype)
