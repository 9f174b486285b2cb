"""What the cache gives back is bit for bit what was computed; what is damaged or does not fit is computed again."""

import json
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from exactly import FP32, assert_same, packed, pieces_of, without_dropout

import fakes
from metier.models.shape import freeze_all_but
from metier.train import prefix_cache
from metier.train.batches import Piece, shared_prefix, size_of
from metier.train.forward import Forward
from metier.train.prefix_cache import INDEX, VALUES, PrefixCache, decide, layout_of, room_for
from metier.train.rows import Row, pack

WIDTH = 32
PIECES = pieces_of("sft")
PREFIX = shared_prefix(PIECES)
ROOM = room_for(PIECES, PREFIX)


def opened(folder: Path | None, tokens: int = ROOM) -> PrefixCache:
    return PrefixCache(tokens, WIDTH, torch.float32, folder)


def filled(folder: Path | None, tokens: int = ROOM) -> tuple[PrefixCache, torch.Tensor]:
    cache, row = opened(folder, tokens), pack(PIECES, PREFIX)
    torch.manual_seed(0)
    hidden = torch.randn(len(row), WIDTH)
    cache.write(row, hidden)
    hidden[row.parts[-1][2] :] = 0  # the filler
    return cache, hidden


def never(_: object) -> tuple[Row, torch.Tensor]:
    raise AssertionError("all of it is known")


def read(cache: PrefixCache, row: Row) -> torch.Tensor:
    return cache.values(row, never)


def half_frozen(kind: str) -> torch.nn.Module:
    model = without_dropout(fakes.tiny(kind).train())
    freeze_all_but(model, 1, head=False)
    return model


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("prefixed", [False, True])
def test_training_with_it_gives_the_same_bits(tmp_path: Path, kind: str, where: str, prefixed: bool):
    prefix = PREFIX if prefixed else None
    model = half_frozen(kind)
    cache = opened(tmp_path if where == "file" else None, room_for(PIECES, prefix))
    plain = Forward(model, precision=FP32, prefix=prefix)
    cached = Forward(model, precision=FP32, prefix=prefix, cache=cache)
    for _ in range(2):  # computed, then read back
        loss, gradients = packed(plain, PIECES)
        again, others = packed(cached, PIECES)
        assert again == loss
        assert_same(others, gradients, 0.0)
    assert cache.tokens == room_for(PIECES, prefix)


def test_other_micro_steps_than_those_that_filled_it(tmp_path: Path):
    model = half_frozen("llama")
    stray = pieces_of("all", (25, 9))
    cache = opened(None, room_for([*PIECES, *stray], PREFIX))
    plain = Forward(model, precision=FP32, prefix=PREFIX)
    cached = Forward(model, precision=FP32, prefix=PREFIX, cache=cache)
    for micro in (PIECES[:4], stray, [*PIECES[2:], stray[0]], [stray[1], *PIECES]):
        loss, gradients = packed(plain, micro)
        again, others = packed(cached, micro)
        assert again == pytest.approx(loss, rel=1e-6)
        assert_same(others, gradients)


def test_frozen_blocks_are_not_run_again():
    model = half_frozen("llama")
    cached = Forward(model, precision=FP32, prefix=PREFIX, cache=opened(None))
    loss, _ = packed(cached, PIECES)
    cached._through_frozen = None  # whoever calls it fails
    assert packed(cached, PIECES)[0] == loss


class Computed:
    """Through the frozen blocks of a model, as `Forward` does it; notes which pieces were."""

    def __init__(self) -> None:
        self.forward = Forward(half_frozen("llama"), precision=FP32, prefix=PREFIX)
        self.pieces: list[str] = []

    def __call__(self, pieces: object) -> tuple[Row, torch.Tensor]:
        self.pieces += [piece.id for piece in pieces]
        return self.forward._computed(pieces)


