"""Packing drops nothing, keeps pieces whole, mixes replay exactly, and is a function of seed and epoch alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier.train.batches import (
    Batches,
    Piece,
    best_fit,
    micros,
    shared_prefix,
    size_of,
    split,
    targets_of,
    weight_of,
    within,
)


def piece(length: int, start: int = 0, name: str = "p") -> Piece:
    return Piece.of(name, list(range(start, start + length)))


def corpus(lengths: list[int]) -> tuple[Piece, ...]:
    return tuple(piece(length, start=100 * i, name=f"d{i}") for i, length in enumerate(lengths))


def batches(**changes: object) -> Batches:
    settings = {
        "pieces": corpus([30, 12, 7, 22, 31, 5, 18]),
        "replay": tuple(piece(9, start=9000 + 10 * i, name=f"r{i}") for i in range(5)),
        "replay_share": 0.2,
        "block_size": 32,
        "batch_size": 2,
        "accumulation": 2,
        "seed": 3,
    }
    return Batches(**{**settings, **changes})


def read(batch: Batches, epoch: int) -> list[tuple[str, tuple[int, ...]]]:
    return [(p.id, tuple(p.ids.tolist())) for window in batch.windows(epoch) for micro in window for p in micro]


@given(st.integers(2, 90), st.integers(2, 40))
def test_a_split_document_trains_every_token_but_the_first_once(length: int, block_size: int):
    parts = split(piece(length), block_size)
    assert max(len(part) for part in parts) <= block_size
    assert np.concatenate([part.ids[part.targets] for part in parts]).tolist() == list(range(1, length))


@given(st.lists(st.integers(1, 64), max_size=60))
def test_best_fit_keeps_every_piece_whole_within_the_block_size(lengths: list[int]):
    pieces = [piece(length) for length in lengths]
    blocks = best_fit(pieces, 64)
    assert sorted(id(p) for block in blocks for p in block) == sorted(map(id, pieces))
    assert all(size_of(block) <= 64 for block in blocks)
    if blocks:
        assert len(blocks) <= 2 * (size_of(pieces) / 64) + 1  # two blocks under half full would have been one


def test_best_fit_puts_a_piece_where_the_least_room_is_left():
    assert [[len(p) for p in block] for block in best_fit([piece(n) for n in (5, 6, 3, 4, 2)], 10)] == [
        [6, 4],
        [5, 3, 2],
    ]


def test_best_fit_refuses_what_fits_no_block():
    with pytest.raises(ValueError, match="does not fit a block of 10"):
        best_fit([piece(11)], 10)


@pytest.mark.parametrize("block_size", [32, None])
def test_an_epoch_reads_every_piece_once(block_size: int | None):
    names = [name for name, _ in read(batches(block_size=block_size), 1) if name.startswith("d")]
    assert sorted(names) == [f"d{i}" for i in range(7)]


def test_the_order_follows_from_seed_and_epoch():
    assert read(batches(), 1) == read(batches(), 1)
    assert read(batches(), 1) != read(batches(), 2)
    assert read(batches(), 1) != read(batches(seed=4), 1)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_replay_makes_up_its_share_of_the_tokens_exactly(share: float):
    drawn = [ids for name, ids in read(batches(replay_share=share), 0) if name.startswith("r")]
    assert sum(map(len, drawn)) == round(125 * share / (1 - share))


def test_replay_is_drawn_anew_each_epoch_and_each_piece_before_any_twice():
    first, second = ({ids for name, ids in read(batches(), epoch) if name.startswith("r")} for epoch in (0, 1))
    assert first != second
    twice = [ids for name, ids in read(batches(replay_share=0.4), 0) if name.startswith("r")]  # 83 tokens of 45
    assert {ids[0] for ids in twice} == {9000 + 10 * i for i in range(5)}


def test_whole_pieces_of_replay_come_within_half_a_piece_of_the_share():
    drawn = [ids for name, ids in read(batches(block_size=None), 0) if name.startswith("r")]
    assert all(len(ids) == 9 for ids in drawn)
    assert abs(sum(map(len, drawn)) - 125 * 0.25) <= 4.5


def test_no_replay_without_a_share():
    assert {name[0] for name, _ in read(batches(replay_share=0.0), 0)} == {"d"}


def test_windows_hold_batch_size_times_accumulation_blocks_in_even_micro_steps():
    batch = batches(block_size=None, replay=())
    windows = batch.windows(0)
    assert len(windows) == batch.count(0) == 2
    assert [sum(len(micro) for micro in window) for window in windows] == [4, 3]
    assert all(len(window) == 2 for window in windows)
    tokens = [size_of(micro) for micro in windows[0]]
    assert max(tokens) - min(tokens) <= 31


def test_a_prompt_is_no_target_and_neither_is_the_first_token():
    masked = Piece.of("a", [1, 2, 3], [True, False, True])
    assert masked.trained == targets_of([masked]) == 1


def test_micro_steps_for_a_dev_loss_keep_the_order_and_the_limit():
    assert [[len(p) for p in micro] for micro in micros(corpus([5, 6, 30, 2, 3]), 12)] == [[5, 6], [30], [2, 3]]


def opening(length: int, shared: int, first_target: int, name: str = "p") -> Piece:
    """A piece that begins 0, 1, 2 ... for `shared` tokens and goes on in its own way."""
    ids = [*range(shared), *(1000 * length + i for i in range(length - shared))]
    return Piece.of(name, ids, [i >= first_target for i in range(length)])


def test_what_opens_every_piece_is_shared():
    assert shared_prefix([opening(40, 20, 30), opening(50, 25, 26), opening(41, 22, 33)]).tolist() == list(range(20))


@given(st.lists(st.tuples(st.integers(12, 40), st.integers(0, 40), st.integers(1, 40)), min_size=2, max_size=6))
def test_the_shared_opening_holds_no_target_nor_the_token_before_one(drawn: list[tuple[int, int, int]]):
    pieces = [opening(n, min(shared, n), min(first, n - 1)) for n, shared, first in drawn]
    prefix = shared_prefix(pieces)
    if prefix is None:
        return
    assert len(prefix) >= 8
    for one in pieces:
        assert one.ids[: len(prefix)].tolist() == prefix.tolist()
        assert not one.targets[: len(prefix) + 1].any()


def test_too_short_an_opening_is_not_shared():
    assert len(shared_prefix([opening(40, 8, 20), opening(50, 8, 20)])) == 8
    assert shared_prefix([opening(40, 7, 20), opening(50, 7, 20)]) is None
    assert shared_prefix([opening(40, 20, 8), opening(50, 20, 20)]) is None  # a target soon after
    assert shared_prefix([opening(40, 20, 0), opening(50, 20, 20)]) is None  # all of it is trained
    assert shared_prefix([opening(40, 20, 30)]) is None  # nobody to share with
    assert shared_prefix([]) is None


def test_prompts_may_weigh_a_part():
    weighted = Piece.of("a", [1, 2, 3, 4], [False, False, True, True], prompt_weight=0.25)
    assert weighted.trained == 3
    assert weighted.weight == 2.25
    assert weight_of([weighted, piece(5)]) == 6.25
    assert weight_of([piece(5), piece(3)]) == targets_of([piece(5), piece(3)]) == 6


def test_a_part_keeps_its_weights():
    part = Piece.of("a", [1, 2, 3, 4], [False, False, True, True], prompt_weight=0.25).part(1, 3)
    assert part.targets.tolist() == [False, True]
    assert part.weight == 1.0


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(10, 80))
def test_micro_steps_hold_all_blocks_within_the_limit(lengths: list[int], tokens: int):
    blocks = [(one,) for one in corpus(lengths)]
    window = within(blocks, tokens)
    assert sorted(p.id for micro in window for p in micro) == sorted(p.id for (p,) in blocks)
    assert all(size_of(micro) <= tokens or len(micro) == 1 for micro in window)


def test_windows_may_be_cut_by_tokens():
    window, *_ = batches(block_size=None, replay=(), micro_tokens=40).windows(0)
    assert len([p for micro in window for p in micro]) == 4
    assert all(size_of(micro) <= 40 for micro in window)


def test_domains_share_an_epochs_tokens_by_their_weights():
    pieces = corpus([10] * 40 + [20] * 10)
    second = {p.id for p in pieces[40:]}
    settings = {"pieces": pieces, "replay": (), "domains": ((40, 1.0), (10, 3.0)), "block_size": 64}
    first = read(batches(**settings), 0)
    assert sum(len(ids) for _, ids in first) == 600
    assert sum(len(ids) for name, ids in first if name in second) == 450
    assert read(batches(**settings), 0) == first
    assert read(batches(**settings), 1) != first
    whole = read(batches(**{**settings, "block_size": None}), 0)
    assert abs(sum(len(ids) for name, ids in whole if name in second) - 450) <= 10


def test_refusals_come_with_their_twins_by_their_share():
    refusals = tuple(piece(5, name=f"no{n // 2}") for n in range(8))
    settings = {"pieces": corpus([10] * 70), "replay": tuple(piece(10, name="r") for _ in range(5)), "block_size": None}
    drawn = read(batches(**settings, refusals=refusals, refusal_share=0.1), 0)
    assert sum(len(ids) for _, ids in drawn) == 1000
    assert sum(name == "r" for name, _ in drawn) == 20
    declined = [name for name, _ in drawn if name.startswith("no")]
    assert len(declined) == 20
    assert all(declined.count(name) % 2 == 0 for name in declined)
