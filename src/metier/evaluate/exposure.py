"""Whether a contender has been trained on what it is now asked: the gate between everything trained on and tested.

A model's record names what it was made from, by keys of the store. From there back, every documents and examples
artifact that a step trained on is read once (all splits but test, dev and heldout, so replay and synthetic rows too)
and held against the items. Models from outside bring no record: what they have read is not known, and that is said.

Costs a pass over all data that the contenders were trained on: a second for a million words where little is found.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from metier.core.errors import DataError, shorten
from metier.core.stage import Context, Source
from metier.core.store import RECORD, Artifact
from metier.text.artifacts import conversation_of, document_of, read_jsonl, write_json
from metier.text.nouns import Document, Question
from metier.text.overlap import Gate, Hit, Index, trained_texts
from metier.text.refusals import REFUSALS_TEST

FILE = "contamination.json"
NOT_TRAINED_ON = ("test", "dev", "heldout", REFUSALS_TEST, "rejects", "contamination")
"""Files of a data artifact that are no training split. dev chooses a state; that is not reading it."""
DATA = ("documents", "examples")
MOST_SHOWN = 10
TICK = 2000

Row = dict[str, Any]


class ExposureGate(Gate):
    """The gate where models are asked. It reports, so that scores are given on all items and on the clean ones."""

    action: Literal["stop", "drop", "report"] = Field("report")
    """report: ask everything, and score on all items and on those that no contender has seen. drop: do not ask what any
    contender has seen. stop: refuse to go on."""


@dataclass
class Lineage:
    """What a model was made from.

    data: the files of the documents and examples that it and its ancestors were trained on, by key. outside: models
    without a record. gone: artifacts that a record names and that are no longer there.
    """

    data: dict[str, Path] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    @property
    def unknown(self) -> list[str]:
        """Whose training data cannot be looked at."""
        return [*dict.fromkeys(self.outside), *dict.fromkeys(self.gone)]


@dataclass
class Exposure:
    """What was found. seen: the ids that each contender has seen, in the items' order; hits: rows with both texts."""

    tested: int
    lineages: Mapping[str, Lineage]
    seen: dict[str, list[str]]
    hits: list[Row]

    @property
    def any(self) -> set[str]:
        """The ids that any contender has seen."""
        return {one for ids in self.seen.values() for one in ids}


def lineage(source: Source) -> Lineage:
    """Where a contender comes from. One whose step has not run yet is followed through what it will be made from."""
    found = Lineage()
    if source.paths:
        _follow(source.path, _short(source.name), found, set())
    for before in () if source.paths else source.made_from:
        made = lineage(before)
        found.data |= made.data
        found.outside += made.outside
        found.gone += made.gone
    return found


def _follow(files: Path, name: str, found: Lineage, passed: set[Path]) -> None:
    """Take in an artifact, and whatever it was made from."""
    if files in passed:
        return
    passed.add(files)
    if not (files.parent / RECORD).is_file():
        found.outside.append(name)
        return
    artifact = Artifact(files.parent)
    if artifact.record.get("produces") in DATA:
        found.data[artifact.key] = files
        return
    for value, given in artifact.record.get("inputs", {}).items():
        link = str(given["link"])
        if link.startswith("../"):
            before = Path(os.path.normpath(files / link))
            if (before.parent / RECORD).is_file():
                _follow(before, value, found, passed)
            else:
                found.gone.append(before.parent.name)
        elif any(name in str(given.get("field", "")) for name in ("model", "teacher", "before")):
            found.outside.append(_short(value))


def _short(name: str) -> str:
    """A model's name without the folders of this machine."""
    return name.rstrip("/").rsplit("/", 1)[-1] if Path(name).is_absolute() else name


def ticker(ctx: Context) -> Callable[[int], None]:
    """For `expose` in a running step: shows how far it is, and stops when asked."""

    def tick(rows: int) -> None:
        ctx.check_stop()
        ctx.events.progress("was it trained on", rows, None, unit="rows")

    return tick


