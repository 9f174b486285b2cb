"""What verdicts come to: shares of labels with intervals, paired comparisons, agreement, places, repeatability.

A share is of the scored answers; the unscored are counted beside it, and never taken for any label. Intervals are
Wilson's, or those of whole clusters where the questions' meta says which belong together (`cluster`). All comparisons
of one judge are corrected together (Holm).

A judge is drawn to a place where, over orders in which each label stands at each place equally often, it picks what
stands at one place more often than chance: chi-squared against equal shares. `steady` is the share of answers of which
all orders say the same.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from scipy.special import chdtrc

from metier.judge.cases import Material
from metier.judge.rubric import Rubric
from metier.measure.agreement import agreement, confusion
from metier.measure.statistics import compare, holm, mean_interval, verdict

CLUSTER = "cluster"
Row = dict[str, Any]


def summary(
    verdicts: Mapping[str, Sequence[Row]],
    results: Mapping[str, Sequence[Row]],
    rubric: Rubric,
    material: Material,
    *,
    confidence: float,
) -> Row:
    """The whole of `summary.json`. verdicts, results: by judge; results are what was asked, order by order."""
    clusters = _clusters(material)
    return {
        "confidence": confidence,
        "labels": list(rubric.labels),
        "good": rubric.good,
        "bad": rubric.bad,
        "judges": {
            name: {
                "shares": _shares(rows, rubric, material, clusters, confidence),
                "comparisons": _comparisons(rows, rubric, material, clusters, confidence),
                "places": _places(results[name], len(rubric.labels)),
                "steady": _steady(rows),
                "repeated": _repeated(results[name], len(rubric.labels)),
            }
            for name, rows in verdicts.items()
        },
        "agreement": between(verdicts, rubric.labels, confidence),
    }


def good_shares(whole: Row) -> dict[str, float]:
    """Headline metrics: every judge's share of the good label, and of answers without a verdict, by contender."""
    found: dict[str, float] = {}
    for judge, told in whole["judges"].items():
        for row in told["shares"]:
            if row["label"] == whole["good"] and row["share"] is not None:
                found[f"{judge} {row['contender']} {row['label']}"] = row["share"]
        none = {row["contender"]: row["unscored"] for row in told["shares"]}
        found |= {f"{judge} {name} unscored": float(count) for name, count in none.items() if count}
    return found


def _clusters(material: Material) -> dict[str, str] | None:
    told = {one: question.meta.get(CLUSTER, "") for one, question in material.questions.items()}
    return {one: value or f"alone {one}" for one, value in told.items()} if any(told.values()) else None


def _shares(
    rows: Sequence[Row], rubric: Rubric, material: Material, clusters: Mapping[str, str] | None, confidence: float
) -> list[Row]:
    found: list[Row] = []
    for contender in material.contenders:
        mine = [row for row in rows if row["contender"] == contender]
        scored = [row for row in mine if row["verdict"] is not None]
        for label in rubric.labels:
            row: Row = {"contender": contender, "label": label, "n": len(scored), "unscored": len(mine) - len(scored)}
            if not scored:
                found.append(row | {"count": 0, "share": None, "low": None, "high": None})
                continue
            values = [float(one["verdict"] == label) for one in scored]
            groups = [clusters[one["id"]] for one in scored] if clusters else None
            told = mean_interval(values, clusters=groups, binary=True, confidence=confidence)
            spread = {"share": told.estimate, "low": told.low, "high": told.high, "method": told.method}
            found.append(row | {"count": int(sum(values))} | spread)
    return found


