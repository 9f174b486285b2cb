"""From an artifact's rows to pieces of tokens, with a count of what could not be used.

Refuses data of which nothing is left to learn from, and conversations of which too many are cut or without a token to
train on, naming some. Costs about a second per million tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from metier.core.errors import DataError
from metier.core.events import Events
from metier.text.artifacts import about, read_conversations, read_documents
from metier.text.chat import Tokenizer, encode_conversation, encode_document
from metier.text.nouns import Conversation, Document
from metier.train.batches import Piece, split, targets_of

Row = TypeVar("Row", Document, Conversation)
Encode = Callable[[Row], tuple[Piece, bool]]
"""The piece of a row, and whether it was cut."""


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
    """All that a training step reads. block_size: pieces are packed into blocks of it (None: not packed)."""

    pieces: tuple[Piece, ...]
    replay: tuple[Piece, ...]
    dev: tuple[Piece, ...]
    replay_share: float
    block_size: int | None
    labels: Labels


def documents(
    folder: Path, tokenizer: Tokenizer, *, block_size: int, events: Events, check_stop: Callable[[], None]
) -> Material:
    """The documents of an artifact: every token but the first is a target."""

    def encode(document: Document) -> tuple[Piece, bool]:
        return Piece.of(document.id, encode_document(tokenizer, document.text)), False

    def read(name: str) -> list[Piece]:
        rows = read_documents(folder, name) if (folder / f"{name}.jsonl").is_file() else []
        return _encode(rows, encode, name, events, check_stop)[0]

    pieces, masked, cut = _encode(read_documents(folder, "train"), encode, "train", events, check_stop)
    labels = Labels(len(pieces) + len(masked), masked, cut, targets_of(pieces))
    _check_labels(labels, max_masked=1.0, where="documents", events=events)
    parts = tuple(part for piece in pieces for part in split(piece, block_size))
    replay = tuple(part for piece in read("replay") for part in split(piece, block_size))
    dev = tuple(part for piece in read("heldout") for part in split(piece, block_size))
    return Material(parts, replay, dev, _replay_share(folder, replay), block_size, labels)


def examples(
    folder: Path,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    max_masked: float,
    prompt_weight: float = 0.0,
    events: Events,
    check_stop: Callable[[], None],
) -> Material:
    """The conversations of an artifact: the assistant's tokens are targets.

    prompt_weight: how much the other tokens' loss counts while training; the dev loss is the assistant's alone.
    """

    def encode(conversation: Conversation, weight: float) -> tuple[Piece, bool]:
        encoded = encode_conversation(tokenizer, conversation, max_length=max_length)
        # a row without an answer teaches nothing that is asked for, whatever its prompt weighs
        weight = weight if any(encoded.trained[1:]) else 0.0
        return Piece.of(conversation.id, encoded.ids, encoded.trained, prompt_weight=weight), encoded.truncated

    def read(name: str, weight: float) -> list[Piece]:
        rows = read_conversations(folder, name) if (folder / f"{name}.jsonl").is_file() else []
        return _encode(rows, partial(encode, weight=weight), name, events, check_stop)[0]

    rows = read_conversations(folder, "train")
    pieces, masked, cut = _encode(rows, partial(encode, weight=prompt_weight), "train", events, check_stop)
    labels = Labels(len(pieces) + len(masked), masked, cut, targets_of(pieces))
    _check_labels(labels, max_masked=max_masked, where="examples", events=events)
    replay = tuple(read("replay", prompt_weight))
    return Material(tuple(pieces), replay, tuple(read("dev", 0.0)), _replay_share(folder, replay), None, labels)


def _encode(
    rows: Sequence[Row], encode: Encode[Row], name: str, events: Events, check_stop: Callable[[], None]
) -> tuple[list[Piece], tuple[str, ...], tuple[str, ...]]:
    """The pieces that have a target, the ids of those that have none, and of those that were cut."""
    pieces: list[Piece] = []
    masked: list[str] = []
    cut: list[str] = []
    for number, row in enumerate(rows, 1):
        check_stop()
        piece, was_cut = encode(row)
        if piece.trained:
            pieces.append(piece)
        else:
            masked.append(row.id)
        if was_cut:
            cut.append(row.id)
        if number % 1000 == 0 or number == len(rows):
            events.progress(f"encode {name}", number, len(rows), unit="rows")
    return pieces, tuple(masked), tuple(cut)


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


def _replay_share(folder: Path, replay: Sequence[Piece]) -> float:
    ratio: Any = about(folder).get("replay_ratio") or 0.0
    return float(ratio) if replay else 0.0
