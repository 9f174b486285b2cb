"""What stands between matrix products, on a GPU: each in one pass through its memory, in Triton (it comes with torch).

Written out in torch's own operations the norms, activations, rotations, rounding to int8 and the head's gradient go
through memory three to nine times as often, which at a billion parameters takes as long as the products. `ops`, `int8`
and `head` use these where `ops.fused` says so, and their own forms elsewhere; tests hold both against each other.

All take contiguous matrices and compute in float32. Shapes: N rows, C columns, H heads, D head_dim, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 4096
"""Numbers that one program of an elementwise kernel takes."""
PARTS = 512
"""Programs among which a norm's rows are dealt, each of which adds up the weight's gradient by itself."""
SCORES = 8192
"""Scores that one program looks at together."""


def _warps(block: int) -> int:
    return min(16, max(1, block // 256))


@triton.jit
def _rms(x, weight, out, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    real = at < columns
    h = tl.load(x + row * columns + at, mask=real, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(h * h, axis=0) / columns + eps)
    scale = tl.load(weight + at, mask=real, other=0.0).to(tl.float32)
    tl.store(out + row * columns + at, h * inverse * scale, mask=real)


@triton.jit
def _rms_backward(
    grad,
    x,
    weight,
    dx,
    d_weight,
    rows,
    columns,
    eps,
    TRAINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    part = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    real = at < columns
    scale = tl.load(weight + at, mask=real, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for number in range(part, rows, tl.num_programs(0)):
        line = number * columns.to(tl.int64)
        h = tl.load(x + line + at, mask=real, other=0.0).to(tl.float32)
        g = tl.load(grad + line + at, mask=real, other=0.0).to(tl.float32)
        inverse = 1.0 / tl.sqrt(tl.sum(h * h, axis=0) / columns + eps)
        normed = h * inverse
        if TRAINS:
            total += g * normed
        g = g * scale
        along = tl.sum(g * normed, axis=0) / columns
        tl.store(dx + line + at, (g - normed * along) * inverse, mask=real)
    if TRAINS:
        tl.store(d_weight + part * columns + at, total, mask=real)


@triton.jit
def _swiglu(gate, up, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    g = tl.load(gate + at, mask=real, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=real, other=0.0).to(tl.float32)
    tl.store(out + at, g * tl.sigmoid(g) * u, mask=real)


@triton.jit
def _swiglu_backward(grad, gate, up, d_gate, d_up, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    d = tl.load(grad + at, mask=real, other=0.0).to(tl.float32)
    g = tl.load(gate + at, mask=real, other=0.0).to(tl.float32)
    u = tl.load(up + at, mask=real, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(d_up + at, d * g * s, mask=real)
    tl.store(d_gate + at, d * u * s * (1.0 + g * (1.0 - s)), mask=real)


@triton.jit
def _rotate(x, cos, sin, out, heads, half, sign, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, BLOCK)
    real = pair < heads * half
    column = pair % half
    left = row * heads * half * 2 + (pair // half) * half * 2 + column
    c = tl.load(cos + row * half * 2 + column, mask=real, other=0.0).to(tl.float32)
    s = tl.load(sin + row * half * 2 + column, mask=real, other=0.0).to(tl.float32) * sign
    a = tl.load(x + left, mask=real, other=0.0).to(tl.float32)
    b = tl.load(x + left + half, mask=real, other=0.0).to(tl.float32)
    tl.store(out + left, a * c - b * s, mask=real)
    tl.store(out + left + half, b * c + a * s, mask=real)


@triton.jit
def _round(x, by, out, scales, columns, SCALED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    real = at < columns
    h = tl.load(x + row * columns + at, mask=real, other=0.0).to(tl.float32)
    if SCALED:
        h = h * tl.load(by + at, mask=real, other=0.0)
    scale = tl.maximum(tl.max(tl.abs(h), axis=0), 1e-30) / 127.0
    tl.store(scales + row, scale)
    tl.store(out + row * columns + at, tl.floor(h / scale + 0.5).to(tl.int8), mask=real)


@triton.jit
def _scale(sums, rows, by, out, columns, stride, SCALED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = at < columns
    h = tl.load(sums + row * stride + at, mask=real, other=0).to(tl.float32) * tl.load(rows + row)
    if SCALED:
        h = h * tl.load(by + at, mask=real, other=0.0)
    tl.store(out + row * columns + at, h, mask=real)


@triton.jit
def _head(
    scores,
    targets,
    weights,
    losses,
    vocabulary,
    smoothing,
    WEIGHTED: tl.constexpr,
    NEEDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    line = scores + row * vocabulary
    target = tl.load(targets + row)
    wanted = tl.load(line + target).to(tl.float32)
    top = -float("inf")
    total = 0.0
    plain = 0.0
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        s = tl.load(line + at, mask=at < vocabulary, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(s, axis=0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(s - higher), axis=0)
        top = higher
        plain += tl.sum(tl.where(at < vocabulary, s, 0.0), axis=0)
    whole = tl.log(total) + top
    loss = (whole - wanted) * (1.0 - smoothing) + (whole - plain / vocabulary) * smoothing
    weight = 1.0
    if WEIGHTED:
        weight = tl.load(weights + row)
    tl.store(losses + row, loss * weight)
    if NEEDED:
        tl.debug_barrier()  # all have read the target's score before it is written over
        for start in range(0, vocabulary, BLOCK):
            at = start + tl.arange(0, BLOCK)
            s = tl.load(line + at, mask=at < vocabulary, other=-float("inf")).to(tl.float32)
            slope = tl.exp(s - whole) - smoothing / vocabulary
            slope = tl.where(at == target, slope - (1.0 - smoothing), slope)
            tl.store(line + at, slope * weight, mask=at < vocabulary)


def rms(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x (N, C) over its root mean square, times the weight, in `dtype`."""
    x = x.contiguous()
    rows, columns = x.shape
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    block = triton.next_power_of_2(columns)
    if rows:
        _rms[(rows,)](x, weight, out, columns, eps, BLOCK=block, num_warps=_warps(block))
    return out


