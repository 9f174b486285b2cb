"""What judge and calibrate steps found, read once: who judged, how far each can be trusted, and every share.

A judge counts as calibrated where people labelled some of the same answers and its Cohen's kappa with them is at least
0.4. Anything else is called uncalibrated wherever its figures stand.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from metier.report.collect import Run, Step, value_of

UNCALIBRATED = "uncalibrated"
Row = dict[str, Any]


@dataclass(frozen=True)
class Judge:
    """One judge of one step. about: as `judges.json`; told: its part of `summary.json`; people: of `agreement.json`,
    empty where nobody labelled; cost: as measured.
    """

    name: str
    about: Row
    told: Row
    people: Row
    cost: Row = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """`uncalibrated`, or nothing."""
        return "" if self.people.get("calibrated") else UNCALIBRATED

    @property
    def why(self) -> str:
        """Why it is uncalibrated, in words."""
        if not self.people:
            return "nobody labelled what it judged"
        kappa = self.people.get("kappa")
        if kappa is None:
            return "people gave one label alone, so chance would agree too"
        return "" if self.people.get("calibrated") else f"its kappa with people is {kappa:.2f}, under 0.40"

    def shares(self, contender: str) -> list[Row]:
        """The rows of a contender, one a label."""
        return [row for row in self.told.get("shares") or () if row["contender"] == contender]

    def corrected(self, contender: str, label: str) -> Row | None:
        """The corrected share of a label, where people's labels allow one."""
        rows = self.people.get("corrected") or ()
        return next((row for row in rows if (row["contender"], row["label"]) == (contender, label)), None)


@dataclass(frozen=True)
class Verdicts:
    """One judge step. about: rubric, labels, what was held against; people: who labelled, empty where nobody did."""

    step: Step
    about: Row
    judges: tuple[Judge, ...]
    agreement: tuple[Row, ...]
    people: Row
    confidence: float
    people_confidence: float

    @property
    def labels(self) -> list[str]:
        """In the rubric's order, the good one first."""
        return list(self.about.get("labels") or ())

    @property
    def contenders(self) -> list[str]:
        """Whose answers were judged."""
        return [str(name) for name in self.about.get("contenders") or ()]


def verdicts(run: Run) -> list[Verdicts]:
    """Every judge step of the run."""
    return [_of(run, step) for step in run.steps if step.produces == "verdicts"]


def _of(run: Run, step: Step) -> Verdicts:
    told = value_of(step, "summary.json") or {}
    found = _calibration(run, step)
    measured = value_of(step, "judges.json", measured=True) or {}
    people: Mapping[str, Row] = found.get("judges") or {}
    judges = tuple(
        Judge(
            str(one["name"]),
            one,
            (told.get("judges") or {}).get(one["name"]) or {},
            people.get(one["name"]) or {},
            measured.get(one["name"]) or {},
        )
        for one in value_of(step, "judges.json") or ()
    )
    return Verdicts(
        step,
        value_of(step, "about.json") or {},
        judges,
        tuple(told.get("agreement") or ()),
        found.get("people") or {},
        float(told.get("confidence", 0.95)),
        float(found.get("confidence", 0.95)),
    )


def _calibration(run: Run, step: Step) -> Row:
    """The `agreement.json` of the (last) calibrate step that read this judge step."""
    for other in reversed(run.steps):
        if other.produces == "agreement" and any(i.step == step.name for i in other.inputs):
            found: Row = value_of(other, "agreement.json") or {}
            return found
    return {}


def judged_rows(run: Run, contender: str) -> list[Row]:
    """What the judges say of a contender, for `leaderboards_full.json`."""
    return list(_rows(run, contender))


def _rows(run: Run, contender: str) -> Iterator[Row]:
    for found in verdicts(run):
        for judge in found.judges:
            for row in judge.shares(contender):
                told = judge.corrected(contender, row["label"])
                yield {
                    "step": found.step.name,
                    "judge": judge.name,
                    "calibrated": not judge.mark,
                    "flags": list(judge.about.get("flags") or ()),
                    **{k: row.get(k) for k in ("label", "n", "unscored", "share", "low", "high")},
                    "corrected": told and {k: told[k] for k in ("share", "low", "high", "design", "labelled")},
                }
