"""Let contenders answer questions, one model in memory at a time, each answer kept for a run that goes on later.

What is kept are the lines of `answers/<contender>.jsonl` in the step's scratch, appended and flushed to disk as answers
are finished, with what each cost. A run killed at any of them goes on from there: which questions are computed together
follows from all questions, so what is left gets the bits that it would have got, and what stands is not written again.

Models run in float32. bfloat16 would give 1.2 to 1.4 times the tokens per second (5 M parameters, a CPU with bfloat16
instructions), but at eight bits of precision batch mates decide near ties, and answers would depend on them.
Refuses questions that fill a model's context, and an endpoint that does not let us in, before anything is generated.
Costs the model's size in memory, plus the cache of one batch.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from metier.core.appended import append, appended, damaged
from metier.core.beside import beside
from metier.core.measure import PeakMemory
from metier.core.stage import Context
from metier.core.workers import SPREAD
from metier.engine.endpoint import Endpoint
from metier.engine.here import LocalEngine
from metier.engine.interface import Asking, Engine, Said
from metier.engine.remote import RemoteEngine
from metier.engine.spread import SpreadEngine, Told
from metier.evaluate.held import Held
from metier.evaluate.trivial import Baseline
from metier.models.held import load_held
from metier.models.placed import free, place
from metier.models.shape import count_parameters
from metier.text.artifacts import answer_row, answers_path, question_row, write_json, write_jsonl
from metier.text.nouns import Answer, Question

Row = dict[str, Any]
EVERY_SECONDS = 0.5
"""How often answers are written and seen on the disk, which takes milliseconds each time."""
KEPT = "kept answers"
COSTS = ("seconds", "first_token_seconds", "per_token_seconds")


def spread(count: int, limit: int | None) -> list[int]:
    """Indices of at most `limit` of `count` things, evenly spaced, so that a sorted file is still seen whole."""
    kept = count if limit is None else min(count, limit)
    return [index * count // kept for index in range(kept)]


def answer_all(
    ctx: Context,
    contenders: Sequence[str | Held | Endpoint],
    questions: Sequence[Question],
    asking: Asking,
    baselines: Sequence[Baseline] = (),
    *,
    continuing: bool = False,
) -> dict[str, float]:
    """Write an `answers` artifact. Returns each contender's share of answers that stop, and tokens an answer.

    baselines: contenders that need no model, with their answers; they come last. continuing: as of `LocalEngine`.
    """
    write_jsonl(ctx.out / "questions.jsonl", map(question_row, questions))
    for one in contenders:
        if isinstance(one, Endpoint):
            RemoteEngine(one, asking).check()

    def answers_of(one: str | Held | Endpoint) -> Callable[[Callable[[], bool]], _Made]:
        return lambda stop: _contender(replace(ctx, stop=stop), one, questions, asking, continuing=continuing)

    works = [answers_of(one) for one in contenders]
    finished = [work(ctx.stop) for work in works] if SPREAD.get() is None else beside(works, ctx.stop)
    finished += [_trivial(ctx, one, questions) for one in baselines]
    write_json(ctx.out / "contenders.json", [made.contender for made in finished])
    write_json(ctx.measured / "contenders.json", {m.contender["name"]: m.measured for m in finished})
    return {key: value for made in finished for key, value in made.metrics.items()}


@dataclass(frozen=True)
class _Made:
    """What the artifact says of a contender whose answers are written."""

    contender: Row
    measured: Row
    metrics: dict[str, float] = field(default_factory=dict)


def _contender(
    ctx: Context, one: str | Held | Endpoint, questions: Sequence[Question], asking: Asking, *, continuing: bool
) -> _Made:
    """One contender's answers, as far as they are not there from an earlier run, and its files."""
    name = one if isinstance(one, str) else one.title
    kept = Kept(answers_path(ctx.scratch, name), questions)
    about = kept.path.with_suffix(".about.json")
    if kept.whole and about.is_file():
        ctx.events.note(f"{name}: answers kept from the run before")
    else:
        if kept.rows:
            ctx.events.note(f"{name}: {len(kept.rows)} answers kept from the run before")
        ctx.check_stop()
        with PeakMemory() as memory:
            _ask(ctx, one, name, kept, about, asking, memory, continuing=continuing)
        free()
    made = _write(ctx, json.loads(about.read_text(encoding="utf-8")), kept)
    if isinstance(one, Endpoint) and one.prices is not None:
        made.measured["cost"] = one.prices.of(made.measured["tokens_read"], made.measured["tokens_written"])
    return made


