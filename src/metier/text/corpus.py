"""Texts of a corpus in many files (shards), read as a stream from any place in it: local files, or URLs.

    .jsonl, .ndjson   an object a line, the text in one of its fields
    .parquet          a row, the text in one of its columns
    .txt, .md         the whole file; what is longer than `LONG` characters comes in parts, cut at blank lines

The first and the last may be packed (.gz, .zst). A place is (row, byte): rows before it, and the byte at which the next
line begins once unpacked. From there reading goes on without what stands before: at once where a file is not packed and
its file system can seek, a row group at a time in Parquet, and by unpacking what stands before otherwise. Memory holds
a line, or a batch of Parquet's rows. Raises DataError with file and line for what is malformed.
"""

import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from metier.core import remote
from metier.core.errors import DataError, MissingExtra, StoreError
from metier.core.fingerprint import sample_digest
from metier.core.packed import PACKINGS, Damaged, unpacked
from metier.core.stage import Source
from metier.text.artifacts import write_json

LINES, PARQUET, WHOLE = (".jsonl", ".ndjson"), ".parquet", (".txt", ".md")
LONGEST = 64 * 2**20
"""Bytes of a line above which a file is not what its name says."""
LONG = 2**20
BATCH_ROWS = 256
KNOWN = ", ".join((*LINES, PARQUET, *WHOLE))


class Place(NamedTuple):
    """Where reading stands in a shard."""

    row: int = 0
    byte: int = 0


START = Place()


@dataclass(frozen=True)
class Shard:
    """A file of a corpus. name: as messages and orders know it. url: a path or URL. stamp: differs where the file does;
    empty where its file system tells nothing but the size. skip: how many rows at its start are held out. field: which
    holds the text.
    """

    name: str
    url: str
    size: int
    stamp: str
    field: str = "text"
    skip: int = 0

    @property
    def kind(self) -> str:
        """Its suffix without the packing's."""
        return kind_of(self.url)


def kind_of(name: str) -> str:
    """The suffix that says how a file is read, without the packing's."""
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    return PurePosixPath(path.stem).suffix.lower() if suffix in PACKINGS else suffix


def readable(name: str) -> bool:
    """Whether a file can be a shard, by its name."""
    kind, packed = kind_of(name), PurePosixPath(name).suffix.lower() in PACKINGS
    return kind in (*LINES, *WHOLE) or (kind == PARQUET and not packed)


def listed(pattern: str, paths: Sequence[Path], field: str) -> list[Shard]:
    """The shards that a pattern names, in the order of their names: local files, or what a URL stands for now.

    paths: the files of a pattern that is no URL. Raises DataError where there are none.
    """
    found = _remote(pattern) if remote.is_url(pattern) else _local(paths)
    shards = [Shard(name, url, size, stamp, field) for name, url, size, stamp in found if readable(url)]
    if not shards:
        others = f"; {len(found)} other files are there, such as {found[0][0]}" if found else ""
        raise DataError(
            f"no shard is there{others}",
            where=pattern,
            cure=f"name a folder, glob or URL of files that end in {KNOWN} (the first and the last also packed)",
        )
    return sorted(shards, key=lambda shard: shard.name)


def _local(paths: Sequence[Path]) -> list[tuple[str, str, int, str]]:
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return [(path.relative_to(root).as_posix(), str(path), path.stat().st_size, sample_digest(path)) for path in paths]


def _remote(pattern: str) -> list[tuple[str, str, int, str]]:
    system, path = remote.opened(pattern)
    with remote.told(pattern):
        if any(mark in path for mark in "*?["):
            infos = system.glob(path, detail=True)
        elif system.isdir(path):
            infos = system.find(path, detail=True)
        else:
            infos = {path: system.info(path)}
    files = {name: info for name, info in infos.items() if info.get("type") != "directory"}
    base = os.path.commonpath([PurePosixPath(name).parent for name in files]) if files else ""
    return [
        (
            PurePosixPath(name).relative_to(base).as_posix(),
            system.unstrip_protocol(name),
            int(info.get("size") or 0),
            remote.stamp_of(info),
        )
        for name, info in files.items()
    ]


def changed(pinned: Sequence[Shard], now: Sequence[Shard]) -> DataError | None:
    """What is not as it was when the shards were listed, by name; None where all are. New ones do not count."""
    known = {shard.name: shard for shard in now}
    for shard in pinned:
        other = known.get(shard.name)
        if other is None:
            return DataError(
                f"the shard {shard.name} is gone since it was listed", where=shard.url, cure="put it back as it was"
            )
        if (other.size, other.stamp) != (shard.size, shard.stamp):
            sizes = f"{shard.size:,} -> {other.size:,} bytes" if other.size != shard.size else "the same size"
            return DataError(
                f"the shard {shard.name} has changed since it was listed",
                where=other.url,
                value=f"{sizes}, {shard.stamp[:12]} -> {other.stamp[:12]}",
                cure="put it back as it was; to train on it as it is, delete the step's artifact and begin anew",
            )
    return None


