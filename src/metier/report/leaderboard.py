"""Who is compared, in which order, and `leaderboards_full.json`.

Roles: the *base* is what the scores compare with; the *specialist* is the model that the run hands over; the
*comparison* is a contender that went another way (not on the specialist's path), if there is one; what lies on the
path is a *stage*; what is no model (a constant answer, a look-up, a person) is a *reference* and takes no rank. Order:
by the mean of the ranking metric (the first that the score step lists, over all questions), models first.
Two contenders are called tied where their intervals overlap and no paired test of theirs says otherwise.
"""

import math
from dataclasses import asdict, dataclass
from typing import Literal

from metier.core.fingerprint import Json
from metier.report.collect import Contender, Run, Score, Scores, Step
from metier.report.verdicts import judged_rows

FORMAT = 1
TIE_RULE = "tied: the intervals of the ranking metric overlap and no paired test between the two found a difference"

Role = Literal["base", "stage", "comparison", "specialist", "reference"]


@dataclass(frozen=True)
class Place:
    """A contender's place. rank is None for a reference, and where the ranking metric was not measured.

    Equal means share a rank.
    """

    contender: Contender
    role: Role
    rank: int | None
    score: Score | None
    tied_with: tuple[str, ...]


@dataclass(frozen=True)
class Board:
    """The ranking. scores: the step that it ranks by, with metric and group; None where nothing was scored."""

    scores: Scores | None
    metric: str | None
    group: str
    higher_is_better: bool | None
    places: tuple[Place, ...]

    def role(self, role: Role) -> Contender | None:
        """The (first) contender in that role."""
        return next((p.contender for p in self.places if p.role == role), None)

    def role_of(self, name: str) -> Role:
        """The role of a contender."""
        return next((p.role for p in self.places if p.contender.name == name), "stage")


def final_model(run: Run) -> Step | None:
    """The step whose standalone model is handed over.

    The last contender that is such a model, or an adapter that a `merge` step made into one. Contenders come first
    because a comparison run has a merge step too, often the recipe's last. Without contenders: the last `merge`,
    `prune` or `guard`, else the last full model.
    """
    whole = [s for s in run.steps if s.produces == "model" and not s.is_adapter]
    for contender in reversed([c for c in run.contenders() if not c.bits]):
        for step in whole:
            if step.name == contender.model:
                return step
        for step in whole:
            if step.kind == "merge" and any(i.step == contender.model for i in step.inputs):
                return step
    merged = [s for s in whole if s.kind in ("merge", "prune", "guard")]
    return next(reversed(merged or whole), None)


def rank(run: Run) -> Board:
    """Roles and order of all contenders."""
    contenders = run.contenders()
    scores = _ranking_scores(run)
    metric = _ranking_metric(run, scores)
    roles = _roles(run, contenders, scores)
    group = scores.groups()[0] if scores else "all"  # likelihood has no group of all: its first documents rank
    rows = {c.name: scores.row(c.name, metric, group) if scores and metric else None for c in contenders}
    higher = next((r.higher_is_better for r in rows.values() if r), None)
    apart = {c.name for c in contenders if c.is_reference}
    measured = [row for row in rows.values() if row and row.contender not in apart]
    places = []
    for contender in contenders:
        mine = rows[contender.name]
        if contender.is_reference:
            places.append(Place(contender, "reference", None, mine, ()))
            continue
        ahead = sum(
            1 for row in measured if mine and row.mean != mine.mean and (row.mean > mine.mean) == (higher is not False)
        )
        tied = tuple(row.contender for row in measured if mine and row is not mine and _tied(mine, row))
        places.append(Place(contender, roles[contender.name], ahead + 1 if mine else None, mine, tied))
    sign = 1 if higher is False else -1
    places.sort(
        key=lambda p: (p.role == "reference", p.rank or len(places) + 1, sign * p.score.mean if p.score else math.inf)
    )
    return Board(scores, metric, group, higher, tuple(places))


def _ranking_scores(run: Run) -> Scores | None:
    """The first step that scored answers in the trade, else the first of something else or of likelihood."""
    filled = sorted((s for s in run.scores if s.rows), key=lambda s: s.apart)
    return next((s for s in filled if not s.of_text), next(iter(filled), None))


