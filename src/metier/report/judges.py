"""The judges' part of the page: what they say, how far they agree, with one another and with people, and examples.

A share is shown as the judge gives it and, where people labelled some answers, as corrected by it; beside each judge
stands why it may not be trusted. Examples are those on which judges, or judges and people, part ways, then answers that
were found bad.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from metier.report.collect import Run, rows_of
from metier.report.leaderboard import Board
from metier.report.plots import text
from metier.report.verdicts import Judge, Verdicts, verdicts
from metier.report.wording import MISSING, count, cut, duration, interval, number, probability

EXAMPLES = 8
STRENGTHS = (
    (0.0, "none"),
    (0.2, "slight"),
    (0.4, "fair"),
    (0.6, "moderate"),
    (0.8, "substantial"),
    (1.01, "near perfect"),
)
"""Landis and Koch (1977): kappa under each bound has the word."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A figure of the leaderboard."""

    value: float
    text: str
    interval: str


@dataclass(frozen=True)
class Column:
    """A judge's column of the leaderboard: the share of the good label, corrected where it can be."""

    title: str
    mark: str
    note: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Share:
    """A contender's row: the bar, each label's share with its interval, and the corrected good share."""

    contender: str
    role: str
    bar: Markup
    cells: tuple[tuple[str, str], ...]
    n: int
    unscored: int
    corrected: str
    against: str


@dataclass(frozen=True)
class Facts:
    """One judge. facts: title and text; confusion: people's labels in rows, or empty; warnings: in words."""

    name: str
    what: str
    mark: str
    warnings: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    shares: tuple[Share, ...]
    confusion: tuple[tuple[str, tuple[tuple[int, int], ...]], ...]


@dataclass(frozen=True)
class Example:
    """An answer with what each judge says of it. said: judge, verdict, and why."""

    why: str
    contender: str
    role: str
    question: str
    reference: str
    answer: str
    said: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Section:
    """One judge step."""

    step: str
    title: str
    held: str
    labels: tuple[tuple[str, str], ...]
    judges: tuple[Facts, ...]
    agreement: tuple[tuple[str, ...], ...]
    people: str
    examples: tuple[Example, ...]
    pairwise: str
    corrected: bool
    confidence: float


def columns(run: Run) -> list[Column]:
    """A column for each judge of the first judge step."""
    found = next(iter(verdicts(run)), None)
    if found is None or not found.labels:
        return []
    good = found.labels[0]
    made = []
    for judge in found.judges:
        cells = {}
        corrected = False
        for name in found.contenders:
            row = next((r for r in judge.shares(name) if r["label"] == good), None)
            told = judge.corrected(name, good) if not judge.mark else None
            corrected = corrected or told is not None
            shown = told or row
            if shown and shown["share"] is not None:
                cells[name] = Cell(shown["share"], number(shown["share"], 2), interval(shown["low"], shown["high"], 2))
        against = f" against {run.label(found.about['against'])}" if found.about.get("against") else ""
        title = f"{good}{against}, by {run.label(judge.name)}"
        note = f"{run.label(judge.name)} is uncalibrated: {judge.why}." if judge.mark else ""
        if corrected:
            note = f"Shares of {run.label(judge.name)} are corrected by people's labels."
        made.append(Column(title, judge.mark, note, cells))
    return made


def judged(run: Run, board: Board) -> list[Section]:
    """One section for each judge step."""
    return [_section(run, board, found) for found in verdicts(run)]


def _section(run: Run, board: Board, found: Verdicts) -> Section:
    against = found.about.get("against")
    by = str(found.about.get("by", "reference"))
    held = {"both": "reference and context", "question": "the question alone"}.get(by, by)
    return Section(
        found.step.name,
        str(found.about.get("title", "")),
        held,
        tuple((str(label), str(meaning)) for label, meaning in (found.about.get("labels") or {}).items()),
        tuple(_facts(run, board, found, judge) for judge in found.judges),
        tuple(_pair(run, row) for row in found.agreement if row.get("n")),
        _people(found),
        tuple(_examples(run, board, found)),
        run.label(str(against)) if against else "",
        any(judge.people.get("corrected") for judge in found.judges),
        found.confidence,
    )