# ---- reading --------------------------------------------------------------------------------------------------------


def texts(shard: Shard, at: Place = START, bad: list[str] | None = None) -> Iterator[tuple[str, Place]]:
    """The texts of a shard from a place on, each with the place behind it; an empty one for what is held out or blank.

    bad: malformed rows are named there and passed over; None: the first raises DataError.
    """
    if shard.kind == PARQUET:
        yield from _parquet(shard, at, bad)
    elif shard.kind in WHOLE:
        yield from _parts(shard, at)
    else:
        yield from _lines(shard, at, bad)


@contextmanager
def _bytes(shard: Shard, at: int) -> Iterator[BinaryIO]:
    """A shard's bytes, unpacked, from one of them on."""
    packing = PurePosixPath(shard.url).suffix.lower()
    with _opened(shard) as file:
        stream = unpacked(file, packing)
        try:
            if packing not in PACKINGS:
                stream.seek(at)
            else:
                left = at
                while left > 0 and (read := stream.read(min(left, 2**20))):
                    left -= len(read)
            yield stream
        except Damaged as error:
            cure = "fetch or pack the file again: what comes after this place is lost"
            raise DataError(str(error), where=shard.url, cure=cure) from error


@contextmanager
def _opened(shard: Shard) -> Iterator[Any]:
    if not remote.is_url(shard.url):
        try:
            with Path(shard.url).open("rb") as file:
                yield file
        except OSError as error:
            cure = "check that the file is there and may be read by you"
            raise DataError(f"the shard cannot be read: {error.strerror}", where=shard.url, cure=cure) from error
        return
    system, path = remote.opened(shard.url)
    with remote.told(shard.url), system.open(path, "rb", block_size=2**22, cache_type="readahead") as file:
        yield io.BufferedReader(file, 2**18)  # fsspec's own readline takes no limit


def _lines(shard: Shard, at: Place, bad: list[str] | None) -> Iterator[tuple[str, Place]]:
    row, byte = at
    with _bytes(shard, byte) as file:
        while line := file.readline(LONGEST + 1):
            row, byte = row + 1, byte + len(line)
            where = f"{shard.url}:{row}"
            if len(line) > LONGEST:
                raise DataError(f"a line of more than {LONGEST // 2**20} MiB", where=where, cure="split it")
            text = "" if row <= shard.skip or not line.strip() else _text_of(line, shard, where, bad)
            yield text, Place(row, byte)


def _text_of(line: bytes, shard: Shard, where: str, bad: list[str] | None) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:  # UnicodeDecodeError is one
        return _malformed(f"malformed JSON: {error}", line[:60], "correct or remove the line", where, bad)
    return _field(value, shard.field, where, bad)


def _field(value: Any, field: str, where: str, bad: list[str] | None) -> str:
    if not isinstance(value, dict):
        return _malformed("each row has to be an object", value, "write {...}", where, bad)
    if field not in value:
        cure = "name the field that holds the text with `field`"
        return _malformed(f"the field {field!r} is missing", sorted(map(str, value)), cure, where, bad)
    text = value[field]
    if not isinstance(text, str):
        return _malformed(f"the field {field!r} has to be text", text, "write a text, or leave the row out", where, bad)
    return text


def _malformed(what: str, value: object, cure: str, where: str, bad: list[str] | None) -> str:
    """Raise, or name what is wrong and pass it over."""
    if bad is None:
        raise DataError(what, where=where, value=value, cure=f"{cure}; or pass such rows over: `bad_rows: skip`")
    bad.append(f"{where}: {what}")
    return ""


def _parts(shard: Shard, at: Place) -> Iterator[tuple[str, Place]]:
    """A text, in parts where it is long."""
    row, byte = at
    with _bytes(shard, byte) as file:
        held: list[bytes] = []
        size = 0
        while line := file.readline(LONGEST + 1):
            held.append(line)
            size += len(line)
            if size >= LONG and (not line.strip() or size >= 2 * LONG):
                row, byte = row + 1, byte + size
                yield _decoded(b"".join(held), shard, row), Place(row, byte)
                held, size = [], 0
        if size:
            row, byte = row + 1, byte + size
            yield _decoded(b"".join(held), shard, row), Place(row, byte)


