"""A `knows` step as it runs: ask, judge by words, tag, and write the examples anew.

Every split of the examples comes along; train, dev and test with `known` (the category) and `known_share` (how many of
the likeliest answers are right) in each pair's `meta`. Costs `rounds` answers a pair, and `rounds` x `samples` more for
those that are never right. Replies are kept as they come, so a run that was killed goes on.
"""

import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from metier.core.errors import DataError, RecipeError
from metier.core.stage import Context
from metier.engine.interface import Asking, Engine
from metier.synthesize.desk import Desk
from metier.synthesize.grounding import content, numbers
from metier.synthesize.known import CATEGORIES, Category
from metier.synthesize.pair import Row
from metier.text.artifacts import about, conversation_row, read_conversations, read_jsonl, write_json, write_jsonl
from metier.text.nouns import Conversation, Message
from metier.text.overlap import letters

if TYPE_CHECKING:
    from metier.synthesize.known import Knows

TAGGED = ("train", "dev", "test")
_POLAR = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
Splits = dict[str, list[Conversation]]


@dataclass(frozen=True)
class Found:
    """What was found of a pair. share: how many of the likeliest answers are right. drawn: whether any drawn one is."""

    share: float
    drawn: bool

    @property
    def category(self) -> Category:
        """Named as in arXiv 2405.05904."""
        if self.share == 1:
            return "highly_known"
        if self.share > 0:
            return "maybe_known"
        return "weakly_known" if self.drawn else "unknown"


def read_splits(stage: "Knows", folder: Path) -> Splits:
    """The pairs of each split that is there. Raises DataError where train has none, or too few to show."""
    found = {name: read_conversations(folder, name) for name in TAGGED if (folder / f"{name}.jsonl").is_file()}
    if not found.get("train"):
        cure = "name a step whose train split has some"
        raise DataError("there are no pairs to tag", where="examples", value=stage.examples, cure=cure)
    if len(found["train"]) <= stage.shots:
        cure = "lower shots, or give more pairs"
        raise DataError(
            f"{stage.shots} examples cannot be shown before each question",
            where="shots",
            value=f"{len(found['train'])} pairs in train",
            cure=cure,
        )
    return found


def tag(stage: "Knows", ctx: Context, engine: Engine | None = None) -> dict[str, float]:
    """Write the artifact. Returns the counts of each split and each category of train. engine: for tests."""
    folder = ctx.source(stage.examples).path
    splits = read_splits(stage, folder)
    pairs = [pair for split in splits.values() for pair in split]
    found = _ask(stage, ctx, pairs, splits["train"], engine)
    tagged = _tagged(stage, splits, found)
    kept, gone = _parted(stage, tagged["train"])
    if not kept:
        cure = "add other categories to train_on"
        raise RecipeError("no pair is left for train", where="train_on", value=stage.train_on, cure=cure)
    for path in sorted(folder.iterdir()):
        if path.suffix == ".jsonl" and path.stem not in (*TAGGED, "rejects"):
            shutil.copyfile(path, ctx.out / path.name)
    for name, split in tagged.items():
        write_jsonl(ctx.out / f"{name}.jsonl", map(conversation_row, kept if name == "train" else split))
    before = list(read_jsonl(folder / "rejects.jsonl")) if (folder / "rejects.jsonl").is_file() else []
    write_jsonl(ctx.out / "rejects.jsonl", [*before, *gone])
    counts = {name: Counter(pair.meta["known"] for pair in split) for name, split in tagged.items()}
    _write_about(stage, ctx, folder, tagged["train"], kept, counts)
    metrics: dict[str, float] = {name: len(kept if name == "train" else split) for name, split in tagged.items()}
    return metrics | {f"train {name}": counts["train"][name] for name in CATEGORIES}


def _ask(
    stage: "Knows", ctx: Context, pairs: Sequence[Conversation], train: Sequence[Conversation], engine: Engine | None
) -> list[Found]:
    """What the model says of each pair, in their order."""
    greedy, drawing = _engines(stage, ctx) if engine is None else (engine, engine)
    rounds = stage.rounds if stage.shots else 1
    shown = [[_prompt(stage, pair, train, turn) for turn in range(rounds)] for pair in pairs]
    said = Desk(ctx, greedy, "likeliest").ask("likeliest answers", [p for row in shown for p in row])
    right = [
        sum(is_right(answer, pair, stage.recall) for answer in said[place * rounds : (place + 1) * rounds])
        for place, pair in enumerate(pairs)
    ]
    left = [place for place, count in enumerate(right) if not count] if stage.samples else []
    prompts = [prompt for place in left for prompt in shown[place] for _ in range(stage.samples)]
    drawn = Desk(ctx, drawing, "drawn").ask("drawn answers", prompts) if prompts else []
    each = rounds * stage.samples
    lucky = {
        place
        for number, place in enumerate(left)
        if any(is_right(a, pairs[place], stage.recall) for a in drawn[number * each : (number + 1) * each])
    }
    return [Found(count / rounds, place in lucky) for place, count in enumerate(right)]


