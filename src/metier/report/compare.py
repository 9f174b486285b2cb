"""`metier compare A B`: any two runs, steps or contenders, item by item where they were asked the same.

Items are paired where id, messages and reference are equal (of running text: documents step, id and size), over what
both answered; where nothing is, it says so instead of comparing means of different tests. Statistics are those of
`score`: paired intervals and tests, one Holm family over all that is shown, the same verdict words. Figures of a whole
set, such as corpus BLEU, have no items to pair and are left out, by name. Page and JSON also hold the answers that
changed most, in either direction.

Reads the store alone: what each step of a recipe last made. Costs one pass over both sides' items.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metier.core.errors import InputError, nearest
from metier.core.store import Artifact, Store
from metier.report.changed import Changed, Speaker, changed
from metier.report.collect import Answers, Run, Scores, collect, rows_of
from metier.report.leaderboard import rank
from metier.report.samples import RIGHT, WRONG
from metier.report.spreadsheet import Cell, sheet
from metier.report.wording import metric

Key = tuple[str, str]
"""What an item is known by: (group of texts or empty, id)."""
Row = dict[str, Any]
PUBLISHED = "leaderboards_full.json"
HEAD = (
    "metric", "group", "n", "a", "a_mean", "a_low", "a_high", "b", "b_mean", "b_low", "b_high", "difference", "low",
    "high", "p", "p_holm", "verdict", "detectable", "a_step", "b_step",
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One of the two. name: `recipe/contender`. step: the one score step to look at, or None for all."""

    name: str
    run: Run
    contender: str
    step: str | None


@dataclass(frozen=True)
class Compared:
    """One metric on one group, for both. difference: A minus B; None where the metric has no better side."""

    metric: str
    group: str
    n: int
    a_mean: float
    a_low: float | None
    a_high: float | None
    b_mean: float
    b_low: float | None
    b_high: float | None
    higher_is_better: bool | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    verdict: str
    detectable: float | None
    method: str
    a_step: str
    b_step: str


@dataclass(frozen=True)
class Comparison:
    """A against B. notes: what could not be paired, and why. changed: the answers that differ most, if any do."""

    a: str
    b: str
    confidence: float
    rows: tuple[Compared, ...]
    notes: tuple[str, ...]
    changed: Changed | None = None


# --- who is meant -----------------------------------------------------------------------------------------------------


def find(text: str, store: Store) -> Side:
    """Who `text` names: a folder in `runs/`, a recipe, or recipe/step or recipe/contender. Raises InputError."""
    recipe, rest = _parted(text, store)
    run = _open(recipe, store)
    names = [c.name for c in run.contenders()]
    if not names:
        raise InputError("nobody was asked or scored in this run", where=text, cure="add an answer and a score step")
    if rest in names:
        return Side(f"{recipe}/{rest}", run, rest, None)
    labels = [name for name in names if run.label(name) == rest]
    if len(labels) == 1:
        return Side(f"{recipe}/{rest}", run, labels[0], None)
    board = rank(run)
    chosen = board.role("specialist") or board.role("base")
    assert chosen is not None
    if not rest:
        return Side(f"{recipe}/{run.label(chosen.name)}", run, chosen.name, None)
    for scores in run.scores:
        if rest in (scores.step, scores.answers):
            return Side(f"{recipe}/{run.label(chosen.name)} ({scores.step})", run, chosen.name, scores.step)
    known = [*names, *(s.step for s in run.scores)]
    raise InputError(
        f"the run {recipe!r} has no contender and no score step of that name", where=text, value=rest,
        cure=nearest(rest, known),
    )  # fmt: skip


