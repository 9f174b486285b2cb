"""Gain and damage on one page: what the specialist does better than its base, what it does worse, and how sure.

One row for each thing that was measured of both: domain questions (all, those that no contender was trained on, each
group, so that knowledge from the corpus stands beside knowledge from the pairs), domain text, general text, questions
from elsewhere, refusals. What was not measured is named as such in the answer to `at what cost`, never left out in
silence. Differences and verdicts are those of `scores.json`; nothing is computed here but a relative change.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from metier.report import plots
from metier.report.collect import REFUSING, Contender, Run, Score, Scores, Versus
from metier.report.leaderboard import Board
from metier.report.sections import near_references, text_kind
from metier.report.wording import group, interval, metric, number, probability, signed

Side = Literal["gain", "cost", "refusals"]

SIDES: dict[Side, tuple[str, str]] = {
    "gain": ("Gain", "in its trade"),
    "cost": ("Cost", "in text and questions that it did not learn from"),
    "refusals": ("Refusals", "of what is unsafe, and of what is harmless"),
}
REFUSALS = re.compile(r"refus|unsafe|harmful|harmless|benign|complian", re.IGNORECASE)
"""Groups and metrics named so are about refusing."""
PROMPTS = {
    REFUSING[0]: ("Unsafe prompts", "What should be declined."),
    REFUSING[1]: ("Harmless prompts", "What sounds like them and should be answered."),
}
"""What a metric of refusing is about, with a note."""
KNOWLEDGE: tuple[tuple[str, Side, str, str], ...] = (
    ("forget_probability", "gain", "Forgotten on purpose", "Answers that were to be forgotten."),
    ("utility", "cost", "Kept on purpose", "Answers that were to be kept."),
)
"""Of a step that measured knowledge: metric, side, what it is and a note."""
MOST_GROUPS = 8
"""Groups of questions shown of one step."""


@dataclass(frozen=True)
class Effect:
    """One thing measured of the base and of the specialist. track: the difference, drawn so that right is better."""

    side: Side
    what: str
    note: str
    measure: str
    base: str
    specialist: str
    change: str
    interval: str
    track: Markup
    verdict: str
    p: float | None
    n: int
    detectable: str


@dataclass(frozen=True)
class Tile:
    """One of the three answers at the top. verdict: its word, or empty."""

    question: str
    verdict: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """The page's first part. effects: by side, in the order of SIDES, those without a row left out."""

    base: str
    specialist: str
    tiles: tuple[Tile, ...]
    effects: tuple[tuple[str, str, tuple[Effect, ...]], ...]


@dataclass(frozen=True)
class _Found:
    side: Side
    what: str
    note: str
    mine: Score
    base: Score
    versus: Versus | None

    @property
    def sign(self) -> int:
        return -1 if self.mine.higher_is_better is False else 1

    @property
    def unit(self) -> float:
        """What the difference is drawn in: shares as they are, anything else as a share of the base."""
        return 1.0 if metric(self.mine.metric).bounded or self.base.mean <= 0 else self.base.mean


def outcome(run: Run, board: Board) -> Outcome | None:
    """The gain and the damage; None where the specialist and a base were not both measured."""
    specialist, base = board.role("specialist"), board.role("base")
    if specialist is None or base is None:
        return None
    found = list(_all(run, board, specialist, base))
    if not found:
        return None
    reach: dict[str, float] = {}
    for one in found:
        ends = (0.0,) if one.versus is None else (one.versus.low, one.versus.high, one.versus.difference)
        most = max(abs(end) for end in ends if end is not None) / one.unit
        reach[one.mine.metric] = max(reach.get(one.mine.metric, 0.0), most)
    effects = [_effect(one, reach[one.mine.metric]) for one in found]
    sides = tuple((*SIDES[s], tuple(e for e in effects if e.side == s)) for s in SIDES)
    pairs = list(zip(found, effects, strict=True))
    near = near_references(run, board, specialist.name)
    return Outcome(
        run.label(base.name),
        run.label(specialist.name),
        (_gain_tile(pairs, near), _cost_tile(pairs), _sure_tile(pairs)),
        tuple(side for side in sides if side[2]),
    )


