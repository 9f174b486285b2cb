"""A frozen base in 8 bits that is faster than 16: both the layer's product and its gradient run in int8.

Weights are rounded to int8 per output channel, activations per token as they come; products are summed in int32
(`torch._int_mm`: VNNI on a CPU, int8 tensor cores on a GPU) and scaled back. The gradient to the input is the same with
the output's gradient, whose columns take the weights' scales before they are rounded. Adapters beside it stay in
floating point. Not what bitsandbytes calls 8-bit (LLM.int8), which keeps outlier columns in 16 bits and multiplies
there.

Shapes: N tokens. Costs one byte a weight and 4 a row.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from metier.core.errors import ModelError
from metier.train.fast.ops import parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantized(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each row of x (N, C), its columns first multiplied by `columns`, as int8 (N, C) and its scale (N, 1), float32."""
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    for part in parts(x):
        # changed in place below: never x itself, which `float` gives back where it is float32
        h = x[part].to(torch.float32, copy=True) if columns is None else x[part].float() * columns
        scale = h.abs().amax(-1, keepdim=True).clamp_(min=1e-30).div_(127)
        scales[part] = scale
        out[part] = h.mul_(scale.reciprocal()).round_()
    return out, scales


def scaled(sums: Tensor, rows: Tensor, columns: Tensor | None, dtype: torch.dtype) -> Tensor:
    """int32 sums (N, C) times scales of rows (N, 1) and columns (C,), in `dtype`."""
    out = torch.empty(sums.shape, dtype=dtype, device=sums.device)
    for part in parts(sums):
        h = sums[part].float().mul_(rows[part])
        out[part] = h if columns is None else h.mul_(columns)
    return out


class Int8Weight:
    """A frozen matrix (out, in). parameter: int8 (out, in). scale: (out,), float32."""

    def __init__(self, parameter: Tensor, scale: Tensor):
        self.parameter = parameter
        self.scale = scale

    def prepared(self, x: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
        """x rounded, its scales, and its type."""
        return *quantized(x), x.dtype

    def forward(self, prepared: tuple[Tensor, Tensor, torch.dtype]) -> Tensor:
        """x (N, in) times its transpose: (N, out)."""
        rounded, rows, dtype = prepared
        return scaled(torch._int_mm(rounded, self.parameter.t()), rows, self.scale, dtype)

    def backward(self, dy: Tensor, into: Tensor | None) -> Tensor:
        """dy (N, out) times it: (N, in)."""
        rounded, rows = quantized(dy, self.scale)
        dx = scaled(torch._int_mm(rounded, self.parameter), rows, None, dy.dtype)
        return dx if into is None else into.add_(dx)


class Int8Linear(nn.Linear):
    """A linear layer on an `Int8Weight`, frozen, its bias kept. Elsewhere than in training it dequantises."""

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
