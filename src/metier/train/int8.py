"""A frozen base in 8 bits that is faster than 16: both the layer's product and its gradient run in int8.

Weights are rounded to int8 per output channel, activations per token as they come; products are summed in int32
(`torch._int_mm`: VNNI on a CPU, int8 tensor cores on a GPU) and scaled back. The gradient to the input is the same with
the output's gradient, whose columns take the weights' scales before they are rounded. Adapters beside it stay in
floating point. Not what bitsandbytes calls 8-bit (LLM.int8), which keeps outlier columns in 16 bits and multiplies
there.

Shapes: N tokens. Costs one byte a weight and 4 a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from metier.core.errors import ModelError
from metier.train.fast.ops import fused, parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 32
"""The fewest that are multiplied at once on a GPU."""
LANES = 16
"""Columns whose rounding errors are carried side by side, as in `native.c`."""


def quantized(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each row of x (N, C), its columns first multiplied by `columns`, as int8 (N, C) and its scale (N, 1), float32."""
    kernel = fused(x)
    if kernel is not None:
        both: tuple[Tensor, Tensor] = kernel.quantized(x, columns)
        return both
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    for part in parts(x):
        # changed in place below: never x itself, which `float` gives back where it is float32
        h = x[part].to(torch.float32, copy=True) if columns is None else x[part].float() * columns
        scales[part] = _over_scale_(h, 127)
        out[part] = h.round_()
    return out, scales


