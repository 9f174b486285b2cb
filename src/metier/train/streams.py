"""Windows of a corpus that is read as it is trained on: nothing but a bounded part of it is ever held or stored.

    lane     one of `lanes` streams, each with shards of its own (where there are fewer shards than lanes, with every
             n-th row of one). Each pass over the corpus has the shards in a new order, by (seed, pass)
    chunk    the next texts of a lane, its share of the buffer: encoded, shuffled by (seed, lane, pass, chunk), packed
             into blocks as `batches` does, and these shuffled too
    window   the next blocks of an optimizer step: block n of a run comes from lane n modulo the number of lanes

Lanes are dealt to the processes, and the blocks of a window exchanged (4 bytes a token, a thousandth of what gradients
take): so every process knows the window, and losses, mishaps and checkpoints are those of `batches`. How many processes
there are changes nothing in what is read.

There is no random state and no buffer to keep: a place in the stream is, for each lane, where its chunk began and how
many of its blocks are used. Going on reads that chunk again, and nothing before it unless its shard is packed.

Costs, for each chunk of a lane, the text's bytes once as text and about once as tokens, and as much for the next, which
a thread prepares meanwhile.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np

from metier.core.errors import DataError, InputError, Interrupted
from metier.core.events import Events
from metier.text.corpus import Corpus, Place, Shard, texts
from metier.train.batches import Block, Piece, Window, best_fit, spread, within
from metier.train.shards import Documents, all_but_first
from metier.train.together import World

EMPTY_PASSES = 3
"""Passes without a single text after which a lane gives up."""
SHOWN = 3
KEPT = 4
"""Windows of late that are kept: the one under way, the next, and those that a checkpoint may ask for."""


@dataclass(frozen=True)
class Cursor:
    """Where a lane stands. passed: passes over the corpus. shard: in the lane's order of this pass. row, byte: where
    the chunk began in it. chunk: how many the pass had before. block: how many of the chunk's are used."""

    passed: int = 0
    shard: int = 0
    row: int = 0
    byte: int = 0
    chunk: int = 0
    block: int = 0


@dataclass(frozen=True)
class Chunk:
    """What a lane shuffled at a time. begins: its cursor. ends: the next one's. bad: rows that were passed over."""

    begins: Cursor
    ends: Cursor
    blocks: tuple[Block, ...]
    bad: tuple[str, ...]