def _decoded(data: bytes, shard: Shard, row: int) -> str:
    if row <= shard.skip:
        return ""
    try:
        return data.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        what = f"not UTF-8: byte 0x{data[error.start]:02x}"
        raise DataError(what, where=f"{shard.url}, part {row}", cure="save it as UTF-8") from error


def _parquet(shard: Shard, at: Place, bad: list[str] | None) -> Iterator[tuple[str, Place]]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra("pyarrow", "formats", needed_by=shard.url) from None
    with _opened(shard) as file:
        try:
            table = parquet.ParquetFile(file)
            if shard.field not in table.schema_arrow.names:
                raise DataError(
                    f"the column {shard.field!r} is missing",
                    where=shard.url,
                    value=sorted(table.schema_arrow.names),
                    cure="name the column that holds the text with `field`",
                )
            first = 0
            for group in range(table.num_row_groups):
                count = table.metadata.row_group(group).num_rows
                if first + count > at.row:
                    yield from _group(table, group, first, shard, at, bad)
                first += count
        except pa.ArrowException as error:
            cure = "fetch or write the file again"
            raise DataError(f"damaged Parquet: {error}", where=shard.url, cure=cure) from error


def _group(
    table: Any, group: int, first: int, shard: Shard, at: Place, bad: list[str] | None
) -> Iterator[tuple[str, Place]]:
    row = first
    for batch in table.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=[shard.field]):
        for value in batch.column(0).to_pylist():
            row += 1
            if row > at.row:
                where = f"{shard.url}: row {row}"
                yield "" if row <= shard.skip else _field({shard.field: value}, shard.field, where, bad), Place(row)


# ---- the artifact ---------------------------------------------------------------------------------------------------

SHARDS, STREAM = "shards.json", "stream"
"""The file, and the kind of artifact."""


@dataclass(frozen=True)
class Corpus:
    """What a `stream` step leaves in its files: which shards there are, and how they are to be read.

    buffer_bytes: of text that is shuffled at a time, over all lanes. lanes: how many streams are read side by side.
    skip_bad: malformed rows are passed over. min_chars: shorter texts are passed over.
    """

    shards: tuple[Shard, ...]
    buffer_bytes: float
    lanes: int
    skip_bad: bool
    min_chars: int

    @property
    def size(self) -> int:
        """Bytes of all shards, as they lie there."""
        return sum(shard.size for shard in self.shards)

    def identity(self) -> dict[str, Any]:
        """What the order and the texts follow from: the shards by name, and the settings."""
        settings = {"buffer_bytes": self.buffer_bytes, "lanes": self.lanes, "skip_bad": self.skip_bad}
        shards = {s.name: [s.size, s.stamp, s.field, s.skip] for s in self.shards}
        return {**settings, "min_chars": self.min_chars, "shards": shards}


def gathered(sources: Sequence[tuple[str, Sequence[Path], str]]) -> list[Shard]:
    """The shards of several sources (pattern, files, field), named apart."""
    found = []
    for number, (pattern, paths, field) in enumerate(sources):
        before = f"{number}/" if len(sources) > 1 else ""
        found += [replace(shard, name=before + shard.name) for shard in listed(pattern, paths, field)]
    return found


def write_corpus(folder: Path, corpus: Corpus) -> None:
    """Leave it in an artifact's files. Where shards lie is no part of it: the recipe says it."""
    write_json(folder / SHARDS, corpus.identity())


def read_corpus(folder: Path, sources: Sequence[Source]) -> Corpus:
    """The opposite, with the shards where they lie now. sources: of the step, in order.

    Raises DataError for a shard that is gone or has changed, by name; StoreError for a damaged file.
    """
    path = folder / SHARDS
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        pinned = [
            Shard(name, name, size, stamp, field, skip) for name, (size, stamp, field, skip) in told["shards"].items()
        ]
        settings = {name: told[name] for name in ("buffer_bytes", "lanes", "skip_bad", "min_chars")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        cure = f"delete the folder {folder.parent} and run again"
        raise StoreError(f"the list of shards cannot be read ({error})", where=str(path), cure=cure) from error
    now = {shard.name: shard for shard in gathered([(source.name, source.paths, "") for source in sources])}
    wrong = changed(pinned, list(now.values()))
    if wrong is not None:
        raise wrong
    return Corpus(tuple(replace(shard, url=now[shard.name].url) for shard in pinned), **settings)


def is_stream(folder: Path) -> bool:
    """Whether an artifact's files are those of a `stream` step."""
    return (folder / SHARDS).is_file()
