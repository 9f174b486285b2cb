"""A teacher model asked of every passage: the estimate first, then rounds of questions, each reply kept as it comes.

What is made of replies follows from all of them in the order of the passages, so a run that was killed at any point and
goes on writes the same bytes, and asks nothing again that was answered (see `desk`).
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from metier.core.errors import DataError, EndpointError, InputError, RecipeError
from metier.core.stage import Context, Source
from metier.engine.endpoint import CHARACTERS_PER_TOKEN, Endpoint
from metier.engine.interface import Asking, Engine
from metier.engine.remote import RemoteEngine
from metier.synthesize.chunks import passages, spread
from metier.synthesize.desk import Desk, kept_replies
from metier.synthesize.grounding import Lengths, screen
from metier.synthesize.making import Material, the_one
from metier.synthesize.pair import Pair, Passage, Reject, Row, refuse
from metier.synthesize.prompting import (
    CHECK_SCHEMA,
    PAIRS_SCHEMA,
    Prompt,
    ask_again,
    ask_for_check,
    ask_for_pairs,
    read_check,
    read_pairs,
    wishes,
)
from metier.synthesize.settling import unrepeated
from metier.synthesize.tables import read_table
from metier.text.artifacts import read_documents, write_json

if TYPE_CHECKING:
    from metier.synthesize.synthesis import Synthesize

PAIR_TOKENS = 120
"""Tokens of a written pair, for the estimate."""
CHECK_TOKENS = 40
CHECK_CHARACTERS = 1400
"""Characters of a check's prompt without the passage."""


def material(stage: "Synthesize", source: Source) -> list[Passage]:
    """The passages to ask of. Raises DataError for an empty document, and where there is none."""
    documents = read_documents(source.path, "train")
    if not documents:
        cure = "give that step some sources to train on"
        raise DataError("there is no document to ask about", where="documents", value=source.name, cure=cure)
    found = passages(documents, size=stage.ask.passage_chars, name=source.name)
    return [found[place] for place in spread(len(found), stage.ask.max_passages)]


def seeds(stage: "Synthesize", sources: Mapping[str, Source]) -> list[dict[str, str]]:
    """The user's own examples. Raises DataError where a row lacks a question or an answer."""
    if stage.ask.seeds is None:
        return []
    path = the_one(sources[stage.ask.seeds].paths, "ask.seeds", stage.ask.seeds, "name one file")
    table = read_table([path])
    for fact in table.facts:
        for name in ("question", "answer"):
            if name not in fact.values:
                cure = "every row has a `question` and an `answer`"
                raise DataError(f"the example has no {name}", where=fact.where, value=fact.values, cure=cure)
    return [fact.values for fact in table.facts]


def estimate(stage: "Synthesize", found: Sequence[Passage], examples: Sequence[Mapping[str, str]]) -> Row:
    """What asking will take, before anything is asked: requests, tokens read and written, cost; and the most of each.

    Expected: one reply a passage, and all pairs checked. At most: every reply asked for `attempts` times, and as long
    as it may be. Tokens are counted as characters / 3, on the safe side. Costs are None without prices. under_way: what
    the engine sets aside for requests that are not answered yet, each reckoned as dear as it may be.
    """
    ask = stage.ask
    plan = wishes(len(found), ask.per_passage, ask.types, stage.difficulty)
    prompts = [
        sum(len(m.content) for m in ask_for_pairs(p, wanted, examples[: ask.seeds_shown]))
        for p, wanted in zip(found, plan, strict=True)
    ]
    pairs = len(found) * ask.per_passage
    checks = pairs if ask.self_check else 0
    read = sum(prompts) + (sum(len(p.text) for p in found) * ask.per_passage + checks * CHECK_CHARACTERS) * bool(checks)
    again = sum(prompts) * (ask.attempts - 1) * 2
    row: Row = {
        "passages": len(found),
        "requests": len(found) + checks,
        "most_requests": len(found) * ask.attempts + checks,
        "tokens_read": read // CHARACTERS_PER_TOKEN,
        "tokens_written": pairs * PAIR_TOKENS + checks * CHECK_TOKENS,
        "most_tokens_read": (read + again) // CHARACTERS_PER_TOKEN,
        "most_tokens_written": (len(found) * ask.attempts + checks) * ask.max_new_tokens,
    }
    prices = stage.teacher.prices if isinstance(stage.teacher, Endpoint) else None
    row["cost"] = prices.of(row["tokens_read"], row["tokens_written"]) if prices else None
    row["most_cost"] = prices.of(row["most_tokens_read"], row["most_tokens_written"]) if prices else None
    if prices and isinstance(stage.teacher, Endpoint):
        one = stage.teacher.most(max(prompts, default=0), ask.max_new_tokens) or 0.0
        row["under_way"] = one * min(stage.teacher.concurrency, row["requests"])
    return row


