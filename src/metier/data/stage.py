"""What a recipe may ask of data: the stages `documents` and `examples`.

Both read every source whole when a recipe is checked, before any step runs, so bad input stops early and nothing is
written. Everything is held in memory: 16,407 pairs of 21 MB together take 0.7 s and 75 MB. Whatever is left out of the
artifact stands in `rejects.jsonl` with its place and reason.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NoReturn, TypeVar

from pydantic import Field, field_validator, model_validator

from metier.core.errors import DataError
from metier.core.fingerprint import digest
from metier.core.stage import Config, Context, FilePattern, Source, Stage
from metier.data.readers import Example, Reject, Text, read_examples, read_texts
from metier.data.shapes import check_mapping
from metier.data.split import Dropped, Entry, assign, content_id, question_key, separate, text_key
from metier.text.artifacts import conversation_row, document_row, message_rows, write_json, write_jsonl
from metier.text.nouns import Conversation, Document, Message

T = TypeVar("T", Document, Conversation)
Fraction = Field(0.0, ge=0, lt=1)
TICK = 2000


class TextSource(Config):
    """Where documents come from."""

    path: FilePattern
    """File, folder or glob: .jsonl and .json hold one document a row; .txt and .md files are one document each."""
    field: str = Field("text", min_length=1)
    """The field of the rows that holds the text."""


class ExampleSource(Config):
    """Where examples come from."""

    path: FilePattern
    """File, folder or glob of .jsonl or .json files, each in one form: question/answer, prompt/completion,
    input/output, instruction/input/output or messages."""
    fields: dict[str, str] | None = None
    """Our field names to those of the rows, where they differ: {question: q, answer: a}."""

    @field_validator("fields")
    @classmethod
    def _known_names(cls, fields: dict[str, str] | None) -> dict[str, str] | None:
        if fields is not None:
            check_mapping(fields)
        return fields


class TextReplay(Config):
    """General texts to mix in, against forgetting."""

    sources: list[TextSource] = Field(min_length=1)
    """Where they come from."""
    ratio: float = Field(0.1, gt=0, lt=1)
    """Their share of what is trained on."""


class ExampleReplay(Config):
    """General examples to mix in, against forgetting."""

    sources: list[ExampleSource] = Field(min_length=1)
    """Where they come from."""
    ratio: float = Field(0.1, gt=0, lt=1)
    """Their share of what is trained on."""


class Documents(Stage):
    """Read texts to train on, and set some aside to measure with."""

    kind: Literal["documents"] = "documents"
    produces: ClassVar[str] = "documents"
    version: ClassVar[int] = 1

    sources: list[TextSource] = Field(default_factory=list)
    """The texts to train on. None, where the step only holds texts to measure with."""
    heldout: list[TextSource] = Field(default_factory=list)
    """Texts to measure with; a training text that stands here too is dropped from training."""
    heldout_fraction: float = Fraction
    """Share of the sources' documents to hold out as well, chosen by their content and the seed."""
    replay: TextReplay | None = None
    """General texts to mix in when training, against forgetting."""
    min_chars: int = Field(1, ge=1)
    """Documents with fewer characters are rejected."""
    max_rejected: float = Field(0.05, ge=0, le=1)
    """Share of unusable rows above which the step stops."""
    seed: int = Field(0, ge=0)
    """Decides which documents are held out."""

    @model_validator(mode="after")
    def _something_to_read(self) -> "Documents":
        if not self.sources and not self.heldout:
            raise ValueError("give `sources` to train on, `heldout` to measure with, or both")
        if not self.sources and (self.replay or self.heldout_fraction):
            raise ValueError("`replay` and `heldout_fraction` have no effect without `sources`")
        return self

    def check(self, sources: Mapping[str, Source]) -> None:
        """Read every source; raises DataError."""
        self._gather(sources, _Reading())

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write train, heldout and replay, with what was left out and why."""
        gathered = self._gather(ctx.sources, _Reading.of(ctx))
        ratio = self.replay.ratio if self.replay else 0.0
        return _write(ctx.out, gathered, document_row, lambda d: [d.text], ratio)

    def _gather(self, sources: Mapping[str, Source], reading: "_Reading") -> "_Gathered[Document]":
        def read(given: Sequence[TextSource]) -> list[Entry[Document]]:
            return [
                _document_entry(text)
                for source in given
                for path in _paths(sources, source.path)
                for text in reading.usable(path, self._texts(path, source, reading))
            ]

        splits: dict[str, list[Entry[Document]]] = assign(
            read(self.sources), {"heldout": self.heldout_fraction}, seed=self.seed, rest="train"
        )
        splits["heldout"] += read(self.heldout)
        splits["replay"] = read(self.replay.sources) if self.replay else []
        expected = {"train": "sources"} if self.sources else {}
        if self.heldout or self.heldout_fraction:
            expected["heldout"] = "heldout" if self.heldout else "heldout_fraction"
        if self.replay:
            expected["replay"] = "replay"
        return _settle(splits, ("heldout", "train", "replay"), reading, self.max_rejected, expected)

    def _texts(self, path: Path, source: TextSource, reading: "_Reading") -> Iterator[Text | Reject]:
        return read_texts(path, field=source.field, min_chars=self.min_chars, note=reading.note)


class Examples(Stage):
    """Read questions and answers, or longer conversations, to train on and to test with."""

    kind: Literal["examples"] = "examples"
    produces: ClassVar[str] = "examples"
    version: ClassVar[int] = 1

    sources: list[ExampleSource] = Field(min_length=1)
    """The examples to train on."""
    dev: list[ExampleSource] = Field(default_factory=list)
    """Examples to choose the best state of training by; none of their questions is trained on."""
    test: list[ExampleSource] = Field(default_factory=list)
    """Examples to measure with; a question that stands here is dropped from everything else."""
    dev_fraction: float = Fraction
    """Share of the sources' questions to use as dev as well, chosen by the question and the seed."""
    test_fraction: float = Fraction
    """Share of the sources' questions to use as test as well, chosen by the question and the seed."""
    system: str | None = Field(None, min_length=1)
    """System message for the examples that bring none of their own."""
    replay: ExampleReplay | None = None
    """General examples to mix in when training, against forgetting."""
    max_rejected: float = Field(0.05, ge=0, le=1)
    """Share of unusable rows above which the step stops."""
    seed: int = Field(0, ge=0)
    """Decides which questions go into dev and test."""

    @model_validator(mode="after")
    def _leave_some(self) -> "Examples":
        if self.dev_fraction + self.test_fraction >= 1:
            raise ValueError(
                "dev_fraction and test_fraction together leave nothing to train on: keep their sum below 1"
            )
        return self

    def check(self, sources: Mapping[str, Source]) -> None:
        """Read every source; raises DataError."""
        self._gather(sources, _Reading())

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write train, dev, test and replay, with what was left out and why."""
        gathered = self._gather(ctx.sources, _Reading.of(ctx))
        ratio = self.replay.ratio if self.replay else 0.0
        return _write(ctx.out, gathered, conversation_row, lambda c: [m.content for m in c.messages], ratio)

    def _gather(self, sources: Mapping[str, Source], reading: "_Reading") -> "_Gathered[Conversation]":
        def read(given: Sequence[ExampleSource]) -> list[Entry[Conversation]]:
            return [
                _conversation_entry(example, self.system)
                for source in given
                for path in _paths(sources, source.path)
                for example in reading.usable(path, read_examples(path, fields=source.fields, note=reading.note))
            ]

        fractions = {"test": self.test_fraction, "dev": self.dev_fraction}
        splits = assign(read(self.sources), fractions, seed=self.seed, rest="train")
        splits["test"] += read(self.test)
        splits["dev"] += read(self.dev)
        splits["replay"] = read(self.replay.sources) if self.replay else []
        expected = {"train": "sources"}
        if self.test or self.test_fraction:
            expected["test"] = "test" if self.test else "test_fraction"
        if self.dev or self.dev_fraction:
            expected["dev"] = "dev" if self.dev else "dev_fraction"
        if self.replay:
            expected["replay"] = "replay"
        return _settle(splits, ("test", "dev", "train", "replay"), reading, self.max_rejected, expected)


@dataclass
class _Reading:
    """What reading tells the outside, and the rows that it could not use."""

    note: Callable[[str], None] = lambda _: None
    tick: Callable[[str, int], None] = lambda _name, _rows: None
    rejects: list[Reject] = field(default_factory=list)
    rows: int = 0

    @classmethod
    def of(cls, ctx: Context) -> "_Reading":
        def tick(name: str, rows: int) -> None:
            ctx.check_stop()
            ctx.events.progress("read", rows, None, unit="rows", file=name)

        return cls(ctx.events.note, tick)

    def usable(self, path: Path, found: Iterable[Any]) -> Iterator[Any]:
        """Pass on what can be used; keep what cannot."""
        for item in found:
            self.rows += 1
            if isinstance(item, Reject):
                self.rejects.append(item)
            else:
                yield item
            if self.rows % TICK == 0:
                self.tick(path.name, self.rows)
        self.tick(path.name, self.rows)


@dataclass(frozen=True)
class _Gathered(Generic[T]):
    splits: dict[str, list[T]]
    rejects: list[Reject]
    dropped: list[Dropped[T]]
    rows: int


def _paths(sources: Mapping[str, Source], pattern: str) -> tuple[Path, ...]:
    paths = sources[pattern].paths
    if not paths:
        raise DataError("no file matches", value=pattern, cure="check the path; it starts at the recipe's own folder")
    return paths


def _document_entry(text: Text) -> Entry[Document]:
    content = digest(text.text)
    return Entry(Document(text.id or content_id(content), text.text), text_key(text.text), content, text.where)


def _conversation_entry(example: Example, system: str | None) -> Entry[Conversation]:
    messages = example.messages
    if system is not None and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    content = digest(message_rows(messages))
    item = Conversation(example.id or content_id(content), messages, example.group)
    return Entry(item, question_key(messages), content, example.where)


def _settle(
    splits: Mapping[str, Sequence[Entry[T]]],
    order: Sequence[str],
    reading: _Reading,
    max_rejected: float,
    expected: Mapping[str, str],
) -> _Gathered[T]:
    """Refuse what is too much rejected or empty; drop what stands twice; give every item of a split an id of its own.

    expected: the splits that may not be empty, each with the setting that should fill it.
    """
    _check_rejected(reading, max_rejected)
    kept, dropped = separate(splits, order)
    for name, setting in expected.items():
        if not kept[name]:
            _refuse_empty(name, setting, reading, dropped)
    return _Gathered({name: _own_ids(kept[name], reading) for name in order}, reading.rejects, dropped, reading.rows)


def _check_rejected(reading: _Reading, max_rejected: float) -> None:
    if not reading.rows or len(reading.rejects) <= max_rejected * reading.rows:
        return
    raise DataError(
        f"{len(reading.rejects)} of {reading.rows} rows cannot be used, more than max_rejected allows",
        where=reading.rejects[0].where,
        value=_commonest(reading),
        cure=f"correct the rows, or raise max_rejected (now {max_rejected:g})",
    )


def _refuse_empty(name: str, setting: str, reading: _Reading, dropped: Sequence[Dropped[T]]) -> NoReturn:
    fraction = setting.endswith("_fraction")
    left_out = Counter(d.reason.split(" ")[0] for d in dropped)
    raise DataError(
        f"nothing is left in {name!r}"
        + (f": rejected {_commonest(reading)}" if reading.rejects else "")
        + (f"; {left_out['also']} stood in another split, {left_out['repeats']} were repetitions" if dropped else ""),
        where=setting,
        cure="raise it, or give more data: its share of these is less than one" if fraction else "give it other data",
    )


def _commonest(reading: _Reading) -> str:
    """`412 blank answer (first: a.jsonl:7), 3 ...`, the five commonest reasons."""
    first: dict[str, str] = {}
    for reject in reading.rejects:
        first.setdefault(reject.reason, reject.where)
    counted = Counter(reject.reason for reject in reading.rejects).most_common(5)
    return ", ".join(f"{count} {reason} (first: {first[reason]})" for reason, count in counted)


def _own_ids(entries: Sequence[Entry[T]], reading: _Reading) -> list[T]:
    """Items whose ids differ: ids that several carry, as when two files both count from 1, get part of the digest."""
    count = Counter(entry.item.id for entry in entries)
    shared = sum(n for n in count.values() if n > 1)
    if shared:
        reading.note(f"{shared} rows share their id with another; part of their content's digest was added to it")
    return [
        replace(e.item, id=f"{e.item.id}-{content_id(e.content)}") if count[e.item.id] > 1 else e.item for e in entries
    ]


def _write(
    out: Path,
    gathered: _Gathered[T],
    row: Callable[[T], dict[str, Any]],
    texts: Callable[[T], list[str]],
    replay_ratio: float,
) -> dict[str, float]:
    """Write every split, the rejects and `about.json`; the counts are the step's metrics."""
    for name, items in gathered.splits.items():
        write_jsonl(out / f"{name}.jsonl", map(row, items))
    rejects = [{"where": r.where, "reason": r.reason, "row": r.row} for r in gathered.rejects]
    rejects += [{"where": d.entry.where, "reason": d.reason, "row": row(d.entry.item)} for d in gathered.dropped]
    write_jsonl(out / "rejects.jsonl", rejects)
    leaks = sum(d.leak for d in gathered.dropped)
    counts = {name: len(items) for name, items in gathered.splits.items()}
    left_out = {"rejected": len(gathered.rejects), "repeated": len(gathered.dropped) - leaks, "leaked": leaks}
    sizes = {name: _size([t for item in items for t in texts(item)]) for name, items in gathered.splits.items()}
    about = {
        "replay_ratio": replay_ratio,
        "counts": counts,
        "rows_read": gathered.rows,
        **left_out,
        "characters": {name: size[0] for name, size in sizes.items()},
        "bytes": {name: size[1] for name, size in sizes.items()},
        "mean_characters": {name: round(size[0] / max(1, counts[name]), 1) for name, size in sizes.items()},
        "groups": {name: _groups(items) for name, items in gathered.splits.items()},
    }
    write_json(out / "about.json", about)
    return {**counts, **left_out}


def _size(texts: Sequence[str]) -> tuple[int, int]:
    """Characters and UTF-8 bytes."""
    return sum(map(len, texts)), sum(len(t.encode()) for t in texts)


def _groups(items: Sequence[T]) -> dict[str, int]:
    """How many items each named group has, by name; empty for documents."""
    named = Counter(item.group for item in items if isinstance(item, Conversation) and item.group)
    return dict(sorted(named.items()))