@dataclass(frozen=True)
class Reader:
    """What makes chunks. whole: blocks hold whole documents, as well as they fit; else all texts are one."""

    corpus: Corpus
    documents: Documents
    block_size: int
    seed: int
    whole: bool = True

    def some(self) -> list[Piece]:
        """A few pieces of the first texts, to try things on."""
        few = replace(self, corpus=replace(self.corpus, buffer_bytes=1.0))
        begins = Cursor()
        found: list[Piece] = []
        while len(found) < 2:
            chunk = few.chunk(0, begins)
            found += [piece for block in chunk.blocks for piece in block]
            begins = chunk.ends
        return found[:2]

    def shards(self, lane: int, passed: int) -> list[Shard]:
        """A lane's shards of a pass, in order."""
        every = self.corpus.shards
        order = np.random.default_rng([self.seed, passed]).permutation(len(every))
        if len(every) < self.corpus.lanes:
            return [every[order[lane % len(every)]]]
        return [every[i] for i in order[lane :: self.corpus.lanes]]

    def dealt(self, lane: int) -> tuple[int, int]:
        """Of how many rows of its shards a lane takes one, and which: (1, 0) where it has them for itself."""
        count, lanes = len(self.corpus.shards), self.corpus.lanes
        if count >= lanes:
            return 1, 0
        return -(-(lanes - lane % count) // count), lane // count

    def chunk(self, lane: int, begins: Cursor) -> Chunk:
        """The chunk that begins there; the first of the next pass where this one is at its end. Raises DataError."""
        for _ in range(EMPTY_PASSES):
            bad: list[str] = []
            rows, ends = self._rows(lane, begins, bad)
            blocks = self._blocks(rows, [self.seed, lane, begins.passed, begins.chunk]) if rows else []
            if blocks:
                return Chunk(begins, ends, tuple(blocks), tuple(bad))
            begins = ends
        raise DataError(
            f"lane {lane} of {self.corpus.lanes} found no text in {EMPTY_PASSES} passes over its shards",
            where=", ".join(shard.url for shard in self.shards(lane, begins.passed)[:SHOWN]),
            cure="set fewer `lanes`, or use a `documents` step: the corpus is small",
        )

    def _rows(self, lane: int, begins: Cursor, bad: list[str]) -> tuple[list[dict[str, str]], Cursor]:
        """Texts of a lane's share of the buffer, and where the next chunk begins."""
        most = self.corpus.buffer_bytes / self.corpus.lanes
        share, own = self.dealt(lane)
        skipped = bad if self.corpus.skip_bad else None
        rows: list[dict[str, str]] = []
        held = 0
        shards = self.shards(lane, begins.passed)
        for number in range(begins.shard, len(shards)):
            shard = shards[number]
            at = Place(begins.row, begins.byte) if number == begins.shard else Place()
            for text, at in texts(shard, at, skipped):  # noqa: B020 - the place goes on
                if (at.row - 1) % share != own or len(text) < self.corpus.min_chars:
                    continue
                rows.append({"id": f"{shard.name}:{at.row}", "text": text})
                held += len(text)
                if held >= most:
                    return rows, Cursor(begins.passed, number, at.row, at.byte, begins.chunk + 1)
        return rows, Cursor(begins.passed + 1)

    def _blocks(self, rows: Sequence[dict[str, str]], seed: list[int]) -> list[Block]:
        random = np.random.default_rng(seed)
        encoded = list(self.documents.encode(rows))
        order = [encoded[i] for i in random.permutation(len(encoded))]
        if self.whole:
            pieces = [part for row in order for part in _parts(row.name, row.ids, self.block_size)]
            blocks = best_fit(pieces, self.block_size)
        else:
            ids = np.concatenate([row.ids for row in order])
            blocks = [(part,) for part in _parts(f"{order[0].name}...", ids, self.block_size)]
        return [blocks[i] for i in random.permutation(len(blocks))]


def _parts(name: str, ids: Any, size: int) -> Iterator[Piece]:
    """A text in parts that fit a block, each opening with the last token before it; one token alone is none."""
    step = len(ids) if len(ids) <= size else size - 1
    for at in range(0, len(ids) - 1, max(1, step)):
        part = ids[at : at + size]
        yield Piece(name, part, all_but_first(len(part)))


class Lane:
    """One stream. `cursor` is where its next block is."""

    def __init__(self, number: int, reader: Reader, pool: ThreadPoolExecutor) -> None:
        self.cursor = Cursor()
        self._number, self._reader, self._pool = number, reader, pool
        self._chunk: Chunk | None = None
        self._next: tuple[Cursor, Future[Chunk]] | None = None

    def go_to(self, cursor: Cursor) -> None:
        """Take up a place that was a cursor before."""
        self.cursor = cursor
        if self._chunk is not None and replace(cursor, block=0) != self._chunk.begins:
            self._chunk = None

    def take(self, look: Callable[[], None], warn: Callable[[Sequence[str]], None]) -> Block:
        """The next block. look: called while it is waited for; may raise, and then nothing is taken."""
        if self._chunk is None:
            self._chunk = self._read(replace(self.cursor, block=0), look)
            warn(self._chunk.bad)
            self.cursor = replace(self._chunk.begins, block=self.cursor.block)
            self._prepare(self._chunk.ends)
        block = self._chunk.blocks[self.cursor.block]
        if self.cursor.block + 1 < len(self._chunk.blocks):
            self.cursor = replace(self.cursor, block=self.cursor.block + 1)
        else:
            self.cursor, self._chunk = self._chunk.ends, None
        return block

    def _read(self, begins: Cursor, look: Callable[[], None]) -> Chunk:
        self._prepare(begins)
        assert self._next is not None
        future = self._next[1]
        while not wait([future], timeout=0.2).done:
            look()
        self._next = None
        return future.result()

    def _prepare(self, begins: Cursor) -> None:
        if self._next is None or self._next[0] != begins:
            self._next = begins, self._pool.submit(self._reader.chunk, self._number, begins)


@dataclass
class Streams:
    """The windows of one run, in the form that the loop reads: one epoch of `steps` windows.

    reader, world: as above. batch_size, accumulation, micro_tokens: as in `Batches`.
    """

    reader: Reader
    steps: int
    batch_size: int
    accumulation: int
    micro_tokens: int | None
    world: World
    events: Events
    check_stop: Callable[[], None]
    _lanes: dict[int, Lane] = field(default_factory=dict)
    _cursors: list[Cursor] = field(default_factory=list)
    _recent: dict[int, tuple[list[Cursor], Window]] = field(default_factory=dict)
    _at: int = 0
    _stopping: bool = False
    _bad: int = 0

    def __post_init__(self) -> None:
        lanes = self.reader.corpus.lanes
        pool = ThreadPoolExecutor(1, thread_name_prefix="stream")
        self._lanes = {n: Lane(n, self.reader, pool) for n in range(self.world.rank, lanes, self.world.size)}
        self._cursors = [Cursor()] * lanes

    def count(self, epoch: int) -> int:
        """How many windows the one epoch has."""
        assert epoch == 0
        return self.steps

    @property
    def passes(self) -> int:
        """How often the lane that is furthest has read all its shards."""
        return max(cursor.passed for cursor in self._cursors)

    def window(self, position: int) -> Window:
        """The window of a step; those before it are read first. All processes have to ask."""
        assert position in self._recent or position >= self._at, "a stream is read forward: go_to first"
        while position >= self._at:
            before = self._cursors
            window = self._cut(self._exchanged(self._at))
            self._recent[self._at] = before, window
            self._recent.pop(self._at - KEPT, None)
            self._at += 1
        return self._recent[position][1]

    def cursors(self, position: int) -> list[list[int]]:
        """Where all lanes stood before the window of a step, as JSON."""
        self.window(position)
        return [list(astuple(cursor)) for cursor in self._recent[position][0]]

    def go_to(self, position: int, cursors: Sequence[Sequence[int]]) -> None:
        """Read on from where `cursors` says that the lanes stood before the window of a step."""
        self._recent.clear()
        self._at, self._cursors = position, [Cursor(*one) for one in cursors]
        for number, lane in self._lanes.items():
            lane.go_to(self._cursors[number])

    def _exchanged(self, position: int) -> list[Block]:
        """The blocks of a window, of all lanes. Raises, in all processes, the DataError that one of them met."""
        size, lanes = self.batch_size * self.accumulation, self.reader.corpus.lanes
        numbers = range(position * size, (position + 1) * size)
        said: dict[str, Any] = {}
        try:
            own = {n: self._lanes[n % lanes].take(self._look, self._warn) for n in numbers if n % lanes in self._lanes}
            said["cursors"] = {number: lane.cursor for number, lane in self._lanes.items()}
            said["blocks"] = {n: [(piece.id, piece.ids) for piece in block] for n, block in own.items()}
        except Interrupted:
            for number, lane in self._lanes.items():
                lane.go_to(self._cursors[number])
            raise
        except InputError as error:
            if self.world.alone:
                raise
            said["error"] = (error.what, error.where, str(error.value), error.cure)
        every = self.world.gathered(said)
        for one in every:
            if "error" in one:
                what, where, value, cure = one["error"]
                raise DataError(what, where=where, value=value, cure=cure)
        cursors = list(self._cursors)
        blocks: dict[int, Block] = {}
        for one in every:
            for number, cursor in one["cursors"].items():
                cursors[number] = cursor
            for n, pieces in one["blocks"].items():
                blocks[n] = tuple(Piece(name, ids, all_but_first(len(ids))) for name, ids in pieces)
        self._tell_passes(cursors)
        self._cursors = cursors
        return [blocks[n] for n in numbers]

    def _cut(self, blocks: list[Block]) -> Window:
        if self.micro_tokens is not None:
            return within(blocks, self.micro_tokens)
        return spread(blocks, self.accumulation)

    def _look(self) -> None:
        """Stop where that was asked for, once: what is kept then has to be read to its end. Several stop together."""
        if self.world.alone and not self._stopping:
            try:
                self.check_stop()
            except Interrupted:
                self._stopping = True
                raise

    def _warn(self, bad: Sequence[str]) -> None:
        if bad:
            self._bad += len(bad)
            named = "; ".join(bad[:SHOWN])
            self.events.warning(f"{len(bad)} rows are passed over ({self._bad} so far): {named}")

    def _tell_passes(self, cursors: Sequence[Cursor]) -> None:
        passed = max(cursor.passed for cursor in cursors)
        if passed > self.passes:
            self.events.note(f"a lane has read all its shards {passed} times: they come again in another order")
