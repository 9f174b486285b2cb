"""An old tokenizer with new pieces: real merges, or plain added tokens where no merge can make a word.

New merges come after all old ones. A tokenizer of this kind always takes the earliest merge that is possible, so it
first cuts a text as it did before, and then joins some of those pieces; as no new merge makes an old piece, no old
merge becomes possible again. So a text that holds no new piece is cut as before, and in any other only boundaries go.
Each new piece gets a merge for every two pieces of the vocabulary that make it, in SentencePiece's way: then the scores
of a tokenizer.model (and of GGUF) say the same as the merges.

Added tokens are found in a text before it is cut, wherever they stand alone, and take no space with them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metier.core.errors import ModelError
from metier.models.load import read_tokenizer
from metier.models.save import save_tokenizer
from metier.tokenizer.kinds import Kind, kind_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER, PIECES = "tokenizer.json", "tokenizer.model"


@dataclass(frozen=True)
class Parsed:
    """A tokenizer's file, its kind, and the first id that stands for nothing yet."""

    content: dict[str, Any]
    kind: Kind
    first_id: int


def parsed(tokenizer: "PreTrainedTokenizerFast") -> Parsed:
    """What a loaded tokenizer is made of. Raises ModelError for a kind that cannot be extended."""
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = kind_of(content, where=str(Path(tokenizer.name_or_path) / TOKENIZER))
    return Parsed(content, kind, max(tokenizer.get_vocab().values()) + 1)


def extended(base: Parsed, pieces: Sequence[str], added: Sequence[str]) -> dict[str, Any]:
    """The tokenizer.json with new pieces (ids from `first_id` on, in their order) and then added tokens."""
    content: dict[str, Any] = json.loads(json.dumps(base.content))
    model = content["model"]
    vocabulary: dict[str, int] = model["vocab"]
    for token in content["added_tokens"]:
        # Added tokens outside the model get their ids by counting on from its vocabulary, which is larger now.
        vocabulary.setdefault(token["content"], token["id"])
    for number, piece in enumerate(pieces):
        vocabulary[piece] = base.first_id + number
    _as_pairs(model)
    for piece in pieces:
        splits = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        model["merges"] += [[left, right] for left, right in splits if left in vocabulary and right in vocabulary]
    for number, text in enumerate(added):
        content["added_tokens"].append(_added(text, base.first_id + len(pieces) + number))
        vocabulary[text] = base.first_id + len(pieces) + number
    return content


def write(
    tokenizer: "PreTrainedTokenizerFast", base: Parsed, pieces: Sequence[str], added: Sequence[str], folder: Path
) -> "PreTrainedTokenizerFast":
    """Write the extended tokenizer to `folder` and read it back. Its tokenizer.model, if any, is extended too."""
    content = extended(base, pieces, added)
    save_tokenizer(tokenizer, folder)
    (folder / TOKENIZER).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    found = read_tokenizer(folder)
    wanted = {piece: base.first_id + number for number, piece in enumerate((*pieces, *added))}
    known = found.get_vocab()
    wrong = [piece for piece, number in wanted.items() if known.get(piece) != number]
    wrong += [token for token, number in tokenizer.get_vocab().items() if known.get(token) != number]
    if wrong:
        raise ModelError(
            "the tokenizer does not keep its ids when it is extended",
            where=tokenizer.name_or_path,
            value=wrong[0],
            cure="leave extend_tokenizer out for this model",
        )
    return found


def _as_pairs(model: dict[str, Any]) -> None:
    """Older files write a merge as one string with a space."""
    model["merges"] = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]


def _added(text: str, number: int) -> Mapping[str, Any]:
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": number, "content": text, "single_word": True, **flags}
