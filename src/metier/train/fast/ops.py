"""What stands before a block's linear layers - norms, activations - and rotary positions, with gradients by hand.

All equal their plain forms to rounding. On a CPU they go through a few rows at a time, so that what is in between stays
in a core's cache: measured there at 768 x 2048 in bfloat16, torch's rms_norm takes 28 ms, this one 0.5 ms. On a GPU
each is one kernel of its own (`kernels`), where Triton can build them.

Shapes: N rows, C columns.
"""

import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from metier.train.fast.agreement import agree

ELEMENTS = 2**19
"""Numbers at a time on a CPU: two megabytes in float32."""


def parts(x: Tensor) -> Iterator[slice]:
    """A few rows at a time on a CPU, all at once elsewhere."""
    step = max(1, ELEMENTS // x[0].numel() if x.device.type == "cpu" and len(x) else len(x))
    return (slice(start, start + step) for start in range(0, len(x), step))


def fused(x: Tensor) -> ModuleType | None:
    """The kernels for where x is, None where there are none."""
    if x.device.type == "cpu":
        found = native()
        return found if found is not None and found.suits(x) else None
    return kernels() if x.device.type == "cuda" else None


def summed(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, of which a parameter's gradient is made: on a GPU in float32, as it sums anyway, else in their type."""
    if a.device.type == "cuda" and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b


@cache
def kernels() -> ModuleType | None:
    """`kernels`, if Triton is there, can build them (it needs a C compiler), and they give here what they should."""
    try:
        from metier.train.fast import kernels as found

        return found if agree(found, torch.device("cuda")) else None
    except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError):
        return None


@cache
def native() -> ModuleType | None:
    """`native`, if a C compiler is there, can build it, and it gives here what it should."""
    try:
        from metier.train.fast import native as found

        return found if all(agree(found, torch.device("cpu"), dtype) for dtype in found.TYPES) else None
    except (AttributeError, OSError, subprocess.SubprocessError):
        return None


class Before(Protocol):
    """A step whose result is the input of linear layers; cheap enough to be done again in backward."""

    @property
    def forward(self) -> Callable[..., Tensor]:
        """From the inputs the result, (N, C)."""

    @property
    def backward(self) -> Callable[..., tuple[Tensor | None, ...]]:
        """From the result's gradient and the inputs, their gradients."""


@dataclass(frozen=True)
class Identity:
    """x as it is."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C)."""
        return x

    def backward(self, grad: Tensor, x: Tensor) -> tuple[Tensor]:  # noqa: ARG002
        """Of x."""
        return (grad,)


@dataclass(frozen=True)
class RmsNorm:
    """x / sqrt(mean(x^2) + eps) * weight, of x (N, C) and weight (C,), in `dtype` (arXiv 1910.07467)."""

    eps: float
    dtype: torch.dtype

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """(N, C)."""
        kernel = fused(x)
        if kernel is not None:
            whole: Tensor = kernel.rms(x, weight, self.eps, self.dtype)
            return whole
        out = torch.empty(x.shape, dtype=self.dtype, device=x.device)
        scale = weight.float()
        for part in parts(x):
            h = x[part].float()
            out[part] = (h * self._inverse(h)).mul_(scale)
        return out

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Of x and, where it trains, of the weight."""
        kernel = fused(x)
        if kernel is not None:
            _, dx, d_weight = kernel.rms_again(grad, x, weight, self.eps)
            return dx, None if d_weight is None else d_weight.to(weight.dtype)
        dx = torch.empty_like(x)
        trains = weight.requires_grad
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=x.device) if trains else None
        scale = weight.float()
        for part in parts(x):
            # copies, as both are changed in place below, and `float` gives float32 back as it is
            h, g = x[part].to(torch.float32, copy=True), grad[part].to(torch.float32, copy=True)
            inverse = self._inverse(h)
            normed = h.mul_(inverse)
            if d_weight is not None:
                d_weight += (g * normed).sum(0)
            g = g.mul_(scale)
            along = (g * normed).mean(-1, keepdim=True)
            dx[part] = g.sub_(normed.mul_(along)).mul_(inverse)
        return dx, None if d_weight is None else d_weight.to(weight.dtype)

    def _inverse(self, h: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(h, dim=-1, keepdim=True)
        inverse: Tensor = norm.square_().div_(h.shape[-1]).add_(self.eps).rsqrt_()
        return inverse


@dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / sqrt(variance + eps) * weight + bias, of x (N, C), in `dtype`."""

    eps: float
    dtype: torch.dtype

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(N, C)."""
        return F.layer_norm(x, x.shape[1:], weight.to(x.dtype), bias.to(x.dtype), self.eps).to(self.dtype)

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor | None, ...]:
        """Of x and, where they train, of weight and bias."""
        w, b = weight.to(x.dtype), bias.to(x.dtype)
        _, mean, inverse = torch.native_layer_norm(x, x.shape[1:], w, b, self.eps)
        wanted = [True, weight.requires_grad, bias.requires_grad]
        dx, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
            grad.to(x.dtype), x, x.shape[1:], mean, inverse, w, b, wanted
        )
        of_weight = d_weight.to(weight.dtype) if wanted[1] else None
        return dx, of_weight, d_bias.to(bias.dtype) if wanted[2] else None


@dataclass(frozen=True)
class SwiGlu:
    """silu(gate) * up, both (N, C) (arXiv 2002.05202)."""

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        """(N, C)."""
        kernel = fused(gate)
        if kernel is not None:
            whole: Tensor = kernel.swiglu(gate, up)
            return whole
        out = torch.empty_like(gate)
        for part in parts(gate):
            torch.mul(F.silu(gate[part]), up[part], out=out[part])
        return out

    def backward(self, grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Of gate and up."""
        kernel = fused(gate)
        if kernel is not None:
            _, *both = kernel.swiglu_again(grad, gate, up)
            return both[0], both[1]
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        for part in parts(gate):
            g, d = gate[part], grad[part]
            torch.mul(F.silu(g), d, out=d_up[part])
            torch.ops.aten.silu_backward.grad_input(d * up[part], g, grad_input=d_gate[part])
        return d_gate, d_up


@dataclass(frozen=True)
class Gelu:
    """GELU in its tanh form, as GPT-2 has it (arXiv 1606.08415)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C)."""
        return F.gelu(x, approximate="tanh")

    def backward(self, grad: Tensor, x: Tensor) -> tuple[Tensor]:
        """Of x."""
        return (torch.ops.aten.gelu_backward(grad, x, approximate="tanh"),)


def again(before: Before, grad: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """What `before` gave, and the gradients of its inputs: in one pass where there are kernels."""
    kernel = fused(inputs[0])
    if kernel is not None and isinstance(before, RmsNorm):
        out, dx, d_weight = kernel.rms_again(grad, *inputs, before.eps)
        return out.to(before.dtype), (dx, None if d_weight is None else d_weight.to(inputs[1].dtype))
    if kernel is not None and isinstance(before, SwiGlu):
        out, *both = kernel.swiglu_again(grad, *inputs)
        return out, tuple(both)
    return before.forward(*inputs), before.backward(grad, *inputs)


class Apply(torch.autograd.Function):
    """A `Before` as a step of its own."""

    @staticmethod
    def forward(ctx: Any, before: Before, *inputs: Tensor) -> Tensor:
        """What `before` makes of the inputs."""
        ctx.before = before
        ctx.save_for_backward(*inputs)
        return before.forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Of the inputs."""
        return None, *ctx.before.backward(grads[0], *ctx.saved_tensors)


class Rotate(torch.autograd.Function):
    """Rotary positions: x (N, heads, D) with cos, sin (N, D), each half of D the same (arXiv 2104.09864)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(N, heads, D)."""
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        """Of x: turned back."""
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, sin, back=True), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    kernel = fused(x)
    if kernel is not None:
        whole: Tensor = kernel.rotated(x, cos, sin, back=back)
        return whole
    half = x.shape[-1] // 2
    sin = -sin if back else sin
    out = torch.empty_like(x)
    for part in parts(x):
        left, right = x[part, :, :half], x[part, :, half:]
        c, s = cos[part, None, :half], sin[part, None, :half]
        out[part, :, :half] = (left * c).sub_(right * s)
        out[part, :, half:] = (right * c).add_(left * s)
    return out


def dropout(x: Tensor, share: float) -> Tensor:
    """Zero a share of the values and scale the rest up; the identity at 0."""
    return F.dropout(x, share) if share else x