def quantized_together(xs: Sequence[Tensor], columns: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Matrices (N, C) side by side, each one's columns first multiplied by its `columns`: int8 and its scale (N, 1)."""
    if len(xs) == 1:
        return quantized(xs[0], columns[0])
    kernel = fused(xs[0])
    if kernel is not None:
        found: tuple[Tensor, Tensor] = kernel.quantized_together(xs, columns)
        return found
    sizes = [x.shape[1] for x in xs]
    out = torch.empty(len(xs[0]), sum(sizes), dtype=torch.int8, device=xs[0].device)
    scales = torch.empty(len(out), 1, dtype=torch.float32, device=out.device)
    for part in parts(out):
        h = torch.empty(out[part].shape, dtype=torch.float32, device=out.device)
        for place, x, by in zip(torch.split(h, sizes, 1), xs, columns, strict=True):
            torch.mul(x[part], by, out=place)
        scales[part] = _over_scale_(h, 127)
        out[part] = h.round_()
    return out, scales


def carried(x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """`quantized`, but that what rounding takes from a column is added to the one `LANES` further on.

    So that many small numbers beside a large one are not all lost, whose sum is not small. Rows end at 126 of 127, as a
    number may be rounded away from what it is by up to one.
    """
    kernel = fused(x)
    if kernel is not None:
        both: tuple[Tensor, Tensor] = kernel.carried(x, columns)
        return both
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    for part in parts(x):
        h = x[part].float() * columns
        scales[part] = _over_scale_(h, 126)
        wide = F.pad(h, (0, -h.shape[1] % LANES)).double()
        sums = wide.view(len(h), -1, LANES).cumsum(1).round_()
        out[part] = sums.diff(dim=1, prepend=torch.zeros_like(sums[:, :1])).flatten(1)[:, : h.shape[1]]
    return out, scales


def _over_scale_(h: Tensor, top: int) -> Tensor:
    """The scale of each row, (N, 1), over which it is in place from then on, its largest number being `top`."""
    scale = h.abs().amax(-1, keepdim=True).clamp_(min=1e-30).div_(top)
    h.mul_(scale.reciprocal())
    return scale


def scaled(sums: Tensor, rows: Tensor, columns: Tensor | None, dtype: torch.dtype) -> Tensor:
    """int32 sums (N, C) times scales of rows (N, 1) and columns (C,), in `dtype`."""
    kernel = fused(sums)
    if kernel is not None:
        whole: Tensor = kernel.scaled(sums, rows, columns, dtype)
        return whole
    out = torch.empty(sums.shape, dtype=dtype, device=sums.device)
    for part in parts(sums):
        h = sums[part].float().mul_(rows[part])
        out[part] = h if columns is None else h.mul_(columns)
    return out


def product(a: Tensor, b: Tensor) -> Tensor:
    """int8 (N, K) times int8 (K, M), summed in int32.

    On a GPU the tensor cores take the second matrix column by column, and 17 rows of the first or more.
    """
    if a.device.type != "cuda":
        return torch._int_mm(a, b)
    if b.stride(0) != 1:
        b = b.t().contiguous().t()
    few = ROWS - len(a)
    return torch._int_mm(F.pad(a, (0, 0, 0, few)), b)[: len(a)] if few > 0 else torch._int_mm(a, b)


@dataclass(frozen=True, eq=False)
class Int8Weight:
    """A frozen matrix (out, in). parameter: int8 (out, in). scale: (out,), float32."""

    parameter: Tensor
    scale: Tensor


class Int8Stack:
    """Weights that read the same input, in one product each way: what they read, and what comes back, is rounded once.

    They become parts of one matrix, without a copy that stays. carries: for a head, whose scores' gradient is one large
    number and many small ones of the other sign, which would all be rounded to 0 (`carried`).
    """

    def __init__(self, weights: Sequence[Int8Weight], *, carries: bool = False):
        self._carries = carries
        self._weight = joined([weight.parameter for weight in weights])
        self._scales = [weight.scale for weight in weights]
        self._sizes = [len(weight.parameter) for weight in weights]

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (N, in) times the transpose of each: (N, out) of each."""
        rounded, rows = quantized(x)
        sums = product(rounded, self._weight.t())
        parts = zip(torch.split(sums, self._sizes, 1), self._scales, strict=True)
        return [scaled(part, rows, scale, x.dtype) for part, scale in parts]

    def backward(self, grads: Sequence[Tensor]) -> Tensor:
        """The sum of each (N, out) times its weight: (N, in)."""
        if self._carries:
            rounded, rows = carried(*grads, *self._scales)
        else:
            rounded, rows = quantized_together(grads, self._scales)
        return scaled(product(rounded, self._weight), rows, None, grads[0].dtype)


def joined(weights: Sequence[Tensor]) -> Tensor:
    """Matrices of one width as one, (sum of rows, width), of which they become parts, if they are not already."""
    first, width = weights[0], weights[0].shape[1]
    total = sum(map(len, weights))
    place = first.data_ptr()
    for weight in weights:
        if weight.data_ptr() != place or not weight.is_contiguous():
            break
        place += weight.numel() * weight.element_size()
    else:
        if place - first.untyped_storage().data_ptr() <= first.untyped_storage().nbytes():
            return first.detach().as_strided((total, width), (width, 1), first.storage_offset())
    whole = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, torch.split(whole, [len(weight) for weight in weights]), strict=True):
        weight.data = part
    return whole


class Int8Linear(nn.Linear):
    """A linear layer on an `Int8Weight`, frozen, its bias kept. Called itself it multiplies in int8 where no gradient
    is wanted (a server), and dequantises otherwise: training has its own way through `frozen`."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scales = quantized(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scales[:, 0].clone())
        self.bias = linear.bias

    @property
    def frozen(self) -> Int8Weight:
        """What the training path multiplies with."""
        scale = self.scale
        assert isinstance(scale, Tensor)
        return Int8Weight(self.weight, scale)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight that it stands for: (out, in)."""
        frozen = self.frozen
        return (frozen.parameter.float() * frozen.scale[:, None]).to(dtype)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if not torch.is_grad_enabled():
            frozen = self.frozen
            rounded, rows = quantized(input.reshape(-1, self.in_features))
            out = scaled(product(rounded, frozen.parameter.t()), rows, frozen.scale, input.dtype)
            return (out if self.bias is None else out + self.bias).view(*input.shape[:-1], self.out_features)
        return nn.functional.linear(input, self.dequantized(input.dtype), self.bias)


def quantize_(model: "PreTrainedModel") -> None:
    """Replace every linear layer inside the blocks by an `Int8Linear`, one at a time.

    Raises ModelError where a side is no multiple of 8, which int8 products need, or nothing is there to replace.
    """
    head = model.get_output_embeddings()
    found = [
        (name, module) for name, module in model.named_modules() if type(module) is nn.Linear and module is not head
    ]
    if not found:
        raise ModelError(
            "the model has no linear layers that can be held in int8",
            where="quantize",
            value="int8",
            cure="leave quantize out; GPT-2's layers are of another kind",
        )
    for name, module in found:
        if module.in_features % 8 or module.out_features % 8:
            raise ModelError(
                f"layer {name} is {module.out_features} x {module.in_features}, and int8 needs multiples of 8",
                where="quantize",
                value="int8",
                cure="use quantize: 8bit, or leave it out",
            )
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, Int8Linear(module))
