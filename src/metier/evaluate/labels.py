"""From the likelihoods of choices to scores: accuracy, macro-F1, confusion, calibration, coverage and risk.

    accuracy, accuracy_bytes, accuracy_pmi   the likeliest choice, by its log-likelihood as it is, by that of a byte, or
                                             by what the question adds to it (pointwise mutual information)
    macro_f1                                 F1 of each class, averaged (as scikit-learn does it)
    ece                                      expected calibration error: confidence against accuracy in BINS bins
    aurc                                     area under the curve of risk over coverage: the mean share of errors among
                                             the surest items, over all numbers of them

Confidence is the probability of the chosen among the choices alone. macro_f1 and the confusion matrix need choices
that all items share. Ties go to the first choice, as in lm-evaluation-harness. Refuses choices that do not belong to
the questions, and labels and answers that are no choice.
Sources: Guo et al. 2017 (ECE), Geifman and El-Yaniv 2017 (coverage and risk), Holtzman et al. 2021 (PMI).
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metier.core.errors import DataError, nearest
from metier.evaluate.table import ALL, CLEAN, Column, groups
from metier.measure.figures import Figure, Floats
from metier.text.artifacts import read_asked, read_jsonl
from metier.text.items import Item, choices_path, class_of, item_of, names_of

BINS = 10
"""Of confidence, of equal width."""
STEPS = 100
"""Places on the curve of risk over coverage; fewer where there are fewer items."""
METRICS = ("accuracy", "accuracy_bytes", "accuracy_pmi", "macro_f1", "ece", "aurc")
"""In the order shown. Where several scorings give the same choice throughout, their rows are alike."""
NONE_COMPARED = ("trivial", "human")

Row = dict[str, Any]


@dataclass(frozen=True)
class Chosen:
    """What one contender chose of an item, by each way of scoring; its confidence, None where it has none."""

    accuracy: str
    accuracy_bytes: str
    accuracy_pmi: str | None
    confidence: float | None


@dataclass(frozen=True)
class Choices:
    """A `choices` artifact, read. chosen: by contender, in the items' order."""

    items: tuple[Item, ...]
    kinds: Mapping[str, str]
    chosen: Mapping[str, Sequence[Chosen]]

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The choices that all items share, or None."""
        names = names_of(self.items)
        return names if names is not None and set(names) == set(self.items[0].choices) else None


def read_choices(folder: Path) -> Choices:
    """The items of an artifact and what every contender chose. Raises DataError where they do not fit together."""
    items = tuple(item_of(question) for question in read_asked(folder))
    if not items:
        raise DataError("there are no questions to score", where=str(folder / "questions.jsonl"))
    told = json.loads((folder / "contenders.json").read_text(encoding="utf-8"))
    kinds = {str(one["name"]): str(one.get("kind", "model")) for one in told}
    return Choices(items, kinds, {name: _chosen(folder, name, items) for name in kinds})


def _chosen(folder: Path, name: str, items: Sequence[Item]) -> list[Chosen]:
    path = choices_path(folder, name)
    rows = list(read_jsonl(path))
    wrong = next((i for i, (a, b) in enumerate(zip(rows, items, strict=False)) if a["id"] != b.id), None)
    if wrong is not None or len(rows) != len(items):
        found = f"{len(rows)} for {len(items)}" if wrong is None else f"{rows[wrong]['id']} for {items[wrong].id}"
        raise DataError(
            f"the choices of {name!r} are not to these questions",
            where=str(path),
            value=found,
            cure="run the choose step again",
        )
    return [_of_row(path, row, item) for row, item in zip(rows, items, strict=True)]


def _of_row(path: Path, row: Row, item: Item) -> Chosen:
    if "said" in row:
        if row["said"] not in item.choices:
            cure = nearest(str(row["said"]), item.choices)
            raise DataError("a label that is no choice", where=f"{path}: {item.id}", value=row["said"], cure=cure)
        return Chosen(row["said"], row["said"], row["said"], None)
    texts = [choice["text"] for choice in row["choices"]]
    if tuple(texts) != item.choices:
        raise DataError("other choices than the question's", where=f"{path}: {item.id}", value=texts)
    raw = np.array([choice["logprob"] for choice in row["choices"]])
    if not np.all(np.isfinite(raw)):
        raise DataError("a choice has no finite likelihood", where=f"{path}: {item.id}", value=raw.tolist())
    alone = [choice.get("unconditional") for choice in row["choices"]]
    shares = np.exp(raw - raw.max())
    return Chosen(
        texts[int(raw.argmax())],
        texts[int((raw / [choice["bytes"] for choice in row["choices"]]).argmax())],
        None if None in alone else texts[int((raw - np.array(alone)).argmax())],
        float(shares.max() / shares.sum()),
    )


def item_rows(choices: Choices) -> list[Row]:
    """One row for each contender and item: what it chose, whether that is right by each scoring, how sure it was."""
    rows = []
    for name, chosen in choices.chosen.items():
        for item, one in zip(choices.items, chosen, strict=True):
            row: Row = {
                "id": item.id,
                "contender": name,
                "group": item.group,
                "label": item.label,
                "said": one.accuracy,
            }
            for metric, said in _said(one).items():
                row[metric] = float(said == item.label)
            rows.append(row | ({} if one.confidence is None else {"confidence": one.confidence}))
    return rows


def _said(one: Chosen) -> dict[str, str]:
    said = {"accuracy": one.accuracy, "accuracy_bytes": one.accuracy_bytes, "accuracy_pmi": one.accuracy_pmi}
    return {metric: text for metric, text in said.items() if text is not None}


def columns(choices: Choices, seen: Collection[str], against: Sequence[str]) -> list[Column]:
    """What `table` makes rows of: every metric of every part of the items, each contender.

    seen: ids of items that a contender was trained on; scores on the others come as `clean`.
    """
    parts = _parts(choices, seen)
    made = []
    for metric in METRICS:
        having = [name for name in choices.chosen if _has(choices, name, metric)]
        for part, places in parts.items():
            for name in having:
                column = _column(choices, name, metric, part, places)
                compared = choices.kinds[name] not in NONE_COMPARED and set(against) <= set(having)
                made.append(Column(**{**column, "compared": compared}))
    return made


def _parts(choices: Choices, seen: Collection[str]) -> dict[str, list[int]]:
    clean = [place for place, item in enumerate(choices.items) if item.id not in seen]
    parts = {ALL: list(range(len(choices.items)))}
    if 0 < len(clean) < len(choices.items):
        parts[CLEAN] = clean
    for group in groups([{"group": item.group} for item in choices.items]):
        parts[group] = [place for place, item in enumerate(choices.items) if item.group == group]
    return parts


def _has(choices: Choices, name: str, metric: str) -> bool:
    """Whether a contender has a metric: a point of reference is not sure or unsure of anything."""
    if metric == "macro_f1":
        return choices.classes is not None
    first = choices.chosen[name][0]
    return first.confidence is not None if metric in ("ece", "aurc") else metric in _said(first)


def _column(choices: Choices, name: str, metric: str, part: str, places: Sequence[int]) -> Row:
    items = [choices.items[place] for place in places]
    chosen = [choices.chosen[name][place] for place in places]
    plain: Row = {"contender": name, "metric": metric, "group": part, "values": [0.0] * len(items)}
    if metric == "macro_f1":
        assert choices.classes is not None
        return plain | {"higher_is_better": True, "figure": macro_f1(items, chosen, choices.classes)}
    if metric in ("ece", "aurc"):
        figure = calibration_error if metric == "ece" else area_under_risk
        return plain | {"higher_is_better": False, "figure": figure(*sureness(items, chosen))}
    right = [float(_said(one)[metric] == item.label) for item, one in zip(items, chosen, strict=True)]
    return plain | {"values": right, "higher_is_better": True, "bounded": True, "binary": True}


def sureness(items: Sequence[Item], chosen: Sequence[Chosen]) -> tuple[Floats, Floats]:
    """Each item's confidence, and 1 where the choice was right."""
    sure = np.array([one.confidence for one in chosen], dtype=np.float64)
    right = np.array([one.accuracy == item.label for item, one in zip(items, chosen, strict=True)], dtype=np.float64)
    return sure, right


