"""Attention of a row's short sequences on a CPU: the textbook form, by hand through backward.

It takes a quarter of the time of torch's fused kernel there (L = 200, 32 heads of 64: 7 ms against 29 ms). What is not
a product costs as much as the products, so memory is gone through as seldom as can be: queries are read from the row
straight into the lay-out of the products, those that share a key head side by side, keys behind their prefix, and
results back, one pass each. A `Fold` says from where to where; it is made once a row. Queries go STRIP at a time with
the keys that the last of them sees, so most of what causality hides is never computed. Backward makes the scores again:
they would be most of a block's memory, and cost a thirtieth of its time.

Shapes: N tokens that hold a query, H heads, G key/value heads, r = H / G, D head_dim, P tokens of a prefix; of a bucket
S sequences, L their queries, K their keys, prefix included.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metier.train.fast.ops import fused
from metier.train.rows import Bucket, Places, Row

SHORT = 640
"""Sequences of up to this many keys count as short."""
SCORES = 2**22
"""How many scores are made at once: 8 MB in bfloat16."""
STRIP = 64
"""Queries at a time."""
ROUND = 32
"""Keys that a strip of a row's asked tokens sees are filled up to a multiple of it: see `FILLED` in `rows`."""


@dataclass(frozen=True)
class Part:
    """A bucket in the folded lay-out.

    queries, keys: where its places begin and end there. sequences, asked, seen: S, L and K. prefix: how many of the
    keys are the shared prefix. own: for each place of a query the index of its token in its sequence, (S, L); None
    where that is its column.
    """

    queries: slice
    keys: slice
    sequences: int
    asked: int
    seen: int
    prefix: int
    own: Tensor | None


@dataclass(frozen=True, eq=False)
class Fold:
    """How a row's short sequences are laid out for products, and back.

    groups: G. from_queries, from_keys: for each place, which of the row's N x G lines stands there (a line is what a
    token has for one key head). to_queries, to_keys: for each such line of the tokens here, in the row's order, its
    place. pads: places of queries that hold no token's. lines: which lines of the row those of `to_keys` are; None for
    all of them. tokens: which tokens have their queries here, ascending; None for all of them. kept: what queries see,
    once it was worked out.
    """

    groups: int
    parts: tuple[Part, ...]
    from_queries: Tensor
    to_queries: Tensor
    pads: Tensor
    from_keys: Tensor
    to_keys: Tensor
    lines: Tensor | None
    tokens: Tensor | None
    kept: dict[Any, Tensor] = field(default_factory=dict)


def is_short(key: Bucket, prefix: int) -> bool:
    """Whether a bucket's sequences are, prefix included."""
    return key.longest + (prefix if key.shared else 0) <= SHORT


def fold_of(row: Row, groups: int, *, only_asked: bool) -> Fold:
    """Where the row's short sequences go. Costs some tenths of a millisecond."""
    asked, keys = (row.queries if only_asked else row.keys), row.keys
    ins = _Lines(asked, groups)
    outs = _Lines(keys, groups)
    parts = []
    for ask, key in zip(asked.buckets, keys.buckets, strict=True):
        if not is_short(key, row.prefix):
            ins.skip(ask)
            outs.skip(key)
            continue
        prefix = row.prefix if key.shared else 0
        own = None if asked.own is None else asked.own[ins.start : ins.start + ask.size].view(ask.count, ask.longest)
        queries, seen = ins.lay(ask, 0), outs.lay(key, prefix)
        parts.append(Part(queries, seen, key.count, ask.longest, prefix + key.longest, prefix, own))
    from_queries, to_queries, tokens = ins.done()
    from_keys, to_keys, holders = outs.done()
    pads = torch.ones(len(from_queries), dtype=torch.bool)
    pads[to_queries] = False
    lines = None if holders is None else (holders[:, None] * groups + torch.arange(groups)).flatten()
    return Fold(groups, tuple(parts), from_queries, to_queries, pads.nonzero()[:, 0], from_keys, to_keys, lines, tokens)


