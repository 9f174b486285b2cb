"""Calibration data as token ids: each text by itself, as models are trained and measured, and nothing padded or masked.

Texts are taken evenly spaced over the training split; documents between begin and end tokens, conversations as the chat
template writes them. Of a longer one its first piece is read, and more where all texts' first pieces are not enough.
Pieces of one length go through a model together. Refuses a split with less text than one piece.

Texts joined to pieces, so that each sees those before it, are nothing that a model meets elsewhere: calibrated so, half
of the seedling's weights by Wanda cost 0.39 of perplexity instead of 0.36.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from metier.core.errors import DataError
from metier.models.load import Loaded
from metier.text.artifacts import read_conversations, read_documents
from metier.text.chat import encode_conversation, encode_document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLIT = "train"
LONGEST = 1_000_000
"""Tokens after which a conversation would be cut; calibration cuts by itself."""
SPACINGS = 64
FEWEST = 2
"""Tokens of a piece below which nothing can be read from it."""
BATCH_TOKENS = 1024
"""About how many tokens go through a block at once."""


def pieces(
    loaded: Loaded,
    folder: Path,
    kind: Literal["documents", "examples"],
    *,
    samples: int,
    tokens: int,
    check_stop: Callable[[], None] = lambda: None,
) -> tuple[Tensor, ...]:
    """About samples x tokens ids from the training split of a data step's files, in batches (B, T), the longest first.

    tokens: of the longest piece, at most the model's context. Fewer where there is less text. Raises DataError where
    there is not enough for one piece.
    """
    length = min(tokens, loaded.context)
    found: dict[int, list[list[int]]] = defaultdict(list)
    room = samples * length
    for piece in _pieces(_texts(loaded.tokenizer, folder, kind), length):
        check_stop()
        kept = piece[:room]
        if len(kept) >= FEWEST:
            found[len(kept)].append(kept)
            room -= len(kept)
        if room < FEWEST:
            break
    read = samples * length - room
    if read < length:
        raise DataError(
            f"the training text has {read} tokens, and one piece of calibration takes {length}",
            where="calibration.tokens",
            value=tokens,
            cure="read another step, or set tokens lower",
        )
    return tuple(batch for size in sorted(found, reverse=True) for batch in _batches(found[size], size))


def _pieces(texts: Iterable[list[int]], length: int) -> Iterator[list[int]]:
    """The first piece of each text, then, while more is asked for, the second of each, and so on."""
    longer = []
    for ids in texts:
        yield ids[:length]
        if len(ids) > length:
            longer.append(ids[length:])
    if longer:
        yield from _pieces(longer, length)


def _batches(rows: list[list[int]], size: int) -> Iterator[Tensor]:
    """Pieces of one length, as many at a time as go through at once."""
    yield from torch.split(torch.tensor(rows, dtype=torch.long), max(1, BATCH_TOKENS // size))


def _texts(
    tokenizer: "PreTrainedTokenizerFast", folder: Path, kind: Literal["documents", "examples"]
) -> Iterator[list[int]]:
    """Each text of the split once, evenly spaced ones first, so that few stand for all."""
    if kind == "documents":
        documents = read_documents(folder, SPLIT)
        for at in _spread(len(documents)):
            yield encode_document(tokenizer, documents[at].text)
        return
    conversations = read_conversations(folder, SPLIT)
    for at in _spread(len(conversations)):
        yield encode_conversation(tokenizer, conversations[at], max_length=LONGEST).ids


def _spread(count: int) -> Iterator[int]:
    step = max(1, count // SPACINGS)
    for first in range(step):
        yield from range(first, count, step)