def _engines(stage: "Knows", ctx: Context) -> tuple[Engine, Engine]:
    """The model, saying the likeliest, and drawing."""
    from metier.engine.here import LocalEngine
    from metier.models.load import load
    from metier.models.placed import place
    from metier.text.prompts import use_template

    loaded = place(load(ctx.source(stage.model).path), ctx.events.warning)
    use_template(loaded.tokenizer, stage.prompt)
    asking = Asking(stage.max_new_tokens, 0.0, 1.0, stage.seed, stage.batch_size)
    drawn = replace(asking, temperature=stage.temperature)
    return LocalEngine(loaded, asking, name=stage.model), LocalEngine(loaded, drawn, name=stage.model)


def _prompt(stage: "Knows", pair: Conversation, train: Sequence[Conversation], turn: int) -> tuple[Message, ...]:
    """The question after examples of other documents; the pair's own system message opens all."""
    draw = Random(f"{stage.seed}:{turn}:{pair.id}")
    mine, question = _cluster(pair), letters(pair.messages[-2].content)
    shown: list[Message] = []
    for place in draw.sample(range(len(train)), len(train)):
        other = train[place]
        if len(shown) >= 2 * stage.shots:
            break
        if other.id == pair.id or (mine and _cluster(other) == mine) or letters(other.messages[-2].content) == question:
            continue
        shown += other.messages[-2:]
    opening = [m for m in pair.messages[:-1] if m.role == "system"]
    return (*opening, *shown, *[m for m in pair.messages[:-1] if m.role != "system"])


def _cluster(pair: Conversation) -> str:
    return pair.meta.get("cluster", "")


def is_right(answer: str, pair: Conversation, recall: float) -> bool:
    """Whether an answer says what the reference says beyond the question."""
    question, reference = pair.messages[-2].content, pair.messages[-1].content
    polar = _POLAR.match(reference)
    if polar and not ((said := _POLAR.match(answer)) and said[1].lower() == polar[1].lower()):
        return False
    wanted = content(reference) - content(question)
    digits = numbers(reference) - numbers(question)
    if not wanted and not digits:
        return polar is not None or f" {letters(reference)} " in f" {letters(answer)} "
    held = wanted & content(answer)
    return digits <= numbers(answer) and len(held) >= recall * len(wanted)


def _tagged(stage: "Knows", splits: Splits, found: Sequence[Found]) -> Splits:
    """The pairs with their tags, and their new groups."""
    results = iter(found)
    made: Splits = {}
    for name, split in splits.items():
        made[name] = []
        for pair in split:
            one = next(results)
            meta = {**pair.meta, "known": one.category, "known_share": f"{one.share:.2f}"}
            made[name].append(replace(pair, group=_group(stage, pair.group, one.category), meta=meta))
    return made


def _group(stage: "Knows", before: str, category: Category) -> str:
    if stage.groups == "keep":
        return before
    return category if stage.groups == "category" else ("unknown" if category == "unknown" else "known")


def _parted(stage: "Knows", train: Sequence[Conversation]) -> tuple[list[Conversation], list[Row]]:
    """What stays in train, and the rejects."""
    kept = [pair for pair in train if pair.meta["known"] in stage.train_on]
    gone = [
        {
            "where": f"{stage.examples}: train {pair.id}",
            "kind": f"{pair.meta['known']} to {stage.model}",
            "reason": f"{pair.meta['known']} to {stage.model}, and train_on leaves these out",
            "row": conversation_row(pair),
        }
        for pair in train
        if pair.meta["known"] not in stage.train_on
    ]
    return kept, gone


def _write_about(
    stage: "Knows",
    ctx: Context,
    folder: Path,
    train: Sequence[Conversation],
    kept: Sequence[Conversation],
    counts: Mapping[str, Counter[str]],
) -> None:
    """What the examples' own about.json says, brought up to date."""
    told = about(folder)
    told["counts"] = told.get("counts", {}) | {"train": len(kept)}
    told.pop("synthesis", None)  # it tells of the step before, which the report shows itself
    if told.get("domains"):
        told["domains"] = _domains(told["domains"], [pair.meta["known"] in stage.train_on for pair in train])
    told["known"] = {
        "model": stage.model,
        "shots": stage.shots,
        "rounds": stage.rounds if stage.shots else 1,
        "samples": stage.samples,
        "left_out": len(train) - len(kept),
        "splits": {name: {category: count[category] for category in CATEGORIES} for name, count in counts.items()},
    }
    write_json(ctx.out / "about.json", told)


def _domains(domains: Sequence[Row], stays: Sequence[bool]) -> list[Row]:
    """How many rows of each weighted source are left; train has them in that order."""
    made, start = [], 0
    for domain in domains:
        end = start + int(domain["rows"])
        made.append({**domain, "rows": sum(stays[start:end])})
        start = end
    return made
