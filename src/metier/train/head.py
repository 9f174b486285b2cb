"""The output head and its loss, only where there is a target, chunk by chunk: full logits never exist.

Loss and gradients are computed in one go (as Liger Kernel's fused linear cross entropy does, arXiv 2410.10989): a
chunk's scores turn in place into their gradient, which is multiplied back at once. Costs one chunk of scores.

Shapes: T targets, C hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metier.train.fast.linear import Apart, Dense
from metier.train.fast.ops import fused, parts, summed
from metier.train.int8 import Int8Stack

CHUNK = 256
"""Targets at a time with a frozen head; products are as fast from there on."""
CHUNK_TRAINED = 1024
"""With a trained head, whose gradient (V, C) is gone through once a chunk."""
ON_GPU = 2**28
"""Scores at a time on a GPU: half a gigabyte in 16 bits. Smaller products would leave parts of it idle."""


class HeadLoss(torch.autograd.Function):
    """The weighted sum of cross entropies in nats, a 0-dimensional float32.

    hidden (T, C), weight (V, C), bias (V,) or None, targets (T,), weights (T,) float32 or None for ones. smoothing: the
    share of each target's mass that is spread over the vocabulary (Szegedy et al. 2015, arXiv 1512.00567). dtype: of
    the products. fresh (n, C): stands for the rows of a frozen weight from `first` on. taught: what another model makes
    of the same targets: its share of the loss is the divergence from it. ints: a frozen head in int8, by which the
    products go; of the weight only the length counts then.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor | None,
        smoothing: float,
        dtype: torch.dtype,
        fresh: Tensor | None = None,
        first: int = 0,
        taught: "Taught | None" = None,
        ints: Int8Stack | None = None,
    ) -> Tensor:
        """The loss, and with it all gradients."""
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        wants_any = any(ctx.needs_input_grad)
        matrix = weight.detach() if ints is not None else weight.detach().to(dtype, copy=fresh is not None)
        head = ints or Apart([Dense(matrix)])
        d_fresh = span = None
        if fresh is not None:
            span = slice(first, first + len(fresh))
            matrix[span] = fresh.detach().to(dtype)
            if ctx.needs_input_grad[7]:
                d_fresh = torch.zeros(fresh.shape, dtype=torch.float32, device=fresh.device)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wants_weight else None
        d_bias = torch.zeros(weight.shape[0], dtype=torch.float32, device=weight.device) if wants_bias else None
        size = at_once(hidden.device, len(weight), trains=wants_weight)
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            h, t = hidden[chunk].to(dtype), targets[chunk]
            w = None if weights is None else weights[chunk, None]
            (scores,) = head.forward(h)
            if bias is not None:
                scores += bias
            said = None if taught is None else (taught.logs(chunk, dtype), taught.share)
            total += _to_gradient(scores, t, w, smoothing, said, needed=wants_any)
            if d_hidden is not None:
                d_hidden[chunk] = head.backward([scores])
            if d_weight is not None:
                d_weight += summed(scores.t(), h)
            if d_bias is not None:
                d_bias += scores.sum(0, dtype=torch.float32)
            if d_fresh is not None:
                d_fresh += scores[:, span].t() @ h
        ctx.save_for_backward(d_hidden, d_weight, d_bias, d_fresh)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Of hidden, weight and bias."""
        d_hidden, d_weight, d_bias, d_fresh = ctx.saved_tensors
        scale = grads[0]
        of_weight, of_bias = ctx.dtypes
        return (
            None if d_hidden is None else d_hidden.mul_(scale),
            None if d_weight is None else d_weight.mul_(scale).to(of_weight),
            None if d_bias is None else d_bias.mul_(scale).to(of_bias),
            *[None] * 4,
            None if d_fresh is None else d_fresh.mul_(scale),
            *[None] * 3,
        )


@dataclass(frozen=True)
class Taught:
    """What a teacher makes of the same targets: its hidden states (T, C'), its head (V, C') and bias (V,) or None.

    share: of the loss that is the divergence KL(teacher || student) at each target (Hinton et al. 2015, arXiv
    1503.02531, at temperature 1); the rest is the cross entropy.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    share: float

    def logs(self, chunk: slice, dtype: torch.dtype) -> Tensor:
        """The log-probabilities at some of the targets, (t, V) float32."""
        scores = self.hidden[chunk].to(dtype) @ self.weight.detach().to(dtype).t()
        return torch.log_softmax((scores if self.bias is None else scores + self.bias).float(), -1)


def each_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    dtype: torch.dtype,
    ints: Int8Stack | None = None,
) -> Tensor:
    """The cross entropy of every target in nats, (T,) float32, without gradients. Arguments as in `HeadLoss`."""
    head = ints or Apart([Dense(weight)])
    found = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    size = at_once(hidden.device, len(weight), trains=False)
    for start in range(0, len(hidden), size):
        chunk = slice(start, start + size)
        (scores,) = head.forward(hidden[chunk].to(dtype))
        scores = (scores if bias is None else scores + bias).float()
        found[chunk] = torch.logsumexp(scores, -1) - scores.gather(1, targets[chunk, None])[:, 0]
    return found


def at_once(device: torch.device, vocabulary: int, *, trains: bool) -> int:
    """How many targets have their scores in memory together."""
    if device.type == "cuda":
        return max(CHUNK, ON_GPU // vocabulary // CHUNK * CHUNK)
    return CHUNK_TRAINED if trains else CHUNK


def _to_gradient(
    scores: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    smoothing: float,
    said: tuple[Tensor, float] | None,
    *,
    needed: bool,
) -> Tensor:
    """The loss of scores (T, V), which become its gradient where one is needed. A few rows at a time on a CPU.

    said: a teacher's log-probabilities (T, V) and its share of the loss.
    """
    kernel = fused(scores)
    if kernel is not None and said is None:
        whole: Tensor = kernel.to_gradient(scores, targets, weights, smoothing, needed=needed)
        return whole
    total = torch.zeros((), dtype=torch.float32, device=scores.device)
    vocabulary = scores.shape[1]
    for part in parts(scores):
        logs = torch.log_softmax(scores[part].float(), -1)
        t = targets[part, None]
        w = None if weights is None else weights[part]
        loss = logs.gather(1, t).neg_()
        if smoothing:
            loss = loss * (1 - smoothing) - logs.mean(-1, keepdim=True) * smoothing
        own, likely = 1.0, None
        if said is not None:
            own, wanted = 1 - said[1], said[0][part]
            likely = wanted.exp()
            loss = loss * own + (likely * (wanted - logs)).sum(-1, keepdim=True) * said[1]
        total += (loss if w is None else loss * w).sum()
        if not needed:
            continue
        grad = logs.exp_()
        if smoothing:
            grad -= own * smoothing / vocabulary
        grad.scatter_add_(1, t, torch.full_like(t, own * (smoothing - 1), dtype=torch.float32))
        if likely is not None:
            grad -= likely * (1 - own)
        scores[part] = grad if w is None else grad.mul_(w)
    return total
