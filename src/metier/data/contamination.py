"""The contamination gate of the data stages: nothing that is tested on may be trained on.

What counts as seen is said by `metier.text.overlap.Gate`. The tested splits make an index; the trained-on side, replay
and synthetic rows included, is streamed past it. Every hit is listed with both texts. numpy starts with the first
tested text, so a step that tests nothing needs none.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metier.core.errors import DataError, shorten
from metier.text.artifacts import conversation_of, document_of, read_jsonl
from metier.text.nouns import Conversation, Document
from metier.text.overlap import Gate, Hit, Index, trained_texts
from metier.text.refusals import REFUSALS_TEST

__all__ = ["Gate", "Hit", "Index", "Watch", "item_of", "keep_out_index"]

HELD_OUT = ("test", "dev", "heldout", REFUSALS_TEST)
"""Splits of a step that others may be told to keep out of theirs: dev too, as it chooses between states."""
MOST_SHOWN = 10

Row = dict[str, Any]


def keep_out_index(folders: Mapping[str, Path] | Iterable[Path], gate: Gate | None = None) -> Index:
    """An index over what other steps hold out: their test, dev and heldout splits.

    folders: the `files` folders of documents or examples artifacts, by step name where one is known. A hit's test_id is
    `name/split/id`. Raises StoreError where an artifact is damaged.
    """
    named = folders if isinstance(folders, Mapping) else {path.parent.name: path for path in folders}
    index = Index(gate or Gate())
    for name, folder in named.items():
        for split in HELD_OUT:
            path = folder / f"{split}.jsonl"
            if path.is_file():
                for row in read_jsonl(path):
                    item = item_of(row)
                    index.add_item(item, f"{name}/{split}/{item.id}", answers=split != REFUSALS_TEST)
    return index


def item_of(row: Row) -> Document | Conversation:
    """The document or conversation of an artifact's row."""
    return conversation_of(row) if "messages" in row else document_of(row)


@dataclass
class Watch:
    """Looks at every trained item and does what the gate says.

    keep: takes a row for every hit, at once, so that none is held here. seen: tested ids by how often they were hit;
    how: hits by their kind. hit: trained items with any.
    """

    gate: Gate
    index: Index
    keep: Callable[[Row], None] = lambda _row: None
    seen: Counter[str] = field(default_factory=Counter)
    how: Counter[str] = field(default_factory=Counter)
    hit: int = 0
    _shown: list[tuple[str, Row]] = field(default_factory=list)

    def admits(self, item: Document | Conversation, *, where: str, split: str) -> bool:
        """Whether the item may be trained on. where: `file name:line`."""
        return self.reason(item, where=where, split=split) is None or self.gate.action != "drop"

    def reason(self, item: Document | Conversation, *, where: str, split: str) -> str | None:
        """Why the item must not be trained on, as a filter's rejects state it; None where nothing is seen in it."""
        hits = self.index.hits_of(trained_texts(item))
        for hit in hits:
            self.seen[hit.test_id] += 1
            self.how[hit.how] += 1
            row = hit.row(item.id, split) | {"where": where}
            self.keep(row)
            if len(self._shown) < MOST_SHOWN and all(row["tested"] != shown["tested"] for _, shown in self._shown):
                self._shown.append((where, row))
        if not hits:
            return None
        self.hit += 1
        return f"seen in testing: {hits[0].told}" + (f" and {len(hits) - 1} more" if len(hits) > 1 else "")

    def facts(self) -> Row:
        """What was found, for about.json: texts looked for, tested items seen, rows that show one, hits by kind."""
        return {
            "texts_tested": len(self.index),
            "seen": len(self.seen),
            "rows": self.hit,
            "hits": dict(sorted(self.how.items())),
        }

    def finish(self) -> None:
        """Raise DataError with the first hits and both of their texts where the gate says stop and there are any."""
        if self.gate.action != "stop" or not self.hit:
            return
        shown = "\n".join(
            f"  {where} ({row['how']} {row['score']:g}, the {row['part']} of {row['id']})\n"
            f"    tested:  {shorten(row['tested'], 160)}\n    trained: {shorten(row['trained'], 160)}"
            for where, row in self._shown
        )
        raise DataError(
            f"{self.hit} rows to train on show {len(self.seen)} of the items to test with; "
            f"the first {len(self._shown)} texts:\n{shown}",
            where="contamination",
            cure="`action: drop` leaves them out of training; `split: {by: overlap}` keeps them together",
        )
