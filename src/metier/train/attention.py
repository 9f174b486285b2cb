"""Causal attention within each sequence of a packed row: no N x N mask, no padded linear layer.

Queries, keys and values are gathered into (sequences, longest, heads, head_dim), bucket by bucket, and scattered back.
Padding stands at the right, so causality hides it from every real token. A shared prefix's keys are put before those of
each sequence that attends to it. On a CPU short sequences attend in the textbook form, by hand through backward: it
takes a quarter of the time of torch's fused kernel there (L = 200, 32 heads of 64: 7 ms against 29 ms).

Shapes: H heads, G key/value heads, D head_dim, S sequences of a bucket, L their queries, K their keys.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from metier.train.rows import Places, Row

SHORT = 640
"""On a CPU, sequences of up to this many keys attend in the textbook form."""
SCORES = 2**22
"""How many scores are made at once there: 8 MB in bfloat16."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, row: Row, *, scale: float, dropout: float = 0.0, only_sources: bool = False
) -> Tensor:
    """Attention of a row: q (N, H, D), k and v (N, G, D) to (N, H x D).

    only_sources: q holds the row's sources only, (T, H, D), and so does the result.
    """
    asked = row.queries if only_sources else row.keys
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
        done.append(out.transpose(1, 2).reshape(ask.size, *q.shape[1:]))
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
    if k.shape[2] > SHORT or q.device.type != "cpu":
        return _fused(q, k, v, own, offset, scale, dropout)
    at_once = max(1, SCORES // (q.shape[1] * q.shape[2] * k.shape[2]))
    parts = [slice(start, start + at_once) for start in range(0, len(q), at_once)]
    outs = [
        textbook(q[part], k[part], v[part], _future(q, k, None if own is None else own[part], offset), scale, dropout)
        for part in parts
    ]
    return outs[0] if len(outs) == 1 else torch.cat(outs)


def _future(q: Tensor, k: Tensor, own: Tensor | None, offset: int) -> Tensor:
    """What a query must not see: (L, K), or (S, 1, 1, L, K) where queries have indices of their own."""
    columns = torch.arange(k.shape[2], device=k.device)
    if own is None:
        return columns > torch.arange(offset, offset + q.shape[2], device=k.device)[:, None]
    return (columns > own[..., None] + offset)[:, None, None]


def _fused(q: Tensor, k: Tensor, v: Tensor, own: Tensor | None, offset: int, scale: float, dropout: float) -> Tensor:
    """torch's own kernel: no L x K scores in memory. A prefix gets made-up queries: it aligns both at the left."""
    grouped = q.shape[1] != k.shape[1]
    if own is not None:
        mask = ~_future(q, k, own, offset)[:, :, 0]
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale, enable_gqa=grouped)
    padded = F.pad(q, (0, 0, offset, 0)) if offset else q
    out = F.scaled_dot_product_attention(
        padded, k, v, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=grouped
    )
    return out[:, :, offset:]


def textbook(q: Tensor, k: Tensor, v: Tensor, future: Tensor, scale: float, dropout: float) -> Tensor:
    """softmax(q k^T) v with its scores in memory. Queries that share a key head go through one product with it."""
    out: Tensor = _Textbook.apply(q, k, v, future, scale, dropout)  # type: ignore[no-untyped-call]
    return out


class _Textbook(torch.autograd.Function):
    """q (S, H, L, D), k and v (S, G, K, D) to (S, H, L, D). Backward makes the scores again: they would be most of a
    block's memory, and cost a thirtieth of its time.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, future: Tensor, scale: float, dropout: float) -> Tensor:
        s, h, length, d = q.shape
        g, many = k.shape[1], k.shape[2]
        queries = q.reshape(s * g, (h // g) * length, d) * scale
        keys, values = k.reshape(s * g, many, d), v.reshape(s * g, many, d)
        ctx.scale, ctx.dropout, ctx.shapes = scale, dropout, (q.shape, k.shape)
        weights = _weights(queries, keys, future, ctx.shapes)
        kept = (torch.rand_like(weights, dtype=torch.float32) >= dropout) if dropout else None
        ctx.save_for_backward(queries, keys, values, future, kept)
        return torch.bmm(_dropped(weights, kept, dropout), values).view(s, h, length, d)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        queries, keys, values, future, kept = ctx.saved_tensors
        out = grads[0].reshape(queries.shape)
        weights = _weights(queries, keys, future, ctx.shapes)
        d_values = torch.bmm(_dropped(weights, kept, ctx.dropout).transpose(1, 2), out)
        d_weights = _dropped(torch.bmm(out, values.transpose(1, 2)), kept, ctx.dropout)
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        d_keys = torch.bmm(d_scores.transpose(1, 2), queries)
        d_queries = torch.bmm(d_scores, keys).mul_(ctx.scale)
        of_queries, of_keys = ctx.shapes
        return d_queries.view(of_queries), d_keys.view(of_keys), d_values.view(of_keys), None, None, None


def _weights(queries: Tensor, keys: Tensor, future: Tensor, shapes: tuple[torch.Size, torch.Size]) -> Tensor:
    """The softmax of the scores: (S x G, H / G x L, K)."""
    (s, h, length, _), (_, g, many, _) = shapes
    scores = torch.bmm(queries, keys.transpose(1, 2))
    # adding minus infinity takes a quarter of the time of filling it in through a mask
    unseen = torch.zeros(future.shape, dtype=scores.dtype, device=scores.device).masked_fill_(future, float("-inf"))
    scores.view(s, g, h // g, length, many).add_(unseen)
    return torch.softmax(scores, -1)


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
