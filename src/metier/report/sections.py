"""The parts of the page that are worked out rather than copied: headline, plots of scores, training curves, limits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from markupsafe import Markup

from metier.report import plots
from metier.report.collect import Contender, Run, Score, Scores, Step, Versus
from metier.report.leaderboard import Board
from metier.report.wording import group, interval, method, metric, number, signed


@dataclass(frozen=True)
class Sentence:
    """A line of the headline. verdict: its last word, or empty."""

    text: str
    verdict: str = ""


@dataclass(frozen=True)
class Bar:
    """A row of a forest plot."""

    name: str
    role: str
    track: Markup
    value: str
    interval: str
    n: int


@dataclass(frozen=True)
class Difference:
    """A paired comparison as a row."""

    name: str
    role: str
    against: str
    track: Markup
    value: str
    interval: str
    verdict: str
    p: float | None
    n: int
    detectable: str


@dataclass(frozen=True)
class Forest:
    """The plot of one metric on one group, and the differences behind it."""

    group: str
    title: str
    note: str
    bars: tuple[Bar, ...]
    axis: Markup
    differences: tuple[Difference, ...]
    difference_axis: Markup


@dataclass(frozen=True)
class Block:
    """All groups of one metric of one step. first: the metric to look at first; methods: how intervals were made."""

    step: str
    metric: str
    title: str
    meaning: str
    first: bool
    confidence: float
    forests: tuple[Forest, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Curves:
    """The training of one step. sentence: what it came to."""

    step: Step
    sentence: str
    loss: Markup
    rate: Markup
    has_dev: bool


# --- headline ---------------------------------------------------------------------------------------------------------


def headline(run: Run, board: Board) -> list[Sentence]:
    """What the run found, in words with numbers; what was trained, where nothing was scored."""
    specialist = board.role("specialist") or board.role("base")
    found: list[Sentence] = []
    if board.scores and board.metric and specialist and not board.scores.of_text:
        found += _answers_headline(run, board.scores, board.metric, specialist, board)
        found += [Sentence(near) for p in board.places if (near := near_references(run, board, p.contender.name))]
    for scores in run.scores:
        if scores.of_text and specialist:
            found += _text_headline(run, scores, specialist)
    if not found:
        found = [Sentence(_training_sentence(step)) for step in run.steps if step.training]
        found.append(Sentence("Nothing was scored, so this page cannot say whether the model became better."))
    return found


def _answers_headline(run: Run, scores: Scores, name: str, specialist: Contender, board: Board) -> Iterable[Sentence]:
    said, base = metric(name), board.role("base")
    mine = scores.row(specialist.name, name, "all")
    if mine is None:
        return
    reached = f"{'an' if said.title[:1] in 'aeio' else 'a'} {said.title} of {_value(mine, said.digits)}"
    text = f"On {mine.n:,} test questions, {run.label(specialist.name)} reaches {reached}"
    theirs = scores.row(base.name, name, "all") if base else None
    if base is None or theirs is None or base is specialist:
        yield Sentence(f"{text}. It was compared with nothing.")
        return
    yield Sentence(
        f"{text}; the base, {run.label(base.name)}, {_value(theirs, said.digits)}.", _verdict(mine, base.name)
    )
    rival = board.role("comparison")
    if rival is None:
        return
    for group_name in scores.groups():
        mine, theirs = scores.row(specialist.name, name, group_name), scores.row(rival.name, name, group_name)
        if mine is None or theirs is None:
            continue
        title, _ = group(group_name)
        which = f"all {mine.n:,} questions" if group_name == "all" else f"the {mine.n:,} “{title}” questions"
        yield Sentence(
            f"Against the comparison run {run.label(rival.name)}, on {which}: {_value(mine, said.digits)} to "
            f"{_value(theirs, said.digits)}.",
            _verdict(mine, rival.name),
        )


def near_references(run: Run, board: Board, name: str) -> str:
    """A sentence where a model is not clearly past the best contender that needs no model, by their intervals."""
    score = next((p.score for p in board.places if p.contender.name == name and p.role != "reference"), None)
    trivial = [p for p in board.places if p.contender.kind == "trivial" and p.score]
    if score is None or not trivial or board.higher_is_better is None or board.metric is None:
        return ""
    sign = 1 if board.higher_is_better else -1
    best = max(trivial, key=lambda p: sign * p.score.mean if p.score else 0.0)
    other = best.score
    if other is None or None in (score.low, score.high, other.low, other.high):
        return ""
    near = score.low <= other.high if sign > 0 else score.high >= other.low  # type: ignore[operator]
    if not near:
        return ""
    digits = metric(board.metric).digits
    return (
        f"{run.label(name)} ({_value(score, digits)}) is not clearly past the trivial baseline "
        f"“{run.label(best.contender.name)}” ({_value(other, digits)}), which needs no model."
    )


def _text_headline(run: Run, scores: Scores, specialist: Contender) -> Iterable[Sentence]:
    name = scores.metrics()[0] if scores.rows else ""
    said = metric(name)
    for group_name in scores.groups():
        mine, base = scores.row(specialist.name, name, group_name), scores.row(scores.baseline, name, group_name)
        if group_name == "all" or mine is None:
            continue
        text = (
            f"On held-out {text_kind(run, group_name)} text ({group_name}), {run.label(specialist.name)} needs "
            f"{_value(mine, said.digits)} {said.title}"
        )
        if base is None or base is mine:
            yield Sentence(f"{text}. It was compared with nothing.")
        else:
            yield Sentence(f"{text}; the base {_value(base, said.digits)}.", _verdict(mine, scores.baseline))


def text_kind(run: Run, documents: str) -> str:
    """`domain` for documents that some training step read, `general` for all others."""
    trained = {i.step or i.value for s in run.steps if s.training for i in s.inputs}
    return "domain" if documents.removesuffix(" (clean)") in trained else "general"


def _value(row: Score, digits: int) -> str:
    return f"{number(row.mean, digits)} {interval(row.low, row.high, digits)}".strip()


def _verdict(row: Score, against: str) -> str:
    return next((v.verdict for v in row.versus if v.against == against), "")


# --- scores -----------------------------------------------------------------------------------------------------------


def blocks(run: Run, board: Board, *, of_text: bool) -> list[Block]:
    """One block for each metric of each step that scored answers in the trade (or, of_text, running text)."""
    return blocks_of(run, board, [s for s in run.scores if s.rows and s.of_text == of_text and not s.apart])


def blocks_of(run: Run, board: Board, chosen: Iterable[Scores]) -> list[Block]:
    """One block for each metric of these steps."""
    found = []
    for scores in chosen:
        names = scores.metrics()
        if board.scores is scores and board.metric in names:
            names.sort(key=lambda name: name != board.metric)
        for name in names:
            found.append(_block(run, board, scores, name, first=name == names[0]))
    return found


def _block(run: Run, board: Board, scores: Scores, name: str, *, first: bool) -> Block:
    said = metric(name)
    rows = [r for r in scores.rows if r.metric == name]
    order = {p.contender.name: i for i, p in enumerate(board.places)}
    forests = []
    for group_name in scores.groups():
        members = sorted((r for r in rows if r.group == group_name), key=lambda r: order[r.contender])
        if not members or (scores.of_text and group_name == "all" and len(scores.groups()) > 1):
            continue
        # Groups of questions share their axes, to be compared; texts differ too much for that.
        shown = members if scores.of_text else rows
        axis = plots.scale(_ends((r.mean, r.low, r.high) for r in shown), bounded=said.bounded)
        wide = plots.scale([0.0, *_ends((v.difference, v.low, v.high) for r in shown for v in r.versus)], wanted=2)
        title, note = (
            (f"{group_name}: {text_kind(run, group_name)} text", _text_note(run, group_name))
            if scores.of_text
            else group(group_name)
        )
        forests.append(
            Forest(
                group_name,
                title,
                note,
                tuple(_bar(run, r, axis, board.role_of(r.contender), said.digits) for r in members),
                plots.axis_row(axis),
                tuple(_difference(run, r, v, wide, board, said.digits) for r in members for v in r.versus),
                plots.axis_row(wide),
            )
        )
    methods = tuple(dict.fromkeys(method(r.method) for r in rows if r.method))
    return Block(scores.step, name, said.title, said.meaning, first, scores.confidence, tuple(forests), methods)


def _text_note(run: Run, documents: str) -> str:
    return (
        "Held-out documents of the kind that was read in training."
        if text_kind(run, documents) == "domain"
        else "Text that no step was trained on: where a model gets worse here, it has forgotten."
    )


def _ends(rows: Iterable[tuple[float | None, ...]]) -> list[float]:
    return [value for row in rows for value in row if value is not None]


def _bar(run: Run, row: Score, axis: plots.Scale, role: str, digits: int) -> Bar:
    drawn = plots.track(axis, row.mean, row.low, row.high, role=role)
    return Bar(
        run.label(row.contender), role, drawn, number(row.mean, digits), interval(row.low, row.high, digits), row.n
    )


def _difference(run: Run, row: Score, versus: Versus, axis: plots.Scale, board: Board, digits: int) -> Difference:
    role = board.role_of(row.contender)
    return Difference(
        name=run.label(row.contender),
        role=role,
        against=run.label(versus.against),
        track=plots.track(axis, versus.difference, versus.low, versus.high, role=role, zero=True),
        value=signed(versus.difference, digits),
        interval=interval(versus.low, versus.high, digits),
        verdict=versus.verdict,
        p=versus.p if versus.p_holm is None else versus.p_holm,
        n=row.n,
        detectable=number(versus.detectable, digits),
    )


# --- training ---------------------------------------------------------------------------------------------------------


def training(run: Run) -> list[Curves]:
    """The curves of each step that trained a model."""
    return [_curves(step) for step in run.steps if step.training and step.training.points]


def _curves(step: Step) -> Curves:
    assert step.training is not None
    points, dev = step.training.points, step.training.dev
    by_tokens = all(p.get("tokens") is not None for p in points)
    reached = {0: 0.0, **{p["step"]: float(p["tokens"]) for p in points}} if by_tokens else {}
    # Dev rows carry a step; those between two logged steps have no token count, and then steps are the common axis.
    if any(d["step"] not in reached for d in dev):
        by_tokens = False

    def x(row: Mapping[str, float]) -> float:
        return reached[row["step"]] if by_tokens else float(row["step"])

    axis = "tokens" if by_tokens else "steps"
    lines = [plots.Line("loss", "loss", [(x(p), float(p["loss"])) for p in points])]
    if dev:
        lines.append(plots.Line("dev loss", "dev", [(x(d), float(d["dev_loss"])) for d in dev], dots=True))
    rates = [(x(p), float(p["learning_rate"])) for p in points if p.get("learning_rate") is not None]
    return Curves(
        step,
        _training_sentence(step),
        plots.curves(lines, title=f"Loss of {step.name} over {axis}", x_label=axis),
        plots.curves(
            [plots.Line("learning rate", "rate", rates)],
            title=f"Learning rate of {step.name}",
            x_label=axis,
            small=True,
        )
        if rates
        else Markup(""),
        bool(dev),
    )


def _training_sentence(step: Step) -> str:
    assert step.training is not None
    points, dev = step.training.points, step.training.dev
    parts = []
    if points:
        parts.append(f"loss {number(points[0]['loss'], 3)} at first, {number(points[-1]['loss'], 3)} at the end")
    if dev:
        best = min(dev, key=lambda d: float(d["dev_loss"]))
        parts.append(
            f"dev loss {number(dev[0]['dev_loss'], 3)} at first, lowest {number(best['dev_loss'], 3)} at step "
            f"{best['step']:,}"
        )
    return f"{step.name}: {'; '.join(parts)}." if parts else f"{step.name} was trained."


# --- limits -----------------------------------------------------------------------------------------------------------


def limits(run: Run, board: Board) -> list[str]:
    """What the page does not show. Most of it always holds."""
    found = [
        "One seed. Another seed gives another model; the intervals here cover the choice of test items, "
        "not the luck of a training run.",
    ]
    scored = [s for s in run.scores if s.rows]
    smallest = min((r.n for s in scored for r in s.rows), default=None)
    if smallest is not None:
        found.append(
            f"The smallest group has {smallest:,} items. “No evidence of a difference” does not mean equal: "
            "a difference smaller than the one named as detectable would mostly have been missed."
        )
        found.append(
            "The test says something about questions like those in it, from the same source; nothing about others."
        )
    if any(not s.of_text for s in scored):
        found.append(
            "The scores are automatic and compare words with one reference. They do not see a right answer said "
            "otherwise, nor a wrong one that shares its words with the reference. Nobody has judged the answers."
        )
    if not scored:
        found.append("Nothing was scored: a lower training loss is not evidence of better answers.")
    elif not any(s.of_text for s in scored):
        found.append("What the model has forgotten was not measured.")
    if board.role("comparison") is None and scored:
        found.append("There is no comparison run, so what each stage contributed cannot be told apart.")
    found.append("Speed and memory hold for this machine and its load at the time.")
    if any(s.of_refusing for s in scored):
        found.append(
            "What is declined was tested on prompts like those shown, one turn each. Attacks, bias and what happens "
            "when the model is asked things outside its trade were not tested."
        )
    else:
        found.append("Safety, bias and what happens when the model is asked things outside its trade were not tested.")
    if any(s.of_knowledge for s in scored):
        found.append("What is left of forgotten knowledge was looked for in one way: other wordings may still find it.")
    return found
