"""Many sequences in one row: how pieces are laid end to end, and what may attend to what.

Shapes: N tokens of the row, S sequences of a bucket, L its longest, P tokens of a shared prefix, T targets, Q tokens
that a last block computes.

A prefix that opens pieces (the text of a prompt template) is laid once, at the row's start, and their other tokens
attend to it as if it stood before each: positions go on from it. Exact as long as nothing in the prefix is a target,
because under causal attention what comes after a token changes nothing in it. Costs a few microseconds a piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from metier.train.batches import Ids, Piece

BUCKET_WASTE = 0.25
"""A bucket ends where the next sequence is that share shorter than the bucket's longest."""
FILLED = 16
"""Rows, buckets and what a last block computes are filled up to a multiple of the power of two that is at most this
part of them: preparing for a new shape costs a CPU's matrix kernels time, up to a fifth of a step, and memory."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bucket:
    """S sequences of at most L tokens. shared: whether they attend to the row's prefix as well."""

    count: int
    longest: int
    shared: bool

    @property
    def size(self) -> int:
        """Its places, padding included."""
        return self.count * self.longest


@dataclass(frozen=True, eq=False)
class Places:
    """From a row's tokens to its buckets and back.

    buckets: laid end to end they make the places. sources: for each place, the token that stands there (padding repeats
    a sequence's last). places: for each token, its place. straight: both are 0, 1, 2 ... own: for each place, the index
    of its token in its sequence; None where that is its column.
    """

    buckets: tuple[Bucket, ...]
    sources: Tensor
    places: Tensor
    straight: bool
    own: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Lanes:
    """The row's sequences end to end, each behind the prefix that it attends to: what kernels for many lengths take.

    ends: where each begins and the last ends, int32. longest: of them. sources: for each place, the token that stands
    there. places: for each token, its place. copies: (S x P,), the places of the prefix before each sequence that
    stands behind it. All three None where no sequence does.
    """

    ends: Tensor
    longest: int
    sources: Tensor | None
    places: Tensor | None
    copies: Tensor | None