def macro_f1(items: Sequence[Item], chosen: Sequence[Chosen], classes: Sequence[str]) -> Figure:
    """Mean over the classes that occur, as label or choice, of 2 x hits / (choices + labels)."""
    count = len(classes)
    totals = np.zeros((len(items), 2 * count))
    for row, item, one in zip(totals, items, chosen, strict=True):
        label, said = class_of(item, item.label, classes), class_of(item, one.accuracy, classes)
        row[label] += 1
        row[said] += 1
        row[count + label] += label == said

    def statistic(sums: Floats) -> Floats:
        met, hits = sums[..., :count], sums[..., count:]
        f1 = np.divide(2 * hits, met, out=np.zeros_like(met), where=met > 0)
        result: Floats = f1.sum(-1) / np.maximum(1, (met > 0).sum(-1))
        return result

    return Figure(totals, statistic)


def calibration_error(sure: Floats, right: Floats) -> Figure:
    """Mean over items of the distance between confidence and accuracy in their bin; biased upward in small samples."""
    return Figure(_binned(_bins(sure), BINS, sure - right), _weighted_distance)


def _weighted_distance(sums: Floats) -> Floats:
    result: Floats = np.abs(sums[..., BINS:]).sum(-1) / np.maximum(1.0, sums[..., :BINS].sum(-1))
    return result


