"""Let contenders answer questions, one model in memory at a time, each finished one kept for a run that goes on later.

Models run in float32. bfloat16 would give 1.2 to 1.4 times the tokens per second (5 M parameters, a CPU with bfloat16
instructions), but at eight bits of precision batch mates decide near ties, and answers would depend on them.
Refuses questions that fill a model's context. Costs the model's size in memory,
plus the cache of one batch.
"""

import gc
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metier.core.errors import DataError
from metier.core.measure import PeakMemory, Stopwatch
from metier.core.stage import Context
from metier.engine.local import generate
from metier.models.load import Loaded, load
from metier.models.shape import count_parameters
from metier.text.artifacts import answer_row, answers_path, question_row, write_json, write_jsonl
from metier.text.chat import encode_prompt
from metier.text.nouns import Answer, Question

Row = dict[str, Any]


@dataclass(frozen=True)
class Asking:
    """How answers are generated; the fields are those of `engine.local.generate`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    batch_size: int


def spread(count: int, limit: int | None) -> list[int]:
    """Indices of at most `limit` of `count` things, evenly spaced, so that a sorted file is still seen whole."""
    kept = count if limit is None else min(count, limit)
    return [index * count // kept for index in range(kept)]


def answer_all(ctx: Context, names: Sequence[str], questions: Sequence[Question], asking: Asking) -> dict[str, float]:
    """Write an `answers` artifact. Returns each contender's share of answers that stop, and tokens an answer."""
    write_jsonl(ctx.out / "questions.jsonl", map(question_row, questions))
    finished = [_contender(ctx, name, questions, asking) for name in names]
    write_json(ctx.out / "contenders.json", [made["contender"] for made in finished])
    write_json(ctx.measured / "contenders.json", {m["contender"]["name"]: m["measured"] for m in finished})
    return {key: value for made in finished for key, value in made["metrics"].items()}


def _contender(ctx: Context, name: str, questions: Sequence[Question], asking: Asking) -> Row:
    """One contender's files, generated or taken over from an earlier run; about.json, written last, says whole."""
    kept_answers, kept_seconds = answers_path(ctx.scratch, name), answers_path(ctx.scratch / "measured", name)
    about = kept_answers.with_suffix(".about.json")
    if about.exists():
        ctx.events.note(f"{name}: answers kept from the run before")
    else:
        ctx.check_stop()
        made = _generate(ctx, name, questions, asking)
        gc.collect()  # a model's modules refer to one another in circles: without this two would be in memory
        kept_answers.parent.mkdir(parents=True, exist_ok=True)
        kept_seconds.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(kept_answers, map(answer_row, made.answers))
        write_jsonl(kept_seconds, ({"id": q.id, "seconds": s} for q, s in zip(questions, made.seconds, strict=True)))
        write_json(aside := about.with_suffix(".aside"), made.about)
        aside.replace(about)
    for source, folder in ((kept_answers, ctx.out), (kept_seconds, ctx.measured)):
        target = answers_path(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    kept: Row = json.loads(about.read_text(encoding="utf-8"))
    return kept


@dataclass(frozen=True)
class _Made:
    answers: list[Answer]
    seconds: list[float]
    about: Row


def _generate(ctx: Context, name: str, questions: Sequence[Question], asking: Asking) -> _Made:
    with PeakMemory() as memory:
        loaded = load(ctx.source(name).path)
        prompts = _prompts(ctx, loaded, name, questions, asking.max_new_tokens)
        watch = Stopwatch()
        found = generate(
            loaded,
            prompts,
            max_new_tokens=asking.max_new_tokens,
            temperature=asking.temperature,
            top_p=asking.top_p,
            seed=asking.seed,
            batch_size=asking.batch_size,
            on_progress=lambda done, total: ctx.events.progress(name, done, total, unit="answers"),
            should_stop=stopper(ctx),
        )
        seconds = watch.seconds
    answers = [Answer(q.id, g.text.strip(), g.tokens, g.stopped) for q, g in zip(questions, found, strict=True)]
    tokens, each = [g.tokens for g in found], [g.seconds for g in found]
    about = {
        "contender": {"name": name, "model": name, "parameters": count_parameters(loaded.model).total},
        "measured": {
            "seconds": seconds,
            "tokens_per_second": sum(tokens) / seconds,
            "peak_rss_bytes": memory.peak_bytes,
            "p50_seconds": float(np.quantile(each, 0.5)),
            "p95_seconds": float(np.quantile(each, 0.95)),
        },
        "metrics": {
            f"{name} stopped": float(np.mean([g.stopped for g in found])),
            f"{name} output_tokens": float(np.mean(tokens)),
        },
    }
    return _Made(answers, each, about)


def _prompts(
    ctx: Context, loaded: Loaded, name: str, questions: Sequence[Question], max_new_tokens: int
) -> list[list[int]]:
    """The questions as the model reads them. Says so where the context leaves answers less than they may have."""
    prompts = [encode_prompt(loaded.tokenizer, q.messages) for q in questions]
    short = 0
    for question, prompt in zip(questions, prompts, strict=True):
        if len(prompt) >= loaded.context:
            raise DataError(
                f"the question fills the {loaded.context} tokens that {name!r} can read",
                where=f"question {question.id}",
                value=f"{len(prompt)} tokens",
                cure="shorten it, or leave that model out",
            )
        short += len(prompt) + max_new_tokens > loaded.context
    if short:
        ctx.events.warning(
            f"{name}: {short} of {len(prompts)} questions leave less than {max_new_tokens} tokens to answer in "
            f"(context {loaded.context})"
        )
    return prompts


def stopper(ctx: Context) -> Callable[[], bool]:
    """For the engine's loops: raises Interrupted in the step's own name when it is time to stop."""

    def asked() -> bool:
        ctx.check_stop()
        return False

    return asked