def _facts(run: Run, board: Board, found: Verdicts, judge: Judge) -> Facts:
    warnings = [flag[:1].upper() + flag[1:] + "." for flag in judge.about.get("flags") or ()]
    if judge.mark:
        warnings.insert(0, f"Uncalibrated: {judge.why}.")
    places = judge.told.get("places") or {}
    if places.get("n") and (places.get("p") or 1) < 0.01:
        picked = " : ".join(str(one) for one in places["picked"])
        warnings.append(f"It is drawn to a place in the list of labels ({picked}, {probability(places['p'])}).")
    if places.get("answers") and (places.get("answers_p") or 1) < 0.01:
        one = places["answers"]
        warnings.append(
            f"It is drawn to a place of the answers: {one['first']} times the first, {one['second']} the second."
        )
    kind = {"model": "a model that runs here", "endpoint": "a model behind an endpoint", "evidence": "no large model"}
    what = f"{kind.get(str(judge.about.get('kind')), '')}, read by {judge.about.get('how', '')}"
    return Facts(
        run.label(judge.name),
        what,
        judge.mark,
        tuple(warnings),
        tuple(_told(run, judge)),
        tuple(_share(run, board, found, judge, name) for name in found.contenders),
        tuple(_confusion(found, judge)),
    )


def _told(run: Run, judge: Judge) -> Iterator[tuple[str, str]]:
    if judge.about.get("model"):
        yield "Model", run.label(str(judge.about["model"]))
    yield "Family", str(judge.about.get("family", MISSING))
    if judge.people:
        yield "Labelled by people too", count(judge.people.get("n"))
        yield "Agrees with people", _with(judge.people, "observed", "low", "high")
        yield "Cohen's kappa", f"{_with(judge.people, 'kappa', 'kappa_low', 'kappa_high')}{_strength(judge.people)}"
        yield "Gwet's AC1", _with(judge.people, "ac1", "ac1_low", "ac1_high")
    steady = judge.told.get("steady") or {}
    if judge.about.get("orders", 1) > 1 and steady.get("share") is not None:
        yield "Same in all orders", f"{100 * steady['share']:.0f} % of {steady['n']:,}, {judge.about['orders']} orders"
    repeated = judge.told.get("repeated") or {}
    if repeated.get("asked"):
        same = _with(repeated, "observed", "low", "high")
        yield "Same when asked again", f"{same}, n = {repeated['n']:,}"
    elif judge.about.get("kind") != "endpoint":
        yield "Same when asked again", "computed: the same every time"
    cost = judge.cost
    if cost.get("seconds"):
        yield "Time", duration(cost["seconds"])
    if cost.get("tokens_read"):
        yield "Tokens read, written", f"{cost['tokens_read']:,}, {cost.get('tokens_written', 0):,}"
    if cost.get("cost") is not None:
        yield "Cost", f"{cost['cost']:.4g} by the recipe's prices"


def _with(row: Mapping[str, Any], name: str, low: str, high: str) -> str:
    return f"{number(row.get(name), 2)} {interval(row.get(low), row.get(high), 2)}".strip()


def _strength(row: Mapping[str, Any]) -> str:
    kappa = row.get("kappa")
    return "" if kappa is None else ", " + next(word for bound, word in STRENGTHS if kappa < bound)


def _share(run: Run, board: Board, found: Verdicts, judge: Judge, contender: str) -> Share:
    rows = judge.shares(contender)
    good = found.labels[0] if found.labels else ""
    told = judge.corrected(contender, good)
    versus = next((r for r in judge.told.get("comparisons") or () if r["contender"] == contender), None)
    return Share(
        run.label(contender),
        board.role_of(contender),
        bar(rows, found.labels),
        tuple((number(row["share"], 2), interval(row["low"], row["high"], 2)) for row in rows),
        rows[0]["n"] if rows else 0,
        rows[0]["unscored"] if rows else 0,
        _with(told, "share", "low", "high") if told else MISSING,
        str(versus["verdict"]) if versus else "",
    )


def bar(rows: Sequence[Row], labels: Sequence[str]) -> Markup:
    """One bar of all answers: a stretch for each label, and a dashed one for the unscored."""
    total = sum(row["count"] for row in rows) + (rows[0]["unscored"] if rows else 0)
    if not total:
        return Markup("")
    parts, at = [], 0.0
    named = [(str(row["label"]), row["count"], _look(str(row["label"]), labels)) for row in rows]
    for label, size, look in [*named, ("unscored", rows[0]["unscored"], "none")]:
        width = 100 * size / total
        if size:
            parts.append(
                f'<rect class="part l-{look}" x="{at:.2f}%" y="0" width="{width:.2f}%" height="18">'
                f"<title>{text(label)}: {size:,} of {total:,}</title></rect>"
            )
        at += width
    told = ", ".join(f"{label} {size:,}" for label, size, _ in named)
    return Markup(f'<svg class="shares" role="img" aria-label="{text(told)}">{"".join(parts)}</svg>')  # noqa: S704


