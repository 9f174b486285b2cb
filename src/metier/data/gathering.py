"""From rows that were read to splits: who is in which, and what is left out.

Rows are read once and spooled (`metier.data.spool`); then splits are settled on numbers alone, from the most protected
(what is measured with) to the least (what is mixed in). `metier.data.writing` puts them on disk.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np

from metier.core.errors import DataError
from metier.core.fingerprint import digest
from metier.core.stage import stop_if_asked
from metier.data.grouping import Grouper, Placer
from metier.data.readers import Reject
from metier.data.spool import Columns, Fates, Indices, Spool, Spooled, numbered
from metier.text.nouns import Conversation, Document

TICK = 2000
COMMONEST = 5
"""Reasons named in a message."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A row ready for an artifact.

    item: what it is. row: how it stands in the artifact. source_id: what its source calls it. key: what groups it.
    content: digest of all of it but its id. group: a name that its source gave it.
    """

    where: str
    item: Document | Conversation
    row: Row
    source_id: str | None
    key: str
    content: str
    group: str = ""

    @property
    def texts(self) -> list[str]:
        """What it says."""
        return [self.item.text] if isinstance(self.item, Document) else [m.content for m in self.item.messages]


@dataclass(frozen=True)
class Left(Reject):
    """A usable row that was not wanted. kind: what it is counted as: filtered, private. source_id: its source's id."""

    kind: str = "filtered"
    source_id: str | None = None


@dataclass(frozen=True)
class Part:
    """One of a stage's fields that name sources.

    split: where its rows go (None: where their key says). sources: for each, what reads its items and rejects. grouped:
    whether its rows are among those that are kept together.
    """

    name: str
    split: str | None
    sources: Sequence[Callable[[], Iterable[Item | Reject]]]
    grouped: bool = True


@dataclass(frozen=True)
class Telling:
    """What the work tells the outside. Every call may raise, to stop. tick: rows and bytes of text read so far."""

    note: Callable[[str], None] = lambda _text: None
    tick: Callable[[int, int], None] = lambda _rows, _size: None
    progress: Callable[[str, int, int], None] = lambda _task, _done, _total: None

    def each(self, task: str, rows: Iterable[Spooled], total: int) -> Iterator[Spooled]:
        """Pass rows on and tell how far they are."""
        for done, row in enumerate(rows, 1):
            stop_if_asked()  # every row: comparing a long one takes a while
            yield row
            if done % TICK == 0 or done == total:
                self.progress(task, done, total)


@dataclass
class Rejects:
    """Rows that cannot be used: on disk themselves, in memory their number by reason. path: None keeps numbers alone.
    hide: makes of a row what may be kept of it.

    A reason up to its colon is what it is counted as.
    """

    path: Path | None
    hide: Callable[[Any], Any] = lambda row: row
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    _file: TextIO | None = None

    def add(self, reject: Reject) -> None:
        """One more."""
        kind = reject.kind if isinstance(reject, Left) else "rejected"
        reason = reject.reason.split(":")[0]
        self.counts[reason] += 1
        self.first.setdefault(reason, reject.where)
        self.kinds[kind] += 1
        if self.path is not None:
            self._file = self._file or self.path.open("w", encoding="utf-8", newline="\n")
            self._file.write(
                json.dumps(reject_row(reject.where, reject.reason, self.hide(reject.row)), default=str) + "\n"
            )

    def rows(self) -> Iterator[Row]:
        """All of them, in the order in which they were met."""
        if self._file is not None and self.path is not None:
            self._file.close()
            with self.path.open(encoding="utf-8") as file:
                yield from map(json.loads, file)

    def commonest(self) -> str:
        """`412 blank answer (first: a.jsonl:7), 3 ...`, the five commonest reasons."""
        most = self.counts.most_common(COMMONEST)
        return ", ".join(f"{count} {reason} (first: {self.first[reason]})" for reason, count in most)


def reject_row(where: str, reason: str, row: Any) -> Row:
    """What stands in `rejects.jsonl` for a row that is left out."""
    return {"where": where, "reason": reason, "row": row}


@dataclass
class Pile:
    """All that was read. order: the splits, the most protected first. rows: how many, unusable ones included. size:
    bytes of text in the others.

    joined: (rows,) a number for each group that `grouper` made, None where rows are kept together by their key alone.
    """

    order: Sequence[str]
    parts: Sequence[Part]
    columns: Columns
    spool: Spool
    rejects: Rejects
    rows: int = 0
    size: int = 0
    joined: Indices | None = None

    def remove(self) -> None:
        """Delete what was spooled."""
        self.spool.remove()
        if self.rejects.path is not None:
            self.rejects.path.unlink(missing_ok=True)


def read(
    parts: Sequence[Part],
    *,
    order: Sequence[str],
    placer: Placer,
    grouper: Grouper | None,
    folder: Path | None,
    telling: Telling,
    hide: Callable[[Any], Any] = lambda row: row,
) -> Pile:
    """Read every source once. folder: where the spool goes; None keeps no text. hide: makes of a row that cannot be
    used what may be kept of it. Raises DataError.
    """
    rejects = Rejects(None if folder is None else folder / "rejected.jsonl", hide)
    pile = Pile(order, parts, Columns(), Spool(folder), rejects)
    for number, part in enumerate(parts):
        for domain, source in enumerate(part.sources):
            for item in source():
                stop_if_asked()
                pile.rows += 1
                if isinstance(item, Reject):
                    pile.rejects.add(item)
                    placer.leave(item.source_id if isinstance(item, Left) else None)
                else:
                    _add(pile, item, number, domain, placer)
                    if grouper is not None and part.grouped:
                        grouper.add(item.item, where=item.where, group=item.group)
                if pile.rows % TICK == 0:
                    telling.tick(pile.rows, pile.size)
    telling.tick(pile.rows, pile.size)
    pile.spool.flush()
    placer.finish()
    for name, count in Counter(placer.left.values()).items():
        telling.note(f"{count} rows that are pinned to {name} are left out by a filter: see rejects.jsonl")
    if grouper is not None:
        _regroup(pile, placer, grouper.keys())
    return pile


