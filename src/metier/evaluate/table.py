"""From measurements per item to `scores.json`: means with intervals, paired differences, one Holm family, verdicts.

All comparisons of one artifact are corrected together, so what it shows has one error rate. Intervals are not
corrected. A metric that is neither better high nor low, and one that only restates another, is shown without
comparisons, which keeps the family small.
"""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from metier.core.errors import DataError
from metier.core.stage import stop_if_asked
from metier.measure.figures import Figure
from metier.measure.metrics import Answered, Metric
from metier.measure.statistics import (
    Comparison,
    Interval,
    compare,
    compare_figures,
    figure_interval,
    holm,
    mean_interval,
    rule_of_three,
    verdict,
)

ALL = "all"
"""The group of all items."""
CLEAN = "clean"
"""The group of the items that no contender was trained on, where there are others."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One contender's values of one metric over the items of one group, in the items' order.

    weights: the mean is sum(values) / sum(weights); items are then whole documents. exponential: show exp of that mean.
    compared: it takes part in comparisons. clusters: a label an item; equal ones are resampled together. figure: shown
    instead of the mean; values are then not read, and stand for no more than the count of items.
    higher_is_better, bounded, binary, rare: as in metrics.Metric.
    """

    contender: str
    metric: str
    group: str
    values: Sequence[float]
    higher_is_better: bool | None
    weights: Sequence[float] | None = None
    bounded: bool = False
    binary: bool = False
    exponential: bool = False
    compared: bool = True
    clusters: Sequence[Hashable] | None = None
    figure: Figure | float | None = None
    rare: bool = False


@dataclass(frozen=True)
class Settings:
    """How intervals are made. against: the contenders that all others are compared with, the first being the baseline.

    Comparisons and intervals use the same seed for every contender, so they resample the same items.
    """

    against: tuple[str, ...]
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0

    @property
    def drawn(self) -> dict[str, Any]:
        """The keyword arguments of what is resampled."""
        return {"confidence": self.confidence, "resamples": self.resamples, "seed": self.seed}


@dataclass
class _Pending:
    """A comparison whose corrected p is not known until all are made."""

    against: str
    found: Comparison
    higher_is_better: bool
    row: Row = field(default_factory=dict)


def table(columns: Sequence[Column], settings: Settings) -> Row:
    """The contents of `scores.json`: a row a column, in their order."""
    others = {(c.contender, c.metric, c.group): c for c in columns}
    rows: list[Row] = []
    pending: list[_Pending] = []
    for column in columns:
        stop_if_asked()
        row = _mean_row(column, settings)
        rows.append(row)
        for against in settings.against:
            if against == column.contender or not column.compared or column.higher_is_better is None:
                continue
            other = others[against, column.metric, column.group]
            one = _Pending(against, _compare(column, other, settings), column.higher_is_better)
            row["versus"].append(one.row)
            pending.append(one)
    for one, p_holm in zip(pending, holm([one.found.p for one in pending]), strict=True):
        one.row.update(_versus_row(one, p_holm, settings.confidence))
    return {"baseline": settings.against[0], "confidence": settings.confidence, "rows": rows}


def answer_columns(
    rows: Sequence[Row],
    metrics: Sequence[Metric],
    seen: Collection[str] = frozenset(),
    *,
    clusters: Mapping[str, Hashable] | None = None,
    shown: Collection[str] = (),
    answers: Mapping[str, Sequence[Answered]] | None = None,
) -> list[Column]:
    """The columns to compare: each contender, each metric, all items, the clean ones, and then each group.

    seen: ids of items that a contender was trained on. Where it has none of the items or all, there is no clean group.
    clusters: what each id belongs to. shown: contenders that are compared with nobody. answers: what `rows` were
    measured on, in the same order; figures of whole sets are taken from it, and left out where it is not given.
    """
    names = list(dict.fromkeys(str(row["contender"]) for row in rows))
    columns: list[Column] = []
    for m in metrics:
        wholes: list[Column] = []
        about = rows if m.applies is None else [row for row in rows if m.name in row]
        for group, ids in _parts(about, seen).items():
            belong = None if clusters is None else [clusters[i] for i in ids]
            for name in names:
                values = [row[m.name] for row in about if row["contender"] == name and row["id"] in ids]
                column = Column(
                    name,
                    m.name,
                    group,
                    values,
                    m.higher_is_better,
                    bounded=m.bounded,
                    binary=m.binary,
                    clusters=belong,
                    rare=m.rare,
                )
                columns.append(replace(column, compared=name not in shown))
                if m.whole is not None and answers is not None:
                    figure = m.whole.measure([item for item in answers[name] if item.question.id in ids])
                    better = m.whole.higher_is_better
                    whole = replace(column, metric=m.whole.name, higher_is_better=better, figure=figure, compared=False)
                    wholes.append(whole)
        columns += wholes
    return columns