def _parted(text: str, store: Store) -> tuple[str, str]:
    """The recipe, and what of it."""
    path = Path(text)
    for folder in (path, *path.parents):
        if folder.name and (folder / PUBLISHED).is_file():
            rest = path.relative_to(folder).as_posix()
            return folder.resolve().name, "" if rest == "." else rest
    recipe, _, rest = text.rstrip("/").partition("/")
    known = sorted(p.name for p in (store.root / "refs").glob("*") if p.is_dir())
    if recipe not in known:
        raise InputError(
            "there is no run of that name in the store", where=text, value=recipe,
            cure=nearest(recipe, known) if known else "run a recipe first, or name its store with --store",
        )  # fmt: skip
    return recipe, rest


def _open(recipe: str, store: Store) -> Run:
    """What the recipe's steps last made, in the order in which they were made."""
    found: dict[str, Artifact] = {}
    for path in sorted((store.root / "refs" / recipe).glob("*")):
        artifact = None if path.name.startswith(".") else store.ref(recipe, path.name)
        if artifact is not None:
            found[path.name] = artifact
    order = sorted(found, key=lambda name: (str(found[name].record.get("started", "")), name))
    return collect({name: (found[name].record.get("config") or {}, found[name]) for name in order}, recipe)


# --- the comparison ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Items:
    """One contender's items in one score step. asked: what was asked, by key; values: the item's row, by key.

    answers: the step that was scored, where there is one with questions.
    """

    contender: str
    answers: Answers | None
    scores: Scores
    asked: Mapping[Key, object]
    values: Mapping[Key, Row]
    seen: frozenset[str]


def compare(a: Side, b: Side, *, confidence: float = 0.95) -> Comparison:
    """A against B. Raises InputError where they are the same, or have no item in common."""
    if a.name == b.name and _digests(a) == _digests(b):
        raise InputError("both sides are the same", where=a.name, cure="name two different ones")
    names = (a.name, b.name) if a.name != b.name else (f"{a.name} (first)", f"{b.name} (second)")
    notes: list[str] = []
    columns: list[Any] = []
    steps: list[tuple[str, str]] = []
    most: Changed | None = None
    theirs = list(_items(b))
    for mine in _items(a):
        other, shared = _best(mine, theirs)
        if other is None or not shared:
            notes.append(f"{mine.scores.step}: not compared, since the other side was not asked the same")
            continue
        left = len(mine.asked) + len(other.asked) - 2 * len(shared)
        if left:
            notes.append(
                f"{mine.scores.step}: {len(shared):,} items in common; {left:,} that only one side was asked, or that "
                "differ, are left out"
            )
        made = _columns(names, mine, other, shared, notes)
        columns += made
        most = most or _changed(names, mine, other, shared, made)
        steps += [(mine.scores.step, other.scores.step)] * len(made)
    if not columns:
        raise InputError(
            "they cannot be compared item by item: no question, with its reference, and no metric is common to both",
            where=f"{a.name} and {b.name}",
            cure="let both answer the same questions in one recipe, and score them",
        )
    return Comparison(*names, confidence, tuple(_tabled(columns, steps, names, confidence)), tuple(notes), most)


def _digests(side: Side) -> list[str]:
    return [side.contender, side.step or "", *(s.artifact.key for s in side.run.steps if s.produces == "scores")]


def _items(side: Side) -> Iterable[_Items]:
    for scores in side.run.scores:
        if side.step not in (None, scores.step):
            continue
        step = side.run.step(scores.step)
        if step is None:
            continue
        grouped = scores.of_text or scores.answers is None  # ids are then unique within a group alone
        values: dict[Key, Row] = {}
        for row in rows_of(step, "items.jsonl"):
            if str(row.get("contender")) == side.contender:
                values[str(row["group"]) if grouped else "", str(row["id"])] = row
        if not values:
            continue
        asked: dict[Key, object] = {key: (row.get("bytes"), row.get("label")) for key, row in values.items()}
        source = side.run.step(scores.answers) if scores.answers else None
        if source is not None:
            asked = {
                ("", str(q["id"])): (str(q.get("messages")), q.get("reference"))
                for q in rows_of(source, "questions.jsonl")
            }
        answers = next((x for x in side.run.answers if x.step == scores.answers), None)
        exposure = answers.exposure if answers else {}
        seen = ((exposure.get("contenders") or {}).get(side.contender) or {}).get("seen") or ()
        told = {key: row for key, row in values.items() if key in asked}
        yield _Items(side.contender, answers, scores, asked, told, frozenset(map(str, seen)))


