"""From an artifact's rows to pieces of tokens, with a count of what could not be used.

Refuses data of which nothing is left to learn from, and conversations of which too many are cut or without a token to
train on, naming some. Costs about a second per million tokens.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from metier.core.errors import DataError
from metier.core.events import Events
from metier.core.stage import Source
from metier.text.artifacts import about, read_jsonl
from metier.text.chat import Tokenizer
from metier.text.corpus import read_corpus
from metier.train.batches import Piece, digest_of
from metier.train.shards import Conversations as ConversationEncoder
from metier.train.shards import Documents as DocumentEncoder
from metier.train.shards import Shards, encode
from metier.train.streams import Reader


@dataclass(frozen=True)
class Labels:
    """What became of the rows that were to be trained on. masked: without any target. truncated: cut at the length."""

    rows: int
    masked: tuple[str, ...]
    truncated: tuple[str, ...]
    trained_tokens: int

    def json(self) -> dict[str, int]:
        """As it stands in about.json."""
        return {
            "rows": self.rows,
            "masked_rows": len(self.masked),
            "truncated_rows": len(self.truncated),
            "trained_tokens": self.trained_tokens,
        }


@dataclass(frozen=True)
class Material:
    """All that a training step reads. block_size: pieces are packed into blocks of it (None: not packed).

    domains, refusals: as in `Batches`. retain: of unlearning, whose pieces are to be forgotten. stream: what makes the
    pieces as they are read, of which only a few are here then.
    """

    pieces: tuple[Piece, ...]
    replay: tuple[Piece, ...]
    dev: tuple[Piece, ...]
    replay_share: float
    block_size: int | None
    labels: Labels
    domains: tuple[tuple[int, float], ...] = ()
    refusals: tuple[Piece, ...] = ()
    refusal_share: float = 0.0
    retain: tuple[Piece, ...] = ()
    stream: Reader | None = None


def documents(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    block_size: int,
    events: Events,
    check_stop: Callable[[], None],
    cache: Path,
    stream: bool = False,
) -> Material:
    """The documents of an artifact: every token but the first is a target. cache: where token ids are kept.

    stream: those to train on come one behind the other, as one text that is cut every `block_size` tokens. Raises
    DataError where their sources have weights: what is one text has no parts.
    """
    read = partial(_shards, folder, DocumentEncoder(tokenizer), cache=cache, events=events, check_stop=check_stop)
    train = read("train")
    labels = _labels(train)
    _check_labels(labels, max_masked=1.0, where="documents", events=events)
    material = _material(folder, train, read, dev="heldout", block_size=block_size, labels=labels)
    if not stream:
        return material
    if material.domains:
        cure = "leave out `packing: stream`, or the sources' weights"
        raise DataError(
            "sources with weights are mixed piece by piece, which one stream has not", where="packing", cure=cure
        )
    streams = (tuple(streamed(read(name), block_size)) for name in ("train", "replay"))
    return replace(material, pieces=next(streams), replay=next(streams))


def of_corpus(
    folder: Path,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    *,
    block_size: int,
    whole: bool,
    seed: int,
    events: Events,
    check_stop: Callable[[], None],
    cache: Path,
) -> Material:
    """A corpus that is read as a stream. folder, sources: the files of its step, and what that reads.

    whole: as in `Reader`. Raises DataError where a shard is not as it was listed.
    """
    encoder = DocumentEncoder(tokenizer)
    corpus = read_corpus(folder, sources)
    reader = Reader(corpus, encoder.light(), block_size, seed, whole)
    dev = _shards(folder, encoder, "heldout", cache=cache, events=events, check_stop=check_stop)
    held = tuple(piece for _, piece in dev.pieces(block_size=block_size))
    events.note(
        f"reading {len(corpus.shards):,} shards of {corpus.size / 1e9:.2f} GB as a stream, in {corpus.lanes} lanes; "
        "how many tokens they hold is not known beforehand"
    )
    return Material((), (), held, 0.0, block_size, Labels(0, (), (), 0), stream=reader)


def streamed(shards: Shards, block_size: int) -> Iterator[Piece]:
    """All rows, in their order, as one sequence that is cut every so many tokens; each part opens with the last token
    before it, so that every token is predicted once."""
    rows = [piece.ids for _, piece in shards.pieces()]
    if not rows:
        return
    ids = np.concatenate(rows)
    for number, at in enumerate(range(0, max(1, len(ids) - 1), block_size - 1)):
        part = ids[at : at + block_size]
        targets = np.ones(len(part), np.bool_)
        targets[:1] = False
        yield Piece(f"stream-{number}", part, targets)


def examples(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    max_masked: float,
    prompt_weight: float = 0.0,
    events: Events,
    check_stop: Callable[[], None],
    cache: Path,
) -> Material:
    """The conversations of an artifact: the assistant's tokens are targets.

    prompt_weight: how much the other tokens' loss counts while training; the dev loss is the assistant's alone. A row
    without an answer teaches nothing that is asked for, whatever its prompt weighs. cache: where token ids are kept.
    """
    encoder = ConversationEncoder(tokenizer, max_length)
    read = partial(_shards, folder, encoder, cache=cache, events=events, check_stop=check_stop)
    train = read("train")
    labels = _labels(train)
    _check_labels(labels, max_masked=max_masked, where="examples", events=events)
    return _material(folder, train, read, dev="dev", labels=labels, prompt_weight=prompt_weight)


def unlearning(
    forget: Path,
    retain: Path,
    dev: Path,
    dev_split: str,
    tokenizer: Tokenizer,
    *,
    length: int,
    max_masked: float,
    events: Events,
    check_stop: Callable[[], None],
    cache: Path,
) -> Material:
    """What is to be forgotten (as the pieces, plain), what is to be kept, and what stops it, from data of either kind.

    Documents are cut at the length. Raises DataError where a piece stands among both.
    """

    def read(folder: Path, split: str) -> tuple[Shards, int | None]:
        documents = holds_documents(folder, split)
        encoder = DocumentEncoder(tokenizer) if documents else ConversationEncoder(tokenizer, length)
        shards = _shards(folder, encoder, split, cache=cache, events=events, check_stop=check_stop)
        return shards, length if documents else None

    found: dict[str, tuple[Piece, ...]] = {}
    labels: dict[str, Labels] = {}
    for where, folder, split in (("forget", forget, "train"), ("retain", retain, "train"), ("general", dev, dev_split)):
        shards, block_size = read(folder, split)
        if where != "general":
            labels[where] = _labels(shards)
            most = 1.0 if block_size else max_masked
            _check_labels(labels[where], max_masked=most, where=where, events=events)
        found[where] = tuple(piece for _, piece in shards.pieces(block_size=block_size, prompt_weight=0.0))
    kept = {digest_of([replace(piece, id="")]): piece for piece in found["retain"]}
    both = [(piece, kept[key]) for piece in found["forget"] if (key := digest_of([replace(piece, id="")])) in kept]
    if both:
        raise DataError(
            f"{len(both)} of {len(found['forget'])} rows stand among what is to be forgotten and what is to be kept",
            where="retain",
            value=", ".join(f"{one.id} and {other.id}" for one, other in both[:3]),
            cure="take them out of one of the two",
        )
    return Material(found["forget"], (), found["general"], 0.0, None, labels["forget"], retain=found["retain"])


def holds_documents(folder: Path, split: str) -> bool:
    """Whether a split's rows are documents rather than conversations, by its first."""
    path = folder / f"{split}.jsonl"
    first = next(read_jsonl(path), None) if path.is_file() else None
    return first is not None and "text" in first