# --- what was measured of both ----------------------------------------------------------------------------------------


def _all(run: Run, board: Board, specialist: Contender, base: Contender) -> Iterator[_Found]:
    ordered = sorted(run.scores, key=lambda s: s is not board.scores)
    for scores in ordered:
        if scores.of_knowledge:
            yield from _of_knowledge(scores, specialist.name, base.name)
        elif scores.of_text:
            yield from _of_text(run, scores, specialist.name, base.name)
        else:
            yield from _of_answers(run, board, scores, specialist.name, base.name)


def _of_answers(run: Run, board: Board, scores: Scores, specialist: str, base: str) -> Iterator[_Found]:
    ranking = scores is board.scores
    primary = board.metric if ranking else next(iter(scores.metrics()), None)
    primary = None if scores.of_refusing else primary
    learned = ranking or _learned(run, scores)
    for name in scores.metrics():
        about_refusing = bool(REFUSALS.search(name))
        if name != primary and not about_refusing:
            continue
        for group_name in scores.groups()[: MOST_GROUPS + 2]:
            mine, other = scores.row(specialist, name, group_name), scores.row(base, name, group_name)
            if mine is None or other is None:
                continue
            refusing = about_refusing or bool(REFUSALS.search(group_name))
            title, note = group(group_name)
            if scores.of_refusing:
                title, note = PROMPTS.get(name, group(group_name))
            elif group_name == "all":
                title = "Test questions, all" if ranking else f"Questions of {run.label(_asked(run, scores))}, all"
                note = "" if learned else "Questions that no step of this run learned from."
            elif not ranking:
                title = f"{run.label(_asked(run, scores))}: {title}"
            side: Side = "refusals" if refusing else "gain" if learned else "cost"
            yield _Found(side, title, note, mine, other, _versus(mine, base))


def _of_knowledge(scores: Scores, specialist: str, base: str) -> Iterator[_Found]:
    for name, side, what, note in KNOWLEDGE:
        mine, other = scores.row(specialist, name, "all"), scores.row(base, name, "all")
        if mine is not None and other is not None:
            yield _Found(side, what, note, mine, other, _versus(mine, base))


def _of_text(run: Run, scores: Scores, specialist: str, base: str) -> Iterator[_Found]:
    name = next(iter(scores.metrics()), "")
    for group_name in scores.groups():
        mine, other = scores.row(specialist, name, group_name), scores.row(base, name, group_name)
        if mine is None or other is None or group_name == "all":
            continue
        domain = text_kind(run, group_name) == "domain"
        note = (
            "Held-out texts of the kind that was read."
            if domain
            else "Texts that no step read: worse here means forgotten."
        )
        title = f"{'Domain' if domain else 'General'} text ({group(group_name)[0]})"
        yield _Found("gain" if domain else "cost", title, note, mine, other, _versus(mine, base))


def _asked(run: Run, scores: Scores) -> str:
    """What the questions of a score step are called: the step that they come from, else the answers' own name."""
    step = run.step(scores.answers) if scores.answers else None
    if step is None:
        return scores.step
    task = step.settings.get("task")
    asked = next((i.step or i.value for i in step.inputs if i.field.split(".")[0] == "questions"), None)
    return asked or (task if isinstance(task, str) else step.name)


def _learned(run: Run, scores: Scores) -> bool:
    """Whether a training step learned from the examples that these questions are a part of."""
    trained = {i.step or i.value for s in run.steps if s.training for i in s.inputs}
    return _asked(run, scores) in trained


def _versus(row: Score, against: str) -> Versus | None:
    return next((v for v in row.versus if v.against == against), None)


# --- as rows ----------------------------------------------------------------------------------------------------------