def expose(
    contenders: Mapping[str, Source],
    items: Mapping[str, Question | Document],
    gate: Gate,
    tick: Callable[[int], None] = lambda _rows: None,
    outside: Collection[str] = (),
) -> Exposure:
    """Hold what the contenders were trained on against the items. items: by the id that they are known by here.

    outside: contenders of which nothing is known, such as those behind an endpoint.
    """
    lineages = {name: lineage(source) for name, source in contenders.items()}
    lineages |= {name: Lineage(outside=[name]) for name in outside}
    folders = {key: files for one in lineages.values() for key, files in one.data.items()}
    index = Index(gate)
    for test_id, item in items.items() if folders else ():
        index.add_item(item, test_id)
    hits = {key: _best_hits(files, index, tick) for key, files in folders.items()}
    seen = {
        name: [one for one in items if any(one in hits[key] for key in made.data)] for name, made in lineages.items()
    }
    rows = [row | {"artifact": key} for key, best in hits.items() for row in best.values()]
    order = {test_id: place for place, test_id in enumerate(items)}
    return Exposure(len(items), lineages, seen, sorted(rows, key=lambda row: order[row["id"]]))


def _best_hits(files: Path, index: Index, tick: Callable[[int], None]) -> dict[str, Row]:
    """The strongest hit of each item in one artifact, with how many trained items show it."""
    best: dict[str, tuple[Hit, Row]] = {}
    count: dict[str, int] = {}
    for read, (split, row) in enumerate(_trained_rows(files), 1):
        if read % TICK == 0:
            tick(read)
        item = conversation_of(row) if "messages" in row else document_of(row)
        for hit in index.hits_of(trained_texts(item)):
            count[hit.test_id] = count.get(hit.test_id, 0) + 1
            if hit.test_id not in best or hit.strength > best[hit.test_id][0].strength:
                best[hit.test_id] = hit, hit.row(item.id, split)
    return {test_id: row | {"trained_items": count[test_id]} for test_id, (_, row) in best.items()}


def _trained_rows(files: Path) -> Iterator[tuple[str, Row]]:
    for path in sorted(files.glob("*.jsonl")):
        if path.stem not in NOT_TRAINED_ON:
            for row in read_jsonl(path):
                yield path.stem, row


def refuse_early(
    contenders: Mapping[str, Source],
    items: Mapping[str, Question | Document],
    gate: Gate,
    what: str = "questions",
) -> None:
    """Raise DataError where the gate says stop and what is known before anything ran shows a reason already."""
    found = expose(contenders, items, gate)
    if found.any and gate.action == "stop":
        raise _refusal(found, what)


def settle(ctx: Context, found: Exposure, gate: Gate, what: str) -> set[str]:
    """Write `contamination.json`, say what was found, and return the ids that are not to be asked.

    what: `questions` or `documents`. Raises DataError where the gate says stop, or where nothing is left to ask.
    """
    seen = found.any
    if seen and gate.action == "stop":
        raise _refusal(found, what)
    dropped = seen if gate.action == "drop" else set()
    write_json(
        ctx.out / FILE,
        {
            "gate": gate.model_dump(mode="json"),
            "tested": found.tested,
            "seen": len(seen),
            "dropped": [one for one in dict.fromkeys(row["id"] for row in found.hits) if one in dropped],
            "contenders": {
                name: {"trained_on": sorted(made.data), "unknown": made.unknown, "seen": found.seen[name]}
                for name, made in found.lineages.items()
            },
            "hits": found.hits,
        },
    )
    if seen:
        after = (
            "these are left out" if dropped else f"scores are given on all, and on the {found.tested - len(seen)} clean"
        )
        ctx.events.warning(
            f"{len(seen)} of {found.tested} {what} were seen in training by a contender: {after} (see {FILE})"
        )
    if dropped and len(dropped) == found.tested:
        raise DataError(
            f"every one of the {what} was seen in training by a contender",
            where="contamination",
            cure="test with other data, or set contamination.action to report",
        )
    return dropped


def _refusal(found: Exposure, what: str) -> DataError:
    first = list({row["id"]: row for row in found.hits}.values())[:MOST_SHOWN]
    shown = "\n".join(
        f"  {row['id']} ({row['how']} {row['score']:g}, its {row['part']})\n"
        f"    tested:  {shorten(row['tested'], 160)}\n    trained: {shorten(row['trained'], 160)}"
        for row in first
    )
    return DataError(
        f"{len(found.any)} of {found.tested} {what} were seen in training by a contender; "
        f"the first {len(first)}:\n{shown}",
        where="contamination",
        cure="part the data with `split: {by: overlap}` or `keep_out`, or set contamination.action to drop or report",
    )
