"""Let every judge of a step label every answer, one model in memory at a time, and sum up what they say.

    files/verdicts/<judge>.jsonl  id, contender, answer (its text's digest), verdict, shares, agree, why, evidence
    files/judges.json             name, kind, model, family, flags, orders
    files/summary.json            shares with intervals, comparisons, agreement between judges, places, repeatability
    files/about.json              rubric, labels, what answers were held against, counts
    measured/judges.json          seconds, tokens, cost, requests and retries of each judge

What a judge said is kept in the step's scratch as it comes (`asking`). Before the first question it is made sure that
every answer fits every judge that runs here. Costs the largest judge's size in memory.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from metier.core.beside import beside
from metier.core.errors import DataError, EndpointError
from metier.core.lines import Lines
from metier.core.measure import PeakMemory, Stopwatch
from metier.core.stage import Context
from metier.core.workers import SPREAD
from metier.engine.endpoint import Endpoint
from metier.engine.here import LocalEngine
from metier.engine.interface import Asking
from metier.engine.remote import RemoteEngine
from metier.engine.spread import SpreadEngine
from metier.judge.asking import Sheet, ask_all, settle
from metier.judge.cases import Material, cases_of, contenders_of, text_digest
from metier.judge.evidence import Thresholds, decide, look, merit
from metier.judge.flags import family_of, flags
from metier.judge.prompts import Case, pair_rubric
from metier.judge.rubric import Rubric
from metier.judge.stage import EVIDENCE, AnyJudge, EvidenceJudge, JudgeEndpoint, LocalJudge, verdicts_path
from metier.judge.summing import good_shares, summary
from metier.measure.metrics.interface import Answered
from metier.measure.metrics.similarity import semantic
from metier.models.load import load, read_config, read_tokenizer
from metier.models.placed import free, place
from metier.text.artifacts import write_json, write_jsonl
from metier.text.nouns import Answer, Question

if TYPE_CHECKING:
    from metier.judge.stage import Judge

MARGIN = 0.05
"""Merit by which the evidence judge calls one of two answers better."""
TICK = 200
NO_ROOM = "too long for the judge's context"
Row = dict[str, Any]


@dataclass(frozen=True)
class _Made:
    """One judge's verdicts, in the cases' order, and what is told of the judge."""

    about: Row
    verdicts: list[Row]
    results: list[Row]
    measured: Row


def judge_all(stage: "Judge", ctx: Context, rubric: Rubric) -> dict[str, float]:
    """Write a `verdicts` artifact. Returns each contender's share of the good label, by each judge."""
    folder = ctx.source(stage.answers).path
    material = cases_of(stage, folder)
    decided = pair_rubric(rubric) if stage.pairwise else rubric
    skipped = {name: dict(material.skipped) for name in stage.names}
    for one in stage.judges:
        if isinstance(one, LocalJudge):
            skipped[one.title] |= _without_room(stage, ctx, one, material, decided)
        elif isinstance(one, Endpoint):
            RemoteEngine(one, Asking(stage.max_new_tokens)).check()
    _tell_cost(stage, ctx, material, decided)
    known = contenders_of(folder)

    def verdicts_of(one: AnyJudge, name: str) -> Callable[[Callable[[], bool]], _Made]:
        return lambda stop: _judge(stage, replace(ctx, stop=stop), one, material, decided, skipped[name])

    works = [verdicts_of(one, name) for one, name in _named(stage)]
    judged = [work(ctx.stop) for work in works] if SPREAD.get() is None else beside(works, ctx.stop)
    made = dict(zip(stage.names, judged, strict=True))
    for name, found in made.items():
        found.about["flags"] = flags(stage.judges[stage.names.index(name)], ctx.source(stage.answers), known, ctx)
        path = verdicts_path(ctx.out, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, found.verdicts)
    _warn(ctx, made)
    whole = summary(
        {name: found.verdicts for name, found in made.items()},
        {name: found.results for name, found in made.items()},
        decided,
        material,
        confidence=stage.confidence,
    )
    write_json(ctx.out / "judges.json", [found.about for found in made.values()])
    write_json(ctx.out / "summary.json", whole)
    write_json(ctx.out / "about.json", _about(stage, decided, material))
    write_json(ctx.measured / "judges.json", {name: found.measured for name, found in made.items()})
    return good_shares(whole)


def _named(stage: "Judge") -> list[tuple[AnyJudge, str]]:
    return list(zip(stage.judges, stage.names, strict=True))


def _about(stage: "Judge", rubric: Rubric, material: Material) -> Row:
    return {
        "rubric": rubric.name,
        "title": rubric.title,
        "digest": rubric.digest,
        "labels": rubric.meanings,
        "good": rubric.good,
        "bad": rubric.bad,
        "by": stage.by,
        "against": stage.pairwise.against if stage.pairwise else None,
        "contenders": material.contenders,
        "questions": len({case.id for case in material.cases}),
        "answers": len(material.cases),
    }


