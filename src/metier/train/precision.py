"""Which numeric type the arithmetic runs in, decided from what the machine says of itself, never from a timing.

bf16 means automatic mixed precision: weights, their gradients and the optimizer stay float32, matrix products run in
bfloat16. Tokens per second of processor time against float32, with AVX512-BF16: 1.08 times at a hidden size of 64, 1.20
at 128, 1.29 at 192, 1.35 to 1.43 at 256 (5 M parameters). Casting the weights by hand (bf16 copies, float32 masters)
gained 4 % more on 512-token documents and nothing on short ones, and rounds the residual stream as well, so it is not
done. fp16 on a CPU is slower than float32 and not offered.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

Name = Literal["auto", "bf16", "fp32"]
WORTH_WIDTH = 128
"""Hidden size from which bf16 pays: below, it gains less than a tenth, which is not worth its rounding."""


@dataclass(frozen=True)
class Precision:
    """The type chosen, and why, in words for the log. autocast: the context that forward passes run in."""

    name: Literal["bf16", "fp32"]
    why: str
    autocast: Callable[[], AbstractContextManager[Any]]


def fast_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX)."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def choose(wanted: Name, *, width: int) -> Precision:
    """The type to train in. width: the model's hidden size."""
    if wanted == "fp32":
        return Precision("fp32", "asked for", nullcontext)
    if wanted == "bf16":
        why = "asked for" if fast_bf16() else "asked for, though this CPU has no bf16 arithmetic and will be slow"
        return Precision("bf16", why, bf16)
    if not fast_bf16():
        return Precision("fp32", "this CPU has neither AVX512-BF16 nor AMX", nullcontext)
    if width < WORTH_WIDTH:
        return Precision("fp32", f"a hidden size of {width} is too small for bf16 to pay", nullcontext)
    return Precision("bf16", "this CPU multiplies bf16 in hardware", bf16)


def bf16() -> AbstractContextManager[Any]:
    """Matrix products in bfloat16."""
    return torch.autocast("cpu", dtype=torch.bfloat16)
