"""Flash attention over a packed row on a GPU: one kernel call for all its sequences, however long each is.

`torch.nn.attention.varlen.varlen_attn` where this torch has it with a scale (2.11 and newer; the flash kernel below it
takes grouped keys, though not every one says so), on Ampere or newer, in 16 bits. Everywhere else attention goes bucket
by bucket through torch's other kernels (`attention`). Which of them it is follows from the machine; `metier doctor`
says it.

Every sequence has as many keys as queries, also behind a shared prefix (whose own queries stand before each, and whose
results there are dropped): whether a kernel lines both up at the left or at the right then makes no difference.

Shapes: N tokens of the row, E places (each sequence behind its prefix), H heads, G key/value heads, D head_dim.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from metier.train.rows import Lanes, Row

CAPABILITY = (8, 0)
"""The first GPUs that torch's flash kernel runs on."""
WIDEST = 256
"""The largest head_dim that it takes."""
MULTIPLE = 8
"""What head_dim must be a multiple of."""
CAUSAL = (-1, 0)
NEEDED = {"scale", "window_size"}
GROUPED = "enable_gqa"
"""What some of them must be told where there are fewer keys than queries."""

Kernel = Callable[..., Any]


@cache
def kernel() -> Kernel | None:
    """torch's own, or None where this torch has none that fits."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if set(inspect.signature(varlen_attn).parameters) >= NEEDED else None


@cache
def _asks_for_groups(call: Kernel) -> bool:
    return GROUPED in inspect.signature(call).parameters


def fits(q: Tensor, dropout: float) -> bool:
    """Whether the kernel takes such queries, (N, H, D), here."""
    if q.device.type != "cuda" or dropout or kernel() is None:
        return False
    width = q.shape[-1]
    short = q.dtype in (torch.bfloat16, torch.float16) and width <= WIDEST and width % MULTIPLE == 0
    return short and runs_on(q.device)


@cache
def runs_on(device: torch.device) -> bool:
    """Whether a GPU is new enough."""
    return torch.cuda.get_device_capability(device) >= CAPABILITY


def attend(q: Tensor, k: Tensor, v: Tensor, row: Row, *, scale: float, only_asked: bool = False) -> Tensor:
    """Causal attention within each sequence: q (N, H, D), k and v (N, G, D) to (N, H x D).

    only_asked: q holds the row's asked tokens only, and so does the result. The others' queries are then zeros.
    """
    call = kernel()
    assert call is not None
    lanes = row.lanes
    if only_asked:
        q = torch.zeros(len(row), *q.shape[1:], dtype=q.dtype, device=q.device).index_copy(0, row.asked, q)
    if lanes.sources is not None:
        q, k, v = (_Spread.apply(x, lanes, row.prefix) for x in (q, k, v))  # type: ignore[no-untyped-call]
    told = {GROUPED: q.shape[1] != k.shape[1]} if _asks_for_groups(call) else {}
    ends, longest = lanes.ends, lanes.longest
    out: Tensor = call(q, k, v, ends, ends, longest, longest, scale=scale, window_size=CAUSAL, **told)
    if lanes.places is not None:
        out = Own.apply(out, lanes.places)  # type: ignore[no-untyped-call]
    if only_asked:
        out = out.index_select(0, row.asked)
    return out.flatten(1)


class _Spread(torch.autograd.Function):
    """(N, heads, D) to (E, heads, D). What `index_select` gives; its own way back adds number by number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lanes: Lanes, prefix: int) -> Tensor:
        assert lanes.sources is not None
        ctx.lanes, ctx.prefix = lanes, prefix
        return x.index_select(0, lanes.sources)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> tuple[Tensor, None, None]:
        lanes: Lanes = ctx.lanes  # type: ignore[attr-defined]
        prefix: int = ctx.prefix  # type: ignore[attr-defined]
        assert lanes.places is not None
        assert lanes.copies is not None
        (dy,) = grads
        dx: Tensor = dy.index_select(0, lanes.places)
        dx[:prefix] += dy.index_select(0, lanes.copies).view(-1, prefix, *dy.shape[1:]).sum(0, dtype=torch.float32)
        return dx, None, None


class Own(torch.autograd.Function):
    """(places, heads, D) to (N, heads, D): each token's own place. The others get a gradient of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        """What stands there."""
        ctx.places, ctx.size = places, len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> tuple[Tensor, None]:
        """Of all places."""
        places: Tensor = ctx.places  # type: ignore[attr-defined]
        size: int = ctx.size  # type: ignore[attr-defined]
        (dy,) = grads
        return dy.new_zeros(size, *dy.shape[1:]).index_copy_(0, places, dy), None