def _judge(
    stage: "Judge", ctx: Context, one: AnyJudge, material: Material, rubric: Rubric, skipped: Mapping[int, str]
) -> _Made:
    ctx.check_stop()
    if isinstance(one, str | EvidenceJudge):
        return _by_evidence(ctx, one, material, rubric, skipped)
    name = one.title
    sheet = sheet_of(stage, one, material, rubric, skipped)
    kept = Lines(ctx.scratch / "asked" / f"{name.replace('/', '--')}.jsonl")
    with PeakMemory() as memory:
        about, spent = _ask(stage, ctx, one, name, sheet, kept)
    free()
    results = [kept.rows[request.key] | {"case": request.case, "again": request.again} for request in sheet.requests()]
    by_case: dict[int, list[Row]] = defaultdict(list)
    for row in results:
        if not row["again"]:
            by_case[row["case"]].append(row)
    verdicts = [
        _head(case) | ({"verdict": None, "why": skipped[i]} if i in skipped else settle(sheet, by_case[i]))
        for i, case in enumerate(material.cases)
    ]
    measured = {
        "seconds": sum(row["seconds"] for row in results),
        "tokens_read": sum(row["read"] for row in results),
        "tokens_written": sum(row["tokens"] for row in results),
        "peak_rss_bytes": memory.peak_bytes,
        **spent,
    }
    if isinstance(one, Endpoint) and one.prices is not None:
        measured["cost"] = one.prices.of(measured["tokens_read"], measured["tokens_written"])
    return _Made(about | {"orders": sheet.turns}, verdicts, results, measured)


