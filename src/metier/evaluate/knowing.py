"""Let contenders be read for what they know: one model in memory at a time, each finished one kept for a later run.

For each question: the probability of its answer, of wrong answers and (where data has one) of a paraphrase, how much of
the answer can be extracted, and what the model says. Answers are read with the token that ends the turn, as trained.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from metier.core.errors import DataError
from metier.core.measure import PeakMemory, Stopwatch
from metier.core.stage import Context
from metier.evaluate.answering import stopper
from metier.evaluate.table import ALL, Column, Row
from metier.measure.forgetting import Known, forget_quality, recall, truth_ratio, utility
from metier.text.artifacts import answers_path, read_jsonl, write_json, write_jsonl
from metier.text.nouns import Conversation, Message, Question

VALUES = ("probability", "truth_ratio", "extraction", "rouge")
OF_FORGET: tuple[tuple[str, str, bool], ...] = (
    ("forget_probability", "probability", False),
    ("forget_extraction", "extraction", False),
    ("forget_truth", "forgotten_truth", True),
    ("forget_rouge", "rouge", False),
)
"""Metric, what of an item it is, and whether more is better, of what was to be forgotten."""
OF_RETAIN: tuple[tuple[str, str, bool], ...] = (
    ("retain_probability", "probability", True),
    ("retain_truth", "kept_truth", True),
    ("retain_rouge", "rouge", True),
)
"""The same of what was to be kept."""
PARTED = "|"


@dataclass(frozen=True)
class Asking:
    """How questions are asked; as in the stage."""

    wrong: int
    perturbed: str | None
    alike: str | None
    paraphrased: str | None
    max_new_tokens: int
    batch_size: int
    seed: int


def wrong_answers(questions: Sequence[Question], asking: Asking) -> list[list[str]]:
    """Wrong answers to each question: its own, or those of others, first of those alike, the nearest in length first.

    Raises DataError where there are none.
    """
    found = []
    for question in questions:
        if asking.perturbed is not None:
            given = [part.strip() for part in question.meta[asking.perturbed].split(PARTED) if part.strip()]
            found.append(given[: asking.wrong])
            continue
        known = {question.reference.strip().lower()}
        known |= {q.reference.strip().lower() for q in questions if q.messages == question.messages}
        others: dict[str, bool] = {}  # whether its question is alike
        for other in questions:
            alike = asking.alike is None or other.meta.get(asking.alike) == question.meta.get(asking.alike)
            if other.reference.strip().lower() not in known:
                others[other.reference] = others.get(other.reference, False) or alike
        ranked = sorted(
            others,
            key=lambda text: (
                not others[text],
                abs(len(text) - len(question.reference)),
                _mixed(asking.seed, question.id, text),
            ),
        )
        found.append(ranked[: asking.wrong])
    for question, texts in zip(questions, found, strict=True):
        if not texts:
            raise DataError(
                "there is no wrong answer for a question: no other one has another answer",
                where=f"question {question.id}",
                value=question.reference,
                cure="give wrong answers as `perturbed`, or ask more questions",
            )
    return found


def _mixed(seed: int, *parts: str) -> str:
    return sha256("\0".join([str(seed), *parts]).encode()).hexdigest()


def know(
    ctx: Context,
    contenders: Sequence[tuple[str, str, str | None]],
    sets: Mapping[str, Sequence[Question]],
    asking: Asking,
) -> list[Row]:
    """A row for each contender, step and question. contenders: name, model, bits (None: as it is stored). sets: what
    was to be forgotten first, what was to be kept next, then what else should still be answered."""
    wrong = {step: wrong_answers(questions, asking) for step, questions in sets.items()}
    rows: list[Row] = []
    measured: Row = {}
    for name, model, bits in contenders:
        kept = answers_path(ctx.scratch, name)
        timing = kept.with_suffix(".measured.json")
        if kept.exists():
            ctx.events.note(f"{name}: readings kept from the run before")
        else:
            ctx.check_stop()
            kept.parent.mkdir(parents=True, exist_ok=True)
            from metier.models.placed import free

            found, cost = _know(ctx, name, model, bits, sets, wrong, asking)
            free()
            write_json(timing, cost)
            write_jsonl(kept, found)
        rows += read_jsonl(kept)
        measured[name] = json.loads(timing.read_text(encoding="utf-8"))
    write_json(ctx.measured / "contenders.json", measured)
    return rows


def _know(
    ctx: Context,
    name: str,
    model: str,
    bits: str | None,
    sets: Mapping[str, Sequence[Question]],
    wrong: Mapping[str, Sequence[Sequence[str]]],
    asking: Asking,
) -> tuple[list[Row], Row]:
    from metier.models.held import load_held
    from metier.models.placed import place

    watch = Stopwatch()
    rows: list[Row] = []
    with PeakMemory() as memory:
        loaded = place(load_held(ctx.source(model).path, bits), ctx.events.warning)  # type: ignore[arg-type]
        for number, (step, questions) in enumerate(sets.items()):
            metrics = (OF_FORGET, OF_RETAIN, ())[min(number, 2)]
            said = _said(ctx, loaded, f"{name} answers {step}", questions, asking)
            read = _read(ctx, loaded, f"{name} reads {step}", questions, wrong[step], asking)
            for question, text, own in zip(questions, said, read, strict=True):
                right, others = own[0], own[1:]
                paraphrase, others = (others[0], others[1:]) if asking.paraphrased else (right, others)
                known = Known(
                    right.probability,
                    truth_ratio(paraphrase.probability, [one.probability for one in others]),
                    right.extraction_strength,
                    recall(text, question.reference),
                )
                rows.append(_row(name, step, question, known, text, metrics))
    return rows, {"seconds": watch.seconds, "peak_rss_bytes": memory.peak_bytes}


def _row(
    name: str, step: str, question: Question, known: Known, text: str, metrics: Sequence[tuple[str, str, bool]]
) -> Row:
    """metrics: those that its step's items have a value of, so that runs can be compared item by item."""
    values = {value: getattr(known, value) for value in VALUES}
    values |= {metric: float(getattr(known, value)) for metric, value, _ in metrics}
    return {"id": question.id, "contender": name, "group": step, **values, "said": text}