def _best(mine: _Items, theirs: Sequence[_Items]) -> tuple[_Items | None, list[Key]]:
    """The step of the other side with most items in common, and those; a shared metric counts before that."""
    found: list[tuple[int, int, int]] = []
    pairs: list[tuple[_Items, list[Key]]] = []
    for place, other in enumerate(theirs):
        shared = [key for key in mine.values if key in other.values and mine.asked[key] == other.asked[key]]
        common = set(mine.scores.metrics()) & set(other.scores.metrics())
        if shared and common and mine.scores.of_text == other.scores.of_text:
            found.append((len(shared), len(common), -place))
            pairs.append((other, shared))
    return pairs[found.index(max(found))] if found else (None, [])


def _columns(names: tuple[str, str], mine: _Items, other: _Items, shared: list[Key], notes: list[str]) -> list[Any]:
    """Both sides' columns, A's before B's, for each shared metric and group."""
    if mine.scores.of_text:
        from metier.evaluate.reading import columns

        both = ((names[0], mine), (names[1], other))
        rows = [dict(items.values[key], contender=name) for name, items in both for key in shared]
        return _paired(columns(rows), names)
    from metier.evaluate.table import ALL, CLEAN, Column

    groups = {ALL: shared}
    clean = [key for key in shared if key[1] not in mine.seen | other.seen]
    if 0 < len(clean) < len(shared):
        groups[CLEAN] = clean
    for key in shared:
        name = str(mine.values[key].get("group", ""))
        if name:
            groups.setdefault(name, []).append(key)
    if len(groups) == 2 and CLEAN not in groups:
        groups = {ALL: shared}
    made: list[Any] = []
    for name_of in (m for m in mine.scores.metrics() if m in other.scores.metrics()):
        about = {k for k in shared if all(isinstance(i.values[k].get(name_of), int | float) for i in (mine, other))}
        if not about:
            notes.append(f"{name_of}: a figure of the whole set, which has no items to pair")
            continue
        better = next(r.higher_is_better for r in mine.scores.rows if r.metric == name_of)
        everything = {float(i.values[k][name_of]) for i in (mine, other) for k in about}
        for group, members in groups.items():
            keys = [key for key in members if key in about]
            if not keys or (len(about) < len(shared) and group != ALL and len(keys) == len(about)):
                continue  # of a metric that is about one group alone, that group is all
            for name, items in zip(names, (mine, other), strict=True):
                values = [float(items.values[key][name_of]) for key in keys]
                made.append(
                    Column(
                        name,
                        name_of,
                        group,
                        values,
                        better,
                        bounded=all(0 <= v <= 1 for v in everything),
                        binary=everything <= {0.0, 1.0},
                    )
                )
    return made


def _changed(
    names: tuple[str, str], mine: _Items, other: _Items, shared: Sequence[Key], columns: Sequence[Any]
) -> Changed | None:
    """The answers that changed most, by the first metric of the columns that has a better side."""
    by = next((c for c in columns if c.higher_is_better is not None), None)
    if by is None or mine.answers is None or other.answers is None or any(group for group, _ in shared):
        return None
    ids = [key[1] for key in shared]
    a = Speaker(names[0], "specialist", mine.contender, mine.answers, {key[1]: mine.values[key] for key in shared})
    b = Speaker(names[1], "base", other.contender, other.answers, {key[1]: other.values[key] for key in shared})
    return changed(a, b, ids, by.metric, higher_is_better=by.higher_is_better)


