"""Token ids on disk, encoded once and mapped into memory: what a split becomes under a tokenizer.

    <cache>/<key>/00000/   lengths.npy  rows.npy  ids.bin  targets.bin  names.json

The key is the sha256 of the split's bytes, the tokenizer (its chat template included), the longest sequence and the
version of this code and its libraries; so a shard is never stale, and whoever trains on the same data again reads
instead of encoding. A split is cut into shards of about 16 MB at line ends; each is written aside and renamed, so a run
that was stopped goes on with the next. Large splits are encoded by one process a core, small ones here, by the
tokenizer's own threads.

Costs 4 bytes a token on disk (5 where some tokens are no targets) and, while training, what the system keeps mapped (it
can let go of it) and about 400 bytes a sequence.
"""

import hashlib
import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from metier.core import workers as processes
from metier.core.disk import flush, locked
from metier.core.events import Events
from metier.core.fingerprint import digest, file_digest
from metier.text.artifacts import conversation_of
from metier.text.chat import Encoded, Tokenizer, encode_conversations, encode_document
from metier.train.batches import Ids, Mask, Piece

CODE = 1
"""Raised whenever the same rows would now become other tokens."""
SHARD_BYTES = 16 << 20
WORKERS_FROM = 48 << 20
"""Bytes of a split from which on starting processes pays: each takes a second or two."""
BATCH_CHARACTERS = 1 << 20
"""Text given to the tokenizer at once: its answer takes some 20 bytes for each of them."""


@dataclass(frozen=True)
class EncodedRow:
    """A row's tokens. targets: which are trained on (None: all); the first never counts. cut: it did not fit."""

    name: str
    ids: Ids
    targets: Mask | None
    cut: bool = False


class Encoder(Protocol):
    """What makes rows of an artifact's file into tokens. Goes to other processes, so it can be pickled."""

    def identity(self) -> Any:
        """JSON that differs where its answers would."""
        ...

    def encode(self, rows: Iterable[dict[str, Any]]) -> Iterator[EncodedRow]:
        """Rows in, tokens out, in order."""
        ...


@dataclass
class Documents:
    """Whole documents between begin and end tokens, every token a target. Many at once, where the tokenizer can."""

    tokenizer: "Tokenizer | Bare"

    def identity(self) -> Any:
        """The tokenizer alone: documents are cut into blocks later."""
        return {"form": "documents", "tokenizer": fingerprint(self.tokenizer)}

    def light(self) -> "Documents":
        """The same without transformers, which takes a process 300 MB, where that can be."""
        return Documents(Bare.of(self.tokenizer) or self.tokenizer)

    def encode(self, rows: Iterable[dict[str, Any]]) -> Iterator[EncodedRow]:
        """Each document whole."""
        tokenizer = self.tokenizer
        bare = tokenizer if isinstance(tokenizer, Bare) else Bare.of(tokenizer)
        if bare is None:
            assert not isinstance(tokenizer, Bare)
            for row in rows:
                yield EncodedRow(row["id"], np.asarray(encode_document(tokenizer, row["text"]), np.int32), None)
            return

        def encoded(batch: list[dict[str, Any]]) -> list[EncodedRow]:
            found = bare.documents([row["text"] for row in batch])
            return [EncodedRow(row["id"], ids, None) for row, ids in zip(batch, found, strict=True)]

        with bare.special_as_text():  # `</s>` inside a text is text
            yield from _overlapped(batches_of(rows), encoded)


@dataclass
class Conversations:
    """Conversations through the tokenizer's chat template, the assistant's turns as targets."""

    tokenizer: Tokenizer
    length: int

    def identity(self) -> Any:
        """The tokenizer with its template, and where conversations are cut."""
        return {"form": "conversations", "length": self.length, "tokenizer": fingerprint(self.tokenizer)}

    def light(self) -> "Conversations":
        """The same: templates need transformers."""
        return self

    def encode(self, rows: Iterable[dict[str, Any]]) -> Iterator[EncodedRow]:
        """Each conversation, cut at the length."""
        bare = Bare.of(self.tokenizer)

        def encoded(batch: list[dict[str, Any]]) -> list[EncodedRow]:
            conversations = [conversation_of(row) for row in batch]
            found = encode_conversations(
                self.tokenizer, conversations, max_length=self.length, at_once=bare.texts if bare else None
            )
            return [_row(c.id, one) for c, one in zip(conversations, found, strict=True)]

        yield from _overlapped(batches_of(rows), encoded)


