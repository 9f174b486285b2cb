"""Let contenders choose: the log-likelihood of every choice of every item, one model in memory at a time.

    files/questions.jsonl            the items, as questions with `choices` and `label` in their meta
    files/contenders.json            name, kind (model, trivial, human), parameters
    files/choices/<contender>.jsonl  id, label, and for each choice its text, logprob, tokens, bytes, unconditional;
                                     of points of reference id, label and `said`
    files/about.json                 form, prompt, shots, and where the commonest label comes from

A finished contender is kept for a run that goes on later. Models run in float32, on a GPU where there is one with room.
Costs the model's size in memory and one forward pass of each question.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from metier.core.beside import beside
from metier.core.errors import DataError
from metier.core.measure import PeakMemory, Stopwatch
from metier.core.stage import Context
from metier.core.workers import SPREAD
from metier.engine.interface import Share
from metier.engine.likelihood import Fork, fork_logprobs
from metier.evaluate.answering import stopper
from metier.models.load import Loaded, load
from metier.models.placed import free, place
from metier.models.shape import count_parameters
from metier.text.artifacts import question_row, write_json, write_jsonl
from metier.text.chat import encode_choices, prompt_choices
from metier.text.items import Item, choice_of, choices_path, class_of, names_of
from metier.text.nouns import Message
from metier.text.prompts import template_text

MOST_CONSTANTS = 5
"""Classes up to which each is a point of reference of its own."""
Row = dict[str, Any]


@dataclass(frozen=True)
class How:
    """How items are put; as in the stage's settings. shown: items that are shown first, with their answers."""

    form: Literal["cloze", "letter"] = "cloze"
    prompt: Literal["chat", "plain"] = "chat"
    shown: tuple[Item, ...] = ()
    unconditional: bool = True
    truncate: bool = False

    def asked(self, item: Item) -> tuple[Message, ...]:
        """The item's messages; for letters with its choices listed below the question."""
        if self.form == "cloze":
            return item.messages
        *before, last = item.messages
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, item.choices, strict=False))
        return (*before, Message(last.role, f"{last.content}\n\n{listed}"))

    def scored(self, item: Item) -> tuple[str, ...]:
        """The strings that are compared, one a choice."""
        return item.choices if self.form == "cloze" else tuple(ascii_uppercase[: len(item.choices)])

    def prompt_of(self, item: Item) -> tuple[Message, ...]:
        """The whole prompt: examples, then the item."""
        messages: list[Message] = []
        for one in self.shown:
            right = self.scored(one)[one.choices.index(one.label)]
            messages += [*self.asked(one), Message("assistant", right)]
        return (*messages, *self.asked(item))


def choose_all(
    ctx: Context, names: Sequence[str], items: Sequence[Item], train: Sequence[Item], how: How
) -> dict[str, float]:
    """Write a `choices` artifact. Returns each contender's accuracy by the raw log-likelihood."""
    write_jsonl(ctx.out / "questions.jsonl", (question_row(item.question) for item in items))
    (ctx.out / "choices").mkdir(exist_ok=True)

    def choices_of(name: str) -> Callable[[Callable[[], bool]], Row]:
        return lambda stop: _contender(replace(ctx, stop=stop), name, items, how)

    works = [choices_of(name) for name in names]
    made = [work(ctx.stop) for work in works] if SPREAD.get() is None else beside(works, ctx.stop)
    others = references(items, train)
    for name, (_, said) in others.items():
        rows = ({"id": i.id, "label": i.label, "said": s} for i, s in zip(items, said, strict=True))
        write_jsonl(choices_path(ctx.out, name), rows)
    kinds = [{"name": name, "kind": kind} for name, (kind, _) in others.items()]
    write_json(ctx.out / "contenders.json", [*(one["contender"] for one in made), *kinds])
    write_json(ctx.measured / "contenders.json", {one["contender"]["name"]: one["measured"] for one in made})
    shared = names_of(items)
    about = {
        "items": len(items),
        "form": how.form,
        "prompt": how.prompt,
        "shots": len(how.shown),
        "classes": None if shared is None else list(shared),
        "majority_of": "training labels" if train else "the items asked",
    }
    write_json(ctx.out / "about.json", about)
    return {f"{one['contender']['name']} accuracy": one["accuracy"] for one in made}