def _look(label: str, labels: Sequence[str]) -> str:
    return {0: "good", 1: "bad"}.get(list(labels).index(label), "other")


def _confusion(found: Verdicts, judge: Judge) -> Iterator[tuple[str, tuple[tuple[int, int], ...]]]:
    """People's label, and how often the judge gave each, with a shade from 0 to 10."""
    table = judge.people.get("confusion")
    if not table or not judge.people.get("n"):
        return
    most = max(max(row) for row in table) or 1
    for label, row in zip(found.labels, table, strict=True):
        yield str(label), tuple((int(one), round(10 * one / most)) for one in row)


def _pair(run: Run, row: Row) -> tuple[str, ...]:
    return (
        f"{run.label(row['one'])} and {run.label(row['other'])}",
        count(row["n"]),
        _with(row, "observed", "low", "high"),
        f"{_with(row, 'kappa', 'kappa_low', 'kappa_high')}{_strength(row)}",
        _with(row, "ac1", "ac1_low", "ac1_high"),
    )


def _people(found: Verdicts) -> str:
    people = found.people
    if not people:
        return ""
    who = ", ".join(f"{name} ({labels:,})" for name, labels in people["who"].items())
    told = f"People labelled {people['answers']:,} answers: {who}."
    if people.get("stale"):
        told += f" {people['stale']:,} labels are of answers that have changed since, and do not count."
    among = people.get("among")
    if among and among.get("n"):
        kappa = _with(among, "kappa", "kappa_low", "kappa_high")
        told += f" Among themselves they agree with kappa {kappa}, n = {among['n']:,}."
    return told


def _examples(run: Run, board: Board, found: Verdicts) -> Iterator[Example]:
    """Answers on which judges part ways, then those that were found bad; of each judge step's own answers."""
    answers = next((i.step for i in found.step.inputs if i.field.split(".")[0] == "answers"), None)
    told = next((a for a in run.answers if a.step == answers), None)
    if told is None or not found.judges:
        return
    by = [{(r["id"], r["contender"]): r for r in _verdict_rows(found, judge)} for judge in found.judges]
    questions = {str(q["id"]): q for q in told.questions}
    good, bad = (*found.labels, "", "")[:2]
    parted, wrong, none = [], [], []
    for key in by[0]:
        said = [rows[key].get("verdict") for rows in by if key in rows]
        if {good, bad} <= set(said):
            parted.append(key)
        elif bad in said:
            wrong.append(key)
        elif None in said:
            none.append(key)
    halves = (EXAMPLES // 2, EXAMPLES - EXAMPLES // 2 - 1, 1)
    kinds = (("judges part ways", parted), (f"found {bad}", wrong), ("no verdict", none))
    for (why, keys), most in zip(kinds, halves, strict=True):
        for key in _spread(keys, most):
            identity, contender = key
            question = questions.get(str(identity), {})
            text_of = told.texts.get(contender, {}).get(str(identity), {})
            yield Example(
                why,
                run.label(contender),
                board.role_of(contender),
                "\n".join(str(m["content"]) for m in question.get("messages") or ()),
                str(question.get("reference", "")),
                str(text_of.get("text", "")),
                tuple(
                    (run.label(judge.name), str(rows[key].get("verdict") or "no verdict"), _why(rows[key]))
                    for judge, rows in zip(found.judges, by, strict=True)
                    if key in rows
                ),
            )


def _verdict_rows(found: Verdicts, judge: Judge) -> Iterator[Row]:
    return rows_of(found.step, f"verdicts/{judge.name.replace('/', '--')}.jsonl")


def _spread(keys: Sequence[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    kept = min(len(keys), most)
    return [keys[index * len(keys) // kept] for index in range(kept)]


def _why(row: Row) -> str:
    """What a verdict goes by, in short."""
    if row.get("why"):
        return cut(str(row["why"]), 200)
    if row.get("evidence"):
        found = row["evidence"]
        told = [f"support {found.get('support', 0):.2f}", f"coverage {found.get('coverage', 0):.2f}"]
        if found.get("similarity") is not None:
            told.append(f"similarity {found['similarity']:.2f}")
        told += [f"{name}: {', '.join(found[name])}" for name in ("numbers", "names") if found.get(name)]
        told += ["says the contrary"] if found.get("negated") else []
        told += ["declines or is empty"] if found.get("declined") else []
        return cut("; ".join(told), 200)
    if row.get("shares"):
        return ", ".join(f"{label} {share:.2f}" for label, share in row["shares"].items())
    return ""