def _parts(rows: Sequence[Row], seen: Collection[str]) -> dict[str, dict[str, None]]:
    """The ids of each part that scores are given on, in their order: all, clean where some are not, and every group."""
    found = groups(rows)
    ids: dict[str, str] = {str(row["id"]): str(row["group"]) for row in rows}
    clean = dict.fromkeys(i for i in ids if i not in seen)
    parts = {ALL: dict.fromkeys(ids)}
    if 0 < len(clean) < len(ids):
        parts[CLEAN] = clean
    return parts | {group: dict.fromkeys(i for i, of in ids.items() if of == group) for group in found}


def groups(rows: Sequence[Row]) -> list[str]:
    """The groups that scores are broken down by, as they first appear; none where all items are in the same."""
    found = list(dict.fromkeys(str(row["group"]) for row in rows))
    for taken in (ALL, CLEAN):
        if taken in found:
            raise DataError(f"a group of questions may not be called {taken!r}", cure="give the group another name")
    return [group for group in found if group] if len(found) > 1 else []


def _mean_row(column: Column, settings: Settings) -> Row:
    found = _interval(column, settings)
    if column.exponential:  # a set of candidates stays that set under the exponential
        found = Interval(_exp(found.estimate), _exp(found.low), _exp(found.high), found.method)
    none_seen = column.rare and found.estimate == 0
    return {
        "contender": column.contender,
        "metric": column.metric,
        "group": column.group,
        "n": len(column.values),
        "mean": found.estimate,
        "low": found.low,
        "high": found.high,
        "higher_is_better": column.higher_is_better,
        "method": found.method,
        **({"at_most": rule_of_three(len(column.values), settings.confidence)} if none_seen else {}),
        "versus": [],
    }


def _interval(column: Column, settings: Settings) -> Interval:
    if isinstance(column.figure, Figure):
        return figure_interval(column.figure, clusters=column.clusters, **settings.drawn)
    if column.figure is not None:
        return Interval(column.figure, None, None, "none")
    return mean_interval(
        column.values,
        weights=column.weights,
        clusters=column.clusters,
        bounded=column.bounded,
        binary=column.binary,
        confidence=settings.confidence,
    )


def _compare(column: Column, other: Column, settings: Settings) -> Comparison:
    if isinstance(column.figure, Figure) and isinstance(other.figure, Figure):
        return compare_figures(column.figure, other.figure, clusters=column.clusters, **settings.drawn)
    return compare(
        column.values,
        other.values,
        weights=column.weights,
        clusters=column.clusters,
        bounded=column.bounded,
        binary=column.binary,
        confidence=settings.confidence,
        seed=settings.seed,
    )


def _versus_row(one: _Pending, p_holm: float, confidence: float) -> Row:
    gap = one.found.difference
    word = verdict(
        gap.estimate, gap.low, gap.high, p_holm, higher_is_better=one.higher_is_better, confidence=confidence
    )
    return {
        "against": one.against,
        "difference": gap.estimate,
        "low": gap.low,
        "high": gap.high,
        "p": one.found.p,
        "p_holm": p_holm,
        "verdict": word,
        "detectable": one.found.detectable,
        "method": gap.method,
        "test": one.found.test,
    }


def _exp(value: float | None) -> Any:
    return None if value is None else float(np.exp(value))