def select(ctx: Context, names: Sequence[str], folds: Sequence[Sequence[Item]], how: How) -> str:
    """The model that is right most often on its own fold, the first of several; writes `selection.json`."""
    found: list[Row] = []
    for name, fold in zip(names, folds, strict=True):
        ctx.check_stop()
        loaded = place(load(ctx.source(name).path), ctx.events.warning)
        rows = choose(loaded, fold, how, name=name, warn=ctx.events.warning, should_stop=stopper(ctx))
        found.append({"model": name, "n": len(rows), "accuracy": _accuracy(rows)})
        del loaded
        free()
        ctx.events.progress("selection", len(found), len(names), unit="models")
    best = max(found, key=lambda one: one["accuracy"])
    write_json(ctx.out / "selection.json", {"selected": best["model"], "folds": found})
    return str(best["model"])


def _accuracy(rows: Sequence[Row]) -> float:
    likeliest = [max(row["choices"], key=lambda choice: choice["logprob"])["text"] for row in rows]
    right = sum(bool(row["label"] == text) for row, text in zip(rows, likeliest, strict=True))
    return right / len(rows)


def references(items: Sequence[Item], train: Sequence[Item]) -> dict[str, tuple[str, list[str]]]:
    """Points of reference: name to kind and what each item gets from it.

    The commonest class of the training labels or, where there are none, of the items that are asked, which flatters it
    as published tables do; each class every time where they are few; and what people chose.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    names = names_of([*items, *train])
    if names is not None:
        found["majority"] = "trivial", _majority(items, train, names)
        for number, name in enumerate(names if len(names) <= MOST_CONSTANTS else ()):
            plain = len(name) <= 24 and all(letter.isalnum() or letter in " -" for letter in name)
            called = f"always {name if plain else ascii_uppercase[number]}"
            found[called] = "trivial", [choice_of(item, number, names) for item in items]
    for person in dict.fromkeys(name for item in items for name in item.said):
        if all(person in item.said for item in items):
            found[person] = "human", [item.said[person] for item in items]
    return found


def _majority(items: Sequence[Item], train: Sequence[Item], names: Sequence[str]) -> list[str]:
    counts = Counter(class_of(item, item.label, names) for item in train or items)
    commonest = max(range(len(names)), key=lambda number: (counts[number], -number))
    return [choice_of(item, commonest, names) for item in items]


def _contender(ctx: Context, name: str, items: Sequence[Item], how: How) -> Row:
    """One contender's file, computed or taken over from an earlier run; about.json, written last, says whole."""
    kept = choices_path(ctx.scratch, name)
    about = kept.with_suffix(".about.json")
    if about.exists():
        ctx.events.note(f"{name}: choices kept from the run before")
    else:
        ctx.check_stop()
        kept.parent.mkdir(parents=True, exist_ok=True)
        rows, made = _choose(ctx, name, items, how)
        free()
        write_jsonl(kept, rows)
        write_json(aside := about.with_suffix(".aside"), made)
        aside.replace(about)
    shutil.copyfile(kept, choices_path(ctx.out, name))
    found: Row = json.loads(about.read_text(encoding="utf-8"))
    return found


def _choose(ctx: Context, name: str, items: Sequence[Item], how: How) -> tuple[list[Row], Row]:
    """A contender's rows and what is told of it, computed here or by the workers of a cluster."""
    folder, spread = ctx.source(name).path.absolute(), SPREAD.get()
    watch = Stopwatch()
    if spread is None:
        with PeakMemory() as memory:
            loaded = place(load(folder), ctx.events.warning)
            rows = choose(
                loaded,
                items,
                how,
                name=name,
                warn=ctx.events.warning,
                on_progress=lambda done, total: ctx.events.progress(name, done, total, unit="questions"),
                should_stop=stopper(ctx),
            )
        return rows, _about(name, rows, count_parameters(loaded.model).total, watch.seconds, memory.peak_bytes)
    by_id: dict[str, Row] = {}
    parameters, peak_bytes = 0, 0
    shares = [(folder, name, items, how, (number, spread.workers)) for number in range(spread.workers)]
    for said, warnings, counted, peak in spread.stream(choose_share, shares, ctx.check_stop):
        for warning in warnings:
            ctx.events.warning(warning)
        by_id |= {row["id"]: row for row in said}
        parameters, peak_bytes = counted, max(peak_bytes, peak)
        ctx.events.progress(name, len(by_id), len(items), unit="questions")
    rows = [by_id[item.id] for item in items]
    return rows, _about(name, rows, parameters, watch.seconds, peak_bytes)