def _said(ctx: Context, loaded: Any, task: str, questions: Sequence[Question], asking: Asking) -> list[str]:
    """What the model answers, greedily."""
    from metier.engine.local import answers
    from metier.text.chat import encode_prompt

    prompts = [encode_prompt(loaded.tokenizer, q.messages) for q in questions]
    found: dict[int, str] = {}
    for batch in answers(
        loaded,
        prompts,
        max_new_tokens=asking.max_new_tokens,
        batch_size=asking.batch_size,
        should_stop=stopper(ctx),
    ):
        found |= {index: one.text.strip() for index, one in batch}
        ctx.events.progress(task, len(found), len(prompts), unit="answers")
    return [found[index] for index in range(len(prompts))]


def _read(
    ctx: Context,
    loaded: Any,
    task: str,
    questions: Sequence[Question],
    wrong: Sequence[Sequence[str]],
    asking: Asking,
) -> list[list[Any]]:
    """For each question the readings of its answer, of the paraphrase where one is named, and of the wrong answers."""
    from metier.engine.reciting import recite

    texts = [
        [q.reference, *([q.meta[asking.paraphrased]] if asking.paraphrased else []), *others]
        for q, others in zip(questions, wrong, strict=True)
    ]
    pairs = [_encoded(loaded, q, text) for q, own in zip(questions, texts, strict=True) for text in own]
    found = recite(
        loaded,
        pairs,
        on_progress=lambda done, total: ctx.events.progress(task, done, total, unit="texts"),
        should_stop=stopper(ctx),
    )
    rest = iter(found)
    return [[next(rest) for _ in own] for own in texts]


def _encoded(loaded: Any, question: Question, answer: str) -> tuple[list[int], list[int]]:
    """The ids before an answer, and those of the answer with what ends its turn."""
    from metier.text.chat import encode_conversation

    messages = (*question.messages, Message("assistant", answer))
    encoded = encode_conversation(loaded.tokenizer, Conversation(question.id, messages), max_length=loaded.context + 1)
    trained = list(encoded.trained)
    start = len(trained) - next((i for i, own in enumerate(reversed(trained)) if not own), len(trained))
    if encoded.truncated or start in (0, len(trained)):
        raise DataError(
            f"the question with its answer exceeds the model's {loaded.context} tokens",
            where=f"question {question.id}",
            cure="shorten it, or leave that model out",
        )
    return list(encoded.ids[:start]), list(encoded.ids[start:])


def columns(
    rows: Sequence[Row], names: Sequence[str], forget: str, kept: Sequence[str], untouched: str | None
) -> list[Column]:
    """The columns to compare, all items of what they are about: forgetting, keeping, and the utility over all kept."""
    known: dict[tuple[str, str], list[Known]] = {}
    for row in rows:
        known.setdefault((str(row["contender"]), str(row["group"])), []).append(Known(*(row[v] for v in VALUES)))
    made: list[Column] = []
    for step, metrics in ((forget, OF_FORGET), (kept[0], OF_RETAIN)):
        for metric, value, better in metrics:
            for name in names:
                values = [float(getattr(item, value)) for item in known[name, step]]
                made.append(Column(name, metric, ALL, values, better, bounded=True))
    plain = Column("", "utility", ALL, (), True)
    for name in names:
        figure = utility([known[name, step] for step in kept])
        made.append(replace(plain, contender=name, values=[0.0] * len(figure.totals), figure=figure))
    for name in names if untouched is not None else ():
        mine, theirs = ([one.truth_ratio for one in known[who, forget]] for who in (name, str(untouched)))
        column = Column(name, "forget_quality", ALL, mine, None, figure=forget_quality(mine, theirs), compared=False)
        made.append(column)
    return made