def _add(pile: Pile, item: Item, number: int, domain: int, placer: Placer) -> None:
    part = pile.parts[number]
    if part.split is None:
        home = placer.home(item.key, item.source_id, item.where)
    else:
        home = part.split
        placer.allow(home, item.source_id, item.where)
    size = sum(len(text.encode()) for text in item.texts)
    pile.size += size
    pile.columns.add(
        key=item.key,
        content=item.content,
        id_digest=digest(item.row["id"]),
        home=pile.order.index(home),
        fixed=part.split is not None or item.source_id in placer.pinned,
        part=number,
        domain=domain,
        group=item.group if isinstance(item.item, Conversation) else "",
        characters=sum(map(len, item.texts)),
        size=size,
    )
    pile.spool.add(item.where, item.row)


def _regroup(pile: Pile, placer: Placer, keys: Sequence[str]) -> None:
    """Rows of a group go where its key says. keys: of the grouped rows, in order."""
    grouped = [part.grouped for part in pile.parts]
    rows = [row for row, part in enumerate(pile.columns.parts) if grouped[part]]
    pile.joined = np.arange(len(pile.columns), dtype=np.int64) + len(rows)
    number: dict[str, int] = {}
    for row, key in zip(rows, keys, strict=True):
        pile.joined[row] = number.setdefault(key, len(number))
        if not pile.columns.fixed[row]:
            pile.columns.homes[row] = pile.order.index(placer.of_key(key))


# ---- settling ------------------------------------------------------------------------------------------------------


def separate(pile: Pile, *, repeats: bool = True) -> Fates:
    """Every row in its split, less what stands twice, which goes from the least protected split.

    A row whose key stands in an earlier split is a leak; one whose whole content stood before in its own is a
    repetition (`repeats`: whether these go).
    """
    fates = Fates(np.frombuffer(pile.columns.homes, np.int8), pile.order)
    keys, _ = numbered(pile.columns.keys)
    contents, _ = numbered(pile.columns.contents)
    _drop_twice(fates, keys, contents if repeats else None)
    if pile.joined is not None:
        _drop_twice(fates, pile.joined, None)
    return fates


def _drop_twice(fates: Fates, keys: Indices, contents: Indices | None) -> None:
    owner = np.full(int(keys.max(initial=-1)) + 1, -1, np.int8)
    for place, name in enumerate(fates.order):
        rows = fates.split(name)
        owners = owner[keys[rows]]
        for other in np.unique(owners[owners >= 0]):
            fates.drop(rows[owners == other], "leaked", f"also in {fates.order[other]}, so not in {name}")
        if contents is not None:
            _drop_repeats(rows[owners < 0], contents, fates)
        owner[keys[fates.split(name)]] = place


def _drop_repeats(rows: Indices, contents: Indices, fates: Fates) -> None:
    _, first, inverse = np.unique(contents[rows], return_index=True, return_inverse=True)
    original = rows[first[inverse.reshape(-1)]]
    again = original != rows
    fates.drop(rows[again], "repeated", "repeats {}", original[again])


def check_rejected(pile: Pile, most: float) -> None:
    """Raise DataError where more than the share `most` of the rows cannot be used. What filters took is not counted."""
    unusable = pile.rejects.kinds["rejected"]
    if unusable <= most * pile.rows:
        return
    raise DataError(
        f"{unusable} of {pile.rows} rows cannot be used, more than max_rejected allows",
        where=next(iter(pile.rejects.first.values())),
        value=pile.rejects.commonest(),
        cure=f"correct the rows, or raise max_rejected (now {most:g})",
    )


def check_filled(pile: Pile, fates: Fates, expected: Mapping[str, str]) -> None:
    """Raise DataError where a split is empty. expected: splits, each with the setting that should fill it."""
    for name, setting in expected.items():
        if not len(fates.split(name)):
            _refuse_empty(name, setting, pile, fates)


def _refuse_empty(name: str, setting: str, pile: Pile, fates: Fates) -> NoReturn:
    fraction = setting.endswith("_fraction")
    words = {
        "leaked": "stood in another split",
        "repeated": "were repetitions",
        "near": "were near-duplicates",
        "contaminated": "overlap with what is measured",
        "kept_out": "are held out by another step",
    }
    out = fates.counts()
    told = [f"{out[kind]} {said}" for kind, said in words.items() if out.get(kind)]
    rejected = [f"rejected {pile.rejects.commonest()}"] if pile.rejects.counts else []
    raise DataError(
        ": ".join([f"nothing is left in {name!r}", *filter(None, ["; ".join([*rejected, *told])])]),
        where=setting,
        cure="raise it, or give more data: its share of these is less than one" if fraction else "give it other data",
    )