@pytest.mark.parametrize("where", ["memory", "file"])
def test_a_piece_has_the_same_bits_whatever_was_computed_before_it(tmp_path: Path, where: str):
    """So a run that was stopped, and lost what was kept in memory, goes on to the same bits."""
    stray = pieces_of("all", (25, 9))
    every = [*PIECES, *stray]
    compute = Computed()
    layout = layout_of([*every, *PIECES], PREFIX, 60)
    assert sorted(piece.id for row in layout for piece in row) == sorted(piece.id for piece in every)
    assert all(size_of(row) <= 60 or len(row) == 1 for row in layout)
    assert max(map(len, layout)) > 1
    found = []
    room = room_for(every, PREFIX)
    orders = ([PIECES, stray, PIECES[3:]], [[PIECES[5]], PIECES[3:], [stray[1], *PIECES[:3]], stray, PIECES])
    for index, order in enumerate(orders):
        folder = tmp_path / str(index) if where == "file" else None
        if folder is not None:
            folder.mkdir()
        cache = PrefixCache(room, WIDTH, torch.float32, folder, layout=layout, prefix=PREFIX)
        for pieces in order:
            cache.values(pack(pieces, PREFIX), compute)
        assert cache.tokens == room
        found.append([read(cache, pack(pieces, PREFIX)) for pieces in ([*every], PIECES[2:4], stray)])
    eager = PrefixCache(room, WIDTH, torch.float32, layout=layout, prefix=PREFIX)
    assert list(eager.fill(compute)) == list(range(1, len(layout) + 1))
    found.append([read(eager, pack(pieces, PREFIX)) for pieces in ([*every], PIECES[2:4], stray)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    whole = compute(every)[1]
    torch.testing.assert_close(found[0][0][: size_of(stray)], whole[: size_of(stray)])


def test_a_piece_in_no_row_is_computed_each_time_and_takes_no_room():
    compute = Computed()
    cache = PrefixCache(ROOM, WIDTH, torch.float32, layout=layout_of(PIECES, PREFIX, 60), prefix=PREFIX)
    assert len(list(cache.fill(compute))) == cache.rows
    cut = PIECES[0].part(0, 15)
    row = pack([PIECES[1], cut], PREFIX)
    compute.pieces.clear()
    first = cache.values(row, compute)
    assert torch.equal(cache.values(row, compute), first)
    assert compute.pieces == [cut.id, cut.id]
    assert cache.tokens == ROOM


def test_a_row_is_unknown_until_all_of_it_was_seen():
    row = pack(PIECES, PREFIX)
    cache, _ = filled(None)
    assert cache.unknown(row) == []
    cache = opened(None)
    assert cache.unknown(row) == [tuple(PIECES)]
    plain = pieces_of("all", (25, 9))
    cache.write(pack(plain), torch.randn(len(pack(plain)), WIDTH))
    assert cache.unknown(pack([*plain, *PIECES], PREFIX)) == [(*plain, *PIECES)]  # its prefix is unknown
    assert cache.unknown(pack(plain)) == []


@pytest.mark.parametrize("where", ["memory", "file"])
def test_it_gives_back_what_was_written(tmp_path: Path, where: str):
    cache, hidden = filled(tmp_path if where == "file" else None)
    assert torch.equal(read(cache, pack(PIECES, PREFIX)), hidden)
    assert cache.tokens == ROOM


def test_equal_pieces_are_kept_once():
    twice = [*PIECES, *PIECES]
    assert room_for(twice, PREFIX) == ROOM == size_of(PIECES) - (len(PIECES) - 1) * len(PREFIX)
    assert room_for(PIECES, None) == size_of(PIECES)


def test_a_file_survives(tmp_path: Path):
    _, hidden = filled(tmp_path)
    again = opened(tmp_path)
    assert again.tokens == ROOM
    assert torch.equal(read(again, pack(PIECES, PREFIX)), hidden)


def test_a_file_of_another_size_is_begun_anew(tmp_path: Path):
    filled(tmp_path)
    other = opened(tmp_path, ROOM + 1)
    assert other.tokens == 0
    assert other.unknown(pack(PIECES, PREFIX)) == [tuple(PIECES)]


def test_a_corrupt_byte_makes_its_piece_unknown(tmp_path: Path):
    filled(tmp_path, 2 * ROOM)
    lines = [json.loads(line) for line in (tmp_path / INDEX).read_text().splitlines()]
    with (tmp_path / VALUES).open("r+b") as file:
        file.seek(lines[3]["start"] * WIDTH * 4 + 5)  # the prefix is line 0
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    again, row = opened(tmp_path, 2 * ROOM), pack(PIECES, PREFIX)
    assert again.unknown(row) == [(PIECES[2],)]
    _, hidden = filled(None)
    again.write(row, hidden)
    assert torch.equal(read(again, row), hidden)


@pytest.mark.parametrize("kept", [0, 20, -1])
def test_a_half_written_line_makes_its_piece_unknown_and_no_later_one(tmp_path: Path, kept: int):
    _, hidden = filled(tmp_path)
    *lines, last = (tmp_path / INDEX).read_text().splitlines()
    (tmp_path / INDEX).write_text("\n".join([*lines, last[:kept]]))
    row = pack(PIECES, PREFIX)
    again = opened(tmp_path)
    assert again.unknown(row) == [(PIECES[-1],)]
    again.write(row, hidden)
    third = opened(tmp_path)  # what was written behind the half line is found again
    assert torch.equal(read(third, row), hidden)


def test_what_does_not_fit_is_computed_each_time():
    row = pack(PIECES, PREFIX)
    cache, _ = filled(None, ROOM - 1)
    assert cache.unknown(row) == [(PIECES[-1],)]
    model = half_frozen("llama")
    loss, gradients = packed(Forward(model, precision=FP32, prefix=PREFIX), PIECES)
    small = Forward(model, precision=FP32, prefix=PREFIX, cache=opened(None, ROOM - 1))
    for _ in range(2):
        again, others = packed(small, PIECES)
        assert again == pytest.approx(loss, rel=1e-6)
        assert_same(others, gradients)


def test_the_same_ids_laid_whole_and_behind_the_prefix_are_two_things():
    piece = PIECES[0]
    whole = Piece.of("whole", piece.ids.tolist())  # all its tokens are targets, so it is laid whole
    assert room_for([piece, whole], PREFIX) == len(PREFIX) + (len(piece) - len(PREFIX)) + len(whole)
    cache = opened(None, 200)
    rows = [pack([piece], PREFIX), pack([whole], PREFIX)]
    hidden = [torch.randn(len(row), WIDTH) for row in rows]
    for row, values in zip(rows, hidden, strict=True):
        cache.write(row, values)
    for row, values in zip(rows, hidden, strict=True):
        end = row.parts[-1][2]
        assert torch.equal(read(cache, row)[:end], values[:end])


Disk = namedtuple("Disk", "free")


@pytest.mark.parametrize(
    ("memory", "disk", "expected"),
    [(4.0, 0.0, "memory"), (3.9, 2.0, "disk"), (3.9, 1.9, "off"), (0.0, 100.0, "disk")],
)
def test_auto_takes_what_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, memory: float, disk: float, expected: str
):
    size = 100 * WIDTH * 2
    monkeypatch.setattr(prefix_cache, "free_memory", lambda: memory * size)
    monkeypatch.setattr(prefix_cache.shutil, "disk_usage", lambda folder: Disk(disk * size))
    assert decide("auto", tokens=100, width=WIDTH, dtype=torch.bfloat16, folder=tmp_path) == expected


@pytest.mark.parametrize("kind", ["memory", "disk", "off"])
def test_a_kind_that_is_asked_for_is_taken(tmp_path: Path, kind: str):
    assert decide(kind, tokens=10**15, width=WIDTH, dtype=torch.bfloat16, folder=tmp_path) == kind


def test_the_file_has_no_holes(tmp_path: Path):
    """Writing into one on a full disk would kill the process, where reserving its room is refused."""
    opened(tmp_path, 10_000)
    stat = (tmp_path / VALUES).stat()
    assert stat.st_size == 10_000 * WIDTH * 4
    assert stat.st_blocks * 512 >= stat.st_size


def test_names_depend_on_the_ids_alone():
    ids = np.arange(20, dtype=np.int32)
    row, other = (pack([Piece.of(name, ids.tolist())]) for name in "ab")
    cache = opened(None, 20)
    cache.write(row, torch.ones(len(row), WIDTH))
    assert cache.unknown(other) == []