def _rms_gradients(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor | None]:
    """Of x and, where it trains, of the weight (float32)."""
    grad, x = grad.contiguous(), x.contiguous()
    rows, columns = x.shape
    dx, trains = torch.empty_like(x), weight.requires_grad
    parts = min(PARTS, max(1, rows))
    sums = torch.empty(parts, columns, dtype=torch.float32, device=x.device) if trains else dx
    block = triton.next_power_of_2(columns)
    _rms_backward[(parts,)](
        grad, x, weight, dx, sums, rows, columns, eps, TRAINS=trains, BLOCK=block, num_warps=_warps(block)
    )
    return dx, sums.sum(0) if trains else None


def rms_again(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """`rms` in the gradient's type, and the gradients of x and, where it trains, of the weight (float32)."""
    return rms(x, weight, eps, grad.dtype), *_rms_gradients(grad, x, weight, eps)


def swiglu_again(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`swiglu`, and the gradients of gate and up."""
    return swiglu(gate, up), *_swiglu_gradients(grad, gate, up)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    if out.numel():
        _swiglu[_grid(out)](gate, up, out, out.numel(), BLOCK=ELEMENTS, num_warps=8)
    return out


def _swiglu_gradients(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Of gate and up."""
    grad, gate, up = grad.contiguous(), gate.contiguous(), up.contiguous()
    d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
    if grad.numel():
        _swiglu_backward[_grid(grad)](grad, gate, up, d_gate, d_up, grad.numel(), BLOCK=ELEMENTS, num_warps=8)
    return d_gate, d_up


def rotated(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    """x (N, H, D) turned by the angles of cos and sin (N, D), or turned back."""
    x, cos, sin = x.contiguous(), cos.contiguous(), sin.contiguous()
    rows, heads, width = x.shape
    out = torch.empty_like(x)
    block = triton.next_power_of_2(heads * width // 2)
    if rows:
        sign = -1.0 if back else 1.0
        _rotate[(rows,)](x, cos, sin, out, heads, width // 2, sign, BLOCK=block, num_warps=_warps(block))
    return out


def quantized(x: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows of x (N, C), times `columns`, as int8 (N, C) and a scale for each (N, 1), float32."""
    x = x.contiguous()
    rows, width = x.shape
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(width)
    by = scales if columns is None else columns
    if rows:
        scaled = columns is not None
        _round[(rows,)](x, by, out, scales, width, SCALED=scaled, BLOCK=block, num_warps=_warps(block))
    return out, scales


def quantized_together(xs: Sequence[Tensor], columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The same of several matrices (N, C) side by side."""
    return quantized(torch.cat(list(xs), 1), torch.cat(list(columns)))


def scaled(sums: Tensor, rows: Tensor, columns: Tensor | None, dtype: torch.dtype) -> Tensor:
    """int32 sums (N, C), perhaps some columns of a wider matrix, times scales of rows and columns, in `dtype`."""
    count, width = sums.shape
    out = torch.empty(sums.shape, dtype=dtype, device=sums.device)
    block = min(2048, triton.next_power_of_2(width))
    by = rows if columns is None else columns
    if count:
        grid = (count, triton.cdiv(width, block))
        _scale[grid](
            sums, rows, by, out, width, sums.stride(0), SCALED=columns is not None, BLOCK=block, num_warps=_warps(block)
        )
    return out


def to_gradient(scores: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float, *, needed: bool) -> Tensor:
    """The sum of the losses of scores (T, V), which become its gradient where one is needed."""
    rows, vocabulary = scores.shape
    losses = torch.empty(rows, dtype=torch.float32, device=scores.device)
    block = min(SCORES, triton.next_power_of_2(vocabulary))
    by: Any = losses if weights is None else weights
    if rows:
        _head[(rows,)](
            scores,
            targets,
            by,
            losses,
            vocabulary,
            smoothing,
            WEIGHTED=weights is not None,
            NEEDED=needed,
            BLOCK=block,
            num_warps=_warps(block),
        )
    return losses.sum()


def _grid(x: Tensor) -> tuple[int]:
    return (int(triton.cdiv(x.numel(), ELEMENTS)),)