def _comparisons(
    rows: Sequence[Row], rubric: Rubric, material: Material, clusters: Mapping[str, str] | None, confidence: float
) -> list[Row]:
    """Each contender's share of the good label less the first one's, over questions of which both have a verdict."""
    if rubric.good == "better":
        return []  # verdicts are comparisons already
    by: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row["verdict"] is not None:
            by[row["contender"]][row["id"]] = row["verdict"]
    first = material.contenders[0]
    found: list[Row] = []
    for contender in material.contenders[1:]:
        shared = [one for one in by[contender] if one in by[first]]
        if len(shared) < 2:
            continue
        mine, theirs = ([float(by[who][one] == rubric.good) for one in shared] for who in (contender, first))
        groups = [clusters[one] for one in shared] if clusters else None
        told = compare(mine, theirs, clusters=groups, binary=True, confidence=confidence)
        difference = told.difference
        found.append(
            {
                "contender": contender,
                "against": first,
                "n": len(shared),
                "difference": difference.estimate,
                "low": difference.low,
                "high": difference.high,
                "p": told.p,
                "test": told.test,
                "detectable": told.detectable,
            }
        )
    for row, p in zip(found, holm([row["p"] for row in found]), strict=True):
        row["p_holm"] = p
        row["verdict"] = verdict(row["difference"], row["low"], row["high"], p, confidence=confidence)
    return found


def between(verdicts: Mapping[str, Sequence[Row]], labels: Sequence[str], confidence: float) -> list[Row]:
    """Agreement of every two judges, over the answers that both gave a verdict."""
    places = {label: place for place, label in enumerate(labels)}
    names = list(verdicts)
    found = []
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            pairs = [
                (places[a["verdict"]], places[b["verdict"]])
                for a, b in zip(verdicts[one], verdicts[other], strict=True)
                if a["verdict"] is not None and b["verdict"] is not None
            ]
            found.append({"one": one, "other": other} | agreement_row(pairs, len(labels), confidence))
    return found


def agreement_row(pairs: Sequence[tuple[int, int]], count: int, confidence: float) -> Row:
    """Agreement with its confusion matrix, as files hold it: rows are the first's labels."""
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    told = agreement(first, second, count, confidence)
    if told is None:
        return {"n": 0, "confusion": [[0] * count for _ in range(count)]}
    return asdict(told) | {"confusion": confusion(first, second, count).astype(int).tolist()}


def _places(results: Sequence[Row], count: int) -> Row:
    """How often what stood at each place was picked. answers: in comparisons, the first or the second answer shown."""
    places = Counter(row["place"] for row in results if row["place"] is not None and not row["again"])
    total = sum(places.values())
    found: Row = {"n": total, "picked": [places[place] for place in range(count)] if total else []}
    found["p"] = _even([places[place] for place in range(count)]) if total else None
    firsts = Counter(row["first"] for row in results if "first" in row and not row["again"])
    if firsts:
        found["answers"] = {"first": firsts[0], "second": firsts[1], "neither": firsts[2]}
        found["answers_p"] = _even([firsts[0], firsts[1]])
    return found


def _even(counts: Sequence[int]) -> float | None:
    """p of the chi-squared test that all are equally frequent."""
    total = sum(counts)
    if total == 0 or len(counts) < 2:
        return None
    wanted = total / len(counts)
    return float(chdtrc(len(counts) - 1, sum((one - wanted) ** 2 / wanted for one in counts)))


def _steady(rows: Sequence[Row]) -> Row:
    """Over answers that were judged in several orders: the share of which all orders say the same."""
    told = [row["agree"] for row in rows if row["verdict"] is not None and "agree" in row]
    return {"n": len(told), "share": sum(one == 1.0 for one in told) / len(told) if told else None}


def _repeated(results: Sequence[Row], count: int) -> Row:
    """Over answers that were put a second time in the same order: agreement with the first time."""
    first = {row["case"]: row["picked"] for row in results if not row["again"] and row["key"].endswith(":0")}
    again = [(first[row["case"]], row["picked"]) for row in results if row["again"]]
    pairs = [(a, b) for a, b in again if a is not None and b is not None]
    return {"asked": len(again), "lost": len(again) - len(pairs)} | agreement_row(pairs, count, 0.95)
