"""Linear layers with a frozen weight and a low-rank adapter: one autograd step for all that read the same input.

y_i = x W_i^T + b_i + s_i (drop(x) A_i^T) B_i^T, the formula of LoRA (arXiv 2106.09685) as PEFT computes it, but that
layers with one input share its dropout. Only what x comes from and the thin products are kept; what stands before the
layers (a norm, an activation) is done again in backward. W may be of any storage (`Weight`): a parameter in another
type is cast as it is used, those in int8 are multiplied as one matrix.

DoRA (arXiv 2402.09353) scales each output but its bias by m / |W + s B A|, m trained, the norm of each row taken as
given. It follows from |W|^2, which is kept, and thin products, so that W + s B A is never made; for m's gradient the
output is kept. What has no plain formula here (DoRA with dropout) goes through its own module.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from metier.models.quantized import Packed
from metier.train.fast.ops import Apply, Before, again, parts, summed
from metier.train.int8 import Int8Linear, Int8Stack, Int8Weight

TINY = 1e-24
"""The least square of a norm."""


class Weight(Protocol):
    """A frozen or trained matrix (out, in), however it is stored."""

    @property
    def parameter(self) -> Tensor:
        """What may be trained; the others are frozen."""


class Single(Weight, Protocol):
    """One that multiplies by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """x (N, in) times its transpose: (N, out)."""

    def backward(self, dy: Tensor, into: Tensor | None) -> Tensor:
        """dy (N, out) times it: (N, in), added to `into` where there is one."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix of floating point numbers. turned: stored as (in, out)."""

    parameter: Tensor
    turned: bool = False

    def type(self) -> torch.dtype:
        """What it is held in."""
        return self.parameter.dtype

    def squares(self) -> Tensor:
        """|W|^2 of each of its rows: (out,), float32."""
        return _squares(self.in_type(self.parameter.dtype))

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
class Made:
    """A matrix that bitsandbytes holds, made whole for each product and dropped again."""

    layer: Packed

    @property
    def parameter(self) -> Tensor:
        """As it is held."""
        held: Tensor = self.layer.weight
        return held

    def type(self) -> torch.dtype:
        """What it is made whole in where nothing says otherwise."""
        return torch.float32

    def squares(self) -> Tensor:
        """|W|^2 of each of its rows: (out,), float32."""
        return _squares(self.layer.dequantized(torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, in) times its transpose: (N, out)."""
        return F.linear(x, self.layer.dequantized(x.dtype))

    def backward(self, dy: Tensor, into: Tensor | None) -> Tensor:
        """dy (N, out) times it: (N, in)."""
        weight = self.layer.dequantized(dy.dtype)
        return dy @ weight if into is None else into.addmm_(dy, weight)


@dataclass(frozen=True, eq=False)
class Adapter:
    """A (r, in), B (out, r), s = alpha / r. magnitude: DoRA's m (out,)."""

    a: nn.Parameter
    b: nn.Parameter
    scale: float
    dropout: float
    magnitude: nn.Parameter | None = None

    @property
    def rank(self) -> int:
        """r."""
        return len(self.a)


@dataclass(frozen=True, eq=False)
class Linear:
    """One layer of a block. module: what it stands for. squares: |W|^2 of each row, once it was asked for."""

    module: nn.Module
    weight: Weight
    bias: Tensor | None
    adapter: Adapter | None
    squares: list[Tensor] = field(default_factory=list)

    def gain(self) -> Tensor | None:
        """DoRA's m / |W + s B A|, (out,) float32; None without DoRA."""
        adapter, weight = self.adapter, self.weight
        if adapter is None or adapter.magnitude is None:
            return None
        assert isinstance(weight, Dense | Made)
        a, b = adapter.a.detach().float(), adapter.b.detach().float()
        if not self.squares:
            self.squares.append(weight.squares())
        along = (weight.forward(adapter.a.detach().to(weight.type())).t().float() * b).sum(1)
        own = ((b @ (a @ a.t())) * b).sum(1)
        whole = self.squares[0] + 2 * adapter.scale * along + adapter.scale**2 * own
        return adapter.magnitude.detach().float() / whole.clamp_(min=TINY).sqrt_()


def resolve(module: nn.Module) -> Linear | None:
    """The layer behind a module, or None for one that only its own forward computes."""
    from peft.tuners.lora.layer import LoraLayer
    from peft.tuners.lora.variants import DoraLinearVariant
    from transformers.pytorch_utils import Conv1D

    adapter, base = None, module
    if isinstance(module, LoraLayer):
        base = module.get_base_layer()
        names = module.active_adapters
        plain = len(names) == 1 and not (module.disable_adapters or module.merged)
        if not plain or module.lora_bias.get(names[0], False):
            return None
        (name,) = names
        drop = module.lora_dropout[name]
        share = drop.p if isinstance(drop, nn.Dropout) else 0.0
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        magnitude = None
        if variant := module.lora_variant.get(name):
            if share or type(variant) is not DoraLinearVariant or isinstance(base, Int8Linear):
                return None
            magnitude = module.lora_magnitude_vector[name].weight
        adapter = Adapter(a, b, float(module.scaling[name]), share, magnitude)
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


class Stack(Protocol):
    """The weights of several layers that read the same input, multiplied as one."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (N, in) times the transpose of each: (N, out) of each."""

    def backward(self, grads: Sequence[Tensor]) -> Tensor:
        """The sum of each (N, out) times its weight: (N, in)."""


@dataclass(frozen=True)
class Apart:
    """Each by itself."""

    weights: Sequence[Single]

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (N, in) times the transpose of each: (N, out) of each."""
        return [weight.forward(x) for weight in self.weights]

    def backward(self, grads: Sequence[Tensor]) -> Tensor:
        """The sum of each (N, out) times its weight: (N, in)."""
        dx: Tensor | None = None
        for weight, dy in zip(self.weights, grads, strict=True):
            dx = weight.backward(dy, dx)
        assert dx is not None
        return dx


def stacked(weights: Sequence[Weight]) -> Stack:
    """Weights in int8 as one matrix, others each by itself."""
    ints = [weight for weight in weights if isinstance(weight, Int8Weight)]
    singles = [weight for weight in weights if isinstance(weight, Dense | Made)]
    assert not (ints and singles), "a base is in int8 or it is not"
    return Int8Stack(ints) if ints else Apart(singles)


class Group:
    """Layers that read the same input, and what makes that input of the block's state.

    Those without a formula here go through `fallback(module, x)`.
    """

    def __init__(self, before: Before, modules: Sequence[nn.Module], fallback: Callable[[nn.Module, Tensor], Tensor]):
        found = [resolve(module) for module in modules]
        self.linears = tuple(linear for linear in found if linear is not None)
        self.whole = len(self.linears) == len(found)
        self._stack = stacked([linear.weight for linear in self.linears])
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
            self._before, self.linears, self._stack, training, len(inputs), *inputs, *flat
        )
        return outs


def _tensors(linear: Linear) -> tuple[Tensor | None, ...]:
    """The five that may need a gradient."""
    adapter = linear.adapter
    of_adapter = (None, None, None) if adapter is None else (adapter.a, adapter.b, adapter.magnitude)
    return (linear.weight.parameter, linear.bias, *of_adapter)


def _squares(matrix: Tensor) -> Tensor:
    """Of each row, a few at a time."""
    return torch.cat([matrix[part].float().square().sum(1) for part in parts(matrix)])


class _Project(torch.autograd.Function):
    """The adapters' A are one matrix here: what they read, and what its gradient is added to, is gone through once."""

    @staticmethod
    def forward(
        ctx: Any,
        before: Before,
        linears: tuple[Linear, ...],
        stack: Stack,
        training: bool,
        count: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs = tensors[:count]
        x = before.forward(*inputs)
        share = max((linear.adapter.dropout for linear in linears if linear.adapter), default=0.0) if training else 0.0
        kept = torch.rand(x.shape, device=x.device) >= share if share else None
        outs = stack.forward(x)
        thin = _thin(linears, x if kept is None else x * kept / (1 - share))
        start = 0
        gains = [linear.gain() for linear in linears]
        for linear, y, gain in zip(linears, outs, gains, strict=True):
            if linear.adapter is not None and thin is not None:
                own = thin[:, start : (start := start + linear.adapter.rank)]
                y.addmm_(own, linear.adapter.b.to(x.dtype).t(), alpha=linear.adapter.scale)
            if gain is not None:
                y.mul_(gain)
            if linear.bias is not None:
                y += linear.bias
        ctx.before, ctx.linears, ctx.stack, ctx.share, ctx.count = before, linears, stack, share, count
        asked = [None if gain is None else y for y, gain in zip(outs, gains, strict=True)]
        ctx.save_for_backward(*inputs, kept, thin, *gains, *asked)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        count: int = ctx.count
        saved = ctx.saved_tensors  # once: a checkpoint gives them out a single time
        inputs, (kept, thin), extra = saved[:count], saved[count : count + 2], saved[count + 2 :]
        gains, outs = extra[: len(grads)], extra[len(grads) :]
        given = grads
        grads = tuple(dy if gain is None else (dy * gain).to(dy.dtype) for dy, gain in zip(grads, gains, strict=True))
        share: float = ctx.share
        wanted = ctx.needs_input_grad[5:]
        wants_x = any(wanted[:count])
        dx: Tensor | None = ctx.stack.backward(grads) if wants_x else None
        d_thin = _thin_grad(ctx.linears, grads)
        if dx is not None and d_thin is not None:
            a = _downs(ctx.linears, dx.dtype)
            if kept is None:
                dx.addmm_(d_thin, a)
            else:
                dx += (d_thin @ a).mul_(kept).div_(1 - share)
        of_inputs: tuple[Tensor | None, ...] = (None,) * count
        if dx is None:
            x = ctx.before.forward(*inputs)
        else:
            x, of_inputs = again(ctx.before, dx, inputs)
        dropped = x if kept is None else x * kept / (1 - share)
        of_a = None if d_thin is None else d_thin.t() @ dropped
        found: list[Tensor | None] = []
        start = 0
        for index, (linear, dy) in enumerate(zip(ctx.linears, grads, strict=True)):
            wants_weight, wants_bias = wanted[count + 5 * index : count + 5 * index + 2]
            found.append(_weight_grad(linear.weight, dy, x) if wants_weight else None)
            found.append(given[index].sum(0, dtype=torch.float32).to(linear.bias.dtype) if wants_bias else None)
            if linear.adapter is None:
                found += [None, None, None]
                continue
            adapter = linear.adapter
            rows = slice(start, start := start + adapter.rank)
            found.append(None if of_a is None else of_a[rows].to(adapter.a.dtype))
            found.append((dy.t() @ thin[:, rows]).to(adapter.b.dtype).mul_(adapter.scale))
            found.append(_magnitude_grad(linear, given[index], outs[index]))
        return *[None] * 5, *of_inputs, *found


def _downs(linears: Sequence[Linear], dtype: torch.dtype) -> Tensor:
    """The A of all adapters: (R, in), R the sum of their ranks."""
    found = [linear.adapter.a.to(dtype) for linear in linears if linear.adapter is not None]
    return found[0] if len(found) == 1 else torch.cat(found)


def _thin(linears: Sequence[Linear], x: Tensor) -> Tensor | None:
    """x (N, in) through the A of all adapters: (N, R); None without any."""
    return F.linear(x, _downs(linears, x.dtype)) if any(linear.adapter for linear in linears) else None


def _thin_grad(linears: Sequence[Linear], grads: Sequence[Tensor]) -> Tensor | None:
    """Of that: (N, R)."""
    found = [
        (dy @ linear.adapter.b.to(dy.dtype)).mul_(linear.adapter.scale)
        for linear, dy in zip(linears, grads, strict=True)
        if linear.adapter is not None
    ]
    if not found:
        return None
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _magnitude_grad(linear: Linear, dy: Tensor, y: Tensor | None) -> Tensor | None:
    """Of DoRA's m: what it multiplies is the output without its bias, over m. Both (N, out)."""
    if y is None or linear.adapter is None or linear.adapter.magnitude is None:
        return None
    magnitude = linear.adapter.magnitude
    total = torch.zeros(y.shape[1], dtype=torch.float32, device=y.device)
    for part in parts(y):
        plain = y[part].float() if linear.bias is None else y[part].float() - linear.bias.float()
        total += (plain.mul_(dy[part])).sum(0)
    return (total / magnitude.detach().float()).to(magnitude.dtype)


def _weight_grad(weight: Weight, dy: Tensor, x: Tensor) -> Tensor:
    turned = isinstance(weight, Dense) and weight.turned
    grad = summed(x.t(), dy) if turned else summed(dy.t(), x)
    return grad.to(weight.parameter.dtype)