def _shards(
    folder: Path,
    encoder: DocumentEncoder | ConversationEncoder,
    name: str,
    *,
    cache: Path,
    events: Events,
    check_stop: Callable[[], None],
) -> Shards:
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        return Shards(())
    return encode(path, encoder, cache=cache, events=events, check_stop=check_stop)


def _labels(train: Shards) -> Labels:
    return Labels(len(train), train.masked, train.cut, train.trained)


def _material(
    folder: Path,
    train: Shards,
    read: Callable[[str], Shards],
    *,
    dev: str,
    labels: Labels,
    block_size: int | None = None,
    prompt_weight: float = 0.0,
) -> Material:
    facts = about(folder)

    def pieces(name: str, weight: float) -> tuple[Piece, ...]:
        return tuple(piece for _, piece in read(name).pieces(block_size=block_size, prompt_weight=weight))

    numbered = list(train.pieces(block_size=block_size, prompt_weight=prompt_weight))
    replay, refusals = pieces("replay", prompt_weight), _in_pairs(read("refusals"), prompt_weight)
    return Material(
        tuple(piece for _, piece in numbered),
        replay,
        pieces(dev, 0.0),
        float(facts.get("replay_ratio") or 0.0) if replay else 0.0,
        block_size,
        labels,
        _domains([row for row, _ in numbered], facts.get("domains") or []),
        refusals,
        float(facts.get("refusal_share") or 0.0) if refusals else 0.0,
    )


def _in_pairs(refusals: Shards, prompt_weight: float) -> tuple[Piece, ...]:
    """Refusals, each followed by its twin; a pair of which one has nothing to learn from goes."""
    known = dict(refusals.pieces(prompt_weight=prompt_weight))
    pairs = [(row, row + 1) for row in range(0, len(refusals) - 1, 2) if row in known and row + 1 in known]
    return tuple(known[row] for pair in pairs for row in pair)


def _domains(rows: Sequence[int], domains: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, float], ...]:
    """How many pieces each domain has, and its weight. rows: the row of each piece. domains: rows and weight of each,
    in the order in which the file has them."""
    found = []
    start = end = 0
    for domain in domains:
        end += int(domain["rows"])
        count = bisect_left(rows, end) - bisect_left(rows, start)
        start = end
        if count:
            found.append((count, float(domain["weight"])))
    return tuple(found)


def _check_labels(labels: Labels, *, max_masked: float, where: str, events: Events) -> None:
    bad = list(dict.fromkeys([*labels.masked, *labels.truncated]))
    counts = f"{len(labels.masked)} of {labels.rows} rows have no token to train on, {len(labels.truncated)} were cut"
    named = ", ".join(bad[:5]) + (" ..." if len(bad) > 5 else "")
    if labels.rows == len(labels.masked):
        raise DataError(
            "no row is left to learn from" + (f": {counts} ({named})" if bad else ""),
            where=where,
            cure="raise max_length, or check that the data step's rows hold text" if bad else "give the step some rows",
        )
    if len(bad) > max_masked * labels.rows:
        raise DataError(
            f"{counts}: {len(bad) / labels.rows:.1%} in all, and max_masked is {max_masked:.1%} ({named})",
            where=where,
            cure="raise max_length (the model's context allowing), shorten these rows, or raise max_masked",
        )
    if bad:
        events.warning(f"{counts} ({named}); rows without one are left out")