def _ask(
    ctx: Context,
    one: str | Held | Endpoint,
    name: str,
    kept: "Kept",
    about: Path,
    asking: Asking,
    memory: PeakMemory,
    *,
    continuing: bool,
) -> None:
    """Let the contender answer what is left, and keep each answer."""
    engine: Engine
    prompts = [question.messages for question in kept.questions]

    def peak_bytes() -> int:
        return engine.peak_bytes if isinstance(engine, SpreadEngine) else memory.peak_bytes

    if isinstance(one, Endpoint):
        engine = RemoteEngine(one, asking, cache=ctx.cache)
        _keep_about(about, {"name": name, "model": one.model, "kind": "endpoint", "endpoint": one.endpoint})
    else:
        engine = _engine_of(ctx, one, name, kept, about, asking, continuing=continuing)
    total = len(kept.questions)
    waiting: list[tuple[int, Said]] = []
    last = monotonic()

    def keep() -> None:
        kept.add(waiting, peak_bytes())
        waiting.clear()
        ctx.events.progress(name, len(kept.rows), total, unit="answers")
        ctx.events.emit(
            "answers_so_far",
            contender=name,
            path=str(kept.path.absolute()),
            questions=str((ctx.out / "questions.jsonl").absolute()),
            done=len(kept.rows),
            total=total,
        )

    try:
        for said in engine.answers(prompts, done=kept.done, should_stop=stopper(ctx)):
            waiting += said
            if monotonic() - last >= EVERY_SECONDS:
                keep()
                last = monotonic()
    finally:
        if waiting:
            keep()


def _engine_of(
    ctx: Context, one: str | Held, name: str, kept: "Kept", about: Path, asking: Asking, *, continuing: bool
) -> Engine:
    """The engine of a model that is here or, where the step runs on one, on a cluster. What is known of the model is
    kept as soon as it is."""
    model, bits = (one, None) if isinstance(one, str) else (one.model, one.bits)
    folder, spread = ctx.source(model).path, SPREAD.get()
    prompts = [question.messages for question in kept.questions]
    called = [f"question {question.id}" for question in kept.questions]

    def know(parameters: int, context: int, lengths: Sequence[int]) -> None:
        _warn_of_room(ctx, name, lengths, context, asking.max_new_tokens)
        known = {"name": name, "model": model, "kind": "model", "parameters": parameters}
        _keep_about(about, known | ({} if bits is None else {"bits": bits}))

    if spread is None:
        loaded = place(load_held(folder, bits), ctx.events.warning)
        engine = LocalEngine(loaded, asking, name=name, called=called.__getitem__, continuing=continuing)
        know(count_parameters(loaded.model).total, loaded.context, [len(ids) for ids in engine.encoded(prompts)])
        return engine

    def hear(said: Told) -> None:
        for warning in said.warnings:
            ctx.events.warning(warning)
        know(said.parameters, said.context, said.lengths)

    return SpreadEngine(spread, folder, asking, bits=bits, name=name, called=called, continuing=continuing, told=hear)


def _keep_about(about: Path, known: Row) -> None:
    write_json(aside := about.with_suffix(".aside"), known)
    aside.replace(about)


