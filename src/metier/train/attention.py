"""Causal attention within each sequence of a packed row: no N x N mask, no padded linear layer.

Queries, keys and values are gathered into (sequences, longest, heads, head_dim), bucket by bucket, and scattered back.
Padding stands at the right, so causality hides it from every real token. A shared prefix's keys are put before those of
each sequence that attends to it. On a CPU short sequences attend in the textbook form, by hand through backward: it
takes a quarter of the time of torch's fused kernel there (L = 200, 32 heads of 64: 7 ms against 29 ms). On a GPU that
has a kernel for many lengths at once, all of that is one call (`varlen`).

Shapes: H heads, G key/value heads, D head_dim, S sequences of a bucket, L their queries, K their keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from metier.train import varlen
from metier.train.rows import Places, Row

SHORT = 640
"""On a CPU, sequences of up to this many keys attend in the textbook form."""
SCORES = 2**22
"""How many scores are made at once there: 8 MB in bfloat16."""
STRIP = 64
"""Queries at a time there."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, row: Row, *, scale: float, dropout: float = 0.0, only_asked: bool = False
) -> Tensor:
    """Attention of a row: q (N, H, D), k and v (N, G, D) to (N, H x D).

    only_asked: q holds the row's asked tokens only, (Q, H, D), and so does the result.
    """
    if varlen.fits(q, dropout):
        return varlen.attend(q, k, v, row, scale=scale, only_asked=only_asked)
    asked = row.queries if only_asked else row.keys
    k_prefix, v_prefix = k[: row.prefix], v[: row.prefix]
    sizes = [bucket.size for bucket in asked.buckets]
    queries = torch.split(gathered(q, asked), sizes)
    owns = [None] * len(sizes) if asked.own is None else torch.split(asked.own, sizes)
    keys, values = (torch.split(gathered(x, row.keys), [bucket.size for bucket in row.keys.buckets]) for x in (k, v))
    done = []
    for ask, key, q_b, k_b, v_b, own in zip(asked.buckets, row.keys.buckets, queries, keys, values, owns, strict=True):
        if ask.size == 0:
            continue
        offset = row.prefix if key.shared else 0
        q_SHLD = q_b.view(ask.count, ask.longest, *q.shape[1:]).transpose(1, 2)  # noqa: N806
        k_SGKD, v_SGKD = (  # noqa: N806
            _behind(prefix if offset else None, x.view(key.count, key.longest, *x.shape[1:]).transpose(1, 2))
            for x, prefix in ((k_b, k_prefix), (v_b, v_prefix))
        )
        indices = None if own is None else own.view(ask.count, ask.longest)
        out = _bucket(q_SHLD, k_SGKD, v_SGKD, indices, offset, scale, dropout)
        done.append(out.reshape(ask.size, *q.shape[1:]))
    flat = done[0] if len(done) == 1 else torch.cat(done)
    out = flat if asked.straight else _Scatter.apply(flat, asked)  # type: ignore[no-untyped-call]
    result: Tensor = out.flatten(1)
    return result


def gathered(x: Tensor, where: Places) -> Tensor:
    """(N, heads, D) to (places, heads, D)."""
    out: Tensor = x if where.straight else _Gather.apply(x, where)  # type: ignore[no-untyped-call]
    return out


def _behind(prefix: Tensor | None, x_SGKD: Tensor) -> Tensor:  # noqa: N803
    """Each sequence's keys behind those of the prefix, (P, G, D)."""
    if prefix is None:
        return x_SGKD
    before = prefix.transpose(0, 1)[None].expand(len(x_SGKD), -1, -1, -1)
    return torch.cat([before, x_SGKD], dim=2)