def _ranking_metric(run: Run, scores: Scores | None) -> str | None:
    if scores is None:
        return None
    step = run.step(scores.step)
    listed = step.settings.get("metrics") if step else None
    known = scores.metrics()
    return next((m for m in listed if m in known), known[0]) if isinstance(listed, list) else known[0]


def _roles(run: Run, contenders: tuple[Contender, ...], scores: Scores | None) -> dict[str, Role]:
    names = [c.name for c in contenders]
    base = scores.baseline if scores else None
    final = final_model(run)
    others = [c for c in contenders if c.name != base and not c.is_reference and not c.bits]
    path = run.ancestors(final.name) if final else set()
    on_path = [c for c in others if c.model in path and run.step(c.model) is not None]
    exact = [c for c in on_path if final and c.model == final.name]
    specialist = next(reversed(exact or on_path or others), None)
    roles: dict[str, Role] = dict.fromkeys(names, "stage")
    for contender in contenders:
        if contender.name == base:
            roles[contender.name] = "base"
        elif contender is specialist:
            roles[contender.name] = "specialist"
        elif contender.is_reference:
            roles[contender.name] = "reference"
        elif contender.model not in path:
            roles[contender.name] = "comparison"
    return roles


def _tied(one: Score, other: Score) -> bool:
    if None in (one.low, one.high, other.low, other.high):
        return one.mean == other.mean
    overlap = one.low <= other.high and other.low <= one.high  # type: ignore[operator]
    verdicts = {v.verdict for a, b in ((one, other), (other, one)) for v in a.versus if v.against == b.contender}
    return overlap and not verdicts & {"better", "worse"}


def cliques(board: Board) -> list[list[str]]:
    """The largest sets of contenders that are all tied with one another, best first (Bron and Kerbosch 1973)."""
    near = {p.contender.name: set(p.tied_with) for p in board.places if p.tied_with}
    near = {name: {other for other in others if name in near.get(other, ())} for name, others in near.items()}
    order = {name: place for place, name in enumerate(near)}
    found: list[list[str]] = []

    def grow(chosen: list[str], open_: set[str], closed: set[str]) -> None:
        if not open_ and not closed and len(chosen) > 1:
            found.append(sorted(chosen, key=order.__getitem__))
        for name in sorted(open_, key=order.__getitem__):
            grow([*chosen, name], open_ & near[name], closed & near[name])
            open_ = open_ - {name}
            closed = closed | {name}

    grow([], set(near), set())
    return sorted(found, key=lambda names: [order[name] for name in names])


def as_json(run: Run, board: Board) -> Json:
    """The content of `leaderboards_full.json`."""
    final = final_model(run)
    return {
        "format": FORMAT,
        "recipe": run.recipe,
        **({"notice": run.notice} if run.notice else {}),
        "model": final.name if final else None,
        "ranked_by": None
        if board.scores is None
        else {
            "step": board.scores.step,
            "metric": board.metric,
            "group": board.group,
            "higher_is_better": board.higher_is_better,
            "ties": TIE_RULE,
        },
        "contenders": [_place(run, place) for place in board.places],
    }


def _place(run: Run, place: Place) -> Json:
    contender = place.contender
    told = judged_rows(run, contender.name)
    return {
        "rank": place.rank,
        "name": contender.name,
        "model": contender.model,
        "role": place.role,
        "kind": contender.kind,
        "tied_with": list(place.tied_with),
        "parameters": contender.parameters,
        "measured": {k: contender.measured.get(k) for k in MEASURED},
        "scores": [
            _score(scores, row) for scores in run.scores for row in scores.rows if row.contender == contender.name
        ],
        **({"judged": told} if told else {}),
    }


MEASURED = (
    "seconds",
    "p50_seconds",
    "p95_seconds",
    "first_token_p50_seconds",
    "first_token_p95_seconds",
    "per_token_p50_seconds",
    "tokens_per_second",
    "peak_rss_bytes",
)


def _score(scores: Scores, row: Score) -> Json:
    fields = asdict(row)
    del fields["contender"]
    fields["versus"] = [dict(v) for v in fields["versus"]]
    return {"step": scores.step, "confidence": scores.confidence, "baseline": scores.baseline, **fields}