def _row(name: str, encoded: Encoded) -> EncodedRow:
    targets = np.asarray(encoded.trained, np.bool_)
    return EncodedRow(name, np.asarray(encoded.ids, np.int32), targets, encoded.truncated)


def _overlapped(
    batches: Iterable[list[dict[str, Any]]], encode: Callable[[list[dict[str, Any]]], list[EncodedRow]]
) -> Iterator[EncodedRow]:
    """Rows in order. Two batches are in work at a time: while the tokenizer has one, Python has the other."""
    waiting: deque[Future[list[EncodedRow]]] = deque()
    with ThreadPoolExecutor(2) as threads:
        for batch in batches:
            waiting.append(threads.submit(encode, batch))
            if len(waiting) > 2:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


@dataclass
class Bare:
    """A fast tokenizer without transformers around it. begin, end: ids around a document."""

    backend: Any
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> "Bare | None":
        """Of a transformers tokenizer; None for one that is not made of a `tokenizers` one."""
        if isinstance(tokenizer, cls):
            return tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        return cls(backend, () if begin is None else (int(begin),), () if end is None else (int(end),))

    def documents(self, texts: Sequence[str]) -> list[Ids]:
        """As `encode_document` for each, but many at once; within `special_as_text`."""
        found = []
        for ids in self.texts(texts):
            whole = np.empty(len(self.begin) + len(ids) + len(self.end), np.int32)
            whole[: len(self.begin)] = self.begin
            whole[len(self.begin) : len(self.begin) + len(ids)] = ids
            whole[len(self.begin) + len(ids) :] = self.end
            found.append(whole)
        return found

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode` for each, without special tokens added, but many at once."""
        self.backend.no_truncation()
        self.backend.no_padding()
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    @contextmanager
    def special_as_text(self) -> Iterator[None]:
        """Meanwhile, what looks like a special token is encoded as any text."""
        before = self.backend.encode_special_tokens
        self.backend.encode_special_tokens = True
        try:
            yield
        finally:
            self.backend.encode_special_tokens = before


def fingerprint(tokenizer: Any) -> Any:
    """JSON that differs where a tokenizer would encode or render differently."""
    if isinstance(tokenizer, Bare):
        return {"made": _digest(tokenizer.backend.to_str()), "begin": tokenizer.begin, "end": tokenizer.end}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return {
        "made": digest(tokenizer.get_vocab()) if backend is None else _digest(backend.to_str()),
        "kind": type(tokenizer).__name__,
        "template": tokenizer.chat_template,
        "begin": tokenizer.bos_token_id,
        "end": tokenizer.eos_token_id,
    }


def _digest(text: str) -> str:
    """sha256 of a long text: as canonical JSON it would take ten times as long."""
    return hashlib.sha256(text.encode()).hexdigest()


def batches_of(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows of about a million characters together."""
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row["text"]) if "text" in row else sum(len(m["content"]) for m in row["messages"])
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# ---- writing -------------------------------------------------------------------------------------------------------


def key_of(path: Path, encoder: Encoder) -> str:
    """The name of what an encoder makes of a file."""
    made_by = {"code": CODE, "tokenizers": version("tokenizers"), "transformers": version("transformers")}
    return digest({"bytes": file_digest(path), "encoder": encoder.identity(), **made_by})[:24]


def encode(
    path: Path,
    encoder: Documents | Conversations,
    *,
    cache: Path,
    events: Events,
    check_stop: Callable[[], None],
    workers: int | None = None,
) -> "Shards":
    """The tokens of an artifact's file: those known in `cache`, and the rest made now.

    workers: processes; left out, one a core for large files and none for small ones. What is done is kept when
    `check_stop` raises.
    """
    folder = cache / key_of(path, encoder)
    parts = spans(path)
    places = [folder / f"{number:05d}" for number in range(len(parts))]
    todo = [(part, place) for part, place in zip(parts, places, strict=True) if not place.is_dir()]
    if todo:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "making.lock", check_stop):  # another recipe may train on the same texts
            for leftover in folder.glob(".*"):
                shutil.rmtree(leftover, ignore_errors=True)
            todo = [(part, place) for part, place in todo if not place.is_dir()]
            if todo:
                _make(path, encoder, todo, parts[-1][1], events, check_stop, workers)
    return Shards.open(places)


def spans(path: Path) -> list[tuple[int, int]]:
    """Where shards start and end, in bytes, at line ends."""
    size = path.stat().st_size
    cuts = [0]
    with path.open("rb") as file:
        while cuts[-1] + SHARD_BYTES < size:
            file.seek(cuts[-1] + SHARD_BYTES)
            file.readline()
            cuts.append(min(size, file.tell()))
    if cuts[-1] < size:
        cuts.append(size)
    return list(itertools.pairwise(cuts))


def _make(
    path: Path,
    encoder: Documents | Conversations,
    todo: Sequence[tuple[tuple[int, int], Path]],
    size: int,
    events: Events,
    check_stop: Callable[[], None],
    workers: int | None,
) -> None:
    done = size - sum(end - start for (start, end), _ in todo)

    def tell(more: int) -> None:
        nonlocal done
        done += more
        events.progress(f"encode {path.stem}", round(done / 1e6, 1), round(size / 1e6, 1), unit="MB")

    wanted = sum(end - start for (start, end), _ in todo)
    if workers is None:
        workers = min(processes.count(wanted, WORKERS_FROM), len(todo))
    if workers == 0:
        for span, place in todo:
            check_stop()
            write_shard(path, span, encoder, place, check_stop)
            tell(span[1] - span[0])
        return
    pool = processes.pool(workers, _begin, (encoder.light(),))
    try:
        waiting: dict[Future[None], int] = {
            pool.submit(_work, path, span, place): span[1] - span[0] for span, place in todo
        }
        while waiting:
            finished, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                tell(waiting.pop(future))
            check_stop()
    finally:
        processes.close(pool)


_encoder: Encoder | None = None
"""In a worker process: what it encodes with."""


def _begin(encoder: Encoder) -> None:
    global _encoder
    processes.begin()
    _encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has a core


def _work(path: Path, span: tuple[int, int], place: Path) -> None:
    assert _encoder is not None
    write_shard(path, span, _encoder, place, lambda: None)


def write_shard(
    path: Path, span: tuple[int, int], encoder: Encoder, place: Path, check_stop: Callable[[], None]
) -> None:
    """Encode the lines of a file between two bytes, write aside, rename."""
    aside = place.with_name(f".{place.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    lengths: list[int] = []
    facts: list[tuple[int, int]] = []
    names: list[str] = []
    try:
        with (aside / "ids.bin").open("wb") as ids, (aside / "targets.bin").open("wb") as targets:
            for row in encoder.encode(_rows(path, span)):
                check_stop()
                ids.write(row.ids.tobytes())
                trained = max(0, len(row.ids) - 1)
                if row.targets is not None:
                    row.targets[:1] = False  # nothing stands before the first token to predict it from
                    targets.write(row.targets.tobytes())
                    trained = int(row.targets.sum())
                lengths.append(len(row.ids))
                facts.append((trained, int(row.cut)))
                names.append(row.name)
        np.save(aside / "lengths.npy", np.asarray(lengths, np.int64))
        np.save(aside / "rows.npy", np.asarray(facts, np.int32).reshape(-1, 2))
        (aside / "names.json").write_text(json.dumps(names), encoding="utf-8")
        flush(aside)
        if not place.is_dir():
            aside.rename(place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _rows(path: Path, span: tuple[int, int]) -> Iterator[dict[str, Any]]:
    at, end = span
    with path.open("rb") as file:
        file.seek(at)
        while at < end:
            line = file.readline()
            at += len(line)
            yield json.loads(line)


# ---- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """One shard, mapped. ids, targets (None: all but the first): of all rows, end to end. starts: (rows + 1,).
    trained, cut: (rows,)."""

    ids: Ids
    targets: Mask | None
    starts: npt.NDArray[np.int64]
    trained: npt.NDArray[np.int32]
    cut: npt.NDArray[np.bool_]
    names: list[str]

    @classmethod
    def open(cls, place: Path) -> "Shard":
        """Map a shard's files. Changes to the arrays stay in memory."""
        lengths = np.load(place / "lengths.npy")
        facts = np.load(place / "rows.npy")
        names = json.loads((place / "names.json").read_text(encoding="utf-8"))
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        ids, targets = _mapped(place / "ids.bin", np.int32), _mapped(place / "targets.bin", np.bool_)
        return cls(ids, targets if len(targets) else None, starts, facts[:, 0], facts[:, 1].astype(np.bool_), names)


@dataclass(frozen=True)
class Shards:
    """All rows of a split, in order."""

    parts: tuple[Shard, ...]

    @classmethod
    def open(cls, places: Sequence[Path]) -> "Shards":
        """Map the shards in these folders."""
        return cls(tuple(map(Shard.open, places)))

    def __len__(self) -> int:
        return sum(len(shard.names) for shard in self.parts)

    @property
    def trained(self) -> int:
        """Targets in all."""
        return sum(int(shard.trained.sum()) for shard in self.parts)

    @property
    def masked(self) -> tuple[str, ...]:
        """The rows without a target."""
        return tuple(name for s in self.parts for name, n in zip(s.names, s.trained, strict=True) if n == 0)

    @property
    def cut(self) -> tuple[str, ...]:
        """The rows that did not fit."""
        return tuple(name for s in self.parts for name, cut in zip(s.names, s.cut, strict=True) if cut)

    def pieces(self, *, block_size: int | None = None, prompt_weight: float = 0.0) -> Iterator[tuple[int, Piece]]:
        """Every row that has a target, with its number: as mapped, without a copy, where no weight is asked for.

        block_size: rows longer than that come in parts. prompt_weight: how much tokens that are no targets count.
        """
        number = 0
        for shard in self.parts:
            for row, name in enumerate(shard.names):
                if shard.trained[row]:
                    for piece in _pieces(shard, row, name, block_size, prompt_weight):
                        yield number, piece
                number += 1


def _pieces(shard: Shard, row: int, name: str, block_size: int | None, prompt_weight: float) -> Iterator[Piece]:
    start, end = int(shard.starts[row]), int(shard.starts[row + 1])
    ids = shard.ids[start:end]
    if shard.targets is None:
        size = len(ids) if block_size is None else block_size
        step = len(ids) if len(ids) <= size else size - 1  # each part opens with the last token before it
        for at in range(0, max(1, len(ids) - 1), step):
            part = ids[at : at + size]
            yield Piece(name, part, all_but_first(len(part)))
        return
    targets = shard.targets[start:end]
    if prompt_weight == 0:
        yield Piece(name, ids, targets)
        return
    yield Piece(name, ids, all_but_first(len(ids)), np.where(targets, 1, prompt_weight).astype(np.float32))


_shared: Mask = np.zeros(0, np.bool_)


def all_but_first(count: int) -> Mask:
    """A mask of so many tokens; all of these share their memory."""
    global _shared
    if len(_shared) < count:
        _shared = np.ones(max(count, 2 * len(_shared)), np.bool_)
        _shared[:1] = False
        _shared.flags.writeable = False
    return _shared[:count]


def _mapped(path: Path, dtype: Any) -> Any:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="c").view(np.ndarray)
