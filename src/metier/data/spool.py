"""Rows on their way into an artifact: written down once, and per row only some numbers in memory.

A row's text lies in one file in the order read; the columns here say where it lies, what it is equal to (128 bits of
two digests), which split it is in, and why it was left out. Costs about 90 bytes of memory a row: 2 million rows of
1 kB take 0.2 GB instead of 4.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
KEPT = -1
DIGEST = 16
"""Bytes kept of a sha256: two of a billion rows share them with a chance of 1 in 10^21."""


@dataclass(frozen=True)
class Spooled:
    """One row as it comes back. line: its JSON, without the line's end."""

    index: int
    where: str
    line: bytes

    @property
    def row(self) -> dict[str, Any]:
        """The parsed row."""
        value: dict[str, Any] = json.loads(self.line)
        return value


@dataclass
class Columns:
    """What is known of each row without looking at it.

    keys: digest of what groups it. contents: digest of all of it. ids: of its id. homes: the place of the split that it
    is for. fixed: whether that is so whatever its group. parts: which of the stage's fields it came from. domains:
    which source of that field. groups: index into `group_names`. characters, sizes: of its text, in characters and
    bytes.
    """

    keys: bytearray = field(default_factory=bytearray)
    contents: bytearray = field(default_factory=bytearray)
    ids: bytearray = field(default_factory=bytearray)
    homes: "array[int]" = field(default_factory=lambda: array("b"))
    fixed: "array[int]" = field(default_factory=lambda: array("b"))
    parts: "array[int]" = field(default_factory=lambda: array("B"))
    domains: "array[int]" = field(default_factory=lambda: array("H"))
    groups: "array[int]" = field(default_factory=lambda: array("I"))
    characters: "array[int]" = field(default_factory=lambda: array("I"))
    sizes: "array[int]" = field(default_factory=lambda: array("I"))
    group_names: dict[str, int] = field(default_factory=lambda: {"": 0})

    def add(
        self,
        *,
        key: str,
        content: str,
        id_digest: str,
        home: int,
        fixed: bool,
        part: int,
        domain: int,
        group: str,
        characters: int,
        size: int,
    ) -> None:
        """One more row. key, content, id_digest: hex digests of 16 bytes or more."""
        self.keys += bytes.fromhex(key[: 2 * DIGEST])
        self.contents += bytes.fromhex(content[: 2 * DIGEST])
        self.ids += bytes.fromhex(id_digest[:DIGEST])
        self.homes.append(home)
        self.fixed.append(fixed)
        self.parts.append(part)
        self.domains.append(domain)
        self.groups.append(self.group_names.setdefault(group, len(self.group_names)))
        self.characters.append(characters)
        self.sizes.append(size)

    def __len__(self) -> int:
        return len(self.parts)

    def content(self, index: int) -> str:
        """The first 32 hex digits of a row's content digest."""
        return self.contents[index * DIGEST : (index + 1) * DIGEST].hex()


def numbered(digests: bytes | bytearray, width: int = DIGEST) -> tuple[Indices, int]:
    """A small number for each digest, equal where the digests are, and how many there are."""
    if not digests:
        return np.zeros(0, np.int64), 0
    values, numbers = np.unique(np.frombuffer(bytes(digests), dtype=f"V{width}"), return_inverse=True)
    return numbers.astype(np.int64).reshape(-1), len(values)


class Spool:
    """The rows' text. folder: where the file lies; None keeps nothing, for a look at the numbers alone."""

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / "spool.tsv"
        self._file: BinaryIO | None = None if self.path is None else self.path.open("wb")
        self._starts = array("Q")
        self._at = 0

    def add(self, where: str, row: Mapping[str, Any]) -> None:
        """Append a row. where: `file name:line`."""
        if self._file is None:
            return
        line = f"{json.dumps(where)}\t{json.dumps(row, ensure_ascii=False, allow_nan=False)}\n".encode()
        self._starts.append(self._at)
        self._at += len(line)
        self._file.write(line)

    def flush(self) -> None:
        """Nothing more is added: what was can be read."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def rows(self, indices: Iterable[int] | Indices) -> Iterator[Spooled]:
        """The rows of these numbers; fastest where they ascend."""
        assert self.path is not None
        with self.path.open("rb") as file:
            at = 0
            for index in indices:
                start = self._starts[int(index)]
                if start != at:
                    file.seek(start)
                data = file.readline()
                at = start + len(data)
                where, _, line = data.partition(b"\t")
                yield Spooled(int(index), json.loads(where), line[:-1])

    def where(self, index: int) -> str:
        """The place of one row; its number where no text is kept."""
        return next(self.rows([index])).where if self.path is not None else f"row {index + 1}"

    def remove(self) -> None:
        """Delete the file."""
        self.flush()
        if self.path is not None:
            self.path.unlink(missing_ok=True)


class Fates:
    """Which split each row is in, and for those left out why.

    splits: (rows,) int8, the split's place in `order`. why: (rows,) int16, KEPT or the place of a reason in `reasons`,
    where `{}` stands for the place of the row number `other`.
    """

    def __init__(self, splits: npt.NDArray[np.int8], order: Sequence[str]) -> None:
        self.order = tuple(order)
        self.splits = splits
        self.why = np.full(len(splits), KEPT, np.int16)
        self.other = np.full(len(splits), -1, np.int64)
        self.reasons: dict[tuple[str, str], int] = {}
        self.details: dict[int, dict[str, Any]] = {}

    def split(self, name: str) -> Indices:
        """The rows that are kept in a split, ascending."""
        return np.flatnonzero((self.splits == self.order.index(name)) & (self.why == KEPT))

    def drop(
        self,
        rows: Indices | Sequence[int],
        kind: str,
        reason: str,
        other: Indices | Sequence[int] | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Leave rows out. kind: what they are counted as. detail: what else stands beside them in the rejects."""
        self.why[rows] = self.reasons.setdefault((kind, reason), len(self.reasons))
        if other is not None:
            self.other[rows] = other
        if detail is not None:
            self.details.update({int(row): dict(detail) for row in rows})

    def dropped(self) -> Indices:
        """The rows left out, ascending."""
        return np.flatnonzero(self.why != KEPT)

    def reason(self, index: int) -> tuple[str, str]:
        """The kind and the reason for which a row was left out."""
        return list(self.reasons)[int(self.why[index])]

    def counts(self) -> dict[str, int]:
        """How many rows were left out, by kind."""
        found = np.bincount(self.why[self.why != KEPT], minlength=len(self.reasons))
        counts: dict[str, int] = {}
        for (kind, _), number in zip(self.reasons, found.tolist(), strict=True):
            counts[kind] = counts.get(kind, 0) + number
        return counts
