"""Linear layers with a frozen weight and a low-rank adapter: one autograd step for all that read the same input.

y_i = x W_i^T + b_i + s_i (drop(x) A_i^T) B_i^T, the formula of LoRA (arXiv 2106.09685) as PEFT computes it, but that
layers with one input share its dropout. Only what x comes from and the thin products are kept; what stands before the
layers (a norm, an activation) is done again in backward. W may be of any storage (`Weight`): a parameter in another
type is cast as it is used. What has no plain formula here (DoRA) goes through its own module.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from metier.models.quantized import Packed
from metier.train.fast.ops import Apply, Before
from metier.train.int8 import Int8Linear


class Weight(Protocol):
    """A frozen or trained matrix (out, in), however it is stored."""

    @property
    def parameter(self) -> Tensor:
        """What may be trained; the others are frozen."""

    def prepared(self, x: Tensor) -> Any:
        """What `forward` takes for x (N, in): the same for all weights of its kind."""

    def forward(self, prepared: Any) -> Tensor:
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

    def prepared(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def forward(self, prepared: Tensor) -> Tensor:
        """x (N, in) times its transpose: (N, out)."""
        return F.linear(prepared, self.in_type(prepared.dtype))

    def backward(self, dy: Tensor, into: Tensor | None) -> Tensor:
        """dy (N, out) times it: (N, in)."""
        weight = self.in_type(dy.dtype)
        return dy @ weight if into is None else into.addmm_(dy, weight)


@dataclass(frozen=True, eq=False)
class Made:
    """A matrix that bitsandbytes holds, made whole for each product and dropped again."""

    layer: Packed

    @property
    def parameter(self) -> Tensor:
        """As it is held."""
        held: Tensor = self.layer.weight
        return held

    def prepared(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def forward(self, prepared: Tensor) -> Tensor:
        """x (N, in) times its transpose: (N, out)."""
        return F.linear(prepared, self.layer.dequantized(prepared.dtype))

    def backward(self, dy: Tensor, into: Tensor | None) -> Tensor:
        """dy (N, out) times it: (N, in)."""
        weight = self.layer.dequantized(dy.dtype)
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
    from peft.tuners.lora.layer import LoraLayer
    from transformers.pytorch_utils import Conv1D

    adapter, base = None, module
    if isinstance(module, LoraLayer):
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
        turned: Any = base  # transformers comes without types
        return Linear(module, Dense(turned.weight, turned=True), turned.bias, adapter)
    if isinstance(base, Int8Linear):
        return Linear(module, base.frozen, base.bias, adapter)
    if isinstance(base, Packed):
        return Linear(module, Made(base), base.bias, adapter)
    return None


class Group:
    """Layers that read the same input, and what makes that input of the block's state.

    Those without a formula here go through `fallback(module, x)`.
    """

    def __init__(self, before: Before, modules: Sequence[nn.Module], fallback: Callable[[nn.Module, Tensor], Tensor]):
        found = [resolve(module) for module in modules]
        self.linears = tuple(linear for linear in found if linear is not None)
        self.whole = len(self.linears) == len(found)
        self._before = before
        self._modules = modules
        self._fallback = fallback

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The inputs of `before` through it and then through each layer: (N, out) of each."""
        if not self.whole:
            x: Tensor = Apply.apply(self._before, *inputs)  # type: ignore[no-untyped-call]
            return tuple(self._fallback(module, x) for module in self._modules)
        training = self._modules[0].training
        flat = [t for linear in self.linears for t in _tensors(linear)]
        outs: tuple[Tensor, ...] = _Project.apply(  # type: ignore[no-untyped-call]
            self._before, self.linears, training, len(inputs), *inputs, *flat
        )
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
    def forward(
        ctx: Any, before: Before, linears: tuple[Linear, ...], training: bool, count: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        inputs = tensors[:count]
        x = before.forward(*inputs)
        outs, thins = [], []
        share = max((linear.adapter.dropout for linear in linears if linear.adapter), default=0.0) if training else 0.0
        kept = torch.rand(x.shape, device=x.device) >= share if share else None
        dropped = x if kept is None else x * kept / (1 - share)
        prepared: dict[type, Any] = {}
        for linear in linears:
            kind = type(linear.weight)
            if kind not in prepared:
                prepared[kind] = linear.weight.prepared(x)
            y = linear.weight.forward(prepared[kind])
            if linear.bias is not None:
                y += linear.bias
            if linear.adapter is not None:
                thin = F.linear(dropped, linear.adapter.a.to(x.dtype))
                y.addmm_(thin, linear.adapter.b.to(x.dtype).t(), alpha=linear.adapter.scale)
                thins.append(thin)
            outs.append(y)
        ctx.before, ctx.linears, ctx.share, ctx.count = before, linears, share, count
        ctx.save_for_backward(*inputs, kept, *thins)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        count: int = ctx.count
        saved = ctx.saved_tensors  # once: a checkpoint gives them out a single time
        inputs, (kept, *thins) = saved[:count], saved[count:]
        x = ctx.before.forward(*inputs)
        share: float = ctx.share
        dropped = x if kept is None else x * kept / (1 - share)
        wanted = ctx.needs_input_grad[4:]
        wants_x = any(wanted[:count])
        dx: Tensor | None = None
        through: Tensor | None = None  # what comes through the dropout
        found: list[Tensor | None] = []
        thin_of = iter(thins)
        for index, (linear, dy) in enumerate(zip(ctx.linears, grads, strict=True)):
            wants_weight, wants_bias = wanted[count + 4 * index : count + 4 * index + 2]
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
        of_inputs = ctx.before.backward(dx, *inputs) if dx is not None else (None,) * count
        return None, None, None, None, *of_inputs, *found


def _weight_grad(weight: Weight, dy: Tensor, x: Tensor) -> Tensor:
    turned = isinstance(weight, Dense) and weight.turned
    grad = x.t() @ dy if turned else dy.t() @ x
    return grad.to(weight.parameter.dtype)