def _bucket(q: Tensor, k: Tensor, v: Tensor, own: Tensor | None, offset: int, scale: float, dropout: float) -> Tensor:
    """q (S, H, L, D), k and v (S, G, K, D) to (S, L, H, D)."""
    if k.shape[2] > SHORT or q.device.type != "cpu":
        return _fused(q, k, v, own, offset, scale, dropout).transpose(1, 2)
    at_once = max(1, SCORES // (q.shape[1] * min(q.shape[2], STRIP) * k.shape[2]))
    parts = [slice(start, start + at_once) for start in range(0, len(q), at_once)]
    outs = [
        textbook(q[part], k[part], v[part], None if own is None else own[part], offset, scale, dropout)
        for part in parts
    ]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _fused(q: Tensor, k: Tensor, v: Tensor, own: Tensor | None, offset: int, scale: float, dropout: float) -> Tensor:
    """torch's own kernel: no L x K scores in memory. A prefix gets made-up queries: it aligns both at the left."""
    grouped = q.shape[1] != k.shape[1]
    if own is not None:
        mask = torch.arange(k.shape[2], device=k.device) <= (own + offset)[:, None, :, None]
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale, enable_gqa=grouped)
    padded = F.pad(q, (0, 0, offset, 0)) if offset else q
    out = F.scaled_dot_product_attention(
        padded, k, v, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=grouped
    )
    return out[:, :, offset:]


def textbook(q: Tensor, k: Tensor, v: Tensor, own: Tensor | None, offset: int, scale: float, dropout: float) -> Tensor:
    """softmax(q k^T) v with scores in memory: q (S, H, L, D), k and v (S, G, K, D) to (S, L, H, D).

    Query i sees the keys up to i + offset; with `own` (S, L), up to own[i] + offset.
    """
    out: Tensor = _Textbook.apply(q, k, v, own, offset, scale, dropout)  # type: ignore[no-untyped-call]
    return out