def area_under_risk(sure: Floats, right: Floats) -> Figure:
    """Mean risk over the coverages at the surest 1/STEPS, 2/STEPS ... of the items; exact for up to STEPS items."""
    steps = min(STEPS, len(sure))
    rank = np.empty(len(sure), dtype=np.int64)
    rank[np.argsort(-sure, kind="stable")] = np.arange(len(sure))

    def statistic(sums: Floats) -> Floats:
        covered, wrong = np.cumsum(sums[..., :steps], -1), np.cumsum(sums[..., steps:], -1)
        risk = np.divide(wrong, covered, out=np.zeros_like(wrong), where=covered > 0)
        result: Floats = (risk * sums[..., :steps]).sum(-1) / np.maximum(1.0, covered[..., -1])
        return result

    return Figure(_binned(rank * steps // len(sure), steps, 1 - right), statistic)


def _bins(sure: Floats) -> Any:
    return np.minimum((sure * BINS).astype(np.int64), BINS - 1)


def _binned(places: Any, count: int, values: Floats) -> Floats:
    """(n, 2 x count): which bin an item is in, and its value there."""
    totals = np.zeros((len(values), 2 * count))
    rows = np.arange(len(values))
    totals[rows, places] = 1
    totals[rows, count + places] = values
    return totals


def extras(choices: Choices) -> Row:
    """The further keys of `scores.json`: confusion, reliability and coverage of each contender, over all items."""
    models = [name for name in choices.chosen if _has(choices, name, "ece")]
    made: Row = {
        "reliability": [_reliability(name, *sureness(choices.items, choices.chosen[name])) for name in models],
        "coverage": [_coverage(name, *sureness(choices.items, choices.chosen[name])) for name in models],
    }
    if choices.classes is None:
        return made
    return {"confusion": [_confusion(choices, name, choices.classes) for name in choices.chosen]} | made


def _confusion(choices: Choices, name: str, classes: Sequence[str]) -> Row:
    """matrix[i][j]: how many items of class i were given class j."""
    matrix = [[0] * len(classes) for _ in classes]
    for item, one in zip(choices.items, choices.chosen[name], strict=True):
        matrix[class_of(item, item.label, classes)][class_of(item, one.accuracy, classes)] += 1
    return {"contender": name, "labels": list(classes), "matrix": matrix}


def _reliability(name: str, sure: Floats, right: Floats) -> Row:
    places, mean = _bins(sure), _mean_of
    inside = [places == place for place in range(BINS)]
    bins = [
        {
            "low": place / BINS,
            "high": (place + 1) / BINS,
            "n": int(here.sum()),
            "confidence": mean(sure[here]),
            "accuracy": mean(right[here]),
        }
        for place, here in enumerate(inside)
    ]
    return {"contender": name, "bins": bins, "ece": calibration_error(sure, right).value}


def _coverage(name: str, sure: Floats, right: Floats) -> Row:
    wrong = np.cumsum(1 - right[np.argsort(-sure, kind="stable")])
    count = len(sure)
    ends = sorted({max(1, round(count * step / min(STEPS, count))) for step in range(1, min(STEPS, count) + 1)})
    return {"contender": name, "points": [[end / count, float(wrong[end - 1]) / end] for end in ends]}


def _mean_of(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def score_choices(
    folder: Path, settings_for: Callable[[Sequence[str]], Any], seen: Collection[str]
) -> tuple[list[Row], Row]:
    """The item rows and the contents of `scores.json` for a `choices` artifact.

    settings_for: from the contenders that are no points of reference to `table.Settings`.
    """
    from metier.evaluate.table import table

    choices = read_choices(folder)
    models = [name for name, kind in choices.kinds.items() if kind not in NONE_COMPARED]
    settings = settings_for(models or list(choices.kinds))
    made = table(columns(choices, seen, settings.against), settings)
    return item_rows(choices), made | {"contenders": dict(choices.kinds)} | extras(choices)