def _effect(one: _Found, reach: float) -> Effect:
    said, versus = metric(one.mine.metric), one.versus
    direction = {True: "higher is better", False: "lower is better", None: ""}[one.mine.higher_is_better]
    return Effect(
        side=one.side,
        what=one.what,
        note=one.note,
        measure=f"{said.title}, {direction}" if direction else said.title,
        base=number(one.base.mean, said.digits),
        specialist=number(one.mine.mean, said.digits),
        change=_change(one),
        interval=interval(versus.low, versus.high, said.digits) if versus else "",
        track=_track(one, reach) if versus and reach > 0 and one.mine.higher_is_better is not None else Markup(""),
        verdict=versus.verdict if versus else "",
        p=None if versus is None else versus.p if versus.p_holm is None else versus.p_holm,
        n=one.mine.n,
        detectable=number(versus.detectable if versus else None, said.digits),
    )


def _change(one: _Found) -> str:
    said = metric(one.mine.metric)
    text = signed(one.mine.mean - one.base.mean, said.digits)
    if said.bounded or one.base.mean <= 0:
        return text
    return f"{text} ({signed(100 * (one.mine.mean / one.base.mean - 1), 0)} %)"


def _track(one: _Found, reach: float) -> Markup:
    """The difference with its interval; right is better. Rows of one metric share their scale."""
    assert one.versus is not None
    axis = plots.Scale(-1.08 * reach, 1.08 * reach, (), 0)
    factor = one.sign / one.unit
    ends = [None if v is None else factor * v for v in (one.versus.low, one.versus.high)]
    low, high = ends if factor > 0 else ends[::-1]
    role = {"better": "better", "worse": "worse"}.get(one.versus.verdict, "even")
    return plots.track(axis, factor * one.versus.difference, low, high, role=role, zero=True)


# --- the three answers at the top -------------------------------------------------------------------------------------


def _gain_tile(pairs: list[tuple[_Found, Effect]], near: str) -> Tile:
    gain = next(((f, e) for f, e in pairs if e.side == "gain"), None)
    if gain is None:
        return Tile("Is it better?", "", "Nothing of its trade was measured of both models.")
    found, effect = gain
    said = metric(found.mine.metric)
    word = effect.verdict or "not compared"
    text = f"{said.title} {effect.base} → {effect.specialist} ({effect.what}, n = {effect.n:,})"
    return Tile("Is it better?", word, f"{text}. {near}" if near else text)


def _cost_tile(pairs: list[tuple[_Found, Effect]]) -> Tile:
    costs = [(f, e) for f, e in pairs if e.side != "gain"]
    if not costs:
        return Tile("At what cost?", "not measured", "Neither general text nor questions from elsewhere were tried.")
    worse = [(f, e) for f, e in costs if e.verdict == "worse"]
    shown = (worse or costs)[:2]
    text = "; ".join(
        f"{e.what}: {metric(f.mine.metric).title} {e.base} → {e.specialist}{_relative(f)}" for f, e in shown
    )
    if not worse:
        word = "better" if all(e.verdict == "better" for _, e in costs) else "no evidence of a difference"
        return Tile("At what cost?", word if any(e.verdict for _, e in costs) else "not compared", text)
    more = f" ({len(worse)} of {len(costs)} measures are worse)" if len(costs) > 1 else ""
    return Tile("At what cost?", "worse", text + more)


def _relative(one: _Found) -> str:
    if metric(one.mine.metric).bounded or one.base.mean <= 0:
        return ""
    return f" ({signed(100 * (one.mine.mean / one.base.mean - 1), 0)} %)"


def _sure_tile(pairs: list[tuple[_Found, Effect]]) -> Tile:
    found, effect = next(((f, e) for f, e in pairs if e.side == "gain"), pairs[0])
    if found.versus is None:
        return Tile("How sure?", "", "The two were measured, but not compared item by item.")
    said = metric(found.mine.metric)
    text = f"difference {signed(found.versus.difference, said.digits)}"
    if effect.interval:
        text += f", interval {effect.interval}"
    text += f", p {'' if (effect.p or 0) < 0.001 else '= '}{probability(effect.p)} corrected for everything shown"
    if found.versus.detectable is not None:
        text += f"; a test of this size finds differences from {effect.detectable} in 4 of 5 tries"
    return Tile("How sure?", "", text[:1].upper() + text[1:] + ".")