def check_estimate(stage: "Synthesize", row: Mapping[str, Any]) -> None:
    """Raise RecipeError where asking would pass a cap, before anything is asked."""
    most = stage.ask.max_requests
    if most is not None and row["most_requests"] > most:
        raise RecipeError(
            f"the teacher may have to be asked {row['most_requests']} times",
            where="ask.max_requests",
            value=most,
            cure="raise it, or lower max_passages, per_passage or attempts",
        )
    budget = stage.teacher.budget if isinstance(stage.teacher, Endpoint) else None
    if budget is not None and row["cost"] + row["under_way"] > budget:
        raise RecipeError(
            f"asking will cost about {row['cost']:.2f}, and {row['under_way']:.2f} are set aside for requests that are "
            "under way: that is over the budget",
            where="teacher.budget",
            value=budget,
            cure="raise it, or lower max_passages, per_passage, max_new_tokens or the endpoint's concurrency",
        )


def told(row: Mapping[str, Any]) -> str:
    """The estimate in one sentence."""
    cost = f", {row['cost']:.2f} in all (at most {row['most_cost']:.2f})" if row["cost"] is not None else ""
    return (
        f"{row['passages']} passages: about {row['requests']} requests, {row['tokens_read']} tokens read and "
        f"{row['tokens_written']} written{cost}"
    )


def check_endpoint(stage: "Synthesize") -> None:
    """Raise InputError where the endpoint cannot be used: no key, nobody there, no such model. Costs nothing."""
    if isinstance(stage.teacher, Endpoint):
        try:
            stage.teacher.check()
            RemoteEngine(stage.teacher, Asking(stage.ask.max_new_tokens)).check()
        except InputError as error:
            raise error.within("teacher")  # noqa: B904 - the same error


def from_teacher(stage: "Synthesize", ctx: Context, engine: Engine | None = None) -> Material:
    """All pairs that the teacher writes of the documents, those that it denies again left out.

    engine: instead of the one that the stage names, for tests.
    """
    ask = stage.ask
    found, examples = material(stage, ctx.source(stage.documents or "")), seeds(stage, ctx.sources)
    planned = estimate(stage, found, examples)
    check_estimate(stage, planned)
    ctx.events.note(told(planned))
    desk = Desk(ctx, engine or _engine(stage, ctx))
    plan = wishes(len(found), ask.per_passage, ask.types, stage.difficulty)
    prompts = [
        ask_for_pairs(p, wanted, _shown(examples, ask.seeds_shown, stage.seed, p))
        for p, wanted in zip(found, plan, strict=True)
    ]
    made = Material(found, [])
    read = _written(desk, prompts, found, plan, stage)
    for passage, pairs in zip(found, read, strict=True):
        if pairs is None:
            kind = "no JSON"
            reason = f"{kind}: {ask.attempts} replies were not of the form asked for"
            made.rejects.append(Reject(passage.id, kind, reason, {"passage": passage.text[:500]}))
            continue
        made.pairs += [one for one in pairs if isinstance(one, Pair)]
        made.rejects += [one for one in pairs if isinstance(one, Reject)]
    if ask.self_check:
        _check(desk, made, stage)
    made.facts = {"asked": len(found), "answered": sum(pairs is not None for pairs in read), "teacher": _about(stage)}
    _account(stage, ctx, desk, planned)
    return made


def _account(stage: "Synthesize", ctx: Context, desk: Desk, planned: Row) -> None:
    """Write what asking took, over all runs of the step, beside what was expected."""
    took = desk.took()
    prices = stage.teacher.prices if isinstance(stage.teacher, Endpoint) else None
    cost = prices.of(took["tokens_read"], took["tokens_written"]) if prices else None
    about = {"teacher": _about(stage), "took": took | {"cost": cost}, "expected": planned}
    write_json(ctx.measured / "asking.json", about)


