"""What frozen lower blocks make of a piece, computed once and read back (Liu et al. 2021, arXiv 2102.01386).

Frozen blocks see a piece alone and run without dropout, so they give the same numbers each time, but for the last bits:
these depend on what else lies in the row. So every piece has one row in which it is computed (`layout_of`), whatever
row asks for it and whenever: what is kept in memory and lost at a stop comes back with the bits that it had. Kept in
memory, or in a file that is mapped into it (and survives a stop), by the content of the pieces. Costs hidden size x 2
bytes a token in bf16: 4 KB at TinyLlama's width.
"""

import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from metier.core.machine import free_memory
from metier.train.batches import Ids, Micro, Piece, micros
from metier.train.rows import Row, opened_by

Kind = Literal["auto", "memory", "disk", "off"]
VALUES = "prefix.bin"
INDEX = "prefix.jsonl"
ROW = 2048
"""Tokens of the rows in which pieces are computed: more is not faster on a CPU, and takes more memory."""

Compute = Callable[[Sequence[Piece]], tuple[Row, Tensor]]
"""Lays pieces in a row and gives it with what the frozen blocks make of it, (N, width)."""


class PrefixCache:
    """Room for `tokens` tokens of `width` numbers in `dtype`; what does not fit any more is computed each time.

    folder: where the file lies, or None to keep all in memory. A file that is there already is gone on with; what of it
    was not wholly written (by its checksums) counts as unknown. layout: the rows in which pieces are computed, behind
    that prefix; what is in none is computed each time, with the other such pieces of the row that asks. Without any, a
    piece is computed in the row that first asks for it, and kept.
    """

    def __init__(
        self,
        tokens: int,
        width: int,
        dtype: torch.dtype,
        folder: Path | None = None,
        *,
        layout: Sequence[Micro] = (),
        prefix: Ids | None = None,
    ):
        self._layout, self._prefix = tuple(layout), prefix
        self._row_of = {_laid_name(piece, prefix): row for row in layout for piece in row}
        self._first = next((row for row in layout if any(opened(piece, prefix) for piece in row)), None)
        self._index: dict[str, tuple[int, int]] = {}
        self._filled = 0
        self._lines = None if folder is None else folder / INDEX
        if folder is None:
            self._values = torch.empty(tokens, width, dtype=dtype)
            return
        path = folder / VALUES
        size = tokens * width * dtype.itemsize
        going_on = path.is_file() and path.stat().st_size == size
        if not going_on:
            (folder / INDEX).unlink(missing_ok=True)
            with path.open("wb") as file:
                _reserve(file.fileno(), size)
        self._values = torch.from_file(str(path), shared=True, size=tokens * width, dtype=dtype).view(tokens, width)
        self._recover()

    @property
    def tokens(self) -> int:
        """How many tokens it knows."""
        return self._filled

    def unknown(self, row: Row) -> list[Micro]:
        """The pieces that must be computed to know all of a row, by the rows in which they are computed."""
        found: list[Micro] = []
        alone: list[Piece] = []
        prefix_known = not row.prefix or _prefix_name(row) in self._index
        if not prefix_known and self._first is not None:
            found.append(self._first)
        for piece, start, end in row.parts:
            name = _piece_name(piece, end - start)
            if name in self._index and (prefix_known or self._first is not None):
                continue
            own = self._row_of.get(name)
            if own is None:
                alone.append(piece)
            elif not any(own is other for other in found):
                found.append(own)
        return [*found, tuple(alone)] if alone else found

    def values(self, row: Row, compute: Compute) -> Tensor:
        """The output for every token of the row, (N, width), 0 at the filler; what is unknown is computed."""
        fresh: dict[str, Tensor] = {}
        for pieces in self.unknown(row):
            done, hidden = compute(pieces)
            if not self._layout or any(pieces is own for own in self._layout):
                self.write(done, hidden)
            for name, start, end in _named(done):
                if name not in self._index:
                    fresh.setdefault(name, hidden[start:end])
        out = torch.zeros(len(row), self._values.shape[1], dtype=self._values.dtype)
        for name, start, end in _named(row):
            if name in fresh:
                out[start:end].copy_(fresh[name])
            else:
                place, length = self._index[name]
                out[start:end].copy_(self._values[place : place + length])
        return out

    def fill(self, compute: Compute) -> Iterator[int]:
        """Compute what it does not know of its layout, a row at a time; how many of its rows are through by then."""
        for done, pieces in enumerate(self._layout, start=1):
            if any(_laid_name(piece, self._prefix) not in self._index for piece in pieces):
                self.write(*compute(pieces))
            yield done

    @property
    def rows(self) -> int:
        """How many rows its layout has."""
        return len(self._layout)

    def write(self, row: Row, hidden: Tensor) -> None:
        """Remember a row's output, (N, width), as far as there is room."""
        for name, start, end in _named(row):
            self._add(name, hidden[start:end])

    def _add(self, name: str, values: Tensor) -> None:
        length = len(values)
        if name in self._index or self._filled + length > len(self._values):
            return
        place = self._values[self._filled : self._filled + length]
        place.copy_(values)
        if self._lines is not None:
            line = {"name": name, "start": self._filled, "length": length, "crc": _checksum(place)}
            with self._lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self._index[name] = (self._filled, length)
        self._filled += length

    def _recover(self) -> None:
        if self._lines is None or not self._lines.is_file():
            return
        whole = 0
        for text in self._lines.read_bytes().splitlines(keepends=True):
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                break  # the last line of a run that was killed
            if not text.endswith(b"\n"):
                break
            whole += len(text)
            start, length = line["start"], line["length"]
            self._filled = max(self._filled, start + length)
            if _checksum(self._values[start : start + length]) == line["crc"]:
                self._index[line["name"]] = (start, length)
        with self._lines.open("r+b") as file:
            file.truncate(whole)  # or the next line would go on behind the half one, and be lost with it


