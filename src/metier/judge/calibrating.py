"""Judges held against people, and their rates corrected by it. Writes `agreement.json`.

Every label of people's is matched with the verdicts by question, contender and the digest of the answer's text. Where
several people labelled one answer the label that most gave counts, a draw counts for none, and their agreement among
themselves is told: no judge can be expected to agree with people more than people do.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metier.core.errors import DataError, StoreError
from metier.core.stage import Context
from metier.judge.labels import Label, majority, read_labels
from metier.judge.stage import verdicts_path
from metier.judge.summing import agreement_row
from metier.measure.agreement import UNCALIBRATED_BELOW
from metier.measure.corrected import corrected
from metier.measure.figures import Floats
from metier.text.artifacts import about, read_jsonl, write_json

if TYPE_CHECKING:
    from metier.judge.stage import Calibrate

FEW = 30
"""Labelled answers under which a warning says that they are few."""
Row = dict[str, Any]
Key = tuple[str, str, str]


def calibrate(stage: "Calibrate", ctx: Context) -> dict[str, float]:
    """Write the agreement of every judge with people, and the corrected shares of every contender."""
    folder = ctx.source(stage.verdicts).path
    told = about(folder)
    labels: list[str] = list(told["labels"])
    rows = _known(read_labels(ctx.source(stage.labels).paths), labels, ctx.source(stage.labels).name)
    judges = read_judges(folder)
    verdicts = {name: list(read_jsonl(verdicts_path(folder, name))) for name in judges}
    judged = {_key(row) for row in next(iter(verdicts.values()))}
    fitting = [one for one in rows if (one.id, one.contender, one.answer) in judged]
    if not fitting:
        raise DataError(
            "none of the labels is of an answer that was judged",
            where="labels",
            value=stage.labels,
            cure="the answers have changed since, or are another step's: label these with `metier label`",
        )
    people = majority(fitting)
    if len(fitting) < len(rows):
        ctx.events.warning(f"{len(rows) - len(fitting)} of {len(rows)} labels are of answers that are no longer judged")
    if len(people) < FEW:
        ctx.events.warning(f"people labelled {len(people)} answers: intervals will be wide; {FEW} or more are better")
    found = {name: _judge(stage, ctx, verdicts[name], people, labels, told["contenders"]) for name in judges}
    whole = {
        "verdicts": stage.verdicts,
        "labels": labels,
        "good": told["good"],
        "bad": told["bad"],
        "confidence": stage.confidence,
        "people": _people(fitting, people, len(rows), labels, stage.confidence),
        "judges": found,
    }
    write_json(ctx.out / "agreement.json", whole)
    return _headline(found, told["good"])


def read_judges(folder: Path) -> list[str]:
    """The names of a `verdicts` artifact's judges, in order."""
    path = folder / "judges.json"
    try:
        return [str(one["name"]) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        cure = "delete the artifact's folder and run again"
        raise StoreError(f"the judges cannot be read: {error}", where=str(path), cure=cure) from error


def _known(rows: Sequence[Label], labels: Sequence[str], name: str) -> Sequence[Label]:
    for one in rows:
        if one.label not in labels:
            cure = f"labels of this rubric: {', '.join(labels)}"
            raise DataError("not a label of the rubric", where=f"{name}: {one.id}", value=one.label, cure=cure)
    return rows


def _key(row: Row) -> Key:
    return (str(row["id"]), str(row["contender"]), str(row["answer"]))


def _people(
    fitting: Sequence[Label], people: Mapping[Key, str], read: int, labels: Sequence[str], confidence: float
) -> Row:
    """Who labelled how much, and how far people agree with one another."""
    counts: dict[str, int] = defaultdict(int)
    by: dict[str, dict[Key, int]] = defaultdict(dict)
    for one in fitting:
        counts[one.who] += 1
        by[one.who][one.id, one.contender, one.answer] = labels.index(one.label)
    pairs = [
        (by[a][key], by[b][key]) for a, b in combinations(sorted(by), 2) for key in sorted(by[a].keys() & by[b].keys())
    ]
    shares = {label: sum(one == label for one in people.values()) for label in labels}
    found: Row = {
        "read": read,
        "stale": read - len(fitting),
        "answers": len(people),
        "who": dict(sorted(counts.items())),
    }
    return found | {"labels": shares} | ({"among": agreement_row(pairs, len(labels), confidence)} if pairs else {})


def _judge(
    stage: "Calibrate",
    ctx: Context,
    verdicts: Sequence[Row],
    people: Mapping[Key, str],
    labels: Sequence[str],
    contenders: Sequence[str],
) -> Row:
    """One judge: rows of `confusion` are people's labels, columns the judge's."""
    count = len(labels)
    given: dict[str, Floats] = {name: np.zeros(count) for name in contenders}
    tables: dict[str, Floats] = {name: np.zeros((count, count)) for name in contenders}
    pairs: list[tuple[int, int]] = []
    lost = 0
    for row in verdicts:
        ctx.check_stop()
        said = people.get(_key(row))
        if row["verdict"] is None:
            lost += said is not None
            continue
        place = labels.index(row["verdict"])
        given[row["contender"]][place] += 1
        if said is not None:
            pairs.append((labels.index(said), place))
            tables[row["contender"]][labels.index(said), place] += 1
    whole = sum(tables.values(), np.zeros((count, count)))
    shares = [
        _corrected(stage, name, labels, given[name], whole if stage.pooled else tables[name], tables[name])
        for name in contenders
    ]
    told = agreement_row(pairs, count, stage.confidence)
    kappa = told.get("kappa")
    calibrated = kappa is not None and kappa >= UNCALIBRATED_BELOW
    return told | {"unscored": lost, "calibrated": calibrated, "corrected": [row for rows in shares for row in rows]}


def _corrected(
    stage: "Calibrate", contender: str, labels: Sequence[str], given: Floats, table: Floats, own: Floats
) -> list[Row]:
    """A row for each label: the judge's share, the corrected one with its interval, and by which design."""
    found = corrected(given, table, own, confidence=stage.confidence, seed=stage.seed)
    if found is None:
        return []
    return [
        {
            "contender": contender,
            "label": label,
            "n": int(given.sum()),
            "plain": found.plain[i],
            "share": found.shares[i],
            "low": found.low[i],
            "high": found.high[i],
            "solved": None if found.solved is None else found.solved[i],
            "design": found.design,
            "labelled": found.labelled,
            "labelled_in_all": found.borrowed_from,
        }
        for i, label in enumerate(labels)
    ]


def _headline(found: Mapping[str, Row], good: str) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, row in found.items():
        for figure in ("observed", "kappa", "ac1"):
            if row.get(figure) is not None:
                metrics[f"{name} {figure}"] = row[figure]
        for one in row["corrected"]:
            if one["label"] == good:
                metrics[f"{name} {one['contender']} {good} corrected"] = one["share"]
    return metrics
