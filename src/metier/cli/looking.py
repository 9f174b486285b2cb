"""What `metier check` finds in the data: what a data step would leave in the store, made aside and looked at.

A data step that is made already is read where it lies. Any other is made in a temporary folder, in the same way as
`metier run` makes it, and deleted afterwards. Steps whose data comes from a model are not: nothing is known of it yet.
Rows beyond `MOST` a split are looked at evenly spaced; counts are exact. How far it is is told as events of the step.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metier.cli.proof import MOST, spread_rows, told
from metier.core.events import Events, Listener
from metier.core.stage import Context, Source
from metier.data.stage import Documents, Examples
from metier.evaluate.stage import Answer, Perplexity
from metier.pipeline import Planned
from metier.recipe import Recipe
from metier.synthesize.synthesis import Synthesize
from metier.text.artifacts import about, conversation_of, document_of, read_jsonl
from metier.text.nouns import Conversation, Document
from metier.train.stage import Training

LEFT_OUT = {
    "rejected": "unusable",
    "filtered": "filtered out",
    "private": "with private data",
    "repeated": "repeated",
    "near": "near-duplicates",
    "leaked": "also in another split",
    "contaminated": "seen in testing",
    "kept_out": "kept out for other steps",
}
"""The counts of rows left out in a data step's about.json, and what they are called."""
TRAINED = ("train", "replay")
COMMONEST = 6
MOST_HITS = 5
Row = dict[str, Any]


@dataclass(frozen=True)
class Data:
    """What one data step holds. reasons: why rows were left out: how many, and where the first of them stands.

    private: stretches of private data by kind, in `private_rows` rows of those looked at. notes: what its readers said.
    """

    step: str
    kind: str
    folder: Path
    rows_read: int
    splits: Mapping[str, int]
    left_out: Mapping[str, int]
    reasons: tuple[tuple[str, int, str], ...]
    private: Mapping[str, int]
    private_rows: int
    looked_at: int
    notes: tuple[str, ...] = ()

    @property
    def taken(self) -> int:
        """Rows that stand in some split."""
        return sum(self.splits.values())


@dataclass(frozen=True)
class Leak:
    """Items of a tested split that a contender's training data shows. hits: some, as rows with both texts."""

    tested: str
    split: str
    trained: str
    items: int
    seen: int
    how: Mapping[str, int]
    hits: tuple[Row, ...]


def is_data(step: Planned) -> bool:
    """Whether the step reads the user's data and needs no model for it."""
    stage = step.stage
    return isinstance(stage, Documents | Examples) or (isinstance(stage, Synthesize) and stage.needs_no_model)


def make(
    recipe: Recipe, step: Planned, folders: Mapping[str, Path], aside: Path, listeners: Sequence[Listener] = ()
) -> Path | None:
    """The files of a data step, as they are or would be. None where it needs what is not made. Raises InputError.

    listeners: hear its progress and its notes; of a step that is made already, the notes of its making.
    """
    if step.artifact is not None:
        for event in step.artifact.events():
            if event["event"] == "note":
                for listener in listeners:
                    listener(event)
        return step.artifact.files
    sources = dict(step.sources)
    for link in recipe.links[step.name]:
        if link.step is not None and link.step in folders:
            value = link.reference.value
            sources[value] = replace(sources[value], paths=(folders[link.step],))
    if not is_data(step) or any(not source.paths for source in _named(recipe, step, sources)):
        return None
    files, measured, scratch = (aside / step.name / part for part in ("files", "measured", "scratch"))
    for folder in (files, measured, scratch):
        folder.mkdir(parents=True)
    events = Events(step.name, listeners=list(listeners))
    step.stage.run(Context(step.name, files, measured, scratch, events, sources))
    return files


def _named(recipe: Recipe, step: Planned, sources: Mapping[str, Source]) -> Iterator[Source]:
    """The sources that are other steps."""
    return (sources[link.reference.value] for link in recipe.links[step.name] if link.step is not None)


def look(step: str, kind: str, folder: Path, events: Events, notes: Sequence[str] = ()) -> Data:
    """Count what lies in a data step's files, and look for private data in it."""
    known = about(folder)
    private: Counter[str] = Counter()
    rows_with = looked_at = 0
    for split in known["counts"]:
        rows = spread_rows(folder / f"{split}.jsonl", MOST)[1]
        looked_at += len(rows)
        for row in told(events, f"look through {split}", rows):
            found = _private(" \n".join(_texts(row)))
            private.update(found)
            rows_with += bool(found)
    return Data(
        step=step,
        kind=kind,
        folder=folder,
        rows_read=int(known.get("rows_read", 0)),
        splits=dict(known["counts"]),
        left_out={name: int(known.get(name, 0)) for name in LEFT_OUT if known.get(name)},
        reasons=_reasons(folder / "rejects.jsonl"),
        private=dict(private.most_common()),
        private_rows=rows_with,
        looked_at=looked_at,
        notes=tuple(dict.fromkeys(notes)),
    )


