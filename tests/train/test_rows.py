"""A row holds every token once, each piece in its place, and the buckets hold every token once more."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from exactly import pieces_of
from hypothesis import given
from hypothesis import strategies as st

from metier.train.batches import Piece, shared_prefix
from metier.train.rows import BUCKET_WASTE, FILLED, Row, bucket_order, pack

PREFIX = np.arange(100, 110, dtype=np.int32)
drawn_pieces = st.lists(
    st.tuples(st.integers(2, 70), st.booleans(), st.integers(0, 2**32 - 1), st.booleans()), min_size=1, max_size=12
)


def made(drawn: list[tuple[int, bool, int, bool]]) -> list[Piece]:
    """Pieces of (length, opened by the prefix, seed, weighted)."""
    pieces = []
    for index, (length, opened, seed, weighted) in enumerate(drawn):
        random = np.random.default_rng(seed)
        ids = random.integers(0, 90, length)
        trained = random.random(length) > 0.5
        if opened and length > len(PREFIX) + 1:
            ids[: len(PREFIX)] = PREFIX
            trained[: len(PREFIX) + 1] = False
            weighted = False
        pieces.append(Piece.of(str(index), ids.tolist(), trained.tolist(), prompt_weight=0.3 if weighted else 0.0))
    return pieces


def opened(piece: Piece) -> bool:
    return len(piece) > len(PREFIX) + 1 and piece.ids[: len(PREFIX)].tolist() == PREFIX.tolist()


@given(drawn_pieces)
def test_a_row_holds_every_piece(drawn: list[tuple[int, bool, int, bool]]):
    pieces = made(drawn)
    row = pack(pieces, PREFIX)
    shared = any(map(opened, pieces))
    assert row.prefix == (len(PREFIX) if shared else 0)
    assert row.ids[: row.prefix].tolist() == PREFIX[: row.prefix].tolist()
    assert row.positions[: row.prefix].tolist() == list(range(row.prefix))
    assert [piece for piece, _, _ in row.parts] == pieces
    end_before = row.prefix
    for piece, start, end in row.parts:
        cut = row.prefix if opened(piece) else 0
        assert start == end_before
        assert row.ids[start:end].tolist() == piece.ids[cut:].tolist()
        assert row.positions[start:end].tolist() == list(range(cut, len(piece)))
        assert set(row.lengths[start:end].tolist()) == {len(piece)}
        end_before = end
    filler = len(row) - end_before
    assert row.positions[end_before:].tolist() == list(range(filler))
    assert filler <= end_before / FILLED


@given(drawn_pieces)
def test_sources_stand_before_their_targets(drawn: list[tuple[int, bool, int, bool]]):
    pieces = made(drawn)
    row = pack(pieces, PREFIX)
    wanted, weights = [], []
    for piece, start, end in row.parts:
        cut = len(piece) - (end - start)
        for index in np.flatnonzero(piece.targets):
            wanted.append((start + int(index) - 1 - cut, int(piece.ids[index])))
            weights.append(1.0 if piece.weights is None else float(piece.weights[index]))
    assert list(zip(row.sources.tolist(), row.targets.tolist(), strict=True)) == wanted
    assert all(a < b for a, b in zip(row.sources.tolist(), row.sources.tolist()[1:], strict=False))
    assert row.asked[row.found].tolist() == row.sources.tolist()
    assert all(a < b for a, b in pairwise(row.asked.tolist()))
    assert (row.weights is None) == all(piece.weights is None for piece in pieces)
    if row.weights is not None:
        assert row.weights.tolist() == weights


@given(drawn_pieces)
def test_the_buckets_hold_every_token_once(drawn: list[tuple[int, bool, int, bool]]):
    row = pack(made(drawn), PREFIX)
    for places, tokens in ((row.keys, len(row)), (row.queries, len(row.asked))):
        assert places.sources[places.places].tolist() == list(range(tokens))
        assert len(set(places.places.tolist())) == tokens
        assert len(places.sources) == sum(bucket.size for bucket in places.buckets)
        assert places.straight == (places.sources.tolist() == places.places.tolist() == list(range(tokens)))
    assert [(b.count, b.shared) for b in row.keys.buckets] == [(b.count, b.shared) for b in row.queries.buckets]
    assert row.queries.own is not None
    first = row.positions[row.asked] - row.queries.own[row.queries.places]
    shared = torch.zeros(len(row), dtype=torch.bool)
    for piece, start, end in row.parts:
        shared[start:end] = opened(piece)
    assert first.tolist() == (shared[row.asked] * row.prefix).tolist()  # indices do not count the prefix


@given(st.lists(st.tuples(st.integers(1, 300), st.booleans()), min_size=1, max_size=30))
def test_buckets_hold_similar_lengths_of_one_kind(drawn: list[tuple[int, bool]]):
    lengths, shared = zip(*drawn, strict=True)
    buckets = bucket_order(lengths, shared)
    assert sorted(index for bucket in buckets for index in bucket) == list(range(len(drawn)))
    for bucket in buckets:
        inside = [lengths[index] for index in bucket]
        assert inside == sorted(inside, reverse=True)
        assert inside[-1] >= inside[0] * (1 - BUCKET_WASTE)
        assert len({shared[index] for index in bucket}) == 1


def test_equal_lengths_need_no_gathering():
    assert pack(pieces_of("all", (16, 16))).keys.straight
    assert not pack(pieces_of("all", (16, 20))).keys.straight


def test_few_lengths_of_rows_exist():
    lengths = {len(pack(pieces_of("all", (n,)))) for n in range(512, 1024)}
    assert lengths == set(range(512, 1025, 32))


def test_a_row_without_any_piece_of_the_prefix_does_not_hold_it():
    row = pack(pieces_of("all"), PREFIX)
    assert row.prefix == 0
    assert not any(bucket.shared for bucket in row.keys.buckets)


def test_the_prefix_is_laid_once():
    pieces = pieces_of("sft")
    prefix = shared_prefix(pieces)
    row = pack(pieces, prefix)
    assert row.prefix == len(prefix) == 9
    assert sum(end - start for _, start, end in row.parts) == sum(map(len, pieces)) - 9 * len(pieces)


@pytest.mark.parametrize("target", [3, len(PREFIX)])
def test_a_piece_with_a_target_in_or_just_behind_the_prefix_is_laid_whole(target: int):
    trained = [False] * 20
    trained[target] = trained[19] = True
    piece = Piece.of("a", [*PREFIX.tolist(), *range(10)], trained)
    row = pack([piece], PREFIX)
    assert row.prefix == 0
    assert row.parts == ((piece, 0, 20),)


def test_a_piece_that_is_nothing_but_the_prefix_is_laid_whole():
    assert pack([Piece.of("a", PREFIX.tolist(), [False] * 9 + [True])], PREFIX).prefix == 0


def test_on_the_cpu_a_row_stays_what_it_is():
    row = pack(pieces_of("all"))
    assert row.to(torch.device("cpu")) is row


def test_a_row_moves_whole_to_another_device():
    row = pack(pieces_of("sft", prompt_weight=0.3), PREFIX)
    assert row.lengths.shape == row.ids.shape  # asked before moving: what is kept of it must not be in the way
    moved = row.to(torch.device("meta"))
    assert isinstance(moved, Row)
    tensors = [moved.ids, moved.positions, moved.sources, moved.asked, moved.found, moved.targets, moved.weights]
    tensors += [t for p in (moved.keys, moved.queries) for t in (p.sources, p.places)] + [moved.queries.own]
    assert {t.device.type for t in tensors} == {"meta"}
    assert (moved.prefix, moved.parts) == (row.prefix, row.parts)