def sheet_of(stage: "Judge", one: AnyJudge, material: Material, rubric: Rubric, skipped: Mapping[int, str]) -> Sheet:
    """What a judge with a model is asked."""
    letters = not isinstance(one, Endpoint) or one.choose == "logprobs"
    turns = (stage.orders or (len(rubric.labels) if letters else 1)) * (2 if stage.pairwise else 1)
    count = len(material.cases)
    wanted = min(stage.repeat, count) if isinstance(one, Endpoint) else 0
    repeated = tuple(index * count // wanted for index in range(wanted))
    return Sheet(material.cases, rubric, f"metier {stage.seed}", letters, turns, repeated, frozenset(skipped))


def _ask(
    stage: "Judge", ctx: Context, one: JudgeEndpoint | LocalJudge, name: str, sheet: Sheet, kept: Lines
) -> tuple[Row, Row]:
    """Ask what is not kept yet. Returns what is told of the judge, and what asking cost."""
    if isinstance(one, JudgeEndpoint):
        left = _with_budget_left(one, kept)
        remote = RemoteEngine(left, Asking(stage.max_new_tokens), cache=ctx.cache)
        ask_all(ctx, name, remote, sheet, kept)
        how = "log-probabilities" if sheet.letters else "JSON"
        about: Row = {"name": name, "kind": "endpoint", "model": one.model, "how": how}
        spent = {key: value for key, value in remote.spent.row().items() if key in ("requests", "retries", "kept")}
        return about | {"family": one.family or family_of(one.model)}, spent
    about = {"name": name, "kind": "model", "model": one.model, "how": "log-probabilities"}
    about["family"] = one.family or family_of(one.model, ctx.source(one.model).path)
    if all(request.key in kept.rows for request in sheet.requests()):
        ctx.events.note(f"{name}: all verdicts kept from the run before")
        return about, {}
    requests = sheet.requests()
    called = [f"question {sheet.cases[r.case].id}, answer of {sheet.cases[r.case].contender}" for r in requests]
    folder, dtype, spread = ctx.source(one.model).path, getattr(torch, one.dtype), SPREAD.get()
    if spread is not None:
        ask_all(ctx, name, SpreadEngine(spread, folder, Asking(1), dtype=dtype, name=name, called=called), sheet, kept)
        return about, {}
    loaded = place(load(folder, dtype=dtype), ctx.events.warning)
    ask_all(ctx, name, LocalEngine(loaded, Asking(1), name=name, called=called.__getitem__), sheet, kept)
    return about, {}


def _with_budget_left(one: JudgeEndpoint, kept: Lines) -> JudgeEndpoint:
    """The endpoint with its budget less what earlier runs of the step spent. Raises EndpointError where that is all."""
    if one.budget is None or one.prices is None or not kept.rows:
        return one
    read, written = (sum(row[name] for row in kept.rows.values()) for name in ("read", "tokens"))
    spent = one.prices.of(read, written)
    if spent >= one.budget:
        raise EndpointError(
            f"the budget of {one.budget:g} is spent by earlier runs of this step ({spent:.4g})",
            where=one.endpoint,
            cure="raise `budget` and run the same command again: the verdicts that came are kept",
        )
    return one.model_copy(update={"budget": one.budget - spent})


def _without_room(stage: "Judge", ctx: Context, one: LocalJudge, material: Material, rubric: Rubric) -> dict[int, str]:
    """Cases that do not fit a judge's context; refused unless the step skips them. Reads no weights."""
    folder = ctx.source(one.model).path
    config: Any = read_config(folder)
    tokenizer = read_tokenizer(folder)
    context = int(config.get_text_config().max_position_embeddings)
    sheet = sheet_of(stage, one, material, rubric, material.skipped)
    found: dict[int, str] = {}
    for request in sheet.requests():
        if request.turn or request.case in found:
            continue
        ctx.check_stop()
        prompt, _ = sheet.prompt(request)
        text = prompt[0].content
        if len(text) < context:  # no token is shorter than a character, but for a few of the template's
            continue
        tokens = len(tokenizer.encode(text)) + TEMPLATE_TOKENS
        if tokens <= context:
            continue
        case = material.cases[request.case]
        if stage.overflow == "stop":
            raise DataError(
                f"question, evidence and answer exceed the {context} tokens that the judge {one.title!r} can read",
                where=f"question {case.id}, answer of {case.contender}",
                value=f"{tokens} tokens with the rubric",
                cure="shorten the reference, use a judge that reads more, or set `overflow: skip`",
            )
        found[request.case] = NO_ROOM
    return found


TEMPLATE_TOKENS = 24
"""Tokens that a chat template may write around one message, and the answer's letter."""


def _tell_cost(stage: "Judge", ctx: Context, material: Material, rubric: Rubric) -> None:
    """Before the first question: how many there are for each endpoint, and what they may cost at most."""
    for one in stage.judges:
        if not isinstance(one, JudgeEndpoint):
            continue
        sheet = sheet_of(stage, one, material, rubric, material.skipped)
        requests = sheet.requests()
        size = sum(len(sheet.prompt(request)[0][0].content) for request in requests)
        most = one.most(size, 1 if sheet.letters else stage.max_new_tokens, len(requests))
        cost = "" if most is None else f", at most {most:.3g} by the recipe's prices"
        if most is not None and one.budget is not None and most > one.budget:
            cost += f", which is over the budget of {one.budget:g}: it may stop before the end"
        ctx.events.note(f"{one.title}: {len(requests)} questions of {size:,} characters in all{cost}")


def _warn(ctx: Context, made: Mapping[str, _Made]) -> None:
    for name, found in made.items():
        none = sum(row["verdict"] is None for row in found.verdicts)
        if none:
            ctx.events.warning(f"{name}: {none} of {len(found.verdicts)} answers are unscored (see `why`)")
        for flag in found.about["flags"]:
            ctx.events.warning(f"{name}: {flag}")
    families = [found.about["family"] for found in made.values() if found.about["kind"] != EVIDENCE]
    if len(families) > 1 and len(set(families)) == 1:
        ctx.events.warning(f"all judges with a model are of the family {families[0]}: they may share their errors")


def _head(case: Case) -> Row:
    return {"id": case.id, "contender": case.contender, "answer": text_digest(case.answer)}


# ---- the judge without a large model -------------------------------------------------------------------------------


def _by_evidence(
    ctx: Context, one: str | EvidenceJudge, material: Material, rubric: Rubric, skipped: Mapping[int, str]
) -> _Made:
    watch = Stopwatch()
    encoder = None if isinstance(one, str) else one.evidence
    folder = None if encoder is None else ctx.source(encoder).path
    alike = _similarities(material.cases, folder, other=False)
    rivals = _similarities(material.cases, folder, other=True)
    verdicts: list[Row] = []
    for index, case in enumerate(material.cases):
        ctx.check_stop()
        if index % TICK == 0:
            ctx.events.progress(EVIDENCE, index, len(material.cases), unit="verdicts")
        if index in skipped:
            verdicts.append(_head(case) | {"verdict": None, "why": skipped[index]})
            continue
        found = look(case.answer, list(case.evidence.values()), case.question, alike[index])
        if case.other is None:
            label = decide(found, Thresholds())
        else:
            rival = look(case.other, list(case.evidence.values()), case.question, rivals[index])
            gap = merit(found) - merit(rival)
            label = 2 if abs(gap) < MARGIN else int(gap < 0)
        verdicts.append(_head(case) | {"verdict": rubric.labels[label], "evidence": found.row()})
    ctx.events.progress(EVIDENCE, len(material.cases), len(material.cases), unit="verdicts")
    about: Row = {"name": EVIDENCE, "kind": EVIDENCE, "model": encoder, "how": "words", "family": EVIDENCE, "orders": 1}
    return _Made(about, verdicts, [], {"seconds": watch.seconds})


def _similarities(cases: list[Case], folder: Path | None, *, other: bool) -> list[float | None]:
    """Cosine of each case's answer (or the other one) and its evidence; None without an encoder."""
    if folder is None or (other and (not cases or cases[0].other is None)):
        return [None] * len(cases)
    items = []
    for case in cases:
        text = case.other if other and case.other is not None else case.answer
        question = Question(case.id, (), "\n".join(case.evidence.values()))
        items.append(Answered(question, Answer(case.id, text, 0, True)))
    return list(semantic(items, folder))
