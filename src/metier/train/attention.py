"""Causal attention within each sequence of a packed row: no N x N mask, no padded linear layer.

On a GPU that has a kernel for many lengths at once, all of it is one call (`varlen`); on a CPU short sequences attend
in strips of queries (`strips`). For the rest, queries, keys and values are gathered into (sequences, longest, heads,
head_dim), bucket by bucket, go through torch's fused kernel, and are scattered back. Padding stands at the right, so
causality hides it from every real token. A shared prefix's keys are put before those of each sequence that sees it.

Shapes: H heads, G key/value heads, D head_dim, S sequences of a bucket, L their queries, K their keys.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from metier.train import varlen
from metier.train.rows import Places, Row
from metier.train.strips import Fold, attend_short, fold_of, is_short


def attend(
    q: Tensor, k: Tensor, v: Tensor, row: Row, *, scale: float, dropout: float = 0.0, only_asked: bool = False
) -> Tensor:
    """Attention of a row: q (N, H, D), k and v (N, G, D) to (N, H x D).

    only_asked: q holds the row's asked tokens only, (Q, H, D), and so does the result.
    """
    if varlen.fits(q, dropout):
        return varlen.attend(q, k, v, row, scale=scale, only_asked=only_asked)
    short = [q.device.type == "cpu" and is_short(key, row.prefix) for key in row.keys.buckets]
    if not any(short):
        return _by_buckets(q, k, v, row, short, scale, dropout, only_asked).flatten(1)
    fold = _fold(row, k.shape[1], only_asked)
    out = attend_short(q, k, v, fold, scale=scale, dropout=dropout)
    if fold.tokens is not None:
        out = _by_buckets(q, k, v, row, short, scale, dropout, only_asked).index_copy(0, fold.tokens, out)
    return out.flatten(1)


def _fold(row: Row, groups: int, only_asked: bool) -> Fold:
    """Where the row's short sequences go, worked out once."""
    key = (groups, only_asked)
    if key not in row.folds:
        row.folds[key] = fold_of(row, groups, only_asked=only_asked)
    fold: Fold = row.folds[key]
    return fold


def _by_buckets(
    q: Tensor, k: Tensor, v: Tensor, row: Row, left_out: list[bool], scale: float, dropout: float, only_asked: bool
) -> Tensor:
    """Each bucket through torch's fused kernel: (N, H, D), 0 in the buckets that are left out."""
    asked = row.queries if only_asked else row.keys
    k_prefix, v_prefix = k[: row.prefix], v[: row.prefix]
    sizes = [bucket.size for bucket in asked.buckets]
    queries = torch.split(gathered(q, asked), sizes)
    owns = [None] * len(sizes) if asked.own is None else torch.split(asked.own, sizes)
    keys, values = (torch.split(gathered(x, row.keys), [bucket.size for bucket in row.keys.buckets]) for x in (k, v))
    done = []
    for index, (ask, key) in enumerate(zip(asked.buckets, row.keys.buckets, strict=True)):
        if ask.size == 0 or left_out[index]:
            done.append(torch.zeros_like(queries[index]))
            continue
        offset, own = (row.prefix if key.shared else 0), owns[index]
        q_SHLD = queries[index].view(ask.count, ask.longest, *q.shape[1:]).transpose(1, 2)  # noqa: N806
        k_SGKD, v_SGKD = (  # noqa: N806
            _behind(
                prefix if offset else None, x[index].view(key.count, key.longest, *x[index].shape[1:]).transpose(1, 2)
            )
            for x, prefix in ((keys, k_prefix), (values, v_prefix))
        )
        indices = None if own is None else own.view(ask.count, ask.longest)
        out = _fused(q_SHLD, k_SGKD, v_SGKD, indices, offset, scale, dropout).transpose(1, 2)
        done.append(out.reshape(ask.size, *q.shape[1:]))
    flat = done[0] if len(done) == 1 else torch.cat(done)
    out = flat if asked.straight else varlen.Own.apply(flat, asked.places)  # type: ignore[no-untyped-call]
    result: Tensor = out
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


class _Gather(torch.autograd.Function):
    """(N, heads, D) to (places, heads, D). Padding repeats a token but passes no gradient to it: no token
    attends to it, and `varlen.Own` gives its own queries none.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Places) -> Tensor:
        ctx.where = where
        return x.index_select(0, where.sources)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.where.places), None  # type: ignore[attr-defined]


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