class _Textbook(torch.autograd.Function):
    """Queries that share a key head go through one product with it, STRIP of them at a time with the keys that the last
    of them sees: most of what causality hides is never computed. Backward makes the scores again: they would be most of
    a block's memory, and cost a thirtieth of its time.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, own: Tensor | None, offset: int, scale: float, dropout: float
    ) -> Tensor:
        strips = _Strips(q.shape, k.shape, own, offset, scale)
        queries, keys, values = strips.folded(q), k.flatten(0, 1), v.flatten(0, 1)
        out, drawn = torch.empty_like(queries), []
        for strip in strips:
            weights = strips.weights(queries, keys, strip)
            drawn.append((torch.rand_like(weights, dtype=torch.float32) >= dropout) if dropout else None)
            torch.bmm(_dropped(weights, drawn[-1], dropout), values[:, : strip.keys], out=out[:, strip.rows])
        ctx.strips, ctx.dropout = strips, dropout
        ctx.save_for_backward(queries, keys, values, *drawn)
        return strips.unfolded(out)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        queries, keys, values, *drawn = ctx.saved_tensors
        strips: _Strips = ctx.strips
        outs = strips.folded(grads[0].transpose(1, 2))
        d_queries, d_keys, d_values = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        for strip, kept in zip(strips, drawn, strict=True):
            seen, out = slice(0, strip.keys), outs[:, strip.rows]
            weights = strips.weights(queries, keys, strip)
            d_values[:, seen] += torch.bmm(_dropped(weights, kept, ctx.dropout).transpose(1, 2), out)
            d_weights = _dropped(torch.bmm(out, values[:, seen].transpose(1, 2)), kept, ctx.dropout)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_keys[:, seen] += torch.bmm(d_scores.transpose(1, 2), queries[:, strip.rows])
            torch.bmm(d_scores, keys[:, seen], out=d_queries[:, strip.rows])
        d_q = strips.unfolded(d_queries.mul_(strips.scale)).transpose(1, 2)
        return d_q, *(x.view(strips.of_keys) for x in (d_keys.mul_(strips.scale), d_values)), *[None] * 4


@dataclass(frozen=True)
class _Strip:
    """start, stop: queries. rows: the same where H / G heads share a key head. keys: how many the last query sees."""

    start: int
    stop: int
    rows: slice
    keys: int


class _Strips:
    """A bucket's queries, folded: (S x G, L x H / G, D), the heads of a token side by side."""

    def __init__(self, of_queries: torch.Size, of_keys: torch.Size, own: Tensor | None, offset: int, scale: float):
        self.of_queries, self.of_keys, self.scale = of_queries, of_keys, scale
        self._own, self._offset = own, offset
        self._shared = of_queries[1] // of_keys[1]
        length, many = of_queries[2], of_keys[2]
        step = length if own is not None else STRIP
        starts = [(start, min(length, start + step)) for start in range(0, length, step)]
        r = self._shared
        self._strips = [
            _Strip(a, b, slice(a * r, b * r), many if own is not None else min(many, offset + b)) for a, b in starts
        ]

    def __iter__(self) -> Iterator[_Strip]:
        return iter(self._strips)

    def folded(self, x: Tensor) -> Tensor:
        """(S, H, L, D) to (S x G, L x H / G, D)."""
        s, _, length, d = self.of_queries
        return x.reshape(s, -1, self._shared, length, d).transpose(2, 3).reshape(-1, length * self._shared, d)

    def unfolded(self, x: Tensor) -> Tensor:
        """(S x G, L x H / G, D) to (S, L, H, D)."""
        s, h, length, d = self.of_queries
        return x.view(s, -1, length, self._shared, d).transpose(1, 2).reshape(s, length, h, d)

    def weights(self, queries: Tensor, keys: Tensor, strip: _Strip) -> Tensor:
        """The softmax of a strip's scores: (S x G, rows, keys)."""
        columns = torch.arange(strip.keys, device=keys.device)
        last = torch.arange(strip.start, strip.stop, device=keys.device)[None] if self._own is None else self._own
        future = columns > (last + self._offset)[..., None]
        # adding minus infinity takes a quarter of the time of filling it in through a mask
        unseen = torch.zeros(future.shape, dtype=keys.dtype, device=keys.device).masked_fill_(future, float("-inf"))
        unseen = unseen.repeat_interleave(self._shared, 1)
        if self._own is not None:
            unseen = unseen.repeat_interleave(self.of_keys[1], 0)
        seen = keys[:, : strip.keys].transpose(1, 2)
        return torch.softmax(torch.baddbmm(unseen, queries[:, strip.rows], seen, alpha=self.scale), -1)


def _dropped(x: Tensor, kept: Tensor | None, share: float) -> Tensor:
    return x if kept is None else x * kept / (1 - share)


class _Gather(torch.autograd.Function):
    """(N, heads, D) to (places, heads, D). Padding repeats a token but passes no gradient to it: no token
    attends to it, and `_Scatter` gives its own queries none.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Places) -> Tensor:
        ctx.where = where
        return x.index_select(0, where.sources)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.where.places), None  # type: ignore[attr-defined]


class _Scatter(torch.autograd.Function):
    """(places, heads, D) to (N, heads, D), leaving out the padding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Places) -> Tensor:
        ctx.where = where
        return x.index_select(0, where.places)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> tuple[Tensor, None]:
        where: Places = ctx.where  # type: ignore[attr-defined]
        padded = grads[0].new_zeros(len(where.sources), *grads[0].shape[1:])
        return padded.index_copy_(0, where.places, grads[0]), None


def transformers_attention(
    module: nn.Module,  # noqa: ARG001 - transformers' interface
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row: Row | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """`attend` as transformers calls it: query (1, H, N, D), key and value (1, G, N, D) to (1, N, H, D).

    Raises ValueError without a row or with a mask: then tokens would see what they must not.
    """
    if row is None or attention_mask is not None or query.shape[0] != 1:
        raise ValueError("packed attention takes one row with its layout, and no mask")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(q, k, v, row, scale=scale, dropout=dropout).view(1, *q.shape), None