class _Lines:
    """Gathers, bucket by bucket, where the lines of a row's tokens go."""

    def __init__(self, places: Places, groups: int):
        self._places, self._groups = places, groups
        self.start = 0
        self._laid = 0
        self._from: list[Tensor] = []
        self._to = torch.full((len(places.places), groups), -1, dtype=torch.long)

    def skip(self, bucket: Bucket) -> None:
        """Leave a bucket out."""
        self.start += bucket.size

    def lay(self, bucket: Bucket, prefix: int) -> slice:
        """Lay a bucket, each sequence behind the row's first `prefix` tokens; where it begins and ends."""
        groups, longest = torch.arange(self._groups), prefix + bucket.longest
        tokens = self._places.sources[self.start : self.start + bucket.size].view(bucket.count, bucket.longest)
        if prefix:
            tokens = torch.cat([torch.arange(prefix).expand(bucket.count, -1), tokens], 1)
        self._from.append((tokens[:, None] * self._groups + groups[:, None]).flatten())
        inside = (self._places.places >= self.start) & (self._places.places < self.start + bucket.size)
        place = self._places.places[inside] - self.start
        if len(place):
            sequence, column = place // bucket.longest, place % bucket.longest + prefix
            self._to[inside] = self._laid + (sequence[:, None] * self._groups + groups) * longest + column[:, None]
        begins, self._laid = self._laid, self._laid + bucket.count * self._groups * longest
        self.start += bucket.size
        return slice(begins, self._laid)

    def done(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """From where each place comes, where each line goes, and whose lines these are (None: all tokens')."""
        here = self._to[:, 0] >= 0
        tokens = None if bool(here.all()) else here.nonzero()[:, 0]
        to = self._to if tokens is None else self._to[tokens]
        return torch.cat(self._from), to.flatten(), tokens


def attend_short(q: Tensor, k: Tensor, v: Tensor, fold: Fold, *, scale: float, dropout: float = 0.0) -> Tensor:
    """Attention of the row's short sequences: q (N, H, D), k and v (tokens, G, D) to (those of N here, H, D)."""
    out: Tensor = _Short.apply(q, k, v, fold, scale, dropout)  # type: ignore[no-untyped-call]
    return out


class _Short(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, fold: Fold, scale: float, dropout: float) -> Tensor:
        width = q.shape[2]
        shared = q.shape[1] // fold.groups
        queries = q.reshape(-1, shared * width).index_select(0, fold.from_queries)
        keys, values = (x.reshape(-1, width).index_select(0, fold.from_keys) for x in (k, v))
        out, drawn = torch.empty_like(queries), []
        for strip in _strips(fold, shared):
            weights = strip.weights(queries, keys, scale)
            drawn.append((torch.rand_like(weights, dtype=torch.float32) >= dropout) if dropout else None)
            torch.bmm(_dropped(weights, drawn[-1], dropout), strip.of_keys(values), out=strip.of_queries(out))
        ctx.fold, ctx.scale, ctx.dropout, ctx.shapes = fold, scale, dropout, (q.shape, k.shape)
        ctx.save_for_backward(queries, keys, values, *drawn)
        return out.index_select(0, fold.to_queries).view(-1, *q.shape[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        queries, keys, values, *drawn = ctx.saved_tensors
        fold: Fold = ctx.fold
        of_queries, of_keys = ctx.shapes
        outs = _folded(grads[0].reshape(-1, queries.shape[1]), fold)
        d_queries, d_keys, d_values = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        for strip, kept in zip(_strips(fold, of_queries[1] // fold.groups), drawn, strict=True):
            weights, out = strip.weights(queries, keys, ctx.scale), strip.of_queries(outs)
            strip.of_keys(d_values).add_(torch.bmm(_dropped(weights, kept, ctx.dropout).transpose(1, 2), out))
            d_weights = _dropped(torch.bmm(out, strip.of_keys(values).transpose(1, 2)), kept, ctx.dropout)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            asked = strip.of_queries(queries)
            strip.of_keys(d_keys).add_(torch.bmm(d_scores.transpose(1, 2), asked), alpha=ctx.scale)
            torch.bmm(d_scores, strip.of_keys(keys), out=strip.of_queries(d_queries))
        d_q = _put_back(d_queries.mul_(ctx.scale), fold, of_queries)
        return d_q, *(_gathered(x, fold, of_keys) for x in (d_keys, d_values)), None, None, None


def _folded(lines: Tensor, fold: Fold) -> Tensor:
    """A gradient of the result, (lines here, r x D), in the lay-out of the products: 0 at the padding."""
    if fold.tokens is None:
        return lines.index_select(0, fold.from_queries).index_fill_(0, fold.pads, 0)
    out = torch.zeros(len(fold.from_queries), lines.shape[1], dtype=lines.dtype)
    return out.index_copy_(0, fold.to_queries, lines)


def _put_back(d_queries: Tensor, fold: Fold, shape: torch.Size) -> Tensor:
    """The gradient of the row's queries."""
    found = d_queries.index_select(0, fold.to_queries)
    if fold.tokens is None:
        return found.view(shape)
    out = torch.zeros(shape, dtype=found.dtype)
    return out.index_copy_(0, fold.tokens, found.view(-1, *shape[1:]))


def _gathered(d_keys: Tensor, fold: Fold, shape: torch.Size) -> Tensor:
    """The gradient of the row's keys or values: each token's own, and the prefix's from all that attend to it."""
    found = d_keys.index_select(0, fold.to_keys)
    if fold.lines is not None:
        whole = torch.zeros(shape[0] * shape[1], shape[2], dtype=found.dtype)
        found = whole.index_copy_(0, fold.lines, found)
    out = found.view(shape)
    for part in fold.parts:
        if part.prefix:
            seen = d_keys[part.keys].view(part.sequences, fold.groups, part.seen, -1)[:, :, : part.prefix]
            out[: part.prefix] += (
                seen.sum(0, dtype=torch.promote_types(seen.dtype, torch.float32)).transpose(0, 1).to(out.dtype)
            )
    return out


@dataclass(frozen=True)
class _Strip:
    """Some queries of some sequences of a part, and the keys that the last of them sees.

    lines: the part's S x G. shared: r. batch: which of the lines. rows: which of their L x r queries. seen: how many
    keys. visible: how many of them each of the queries sees, int32 (1 or the lines, rows). kept:
    the fold's.
    """

    part: Part
    lines: int
    shared: int
    batch: slice
    rows: slice
    seen: int
    visible: Tensor
    kept: dict[Any, Tensor]

    def of_queries(self, x: Tensor) -> Tensor:
        """Of what is laid out as queries are: (lines, rows, D)."""
        return x[self.part.queries].view(self.lines, self.part.asked * self.shared, -1)[self.batch, self.rows]

    def of_keys(self, x: Tensor) -> Tensor:
        """Of what is laid out as keys are: (lines, keys, D)."""
        return x[self.part.keys].view(self.lines, self.part.seen, -1)[self.batch, : self.seen]

    def weights(self, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
        """The softmax of the scores: (lines, rows, keys)."""
        asked, seen = self.of_queries(queries), self.of_keys(keys).transpose(1, 2)
        kernel = fused(queries)
        if kernel is not None:
            whole: Tensor = kernel.softmax_(torch.bmm(asked, seen), self.visible, scale)
            return whole
        return torch.softmax(torch.baddbmm(self.mask(queries.dtype), asked, seen, alpha=scale), -1)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """0 where a query sees a key, else minus infinity: adding that takes a quarter of the time of filling it in.

        Kept where it is the same for all sequences, and so small.
        """
        key = (self.part.prefix, self.rows.start, self.rows.stop, self.shared, self.seen, dtype)
        if self.part.own is None and key in self.kept:
            return self.kept[key]
        future = torch.arange(self.seen) >= self.visible[..., None]
        mask = torch.zeros(future.shape, dtype=dtype).masked_fill_(future, float("-inf"))
        if self.part.own is None:
            self.kept[key] = mask
        return mask


def _strips(fold: Fold, shared: int) -> Iterator[_Strip]:
    """All strips of a row. shared: r."""
    groups = fold.groups
    for part in fold.parts:
        at_once = max(1, SCORES // (groups * shared * max(1, min(part.asked, STRIP)) * part.seen))
        for first in range(0, part.sequences, at_once):
            some = slice(first, min(first + at_once, part.sequences))
            batch = slice(some.start * groups, some.stop * groups)
            for start in range(0, part.asked, STRIP):
                stop = min(part.asked, start + STRIP)
                last = stop if part.own is None else _round(int(part.own[some, stop - 1].max()) + 1)
                seen = min(part.seen, part.prefix + last)
                visible = _visible(fold, part, some, slice(start, stop), shared)
                rows = slice(start * shared, stop * shared)
                yield _Strip(part, part.sequences * groups, shared, batch, rows, seen, visible, fold.kept)


def _round(keys: int) -> int:
    return -(-keys // ROUND) * ROUND


def _visible(fold: Fold, part: Part, some: slice, asked: slice, shared: int) -> Tensor:
    """How many keys each query sees, int32 (1 or S x G, L x r): one line where it is the same for all sequences."""
    if part.own is not None:
        last = part.own[some, asked] + part.prefix
        return (last + 1).int().repeat_interleave(shared, 1).repeat_interleave(fold.groups, 0)
    key = (part.prefix, asked.start, asked.stop, shared)
    if key not in fold.kept:
        last = torch.arange(asked.start, asked.stop)[None] + part.prefix
        fold.kept[key] = (last + 1).int().repeat_interleave(shared, 1)
    return fold.kept[key]


def _dropped(x: Tensor, kept: Tensor | None, share: float) -> Tensor:
    return x if kept is None else x * kept / (1 - share)
