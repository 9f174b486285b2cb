"""What frozen lower blocks make of a piece, computed once and read back (Liu et al. 2021, arXiv 2102.01386).

Exact: frozen blocks see a piece alone and run without dropout, so they give the same numbers each time. Kept in memory,
or in a file that is mapped into it (and survives a stop), by the content of the pieces. Costs hidden size x 2 bytes a
token in bf16: 4 KB at TinyLlama's width.
"""

import json
import shutil
import zlib
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from metier.core.machine import free_memory
from metier.train.batches import Ids, Piece
from metier.train.rows import Row, opened_by

Kind = Literal["auto", "memory", "disk", "off"]
VALUES = "prefix.bin"
INDEX = "prefix.jsonl"


class PrefixCache:
    """Room for `tokens` tokens of `width` numbers in `dtype`; what does not fit any more is computed each time.

    folder: where the file lies, or None to keep all in memory. A file that is there already is gone on with; what of it
    was not wholly written (by its checksums) counts as unknown.
    """

    def __init__(self, tokens: int, width: int, dtype: torch.dtype, folder: Path | None = None):
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
                file.truncate(size)
        self._values = torch.from_file(str(path), shared=True, size=tokens * width, dtype=dtype).view(tokens, width)
        self._recover()

    @property
    def tokens(self) -> int:
        """How many tokens it knows."""
        return self._filled

    def missing(self, row: Row) -> list[Piece]:
        """The pieces of a row that it does not know; all of them where it does not know the row's prefix."""
        if row.prefix and _name(row.ids[: row.prefix].numpy(), "prefix") not in self._index:
            return [piece for piece, _, _ in row.parts]
        return [piece for piece, start, end in row.parts if _piece_name(piece, end - start) not in self._index]

    def has_room(self, pieces: Iterable[Piece]) -> bool:
        """Whether it can still remember these, each whole."""
        return self._filled + sum(map(len, pieces)) <= len(self._values)

    def write(self, row: Row, hidden: Tensor) -> None:
        """Remember a row's output, (N, width), as far as there is room."""
        if row.prefix:
            self._add(_name(row.ids[: row.prefix].numpy(), "prefix"), hidden[: row.prefix])
        for piece, start, end in row.parts:
            self._add(_piece_name(piece, end - start), hidden[start:end])

    def read(self, row: Row) -> Tensor | None:
        """The output for every token of the row, (N, width), or None unless all of it is known. 0 at the filler."""
        if self.missing(row):
            return None
        out = torch.zeros(len(row), self._values.shape[1], dtype=self._values.dtype)
        if row.prefix:
            self._copy(_name(row.ids[: row.prefix].numpy(), "prefix"), out[: row.prefix])
        for piece, start, end in row.parts:
            self._copy(_piece_name(piece, end - start), out[start:end])
        return out

    def _copy(self, name: str, into: Tensor) -> None:
        start, length = self._index[name]
        into.copy_(self._values[start : start + length])

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


def make(kind: Kind, *, tokens: int, width: int, dtype: torch.dtype, folder: Path) -> PrefixCache | None:
    """The cache that a setting asks for. auto: in memory where it takes at most a quarter of what is free, else in a
    file where it takes at most half of the disk's free space, else none.
    """
    size = tokens * width * dtype.itemsize
    if kind == "auto":
        room = shutil.disk_usage(folder).free / 2
        kind = "memory" if size <= free_memory() / 4 else "disk" if size <= room else "off"
    if kind == "off":
        return None
    return PrefixCache(tokens, width, dtype, folder if kind == "disk" else None)


def room_for(pieces: Iterable[Piece], prefix: Ids | None) -> int:
    """How many tokens the cache needs to hold for these pieces, each content once."""
    shared = 0 if prefix is None else len(prefix)
    sizes = {}
    for piece in pieces:
        laid = len(piece) - (shared if prefix is not None and opened_by(piece, prefix) else 0)
        sizes[_piece_name(piece, laid)] = laid
    return shared + sum(sizes.values())


def _piece_name(piece: Piece, laid: int) -> str:
    """Of a piece that is laid with the last `laid` of its tokens: with other targets, the same ids are laid whole."""
    return _name(piece.ids, f"piece {laid}")


def _name(ids: Ids, kind: str) -> str:
    return blake2b(ids.astype("<i4").tobytes(), digest_size=16, person=kind.encode()).hexdigest()


def _checksum(values: Tensor) -> int:
    return zlib.crc32(values.contiguous().view(torch.uint8).numpy().data)