def choose_share(
    folder: Path, name: str, items: Sequence[Item], how: How, share: Share
) -> Iterator[tuple[list[Row], list[str], int, int]]:
    """In a worker: the rows of its share, warnings, the model's parameters, and the memory that it took."""
    warnings: list[str] = []
    with PeakMemory() as memory:
        loaded = place(load(folder), warnings.append)
        rows = choose(loaded, items, how, name=name, warn=warnings.append, share=share)
    yield rows, warnings if share[0] == 0 else [], count_parameters(loaded.model).total, memory.peak_bytes


def _about(name: str, rows: Sequence[Row], parameters: int, seconds: float, peak_bytes: int) -> Row:
    return {
        "contender": {"name": name, "kind": "model", "model": name, "parameters": parameters},
        "measured": {"seconds": seconds, "items_per_second": len(rows) / seconds, "peak_rss_bytes": peak_bytes},
        "accuracy": _accuracy(rows),
    }


def choose(
    loaded: Loaded,
    items: Sequence[Item],
    how: How,
    *,
    name: str = "the model",
    warn: Any = lambda _what: None,
    share: Share = (0, 1),
    **watching: Any,
) -> list[Row]:
    """One row an item: its id and label, and what each choice got. share, watching: as in `engine.likelihood`; items
    that are not of the share have no row.

    Raises DataError for a question that does not fit the model's context, unless `how` says to cut.
    """
    forks, cut = _fitting(loaded, items, _forks(loaded, items, how), how, name)
    if cut:
        warn(
            f"{name}: {len(cut)} of {len(items)} questions do not fit its {loaded.context} tokens, and lose their start"
        )
    found = fork_logprobs(loaded, forks, share=share, **watching)
    alone = _unconditional(loaded, items, how) if how.unconditional else {}
    rows = []
    for index, (item, fork, values) in enumerate(zip(items, forks, found, strict=True)):
        if not values:  # another worker's
            continue
        row: Row = {"id": item.id, "label": item.label, "choices": []}
        for text, scored, ids, value in zip(item.choices, how.scored(item), fork.continuations, values, strict=True):
            choice = {"text": text, "logprob": value, "tokens": len(ids), "bytes": len(scored.encode())}
            row["choices"].append(choice | ({"unconditional": alone[scored]} if how.unconditional else {}))
        rows.append(row | ({"truncated": True} if index in cut else {}))
    return rows


def _template(how: How) -> str | None:
    return template_text("plain") if how.prompt == "plain" else None


def _forks(loaded: Loaded, items: Sequence[Item], how: How) -> list[Fork]:
    prompted = [
        prompt_choices(loaded.tokenizer, how.prompt_of(item), how.scored(item), template=_template(how))
        for item in items
    ]
    return [_fork(context, continuations) for context, continuations in encode_choices(loaded.tokenizer, prompted)]


def _fork(context: Sequence[int], continuations: Sequence[Sequence[int]]) -> Fork:
    return Fork(tuple(context), tuple(map(tuple, continuations)))


def _unconditional(loaded: Loaded, items: Sequence[Item], how: How) -> Mapping[str, float]:
    """The log-likelihood of every string that is compared, where the question is empty (Holtzman et al. 2021)."""
    scored = list(dict.fromkeys(text for item in items for text in how.scored(item)))
    empty = (Message("user", ""),)
    prompted = prompt_choices(loaded.tokenizer, empty, scored, template=_template(how))
    ((context, continuations),) = encode_choices(loaded.tokenizer, [prompted])
    forks = [_fork(context, [one]) for one in continuations]
    return dict(zip(scored, (values[0] for values in fork_logprobs(loaded, forks)), strict=True))


def _fitting(
    loaded: Loaded, items: Sequence[Item], forks: Sequence[Fork], how: How, name: str
) -> tuple[list[Fork], set[int]]:
    """The forks as they are read, and which of them had to be cut."""
    cut = {index for index, fork in enumerate(forks) if fork.width > loaded.context}
    for index in sorted(cut):
        longest = max(map(len, forks[index].continuations))
        if not how.truncate or longest >= loaded.context:
            raise DataError(
                f"the question and its choices exceed the {loaded.context} tokens that {name!r} can read",
                where=f"question {items[index].id}",
                value=f"{forks[index].width} tokens ({len(cut)} of {len(items)} questions are too long)",
                cure="shorten them, leave that model out, or set overflow: truncate",
            )
    return [fork.cut(loaded.context) if i in cut else fork for i, fork in enumerate(forks)], cut