@dataclass(frozen=True, eq=False)
class Row:
    """A packed row.

    ids, positions: (N,). keys: where all tokens stand. prefix: how many tokens at the start are the shared prefix.
    sources: (T,) ascending, the tokens whose next is a target. targets: (T,). weights: (T,), None where all are 1.
    asked: (Q,) ascending, the sources and some other tokens. found: (T,), where the sources stand among them.
    queries: where the asked stand among the buckets, as a last block sees them that computes nothing else.
    parts: each piece with the tokens of the row that hold it without the prefix, from and to. lanes: where all tokens
    stand for kernels that take many lengths at once. folds: what attention works out once a row.
    """

    ids: Tensor
    positions: Tensor
    keys: Places
    queries: Places
    prefix: int
    sources: Tensor
    asked: Tensor
    found: Tensor
    targets: Tensor
    weights: Tensor | None
    parts: tuple[tuple[Piece, int, int], ...]
    lanes: Lanes
    folds: dict[Any, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def lengths(self) -> Tensor:
        """For each token the length of its sequence, prefix included: (N,)."""
        lengths = torch.ones(len(self), dtype=torch.long)
        lengths[: self.prefix] = self.prefix
        for piece, start, end in self.parts:
            lengths[start:end] = len(piece)
        return lengths

    def to(self, device: torch.device) -> "Row":
        """The row on another device, on its way there: nothing waits for it."""
        if device.type == self.ids.device.type:
            return self
        own = {one.name: getattr(self, one.name) for one in fields(self)}  # not `lengths`, which may be kept
        return Row(**{name: _moved(value, device) for name, value in own.items()})


def opened_by(piece: Piece, prefix: Ids) -> bool:
    """Whether the piece begins with the prefix, none of it is a target, nor the token after it."""
    size = len(prefix)
    return len(piece) > size and not piece.targets[: size + 1].any() and bool((piece.ids[:size] == prefix).all())


def pack(pieces: Sequence[Piece], prefix: Ids | None = None) -> Row:
    """Lay pieces end to end, and behind them a filler without targets, so that rows come in few lengths.

    prefix: what opens many pieces; laid once where any of these has it.
    """
    opens = [prefix is not None and opened_by(piece, prefix) for piece in pieces]
    shared = len(prefix) if prefix is not None and any(opens) else 0
    skip = [shared if opened else 0 for opened in opens]
    lengths = [shared] if shared else []
    lengths += [len(piece) - cut for piece, cut in zip(pieces, skip, strict=True)]
    total = sum(lengths)
    filler = _missing(total)
    starts = np.concatenate([[0], np.cumsum([*lengths, *([filler] if filler else [])])]).astype(np.int64)
    ids = np.zeros(starts[-1], np.int64)
    positions = np.arange(starts[-1])
    if shared and prefix is not None:
        ids[:shared] = prefix
    sources, targets, weights, parts = [], [], [], []
    weighted = any(piece.weights is not None for piece in pieces)
    for piece, cut, start, end in zip(pieces, skip, starts[bool(shared) :], starts[1 + bool(shared) :], strict=False):
        ids[start:end] = piece.ids[cut:]
        positions[start:end] -= start - cut
        wanted = np.flatnonzero(piece.targets)
        sources.append(start + wanted - 1 - cut)
        targets.append(piece.ids[wanted])
        if weighted:
            weights.append(np.ones(len(wanted), np.float32) if piece.weights is None else piece.weights[wanted])
        parts.append((piece, int(start), int(end)))
    if filler:
        positions[-filler:] -= starts[-2]
    first = 1 if shared else 0
    flags = [False] * first + [bool(cut) for cut in skip] + ([False] if filler else [])
    every = [*lengths, *([filler] if filler else [])]
    order = bucket_order(every, flags)
    real = np.concatenate(sources)
    asked = _filled_up(real, len(ids))
    owns = [asked[slice(*np.searchsorted(asked, [a, b]))] - a for a, b in pairwise(starts)]
    return Row(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        keys=_key_places(order, every, flags, starts),
        queries=_query_places(order, owns, flags),
        prefix=shared,
        sources=torch.from_numpy(real),
        asked=torch.from_numpy(asked),
        found=torch.from_numpy(np.searchsorted(asked, real)),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        weights=torch.from_numpy(np.concatenate(weights)) if weighted else None,
        parts=tuple(parts),
        lanes=_lanes(starts, shared, flags),
    )


def _lanes(starts: Numbers, prefix: int, opened: Sequence[bool]) -> Lanes:
    """starts: where each sequence of the row begins, and its end. opened: which of them stand behind the prefix."""
    spans = list(pairwise(starts.tolist()))
    sizes = [end - start + (prefix if behind else 0) for (start, end), behind in zip(spans, opened, strict=True)]
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    if not any(opened):
        return Lanes(torch.from_numpy(ends), max(sizes), None, None, None)
    sources = [
        np.concatenate([np.arange(prefix if behind else 0), np.arange(start, end)])
        for (start, end), behind in zip(spans, opened, strict=True)
    ]
    own = [np.arange(end - (b - a), end) for (a, b), end in zip(spans, ends[1:].tolist(), strict=True)]
    copies = [np.arange(start, start + prefix) for start, behind in zip(ends.tolist(), opened, strict=False) if behind]
    return Lanes(
        torch.from_numpy(ends),
        max(sizes),
        *(torch.from_numpy(np.concatenate(x).astype(np.int64)) for x in (sources, own, copies)),
    )


def _missing(count: int) -> int:
    """What lacks to a round number."""
    return -count % (1 << max(count // FILLED, 1).bit_length() - 1)


def _filled_up(sources: Numbers, size: int) -> Numbers:
    """The sources and as many of a row's last other tokens as make their number round, in order."""
    others = np.setdiff1d(np.arange(size), sources, assume_unique=True)
    few = others[max(0, len(others) - _missing(len(sources))) :]
    return np.sort(np.concatenate([sources, few]))


def bucket_order(lengths: Sequence[int], shared: Sequence[bool]) -> list[list[int]]:
    """Sequences sorted into buckets of similar length; those that attend to the prefix apart from those that do not."""
    # stable: equal lengths keep their order
    order = sorted(range(len(lengths)), key=lambda i: (shared[i], -lengths[i]))
    buckets: list[list[int]] = []
    for index in order:
        first = buckets[-1][0] if buckets else -1
        if first < 0 or shared[index] != shared[first] or lengths[index] < lengths[first] * (1 - BUCKET_WASTE):
            buckets.append([])
        buckets[-1].append(index)
    return buckets


def _key_places(order: list[list[int]], lengths: Sequence[int], shared: Sequence[bool], starts: Numbers) -> Places:
    buckets, sources = [], []
    places = np.empty(starts[-1], np.int64)
    offset = 0
    alike = len(set(lengths)) == 1  # then the row is its one bucket, and nothing needs to be moved
    for bucket in order:
        longest = lengths[bucket[0]] + (0 if alike else _missing(lengths[bucket[0]]))
        column = np.arange(longest)
        first, size = starts[bucket][:, None], np.asarray([lengths[i] for i in bucket])[:, None]
        source = first + np.minimum(column, size - 1)  # padding repeats the last token: finite, and never attended to
        place = offset + np.arange(source.size).reshape(source.shape)
        real = column < size
        places[source[real]] = place[real]
        buckets.append(Bucket(len(bucket), longest, shared[bucket[0]]))
        sources.append(source.reshape(-1))
        offset += source.size
    return _places(buckets, np.concatenate(sources), places, None)


def _query_places(order: list[list[int]], asked: list[Numbers], shared: Sequence[bool]) -> Places:
    """asked: of each sequence, the indices in it that are queries. The queries themselves are numbered in row order."""
    starts = np.concatenate([[0], np.cumsum([len(own) for own in asked])]).astype(np.int64)
    places = np.empty(starts[-1], np.int64)
    buckets, sources, owns = [], [], []
    offset = 0
    for bucket in order:
        longest = max(len(asked[i]) for i in bucket)
        longest += 0 if len(order) == 1 else _missing(longest)
        source, own = np.zeros((2, len(bucket), longest), np.int64)
        for line, index in enumerate(bucket):
            count = len(asked[index])
            if count:
                column = np.minimum(np.arange(longest), count - 1)
                source[line], own[line] = starts[index] + column, asked[index][column]
            places[starts[index] : starts[index] + count] = offset + line * longest + np.arange(count)
        buckets.append(Bucket(len(bucket), longest, shared[bucket[0]]))
        sources.append(source.reshape(-1))
        owns.append(own.reshape(-1))
        offset += source.size
    return _places(buckets, np.concatenate(sources), places, np.concatenate(owns))


def _places(buckets: list[Bucket], sources: Numbers, places: Numbers, own: Numbers | None) -> Places:
    straight = len(sources) == len(places) and bool((places == np.arange(len(places))).all())
    owns = None if own is None else torch.from_numpy(own)
    return Places(tuple(buckets), torch.from_numpy(sources), torch.from_numpy(places), straight, owns)


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors on the device, from memory that its copies need not wait for; of what holds tensors a copy with these."""
    if isinstance(value, Tensor):
        held = value.pin_memory() if device.type == "cuda" else value
        return held.to(device, non_blocking=True)
    if isinstance(value, Places | Lanes):
        return replace(value, **{one.name: _moved(getattr(value, one.name), device) for one in fields(value)})
    return value
