"""Which numeric type the arithmetic runs in, and how fast this machine multiplies.

bf16 and fp16 mean automatic mixed precision: trained weights, their gradients and the optimizer stay float32, matrix
products run in the short type. Tokens per second of processor time in bf16 against float32, with AVX512-BF16: 1.08
times at a hidden size of 64, 1.20 at 128, 1.29 at 192, 1.35 to 1.43 at 256 (5 M parameters).

    CPU   bf16 where it has AVX512-BF16 or AMX and a short product shows that the library uses them; else fp32. Never
          fp16, which is slower than float32 there.
    GPU   bf16 from compute capability 8.0 (Ampere), fp16 with a gradient scaler on 7.x (T4, V100), else fp32.

The product is timed against a margin of 1.3, where CPUs that have the instructions show 3 to 5 and the others less than
1: a busy machine slows both sides, so the choice does not flap. A stopped job must still not ask again: whoever resumes
one passes the name that its checkpoint holds.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch

from metier.core.errors import InputError
from metier.models.placed import CPU
from metier.models.placed import best_device as best_device
from metier.train.sizes import SHORT_TYPES_FROM

Wanted = Literal["auto", "bf16", "fp16", "fp32"]
Name = Literal["bf16", "fp16", "fp32"]

MARGIN = 1.3
"""How many times as fast as float32 a CPU must multiply bf16 matrices."""
SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the products that are timed."""
ENOUGH_SECONDS = 0.1

_DTYPES: dict[Name, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Precision:
    """The type chosen, why, in words for the log, and the device that it was chosen for."""

    name: Name
    why: str
    device: torch.device = CPU

    @property
    def dtype(self) -> torch.dtype:
        """The type of matrix products."""
        return _DTYPES[self.name]

    @property
    def scaler(self) -> bool:
        """Whether losses must be scaled up so that small gradients survive: fp16 has only 5 bits of exponent."""
        return self.name == "fp16"

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that forward passes run in."""
        return nullcontext() if self.name == "fp32" else torch.autocast(self.device.type, dtype=self.dtype)


def choose(wanted: Wanted, *, width: int, device: torch.device = CPU) -> Precision:
    """The type to train in. width: the model's hidden size.

    Raises InputError for fp16 on a CPU, and for bf16 on a GPU that has no arithmetic for it.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise InputError(
            "fp16 on a CPU is slower than fp32 and overflows",
            where="precision",
            value=wanted,
            cure="set precision: auto, which takes bf16 where the CPU has it, else fp32",
        )
    if wanted == "bf16" and device.type == "cuda" and _capability(device) < (8, 0):
        raise InputError(
            "this GPU has no bf16 arithmetic",
            where="precision",
            value=wanted,
            cure="set precision: auto, which takes fp16 with a scaler on it",
        )
    if wanted != "auto":
        slow = wanted == "bf16" and device.type == "cpu" and not fast_bf16()
        why = "asked for, though this CPU has no fast bf16 arithmetic and will be slow" if slow else "asked for"
        return Precision(wanted, why, device)
    if width < SHORT_TYPES_FROM:
        return Precision("fp32", f"a hidden size of {width} is too small for short types to pay", device)
    return _by_gpu(device) if device.type == "cuda" else _by_cpu(device)


def _by_cpu(device: torch.device) -> Precision:
    if not has_bf16_unit():
        return Precision("fp32", "this CPU has neither AVX512-BF16 nor AMX", device)
    ratio = bf16_over_fp32()
    if ratio < MARGIN:
        return Precision("fp32", f"this CPU has a bf16 unit, but products in bf16 run at {ratio:.1f} x float32", device)
    return Precision("bf16", f"this CPU multiplies bf16 in hardware, {ratio:.1f} x as fast as float32", device)


def _by_gpu(device: torch.device) -> Precision:
    major, minor = _capability(device)
    named = f"compute capability {major}.{minor}"
    if major >= 8:
        return Precision("bf16", f"{named} multiplies bf16 on tensor cores", device)
    if major == 7:
        return Precision("fp16", f"{named} has tensor cores for fp16 but not for bf16", device)
    return Precision("fp32", f"{named} has no tensor cores", device)


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices clearly faster than float32 ones."""
    return has_bf16_unit() and bf16_over_fp32() >= MARGIN


def has_bf16_unit() -> bool:
    """Whether the CPU says that it has AVX512-BF16 or AMX."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@cache
def bf16_over_fp32() -> float:
    """How many times as fast the CPU multiplies bf16 matrices as float32 ones: a tenth of a second, once a process.

    The best of three products each, taken in turns so that a disturbance meets both.
    """
    run = {dtype: _product(CPU, dtype) for dtype in (torch.float32, torch.bfloat16)}
    times: dict[torch.dtype, list[float]] = {dtype: [] for dtype in run}
    for _ in range(3):
        for dtype, product in run.items():
            times[dtype].append(_timed(CPU, product))
    return min(times[torch.float32]) / min(times[torch.bfloat16])


@cache
def gemm_peak(device: torch.device, dtype: torch.dtype) -> float:
    """`measured_peak`, asked once a process for each type: a tenth of a second."""
    return measured_peak(device, dtype)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second (two a multiply-add) of a large matrix product, with the threads that torch has now.

    dtype: a floating-point type, or int8 (products summed in int32). The best of all that fit in a tenth of a second,
    as only disturbances can make one slower.
    """
    product = _product(device, dtype)
    product()  # the first one prepares the kernel
    started, best = time.perf_counter(), float("inf")
    while time.perf_counter() - started < ENOUGH_SECONDS:
        best = min(best, _timed(device, product))
    return float(2 * SIDE[device.type] ** 3 / best)


def _product(device: torch.device, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """A product as a linear layer makes it: activations by the transposed weight."""
    own = torch.Generator().manual_seed(0)  # whoever trains draws on as if nothing had been drawn here
    random = torch.randn(SIDE["cpu"], SIDE["cpu"], generator=own)  # a GPU is faster with constants than it ever is else
    times = SIDE[device.type] // SIDE["cpu"]
    whole = (random * 30).round().clamp_(-127, 127) if dtype == torch.int8 else random
    a, b = (x.to(device, dtype).repeat(times, times) for x in (whole, whole.t()))
    if dtype == torch.int8:
        return lambda: torch._int_mm(a, b.t())
    return lambda: a @ b.t()


def _timed(device: torch.device, product: Callable[[], torch.Tensor]) -> float:
    _wait(device)
    started = time.perf_counter()
    product()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
