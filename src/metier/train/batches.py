"""What the model reads, in which order: pieces of text packed into blocks, shuffled by a seed, cut into windows.

    piece    one document or conversation as token ids, each marked whether it is a target
    block    pieces that together fit `block_size` tokens, each still attending to itself alone (best-fit packing,
             Ding et al. 2024, arXiv 2404.10830); without a block size every piece is a block of its own
    micro    blocks that go through the model in one forward pass, laid end to end without padding
    window   the micro-steps of one optimizer step: batch_size x accumulation blocks (the last of an epoch may be less)

Everything is a function of (pieces, settings, seed, epoch), so a position in training is just (epoch, window). Nothing
is dropped: a document longer than a block goes on in the next, with its last token repeated as context, so that each
token but the first is a target exactly once. Costs 5 bytes a token in memory.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Weights = npt.NDArray[np.float32]

WORTH_SHARING = 8
"""The shortest common opening, in tokens, that is computed once for all."""


@dataclass(frozen=True, eq=False, slots=True)
class Piece:
    """One sequence.

    ids: (tokens,). targets: (tokens,), whether each is to be predicted; never the first. weights: (tokens,), how much
    each target's loss counts (None: 1 each).
    """

    id: str
    ids: Ids
    targets: Mask
    weights: Weights | None = None

    @classmethod
    def of(
        cls, name: str, ids: Sequence[int], trained: Sequence[bool] | None = None, *, prompt_weight: float = 0.0
    ) -> "Piece":
        """A piece from token ids. trained: which tokens are targets (None: all). prompt_weight: of the others' loss."""
        wanted = np.ones(len(ids), np.bool_) if trained is None else np.asarray(trained, np.bool_)
        targets = wanted if prompt_weight == 0 else np.ones(len(ids), np.bool_)
        targets[:1] = False  # nothing stands before the first token to predict it from
        weights = None if targets is wanted else np.where(wanted, 1, prompt_weight).astype(np.float32)
        return cls(name, np.asarray(ids, np.int32), targets, weights)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def trained(self) -> int:
        """How many of its tokens are targets."""
        return int(self.targets.sum())

    @property
    def weight(self) -> float:
        """How much its targets count together."""
        return float(self.trained) if self.weights is None else float(self.weights[self.targets].sum())

    def part(self, start: int, end: int) -> "Piece":
        """Tokens `start` to `end`, of which the first has no context and so is no target."""
        targets = self.targets[start:end].copy()
        targets[:1] = False
        weights = None if self.weights is None else self.weights[start:end]
        return Piece(self.id, self.ids[start:end], targets, weights)


Block = tuple[Piece, ...]
Micro = tuple[Piece, ...]
Window = tuple[Micro, ...]


def split(piece: Piece, block_size: int) -> list[Piece]:
    """A piece in parts of at most `block_size` tokens (2 or more), each opening with the last token before it."""
    if len(piece) <= block_size:
        return [piece]
    return [piece.part(start, start + block_size) for start in range(0, len(piece) - 1, block_size - 1)]


def best_fit(pieces: Iterable[Piece], block_size: int) -> list[Block]:
    """Blocks of at most `block_size` tokens: each piece, longest first, goes where the least room would be left.

    O(n log n); pieces of one length keep their order. A piece above the block size raises ValueError.
    """
    blocks: list[list[Piece]] = []
    room: list[int] = []  # the amounts of room that some block has left, ascending
    having: dict[int, list[int]] = {}
    for piece in sorted(pieces, key=len, reverse=True):
        size = len(piece)
        if size > block_size:
            raise ValueError(f"a piece of {size} tokens does not fit a block of {block_size}")
        place = bisect_left(room, size)
        if place == len(room):
            blocks.append([])
            index, left = len(blocks) - 1, block_size
        else:
            left = room[place]
            index = having[left].pop()
            if not having[left]:
                del having[left], room[place]
        blocks[index].append(piece)
        if left - size not in having:
            having[left - size] = []
            insort(room, left - size)
        having[left - size].append(index)
    return [tuple(block) for block in blocks]


