"""From a recipe's sources to items: which files, which reader, treated, with ids."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from metier.core import workers as processes
from metier.core.errors import DataError
from metier.core.fingerprint import digest
from metier.core.stage import Source
from metier.data.files import Faults
from metier.data.formats.hub import Hub
from metier.data.gathering import Item, Left, Row
from metier.data.readers import Example, Reject, Text, Wanted, pick, read_examples, read_texts
from metier.data.settings import ExampleSource, Origin, Refusals, TextSource
from metier.data.split import content_id, question_key, text_key
from metier.data.treating import Treatment
from metier.text.artifacts import conversation_of, conversation_row, document_of, document_row, message_rows, read_jsonl
from metier.text.nouns import Conversation, Document, Message

Read = Iterator[Item | Reject]
Make = Callable[[Treatment, Any], Item | Reject]
"""What makes an item of a row that was read."""
WORKERS_FROM = 64 << 20
"""Bytes of sources from which on starting processes pays."""
BATCH_CHARACTERS = 1 << 20
BATCH_ROWS = 2000
"""Where a batch for a worker ends."""


@dataclass
class Reading:
    """Reads sources. by_row: every row is a group of its own. pool: treats rows, for large sources. most_asked: of
    examples, the characters before the answer above which they are left out."""

    sources: Mapping[str, Source]
    treat: Treatment
    faults: Faults
    note: Callable[[str], None]
    by_row: bool = False
    pool: "Pool | None" = None
    most_asked: int | None = None
    _rows: int = 0

    def documents(self, source: TextSource, min_chars: int) -> Read:
        """The documents of a source."""
        for origin in self._origins(source, "texts"):
            found = read_texts(
                origin,
                field=source.field,
                min_chars=min_chars,
                note=self.note,
                id_field=source.id_field,
                keep=source.keep,
                only=source.only,
                keep_going=self.faults.keep_going,
            )
            yield from self._prepared(self.faults.of(found), partial(_document, min_chars=min_chars))

    def conversations(self, source: ExampleSource, system: str | None) -> Read:
        """The examples of a source. system: the message for those that bring none."""
        for origin in self._origins(source, "examples"):
            found = read_examples(
                origin,
                fields=source.fields,
                note=self.note,
                keep=source.keep,
                only=source.only,
                keep_going=self.faults.keep_going,
            )
            yield from self._prepared(
                self.faults.of(found), partial(_conversation, system=system, most_asked=self.most_asked)
            )

    def prompts(self, source: ExampleSource, system: str | None, group: str) -> Read:
        """The examples of a source as a group of that name; the one that their row names stands in their meta."""
        for item in self.conversations(source, system):
            if isinstance(item, Item):
                meta = {**(item.row.get("meta") or {}), **({"group": item.group} if item.group else {})}
                row = {**item.row, "group": group, **({"meta": meta} if meta else {})}
                yield replace(item, row=row, group=group)
            else:
                yield item

    def pairs(self, refusals: Refusals, system: str | None) -> Read:
        """Refusals, each followed by its twin. A pair of which one cannot be used goes whole.

        Raises DataError where there are more of one kind than of the other.
        """
        given = (item for source in refusals.sources for item in self.conversations(source, system))
        twins = (item for source in refusals.twins for item in self.conversations(source, system))
        for number, (one, other) in enumerate(zip_longest(given, twins), 1):
            if one is None or other is None:
                lacking = "twin" if other is None else "refusal"
                raise DataError(
                    f"the {lacking}s end after {number - 1} rows",
                    where="refusals",
                    cure="give every refusal one harmless twin, in the same order",
                )
            bad = [item for item in (one, other) if isinstance(item, Reject)]
            if not bad:
                yield from (one, other)
            for item in (one, other) if bad else ():
                why = f"its pair is left out ({bad[0].where})"
                yield item if isinstance(item, Reject) else Left(item.where, why, item.row)

    def step(self, name: str) -> Read:
        """The rows that another step trains on; none while it has not run. They were treated there."""
        for folder in self.sources[name].paths:
            for number, row in enumerate(read_jsonl(folder / "train.jsonl"), 1):
                where = f"{name}:{number}"
                item = document_of(row) if "text" in row else conversation_of(row)
                yield self._told_apart(_item(where, item, row.get("meta") or {}))

    def _origins(self, source: Origin, wanted: Wanted) -> Iterator[Path | Hub]:
        if source.hub is not None:
            folder = source.hub.folder
            yield source.hub if folder is None else source.hub.at(self.sources[folder].paths)
            return
        assert source.path is not None
        paths: Iterable[Path] = self.sources[source.path].paths
        if not paths:
            cure = "check the path; it starts at the recipe's own folder"
            raise DataError("no file matches", value=source.path, cure=cure)
        if _names_a_folder(source.path, list(paths)):
            kept, left = pick(paths, wanted)
            if left:
                names = ", ".join(path.name for path in left[:3])
                self.note(f"{source.path}: {len(left)} files of other kinds are passed over ({names})")
            if not kept:
                raise DataError("the folder holds no file that can be read", value=source.path, cure="name the files")
            paths = kept
        yield from paths

    def _prepared(self, rows: Iterator[Any], make: Make) -> Read:
        """Rows that were read, treated: here, or in order by the workers."""
        made = self.pool.each(rows, make, self.treat) if self.pool else _here(rows, make, self.treat)
        for item in made:
            yield self._told_apart(item) if isinstance(item, Item) else item

    def _told_apart(self, item: Item) -> Item:
        """The item with a key of its own, where every row is a group of its own."""
        self._rows += 1
        return replace(item, key=digest([item.key, self._rows])) if self.by_row else item


def _document(treat: Treatment, text: Text, *, min_chars: int) -> Item | Reject:
    treated = treat(text.where, [text.text])
    (found,) = treated.texts
    if treated.kind:
        return Left(text.where, treated.reason, {"id": text.id, "text": text.text}, treated.kind, text.id)
    if len(found) < min_chars:
        return Reject(text.where, f"shorter than {min_chars} characters", {"id": text.id, "text": text.text})
    item = Document(text.id or content_id(digest(found)), found)
    return _item(text.where, item, text.meta, source_id=text.id, group=text.group)


def _conversation(
    treat: Treatment, example: Example, *, system: str | None, most_asked: int | None = None
) -> Item | Reject:
    treated = treat(example.where, [m.content for m in example.messages])
    if treated.kind:
        row = {"id": example.id, "messages": message_rows(example.messages)}
        return Left(example.where, treated.reason, row, treated.kind, example.id)
    messages = tuple(Message(m.role, t) for m, t in zip(example.messages, treated.texts, strict=True))
    if system is not None and messages[0].role != "system":
        messages = (Message("system", system), *messages)
    asked = sum(len(message.content) for message in messages[:-1])
    if most_asked is not None and asked > most_asked:
        row = {"id": example.id, "messages": message_rows(messages)}
        reason = f"question of more than {most_asked:,} characters: {asked:,}"
        return Left(example.where, reason, row, source_id=example.id)
    item = Conversation(example.id or content_id(digest(message_rows(messages))), messages, example.group)
    return _item(example.where, item, example.meta, source_id=example.id, group=example.group)


def _item(
    where: str,
    item: Document | Conversation,
    meta: Mapping[str, str],
    *,
    source_id: str | None = None,
    group: str = "",
) -> Item:
    if isinstance(item, Document):
        row, key, content = document_row(item), text_key(item.text), digest(item.text)
    else:
        row, key, content = conversation_row(item), question_key(item.messages), digest(message_rows(item.messages))
    made: Row = {**row, "meta": dict(meta)} if meta else row
    return Item(where, item, made, source_id, key, content, group)


# ---- workers -------------------------------------------------------------------------------------------------------


class Pool:
    """Processes that treat rows in batches, whose results come in order. A few batches wait for each process."""

    def __init__(self, treat: Treatment, workers: int) -> None:
        self._workers = workers
        self._pool = processes.pool(workers, _begin, (treat,))

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        processes.close(self._pool)

    def each(self, rows: Iterator[Any], make: Make, treat: Treatment) -> Read:
        """What `make` makes of each row. What was done is counted in `treat`."""
        waiting: deque[Future[tuple[list[Item | Reject], Treatment]]] = deque()
        for batch in _batches(rows):
            waiting.append(self._pool.submit(_work, make, batch))
            if len(waiting) > 2 * self._workers:
                yield from _counted(waiting.popleft(), treat)
        while waiting:
            yield from _counted(waiting.popleft(), treat)


def workers_for(sources: Mapping[str, Source]) -> int:
    """How many processes pay for sources of this size; 0 for small ones."""
    size = sum(path.stat().st_size for source in sources.values() for path in source.paths if path.is_file())
    return processes.count(size, WORKERS_FROM)


def _here(rows: Iterable[Any], make: Make, treat: Treatment) -> Read:
    for row in rows:
        yield row if isinstance(row, Reject) else make(treat, row)


def _batches(rows: Iterator[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    size = 0
    for row in rows:
        batch.append(row)
        if not isinstance(row, Reject):
            size += len(row.text) if isinstance(row, Text) else sum(len(m.content) for m in row.messages)
        if size >= BATCH_CHARACTERS or len(batch) >= BATCH_ROWS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _counted(future: "Future[tuple[list[Item | Reject], Treatment]]", treat: Treatment) -> Read:
    made, counted = future.result()
    treat.merge(counted)
    yield from made


_treatment: Treatment | None = None
"""In a worker process: what it does to texts."""


def _begin(treat: Treatment) -> None:
    global _treatment
    processes.begin()
    _treatment = treat


def _work(make: Make, batch: list[Any]) -> tuple[list[Item | Reject], Treatment]:
    assert _treatment is not None
    treat = _treatment.fresh()
    return list(_here(batch, make, treat)), treat


def _names_a_folder(pattern: str, paths: list[Path]) -> bool:
    if any(sign in pattern for sign in "*?["):
        return False
    return len(paths) > 1 or paths[0].name != Path(pattern).name
