"""From a recipe's sources to items: which files, which reader, treated, with ids."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

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


@dataclass
class Reading:
    """Reads sources. by_row: every row is a group of its own. seen: told the bytes of each file that is through."""

    sources: Mapping[str, Source]
    treat: Treatment
    faults: Faults
    note: Callable[[str], None]
    by_row: bool = False
    seen: Callable[[Path], None] = lambda _path: None
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
                keep_going=self.faults.keep_going,
            )
            for text in self.faults.of(found):
                yield text if isinstance(text, Reject) else self._document(text, min_chars)
            self._through(origin)

    def conversations(self, source: ExampleSource, system: str | None) -> Read:
        """The examples of a source. system: the message for those that bring none."""
        for origin in self._origins(source, "examples"):
            found = read_examples(
                origin,
                fields=source.fields,
                note=self.note,
                keep=source.keep,
                keep_going=self.faults.keep_going,
            )
            for example in self.faults.of(found):
                yield example if isinstance(example, Reject) else self._conversation(example, system)
            self._through(origin)

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
                if "text" in row:
                    yield self._item(where, document_of(row), row.get("meta") or {})
                else:
                    yield self._item(where, conversation_of(row), row.get("meta") or {})

    def _origins(self, source: Origin, wanted: Wanted) -> Iterator[Path | Hub]:
        if source.hub is not None:
            yield source.hub
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

    def _through(self, origin: Path | Hub) -> None:
        if isinstance(origin, Path):
            self.seen(origin)

    def _document(self, text: Text, min_chars: int) -> Item | Reject:
        treated = self.treat(text.where, [text.text])
        (found,) = treated.texts
        if treated.kind:
            return Left(text.where, treated.reason, {"id": text.id, "text": text.text}, treated.kind)
        if len(found) < min_chars:
            return Reject(text.where, f"shorter than {min_chars} characters", {"id": text.id, "text": text.text})
        content = digest(found)
        item = Document(text.id or content_id(content), found)
        return self._item(text.where, item, text.meta, content=content, source_id=text.id, group=text.group)

    def _conversation(self, example: Example, system: str | None) -> Item | Reject:
        treated = self.treat(example.where, [m.content for m in example.messages])
        if treated.kind:
            row = {"id": example.id, "messages": message_rows(example.messages)}
            return Left(example.where, treated.reason, row, treated.kind)
        messages = tuple(Message(m.role, t) for m, t in zip(example.messages, treated.texts, strict=True))
        if system is not None and messages[0].role != "system":
            messages = (Message("system", system), *messages)
        content = digest(message_rows(messages))
        item = Conversation(example.id or content_id(content), messages, example.group)
        return self._item(example.where, item, example.meta, content=content, source_id=example.id, group=example.group)

    def _item(
        self,
        where: str,
        item: Document | Conversation,
        meta: Mapping[str, str],
        *,
        content: str | None = None,
        source_id: str | None = None,
        group: str = "",
    ) -> Item:
        self._rows += 1
        if isinstance(item, Document):
            row, key = document_row(item), text_key(item.text)
            content = content or digest(item.text)
        else:
            row, key = conversation_row(item), question_key(item.messages)
            content = content or digest(message_rows(item.messages))
        if self.by_row:
            key = digest([key, self._rows])
        made: Row = {**row, "meta": dict(meta)} if meta else row
        return Item(where, item, made, source_id, key, content, group)


def _names_a_folder(pattern: str, paths: list[Path]) -> bool:
    if any(sign in pattern for sign in "*?["):
        return False
    return len(paths) > 1 or paths[0].name != Path(pattern).name