class Kept:
    """The answers of one contender on disk, one line each as they came, and those that are still to come.

    rows: by question id. A line that a killed run left unfinished is cut off; an id that is not asked is another run's,
    and refused.
    """

    def __init__(self, path: Path, questions: Sequence[Question]) -> None:
        self.path = path
        self.questions = questions
        self.rows: dict[str, Row] = {}
        self._ids = {question.id: index for index, question in enumerate(questions)}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._read()

    @property
    def whole(self) -> bool:
        """Whether all are answered."""
        return len(self.rows) == len(self.questions)

    @property
    def done(self) -> set[int]:
        """Indices of the questions that are answered."""
        return {self._ids[one] for one in self.rows}

    def add(self, said: Sequence[tuple[int, Said]], peak_bytes: int) -> None:
        """Append answers, those that are there already left out, and see them on the disk."""
        fresh = [_kept_row(self.questions[i], one, peak_bytes) for i, one in said]
        fresh = [row for row in fresh if row["id"] not in self.rows]
        append(self.path, fresh)
        self.rows |= {row["id"]: row for row in fresh}

    def _read(self) -> None:
        try:
            self.rows = {row["id"]: row for row in appended(self.path, KEPT)}
        except (KeyError, TypeError) as error:
            raise damaged(self.path, KEPT, str(error)) from error
        strangers = [one for one in self.rows if one not in self._ids]
        if strangers:
            raise damaged(self.path, KEPT, f"it answers {strangers[0]!r}, which is not asked")


def _kept_row(question: Question, said: Said, peak_bytes: int) -> Row:
    answer = answer_row(Answer(question.id, said.text, said.tokens, said.stopped))
    costs = {name: getattr(said, name) for name in COSTS if getattr(said, name) is not None}
    return answer | costs | {"read": said.read, "peak_rss_bytes": peak_bytes}


def _write(ctx: Context, contender: Row, kept: Kept) -> _Made:
    """The contender's files, in the order of the questions."""
    name = contender["name"]
    rows = [kept.rows[question.id] for question in kept.questions]
    for folder in (ctx.out, ctx.measured):
        answers_path(folder, name).parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(answers_path(ctx.out, name), ({k: row[k] for k in ("id", "text", "tokens", "stopped")} for row in rows))
    write_jsonl(
        answers_path(ctx.measured, name), ({"id": row["id"]} | {k: row[k] for k in COSTS if k in row} for row in rows)
    )
    metrics = {
        f"{name} stopped": float(np.mean([row["stopped"] for row in rows])),
        f"{name} output_tokens": float(np.mean([row["tokens"] for row in rows])),
    }
    return _Made(contender, _measured(rows), metrics)


def _measured(rows: Sequence[Row]) -> Row:
    """What the answers cost: in all, and at the median and the 95th percentile of one."""
    seconds, tokens = sum(row["seconds"] for row in rows), sum(row["tokens"] for row in rows)
    found: Row = {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "peak_rss_bytes": max(row["peak_rss_bytes"] for row in rows),
        "tokens_read": sum(row["read"] for row in rows),
        "tokens_written": tokens,
    }
    for cost in COSTS:
        known = [row[cost] for row in rows if cost in row and (cost != "per_token_seconds" or row["tokens"] > 1)]
        short = cost.removesuffix("seconds")
        for share in (50, 95) if known else ():
            found[f"{short}p{share}_seconds"] = float(np.quantile(known, share / 100))
    return found


def _trivial(ctx: Context, one: Baseline, questions: Sequence[Question]) -> _Made:
    """The files of a contender that needs no model. Its tokens are words, and every answer is whole."""
    said = [Answer(q.id, text, len(text.split()), True) for q, text in zip(questions, one.texts, strict=True)]
    answers_path(ctx.out, one.name).parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(answers_path(ctx.out, one.name), map(answer_row, said))
    return _Made({"name": one.name, "model": one.name, "kind": "trivial"}, {"seconds": one.seconds})


def _warn_of_room(ctx: Context, name: str, lengths: Sequence[int], context: int, max_new_tokens: int) -> None:
    """Say so where the context leaves answers less than they may have. lengths: tokens of the prompts."""
    short = sum(length + max_new_tokens > context for length in lengths)
    if short:
        ctx.events.warning(
            f"{name}: {short} of {len(lengths)} questions leave less than {max_new_tokens} tokens to answer in "
            f"(context {context})"
        )


def stopper(ctx: Context) -> Callable[[], bool]:
    """For the engine's loops: raises Interrupted in the step's own name when it is time to stop."""

    def asked() -> bool:
        ctx.check_stop()
        return False

    return asked