def _written(
    desk: Desk,
    prompts: list[Prompt],
    found: Sequence[Passage],
    plan: Sequence[Any],
    stage: "Synthesize",
) -> list[list[Pair | Reject] | None]:
    """What was read of each passage's reply, asked for again where it was nothing."""
    read: list[list[Pair | Reject] | None] = [None] * len(found)
    for attempt in range(stage.ask.attempts):
        left = [i for i, pairs in enumerate(read) if pairs is None]
        if not left:
            break
        task = "write" if not attempt else f"write again ({attempt + 1})"
        replies = desk.ask(task, [prompts[i] for i in left], PAIRS_SCHEMA)
        for place, reply in zip(left, replies, strict=True):
            read[place] = read_pairs(reply, found[place], plan[place], teacher_name(stage))
            prompts[place] = ask_again(prompts[place], reply)
    return read


def _check(desk: Desk, made: Material, stage: "Synthesize") -> None:
    """Ask of every pair that passes the plain rules whether it holds; those that do not are paid for only once."""
    by_id = {passage.id: passage for passage in made.passages}
    lengths = Lengths(stage.max_question_chars, stage.max_answer_chars)
    sound = [pair for pair in made.pairs if screen(pair, by_id, stage.grounding, lengths) is None]
    asked, _ = unrepeated(sound, stage.near)
    replies = desk.ask("check", [ask_for_check(p, [by_id[one] for one in p.passages]) for p in asked], CHECK_SCHEMA)
    denied: dict[int, Reject] = {}
    for pair, reply in zip(asked, replies, strict=True):
        said = read_check(reply)
        if said is None:
            denied[id(pair)] = refuse(pair, "self-check unreadable", reply[:200])
        elif said:
            denied[id(pair)] = refuse(pair, "denied by the self-check", said)
    made.pairs = [pair for pair in made.pairs if id(pair) not in denied]
    made.rejects += denied.values()


def _shown(examples: Sequence[Mapping[str, str]], count: int, seed: int, passage: Passage) -> list[Mapping[str, str]]:
    if len(examples) <= count:
        return list(examples)
    draw = Random(f"{seed}:{passage.id}")
    return [examples[place] for place in sorted(draw.sample(range(len(examples)), count))]


def teacher_name(stage: "Synthesize") -> str:
    """What the teacher is called in every row's provenance."""
    return stage.teacher.title if isinstance(stage.teacher, Endpoint) else str(stage.teacher)


def _about(stage: "Synthesize") -> Row:
    if isinstance(stage.teacher, Endpoint):
        return {"kind": "endpoint", "name": stage.teacher.title, "model": stage.teacher.model}
    return {"kind": "model", "name": teacher_name(stage), "model": str(stage.teacher)}


def _with_what_is_left(teacher: Endpoint, ctx: Context) -> Endpoint:
    """The endpoint, its budget less what earlier runs of the step spent. Raises EndpointError where nothing is left."""
    if teacher.budget is None or teacher.prices is None:
        return teacher
    kept = kept_replies(ctx)
    spent = teacher.prices.of(sum(row["read"] for row in kept), sum(row["tokens"] for row in kept))
    if spent >= teacher.budget:
        raise EndpointError(
            f"the budget of {teacher.budget:g} is spent by earlier runs of this step ({spent:.4g})",
            where=teacher.endpoint,
            cure="raise `budget` and run the same command again: the answers that came are kept",
        )
    return teacher.model_copy(update={"budget": teacher.budget - spent})


def _engine(stage: "Synthesize", ctx: Context) -> Engine:
    ask = stage.ask
    asking = Asking(ask.max_new_tokens, ask.temperature, ask.top_p, stage.seed, ask.batch_size)
    if isinstance(stage.teacher, Endpoint):
        engine = RemoteEngine(_with_what_is_left(stage.teacher, ctx), asking, cache=ctx.cache)
        engine.check()
        return engine
    from metier.engine.here import LocalEngine
    from metier.models.load import load
    from metier.models.placed import place
    from metier.text.prompts import use_template

    name = teacher_name(stage)
    loaded = place(load(ctx.source(name).path), ctx.events.warning)
    use_template(loaded.tokenizer, ask.prompt)
    return LocalEngine(loaded, asking, name=name, called=lambda _: f"a passage of {stage.documents} and its prompt")