def decide(kind: Kind, *, tokens: int, width: int, dtype: torch.dtype, folder: Path) -> Kind:
    """What a setting means here. auto: in memory where it takes at most a quarter of what is free, else in a file where
    it takes at most half of the disk's free space, else off.
    """
    if kind != "auto":
        return kind
    size = tokens * width * dtype.itemsize
    if size <= free_memory() / 4:
        return "memory"
    return "disk" if size <= shutil.disk_usage(folder).free / 2 else "off"


def layout_of(pieces: Iterable[Piece], prefix: Ids | None, tokens: int) -> list[Micro]:
    """Pieces, each content once, in rows of at most `tokens` tokens (or one piece), long ones with long ones."""
    distinct = {_laid_name(piece, prefix): piece for piece in pieces}
    named = sorted(distinct.items(), key=lambda item: (-len(item[1]), item[0]))
    return micros([piece for _, piece in named], tokens)


def room_for(pieces: Iterable[Piece], prefix: Ids | None) -> int:
    """How many tokens the cache needs to hold for these pieces, each content once."""
    shared = 0 if prefix is None else len(prefix)
    sizes = {_laid_name(piece, prefix): _laid_length(piece, prefix) for piece in pieces}
    return shared + sum(sizes.values())


def opened(piece: Piece, prefix: Ids | None) -> bool:
    """Whether it is laid behind the prefix."""
    return prefix is not None and opened_by(piece, prefix)


def _laid_length(piece: Piece, prefix: Ids | None) -> int:
    return len(piece) - (len(prefix) if prefix is not None and opened_by(piece, prefix) else 0)


def _laid_name(piece: Piece, prefix: Ids | None) -> str:
    return _piece_name(piece, _laid_length(piece, prefix))


def _named(row: Row) -> list[tuple[str, int, int]]:
    """What a row holds: names and the tokens from and to."""
    found = [(_prefix_name(row), 0, row.prefix)] if row.prefix else []
    return found + [(_piece_name(piece, end - start), start, end) for piece, start, end in row.parts]


def _prefix_name(row: Row) -> str:
    return _name(row.ids[: row.prefix].cpu().numpy(), "prefix")


def _reserve(file: int, size: int) -> None:
    """Make a file of that size. Where the disk is too full this says so; a hole in it would kill who writes there."""
    os.truncate(file, size)
    if sys.platform == "linux":
        os.posix_fallocate(file, 0, size)


def _piece_name(piece: Piece, laid: int) -> str:
    """Of a piece that is laid with the last `laid` of its tokens: with other targets, the same ids are laid whole."""
    return _name(piece.ids, f"piece {laid}")


def _name(ids: Ids, kind: str) -> str:
    return blake2b(ids.astype("<i4").tobytes(), digest_size=16, person=kind.encode()).hexdigest()


def _checksum(values: Tensor) -> int:
    return zlib.crc32(values.contiguous().view(torch.uint8).numpy().data)