def within(blocks: Sequence[Block], tokens: int) -> Window:
    """Blocks over as few micro-steps as hold at most `tokens` tokens each; a longer block is one alone."""
    least = -(-size_of(piece for block in blocks for piece in block) // tokens)
    for count in range(max(1, least), len(blocks)):
        window = spread(blocks, count)
        if all(size_of(micro) <= tokens for micro in window):
            return window
    return spread(blocks, len(blocks))


def spread(blocks: Sequence[Block], micros: int) -> Window:
    """Blocks dealt over `micros` micro-steps of nearly equal tokens: longest first, each to the emptiest."""
    piles: list[list[Block]] = [[] for _ in range(micros)]
    tokens = [0] * micros
    for block in sorted(blocks, key=size_of, reverse=True):
        emptiest = tokens.index(min(tokens))
        piles[emptiest].append(block)
        tokens[emptiest] += size_of(block)
    return tuple(tuple(piece for block in pile for piece in block) for pile in piles if pile)


def size_of(pieces: Iterable[Piece]) -> int:
    """Tokens in all."""
    return sum(len(piece) for piece in pieces)


def targets_of(pieces: Iterable[Piece]) -> int:
    """Targets in all."""
    return sum(piece.trained for piece in pieces)


def weight_of(pieces: Iterable[Piece]) -> float:
    """How much all targets count together; their number, unless some weigh less."""
    return sum(piece.weight for piece in pieces)


def digest_of(pieces: Iterable[Piece]) -> str:
    """sha256 of pieces in order: what they are called, their tokens and which of these count how much."""
    found = sha256()
    for piece in pieces:
        found.update(f"{piece.id} {len(piece)};".encode())
        found.update(piece.ids.data)
        found.update(piece.targets.data)
        if piece.weights is not None:
            found.update(piece.weights.data)
    return found.hexdigest()


def shared_prefix(pieces: Sequence[Piece]) -> Ids | None:
    """The tokens that open every piece and stand before all targets, less the last before one. None under 8."""
    if len(pieces) < 2:
        return None
    length = min(int(np.flatnonzero(piece.targets)[0]) - 1 for piece in pieces)
    first = pieces[0].ids
    for piece in pieces[1:]:
        if length < WORTH_SHARING:
            return None
        differs = np.flatnonzero(piece.ids[:length] != first[:length])
        length = int(differs[0]) if len(differs) else length
    return first[:length] if length >= WORTH_SHARING else None


@dataclass(frozen=True, eq=False)
class Batches:
    """The windows of every epoch.

    pieces: read once an epoch. replay: general text drawn anew each epoch, until it makes up `replay_share` of the
    epoch's tokens (passes over it in a new order each, as many as that takes). block_size: pack into blocks of that
    many tokens, the last draw cut so that the share is exact; None: each piece stays whole, and the share is exact to
    half a piece. batch_size: blocks a micro-step. accumulation: micro-steps a window. micro_tokens: cut windows into
    micro-steps of at most that many tokens instead.

    refusals: drawn likewise, two neighbours (a refusal and its benign twin) together. domains: how many of the pieces,
    in order, belong to each domain, and its weight: an epoch then has as many tokens as ever, but draws from each
    domain so that its share of them is that of its weight. Empty: every piece once.
    """

    pieces: tuple[Piece, ...]
    replay: tuple[Piece, ...]
    replay_share: float
    block_size: int | None
    batch_size: int
    accumulation: int
    seed: int
    micro_tokens: int | None = None
    domains: tuple[tuple[int, float], ...] = ()
    refusals: tuple[Piece, ...] = ()
    refusal_share: float = 0.0

    def blocks(self, epoch: int) -> list[Block]:
        """An epoch's blocks in the order in which they are read."""
        random = np.random.default_rng([self.seed, epoch])
        pieces = self._own(random)
        pieces += _draw(random, singly(self.replay), self.replay_tokens, cut=self.block_size is not None)
        pieces += _draw(random, in_pairs(self.refusals), self.refusal_tokens, cut=False)
        blocks = [(piece,) for piece in pieces] if self.block_size is None else best_fit(pieces, self.block_size)
        return [blocks[i] for i in random.permutation(len(blocks))]

    def windows(self, epoch: int) -> list[Window]:
        """An epoch's windows."""
        blocks = self.blocks(epoch)
        size = self.batch_size * self.accumulation
        cuts = (blocks[start : start + size] for start in range(0, len(blocks), size))
        if self.micro_tokens is not None:
            return [within(cut, self.micro_tokens) for cut in cuts]
        return [spread(cut, -(-len(cut) // self.batch_size)) for cut in cuts]

    def count(self, epoch: int) -> int:
        """How many windows an epoch has."""
        return -(-len(self.blocks(epoch)) // (self.batch_size * self.accumulation))

    @cached_property
    def replay_tokens(self) -> int:
        """How many tokens of replay an epoch holds: share / (1 - share) of the rest."""
        return self._beside(self.replay, self.replay_share)

    @cached_property
    def refusal_tokens(self) -> int:
        """How many tokens of refusals and their twins an epoch holds."""
        return self._beside(self.refusals, self.refusal_share)

    def _beside(self, pieces: Sequence[Piece], share: float) -> int:
        if not pieces or not share:
            return 0
        rest = 1 - (self.replay_share if self.replay else 0) - (self.refusal_share if self.refusals else 0)
        return round(size_of(self.pieces) * share / rest)

    def _own(self, random: np.random.Generator) -> list[Piece]:
        """The pieces of an epoch in a new order: each once, or by the domains' weights."""
        if not self.domains:
            return [self.pieces[i] for i in random.permutation(len(self.pieces))]
        total, weights = size_of(self.pieces), sum(weight for _, weight in self.domains)
        found: list[Piece] = []
        start = 0
        for count, weight in self.domains:
            own = singly(self.pieces[start : start + count])
            found += _draw(random, own, round(total * weight / weights), cut=self.block_size is not None)
            start += count
        return found


Unit = tuple[Piece, ...]
"""Pieces that are drawn together."""


def singly(pieces: Sequence[Piece]) -> Sequence[Unit]:
    """Each piece by itself."""
    return [(piece,) for piece in pieces]


def in_pairs(pieces: Sequence[Piece]) -> Sequence[Unit]:
    """Each two neighbours together."""
    return [tuple(pieces[start : start + 2]) for start in range(0, len(pieces), 2)]


def _draw(random: np.random.Generator, units: Sequence[Unit], tokens: int, *, cut: bool) -> list[Piece]:
    """Units in passes over all of them, each pass in a new order, until they have so many tokens.

    cut: the last piece is cut so that the number is exact; else it comes whole where that is nearer than without it.
    """
    drawn: list[Piece] = []
    left = tokens
    while left > 0 and units:
        for index in random.permutation(len(units)):
            unit = units[index]
            size = size_of(unit)
            if size > left:
                if cut and left > 1:
                    drawn.append(unit[0].part(0, left))
                elif not cut and size < 2 * left:
                    drawn += unit
                return drawn
            drawn += unit
            left -= size
            if left == 0:
                return drawn
    return drawn


def micros(pieces: Sequence[Piece], tokens: int) -> list[Micro]:
    """Pieces in order, cut into micro-steps of at most `tokens` tokens (or one piece): for measuring a dev loss."""
    result: list[list[Piece]] = []
    filled = 0
    for piece in pieces:
        if not result or filled + len(piece) > tokens:
            result.append([])
            filled = 0
        result[-1].append(piece)
        filled += len(piece)
    return [tuple(micro) for micro in result]