def _paired(columns: Sequence[Any], names: tuple[str, str]) -> list[Any]:
    """A's column before B's of each metric and group."""
    return sorted(
        columns,
        key=lambda c: (
            [(d.metric, d.group) for d in columns].index((c.metric, c.group)),
            names.index(c.contender),
        ),
    )


def _tabled(
    columns: list[Any], steps: list[tuple[str, str]], names: tuple[str, str], confidence: float
) -> Iterable[Compared]:
    """One family of comparisons over everything shown: rows are numbered so that steps cannot be mixed up."""
    from dataclasses import replace

    from metier.evaluate.table import Settings, table

    numbered = [replace(c, group=f"{place // 2}:{c.group}") for place, c in enumerate(columns)]
    rows = table(numbered, Settings((names[1],), confidence))["rows"]
    for place in range(0, len(rows), 2):
        one, other = rows[place], rows[place + 1]
        versus = one["versus"][0] if one["versus"] else {}
        yield Compared(
            metric=one["metric"],
            group=columns[place].group,
            n=one["n"],
            a_mean=one["mean"],
            a_low=one["low"],
            a_high=one["high"],
            b_mean=other["mean"],
            b_low=other["low"],
            b_high=other["high"],
            higher_is_better=one["higher_is_better"],
            difference=versus.get("difference"),
            low=versus.get("low"),
            high=versus.get("high"),
            p=versus.get("p"),
            p_holm=versus.get("p_holm"),
            verdict=versus.get("verdict", ""),
            detectable=versus.get("detectable"),
            method=versus.get("method", one["method"]),
            a_step=steps[place][0],
            b_step=steps[place][1],
        )


# --- how it is written ------------------------------------------------------------------------------------------------


def as_json(found: Comparison) -> Row:
    """For programs."""
    return {"format": 1, **asdict(found)}


def as_csv(found: Comparison) -> str:
    """For spreadsheets, a line for each metric and group."""
    lines: list[list[Cell | bool]] = []
    for r in found.rows:
        lines.append(
            [
                r.metric,
                r.group,
                r.n,
                found.a,
                r.a_mean,
                r.a_low,
                r.a_high,
                found.b,
                r.b_mean,
                r.b_low,
                r.b_high,
                r.difference,
                r.low,
                r.high,
                r.p,
                r.p_holm,
                r.verdict,
                r.detectable,
                r.a_step,
                r.b_step,
            ]
        )
    return sheet(HEAD, lines)


def as_page(found: Comparison) -> str:
    """One self-contained page."""
    from metier.report import plots
    from metier.report.page import environment

    reach: dict[str, float] = {}
    for r in found.rows:
        most = max((abs(v) for v in (r.difference, r.low, r.high) if v is not None), default=0.0)
        reach[r.metric] = max(reach.get(r.metric, 0.0), most / _unit(r))
    tracks = []
    for r in found.rows:
        drawn: object = ""
        if r.difference is not None and reach[r.metric] > 0:
            factor = (-1 if r.higher_is_better is False else 1) / _unit(r)
            ends = (r.low, r.high) if factor > 0 else (r.high, r.low)
            low, high = (None if v is None else factor * v for v in ends)
            axis = plots.Scale(-1.08 * reach[r.metric], 1.08 * reach[r.metric], (), 0)
            role = r.verdict if r.verdict in ("better", "worse") else "even"
            drawn = plots.track(axis, factor * r.difference, low, high, role=role, zero=True)
        tracks.append(drawn)
    made = environment(str)
    return made.get_template("compare.html.j2").render(
        found=found,
        changed=found.changed,
        metric=metric(found.changed.metric) if found.changed else None,
        thresholds=(RIGHT, WRONG),
        rows=list(zip(found.rows, tracks, [metric(r.metric) for r in found.rows], strict=True)),
    )


def _unit(row: Compared) -> float:
    """What a difference is drawn in: shares as they are, anything else as a share of B."""
    return 1.0 if metric(row.metric).bounded or row.b_mean <= 0 else row.b_mean
