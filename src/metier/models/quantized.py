"""Bases that bitsandbytes quantises: 8 bits (LLM.int8, arXiv 2208.07339) or 4 (NF4 with double quantisation, QLoRA,
arXiv 2305.14314).

Only frozen layers inside the blocks are quantised, for LoRA on top; embeddings, norms and the output head stay as they
are. Refuses nothing that `load` does not. Costs one byte a weight, or a little over half of one (4.13 bits), and time:
on a CPU each product first makes the weight whole again, for one layer at a time.
"""

import importlib
from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from metier.core.errors import MissingExtra

Kind = Literal["8bit", "4bit"]


@cache
def bitsandbytes() -> Any:
    """The package. Raises MissingExtra."""
    try:
        return importlib.import_module("bitsandbytes")
    except ModuleNotFoundError as error:
        raise MissingExtra("bitsandbytes", "quant", needed_by="a quantised base or 8-bit optimizer") from error


def quantized(layer: nn.Module, kind: Kind, *, compute: torch.dtype) -> nn.Linear:
    """A frozen bitsandbytes layer that stands for a linear one, on the same device.

    layer: nn.Linear, or GPT-2's Conv1D, whose weight is turned round. compute: the type of its products.
    """
    plain = as_linear(layer)
    rows = plain.weight.detach()
    made = _empty_layer(kind, rows.shape[1], rows.shape[0], bias=plain.bias is not None, compute=compute)
    parts = bitsandbytes().nn
    if kind == "4bit":
        made.weight = parts.Params4bit(
            rows, requires_grad=False, quant_type="nf4", compress_statistics=True, module=made
        )
    else:
        made.weight = parts.Int8Params(rows.cpu(), requires_grad=False, has_fp16_weights=False)
    if plain.bias is not None:
        made.bias = nn.Parameter(plain.bias.detach(), requires_grad=False)
    done: nn.Linear = made.to(rows.device)  # this is what quantises; 8 bits only what comes from the CPU
    return done


def as_linear(layer: nn.Module) -> nn.Linear:
    """The same layer as an nn.Linear, which it is unless it is GPT-2's Conv1D."""
    if isinstance(layer, nn.Linear):
        return layer
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, torch.Tensor)
    assert isinstance(bias, torch.Tensor)
    with torch.device("meta"):
        made = nn.Linear(*weight.shape)
    made.weight = nn.Parameter(weight.detach().t().contiguous(), requires_grad=False)
    made.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return made


def mark(model: nn.Module, kind: Kind) -> None:
    """Tell PEFT what the layers are, so that its adapters suit them."""
    model.is_loaded_in_4bit = kind == "4bit"  # type: ignore[assignment]
    model.is_loaded_in_8bit = kind == "8bit"  # type: ignore[assignment]


def _empty_layer(kind: Kind, ins: int, outs: int, *, bias: bool, compute: torch.dtype) -> Any:
    four, eight = _classes()
    with torch.device("meta"):
        if kind == "4bit":
            return four(ins, outs, bias=bias, compute_dtype=compute, compress_statistics=True, quant_type="nf4")
        return eight(ins, outs, bias=bias, has_fp16_weights=False, threshold=6.0)


class Packed:
    """A linear layer whose weight bitsandbytes holds, and which stays in training mode.

    Evaluation goes other ways in bitsandbytes on a CPU: its 4-bit layer packs the weight anew for products that cannot
    be differentiated, its 8-bit layer quantises what comes in as well, with outliers judged over the whole batch, so
    that a dev loss would depend on how rows are packed.
    """

    weight: Any
    bias: torch.Tensor | None
    state: Any

    def train(self, mode: bool = True) -> Any:  # noqa: ARG002
        """Training mode, whatever is asked for."""
        return super().train(True)  # type: ignore[misc]

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight that it stands for: (out, in)."""
        weight = self.weight
        if weight.dtype == torch.uint8:
            whole: torch.Tensor = bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state)
            return whole.to(dtype)
        scales = (self.state.SCB if weight.SCB is None else weight.SCB) / 127  # it moves at the first product
        out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        step = 64 if out.device.type == "cpu" else len(out)  # there no float32 copy of it all is made
        for start in range(0, len(out), step):
            rows = slice(start, start + step)
            out[rows] = weight.data[rows] * scales[rows, None]
        return out


@cache
def _classes() -> tuple[Any, Any]:
    """The layers for 4 and 8 bits."""
    parts = bitsandbytes().nn
    return type("Nf4Linear", (Packed, parts.Linear4bit), {}), type("Int8Linear", (Packed, parts.Linear8bitLt), {})