def _reasons(path: Path) -> tuple[tuple[str, int, str], ...]:
    """The commonest reasons, each up to its colon or its first name of another row."""
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for row in read_jsonl(path) if path.is_file() else ():
        reason = _plain(str(row["reason"]))
        counts[reason] += 1
        first.setdefault(reason, str(row["where"]))
    return tuple((reason, count, first[reason]) for reason, count in counts.most_common(COMMONEST))


def _plain(reason: str) -> str:
    """A reason without what differs from row to row: `repeats a.jsonl:7` counts as `repeats`."""
    head = reason.split(":")[0].split(" (")[0]
    words = head.split(" ")
    kept = [word for word in words if "." not in word.strip(".") or word.replace(".", "").isalpha()]
    return " ".join(kept or words)


def _private(text: str) -> list[str]:
    """The kinds of private data in a text, once for each stretch."""
    from metier.data.privacy import Privacy

    return [found.kind for found in Privacy().find(text)]


def _texts(row: Row) -> list[str]:
    return [row["text"]] if "text" in row else [str(message["content"]) for message in row["messages"]]


def leaks(recipe: Recipe, steps: Mapping[str, Planned], data: Mapping[str, Data], events: Events) -> list[Leak]:
    """For each tested split and each data step that a contender of the test learns from: what it has seen of it."""
    from metier.text.overlap import Gate, Index, trained_texts

    pairs = list(dict.fromkeys(_pairs(recipe, steps, data)))
    tested = list(dict.fromkeys((step, split) for step, split, _ in pairs))
    index = Index(Gate())
    items: dict[tuple[str, str], int] = {}
    for place, (step, split) in enumerate(tested):
        rows = spread_rows(data[step].folder / f"{split}.jsonl", MOST)[1]
        items[step, split] = len(rows)
        for row in rows:
            item = _item(row)
            index.add_item(item, f"{place}/{item.id}")
    seen: dict[tuple[str, str, str], dict[str, str]] = {pair: {} for pair in pairs}
    hits: dict[tuple[str, str, str], list[Row]] = {pair: [] for pair in pairs}
    for name in dict.fromkeys(name for *_, name in pairs):
        for part in TRAINED:
            rows = spread_rows(data[name].folder / f"{part}.jsonl", MOST)[1]
            for row in told(events, f"look for tests in {name}/{part}", rows):
                for hit in index.hits_of(trained_texts(_item(row))):
                    number, _, test_id = hit.test_id.partition("/")
                    pair = (*tested[int(number)], name)
                    if pair not in seen:
                        continue
                    if test_id not in seen[pair] and len(hits[pair]) < MOST_HITS:
                        hits[pair].append(replace(hit, test_id=test_id).row(str(row["id"]), part))
                    seen[pair].setdefault(test_id, hit.how)
    return [
        Leak(
            step, split, name, items[step, split], len(ids), dict(Counter(ids.values())), tuple(hits[step, split, name])
        )
        for (step, split, name), ids in seen.items()
    ]


def _pairs(recipe: Recipe, steps: Mapping[str, Planned], data: Mapping[str, Data]) -> Iterator[tuple[str, str, str]]:
    """(data step, split, data step that is learned from) of everything tested that can be looked at."""
    for tested, split, contenders in _tests(steps):
        if tested in data and data[tested].splits.get(split):
            for name in _learned_from(recipe, steps, contenders):
                if name in data:
                    yield tested, split, name


def _item(row: Row) -> Document | Conversation:
    return conversation_of(row) if "messages" in row else document_of(row)


def _tests(steps: Mapping[str, Planned]) -> Iterator[tuple[str, str, list[str]]]:
    """(data step, split, contenders) of everything that the recipe measures with."""
    for step in steps.values():
        if isinstance(step.stage, Answer):
            yield step.stage.questions, step.stage.split, step.stage.local
        elif isinstance(step.stage, Perplexity):
            for documents in step.stage.documents:
                yield documents, "heldout", list(step.stage.models)


def _learned_from(recipe: Recipe, steps: Mapping[str, Planned], contenders: list[str]) -> list[str]:
    """The data steps that the contenders, or the models they come from, are trained on."""
    needed = {name for model in contenders if model in steps for name in recipe.needed(model)}
    stages = [steps[name].stage for name in steps if name in needed]
    return list(dict.fromkeys(stage.data for stage in stages if isinstance(stage, Training)))
