"""A `synthesize` step as it runs: material to pairs, pairs screened, parted and written with all that was left out.

    test.jsonl, dev.jsonl, train.jsonl   the pairs, as in any examples artifact, with their provenance as `meta`
    replay.jsonl                         empty: what is mixed in against forgetting comes from elsewhere
    rejects.jsonl                        what was left out: where, kind, reason, the pair
    contamination.jsonl                  what showed something that is tested, with both texts
    coverage.json                        how much of the material the pairs quote, by document
    about.json                           counts, kinds, reasons

All of it follows from the material and the teacher's answers; what asking cost stands under `measured`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from metier.core.errors import DataError
from metier.core.stage import Context, Source
from metier.synthesize.coverage import by_kind, coverage
from metier.synthesize.grounding import Lengths, screen
from metier.synthesize.pair import Pair, Passage, Reject, Row, count_by
from metier.synthesize.settings import FactTable
from metier.synthesize.settling import Settled, check_filled, chosen, gate_facts, kept_out, settle, unrepeated
from metier.synthesize.tables import read_table
from metier.synthesize.templates import Sheet, read_sheet
from metier.text.artifacts import write_json, write_jsonl

if TYPE_CHECKING:
    from metier.synthesize.synthesis import Synthesize

TICK = 500
COUNTED_AS = {
    "asked before": "repeated",
    "asked before with another answer": "repeated",
    "nearly asked before": "near",
    "joins documents of two splits": "leaked",
    "seen in testing": "contaminated",
    "kept out for other steps": "kept_out",
    "beyond count": "filtered",
}
"""What the kinds of rejects count as beside those of other data steps; any other is `rejected`."""


@dataclass
class Material:
    """What a teacher was given and what it made of it. rejects: what is no pair. facts: for about.json."""

    passages: list[Passage]
    pairs: list[Pair]
    rejects: list[Reject] = field(default_factory=list)
    facts: Row = field(default_factory=dict)


def read_sheets(tables: Sequence[FactTable], sources: Mapping[str, Source]) -> list[Sheet]:
    """The tables with their templates. Raises DataError with file and line."""
    found = []
    for number, one in enumerate(tables, 1):
        place = f"tables.{number - 1}.templates"
        templates = the_one(sources[one.templates].paths, place, one.templates, "name one .yaml file")
        found.append(read_sheet(number, templates, read_table(sources[one.path].paths)))
    return found


def from_tables(tables: Sequence[FactTable], sheets: Sequence[Sheet], seed: int) -> Material:
    """All pairs that the templates make. Raises DataError where they make none."""
    passages: list[Passage] = []
    pairs: list[Pair] = []
    blank: dict[str, int] = {}
    for one, sheet in zip(tables, sheets, strict=True):
        passages += sheet.passages()
        pairs += sheet.pairs(wordings=one.wordings, seed=seed)
        blank |= {f"{one.path}: {name}": count for name, count in sheet.blank().items()}
    if not pairs:
        raise DataError(
            "the templates make no pair of these tables", where="tables", cure="fill the columns that they ask of"
        )
    return Material(passages, pairs, facts={"rows": sum(len(s.facts) for s in sheets), "empty_cells": blank})


def make(stage: "Synthesize", ctx: Context) -> dict[str, float]:
    """Write the artifact. Returns how many pairs each split has, and how many were left out."""
    if stage.tables:
        return finish(stage, ctx, from_tables(stage.tables, stage.sheets(ctx.sources), stage.seed))
    from metier.synthesize.asking import from_teacher

    return finish(stage, ctx, from_teacher(stage, ctx))


def finish(stage: "Synthesize", ctx: Context, material: Material) -> dict[str, float]:
    """Screen, part and write what a teacher made."""
    by_id = {passage.id: passage for passage in material.passages}
    lengths = Lengths(stage.max_question_chars, stage.max_answer_chars)
    rejects = list(material.rejects)
    sound: list[Pair] = []
    for pair in _ticked(ctx, "screen", material.pairs):
        found = screen(pair, by_id, stage.grounding, lengths)
        if found:
            rejects.append(found)
        else:
            sound.append(pair)
    fresh, repeated = unrepeated(sound, stage.near)
    wanted, beyond = chosen(fresh, stage.count, stage.difficulty, stage.seed)
    settled = settle(wanted, stage.fractions, stage.hold_out, stage.contamination, stage.seed)
    folders = {name: ctx.source(name).path for name in stage.keep_out}
    kept_out(settled, folders, stage.contamination, ctx.check_stop)
    settled.rejects = [*rejects, *repeated, *beyond, *settled.rejects]
    kinds = count_by([reject.kind for reject in settled.rejects])
    check_filled(settled, stage.fractions, kinds)
    return _write(stage, ctx, material, settled, kinds)


def _write(
    stage: "Synthesize", ctx: Context, material: Material, settled: Settled, kinds: Mapping[str, int]
) -> dict[str, float]:
    rows = {name: [pair.row(stage.system) for pair in pairs] for name, pairs in settled.splits.items()}
    for name, split in rows.items():
        write_jsonl(ctx.out / f"{name}.jsonl", split)
    write_jsonl(ctx.out / "replay.jsonl", ())
    write_jsonl(ctx.out / "rejects.jsonl", (reject.json() for reject in settled.rejects))
    write_jsonl(ctx.out / "contamination.jsonl", settled.hits)
    pairs = [pair for split in settled.splits.values() for pair in split]
    covered = coverage(material.passages, pairs)
    write_json(ctx.out / "coverage.json", covered)
    counts = {name: len(split) for name, split in rows.items()} | {"replay": 0}
    rejected = len(settled.rejects)
    write_json(
        ctx.out / "about.json",
        {
            "replay_ratio": 0.0,
            "counts": counts,
            "rows_read": len(pairs) + rejected,
            **_left_out(kinds),
            "characters": {name: _characters(split) for name, split in rows.items()},
            "groups": {name: count_by([pair.type for pair in split]) for name, split in settled.splits.items()},
            "contamination": gate_facts(stage.contamination, settled.hits),
            "synthesis": {
                **material.facts,
                **by_kind(pairs),
                "rejects": dict(kinds),
                "coverage": {k: v for k, v in covered.items() if k != "by_document"},
            },
        },
    )
    share = covered["quoted"] / max(1, covered["sentences"])
    return {**counts, "rejected": rejected, "passages_covered": covered["covered"], "sentences_quoted": share}


def _left_out(kinds: Mapping[str, int]) -> dict[str, int]:
    found = {"rejected": 0}
    for kind, count in kinds.items():
        name = COUNTED_AS.get(kind, "rejected")
        found[name] = found.get(name, 0) + count
    return found


def _characters(rows: Sequence[Row]) -> int:
    return sum(len(message["content"]) for row in rows for message in row["messages"])


def _ticked(ctx: Context, task: str, pairs: Sequence[Pair]) -> Iterator[Pair]:
    """The pairs, telling how far they are and stopping when asked."""
    for number, pair in enumerate(pairs):
        if number % TICK == 0:
            ctx.check_stop()
            ctx.events.progress(task, number, len(pairs), unit="pairs")
        yield pair


def the_one(paths: Sequence[Path], where: str, value: str, cure: str) -> Path:
    """The one file behind a pattern. Raises DataError where there are several."""
    if len(paths) != 1:
        raise DataError(f"this is one file, and the pattern names {len(paths)}", where=where, value=value, cure=cure)
    return paths[0]
