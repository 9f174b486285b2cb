"""Calibration data as token ids: pieces of one length, so that nothing is padded or masked.

Texts are taken evenly spaced over the training split and joined; documents between begin and end tokens, conversations
as the chat template writes them. Refuses a split with less text than one piece.
"""

from collections.abc import Callable, Iterator
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


def pieces(
    loaded: Loaded,
    folder: Path,
    kind: Literal["documents", "examples"],
    *,
    samples: int,
    tokens: int,
    check_stop: Callable[[], None] = lambda: None,
) -> Tensor:
    """Ids (samples, tokens) from the training split of a data step's files; fewer samples where there is less text.

    tokens: at most the model's context. Raises DataError where there is not enough for one piece.
    """
    length = min(tokens, loaded.context)
    joined: list[int] = []
    for ids in _texts(loaded.tokenizer, folder, kind):
        check_stop()
        joined += ids
        if len(joined) >= samples * length:
            break
    count = min(samples, len(joined) // length)
    if not count:
        raise DataError(
            f"the training text has {len(joined)} tokens, and one piece of calibration takes {length}",
            where="calibration.tokens",
            value=tokens,
            cure="read another step, or set tokens lower",
        )
    return torch.tensor(joined[: count * length], dtype=torch.long).view(count, length)


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
