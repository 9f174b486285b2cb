"""Whether what a guard asks for still holds: both models on the same items, one bound of each difference.

A condition holds where the difference is proved to lie on the good side of its margin at the guard's confidence
(non-inferiority), so what cannot be told does not hold. All conditions must hold together, which needs no correction
for their number: a bad model passes only if each of them errs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from metier.measure.metrics import METRICS
from metier.measure.statistics import Comparison, Interval, compare, mean_interval
from metier.prune.probe import Reading, Row
from metier.prune.settings import Guard


@dataclass(frozen=True)
class Condition:
    """One thing that must hold. before, after: the means. difference: after minus before. bound: the side of its
    interval that is looked at (None: it has none). limit: what it must not pass. higher: whether more is better.
    """

    name: str
    n: int
    before: float
    after: float | None
    difference: float | None
    bound: float | None
    limit: float
    higher: bool
    method: str
    holds: bool
    why: str = ""

    @property
    def row(self) -> Row:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Figure:
    """What stands for a model in the picture of sizes and scores."""

    name: str
    mean: float
    low: float | None
    high: float | None


def conditions(before: Reading, after: Reading, guard: Guard) -> list[Condition]:
    """All conditions of the guard, in a fixed order."""
    return list(_conditions(before, after, guard))


def _conditions(before: Reading, after: Reading, guard: Guard) -> Iterator[Condition]:
    confidence = guard.confidence
    if "answers" in before:
        metric = METRICS[guard.metric]
        old, new = ([row["score"] for row in reading["answers"]] for reading in (before, after))
        found = compare(new, old, bounded=metric.bounded, binary=metric.binary, confidence=2 * confidence - 1)
        yield _falls(guard.metric, old, new, found, guard.margin)
        old, new = ([row["repetition"] for row in reading["answers"]] for reading in (before, after))
        found = compare(new, old, bounded=True, confidence=2 * confidence - 1)
        yield _rises("repetition", old, new, found, guard.repetition_margin)
    for part, name in (("domain", "domain bits per byte"), ("general", "general bits per byte")):
        if part in before:
            yield _bits(name, before[part], after[part], guard)
    if "classes" in before:
        for label in dict.fromkeys(row["label"] for row in before["classes"]):
            old, new = (_of_label(reading, label) for reading in (before, after))
            found = compare(new, old, bounded=True, binary=True, confidence=2 * confidence - 1)
            one = _falls(f"class {label}", old, new, found, guard.class_margin)
            yield _lost(one) if sum(old) and not sum(new) else one
    for part, name, key in (
        ("unsafe", "unsafe prompts complied with", "complied"),
        ("harmless", "harmless prompts declined", "declined"),
    ):
        if part in before:
            old, new = ([row[key] for row in reading[part]] for reading in (before, after))
            found = compare(new, old, bounded=True, binary=True, confidence=2 * confidence - 1)
            yield _rises(name, old, new, found, guard.refusal_margin)


def figure(reading: Reading, guard: Guard) -> Figure:
    """The first thing that the guard looks at in the trade, with its interval."""
    confidence = guard.confidence
    if "answers" in reading:
        metric = METRICS[guard.metric]
        values = [row["score"] for row in reading["answers"]]
        found = mean_interval(values, bounded=metric.bounded, binary=metric.binary, confidence=confidence)
        return _figure(guard.metric, found)
    if "domain" in reading:
        rows = reading["domain"]
        bits, sizes = [row["bits"] or 0.0 for row in rows], [row["bytes"] for row in rows]
        return _figure("bits per byte", mean_interval(bits, weights=sizes, confidence=confidence))
    values = [row["found"] for row in reading["classes"]]
    return _figure("accuracy", mean_interval(values, bounded=True, binary=True, confidence=confidence))


def _figure(name: str, found: Interval) -> Figure:
    return Figure(name, found.estimate, found.low, found.high)


def _of_label(reading: Reading, label: Any) -> list[float]:
    return [row["found"] for row in reading["classes"] if row["label"] == label]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _falls(name: str, old: Sequence[float], new: Sequence[float], found: Comparison, margin: float) -> Condition:
    """Of what is better the higher it is."""
    low = found.difference.low
    return _condition(name, old, new, found, low, -margin, higher=True, holds=low is not None and low >= -margin)


def _rises(name: str, old: Sequence[float], new: Sequence[float], found: Comparison, margin: float) -> Condition:
    """Of what is better the lower it is."""
    high = found.difference.high
    return _condition(name, old, new, found, high, margin, higher=False, holds=high is not None and high <= margin)


def _condition(
    name: str,
    old: Sequence[float],
    new: Sequence[float],
    found: Comparison,
    bound: float | None,
    limit: float,
    *,
    higher: bool,
    holds: bool,
) -> Condition:
    why = "" if holds else "too few items to tell" if bound is None else "the bound is past the limit"
    difference = found.difference
    return Condition(
        name, len(old), _mean(old), _mean(new), difference.estimate, bound, limit, higher, difference.method, holds, why
    )


def _lost(one: Condition) -> Condition:
    return Condition(**(asdict(one) | {"holds": False, "why": "not one item of the class is found any more"}))


def _bits(name: str, before: Sequence[Row], after: Sequence[Row], guard: Guard) -> Condition:
    sizes = [row["bytes"] for row in before]
    old = [row["bits"] for row in before]
    new = [row["bits"] for row in after]
    was = sum(old) / sum(sizes)
    limit = guard.bits_margin * was
    if any(bits is None for bits in new):
        return Condition(name, len(old), was, None, None, None, limit, False, "", False, "the likelihood is not finite")
    found = compare(new, old, weights=sizes, confidence=2 * guard.confidence - 1)
    high = found.difference.high
    holds = high is not None and high <= limit
    why = "" if holds else "too few documents to tell" if high is None else "the bound is past the limit"
    difference = found.difference
    return Condition(
        name,
        len(old),
        was,
        sum(new) / sum(sizes),
        difference.estimate,
        high,
        limit,
        False,
        difference.method,
        holds,
        why,
    )
