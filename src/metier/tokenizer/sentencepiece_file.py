"""tokenizer.model, SentencePiece's own file, kept saying what tokenizer.json says.

Converters to other formats read it, so one that lacks the new pieces would give another tokenizer without a word. New
pieces are appended with scores below all others, which puts their merges last, as in tokenizer.json. Then both are
tried on real lines; a file that does not agree on all of them is left out instead. Costs about a second.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metier.tokenizer.extend import PIECES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TRIED = 2000
"""Lines on which the two must agree."""
_NORMAL, _CONTROL, _USER_DEFINED, _BPE = 1, 3, 4, 2


def keep_in_step(
    folder: Path,
    old: "PreTrainedTokenizerFast",
    new: "PreTrainedTokenizerFast",
    pieces: Sequence[str],
    first_id: int,
    lines: Iterable[str],
) -> str:
    """Extend the old tokenizer.model in `folder`, or delete it where it cannot say the same as the new tokenizer.json.

    lines: to try both on. Those that the old two cut differently (runs of spaces) count for nothing. Returns what
    became of it.
    """
    from sentencepiece import SentencePieceProcessor

    path = folder / PIECES
    tried = list(islice((line for line in lines if line.strip()), TRIED))
    before = SentencePieceProcessor(model_file=str(path))
    alike = [line for line in tried if before.encode(line) == _ids(old, line)]
    reason = _extend(path, new, pieces, first_id)
    if not reason:
        after = SentencePieceProcessor(model_file=str(path))
        differs = sum(after.encode(line) != _ids(new, line) for line in alike)
        reason = f"it would cut {differs:,} of {len(alike):,} texts otherwise than tokenizer.json" if differs else ""
    if reason or not alike:
        path.unlink()
        return f"{PIECES} is left out, as {reason or 'it never agreed with tokenizer.json'}: use tokenizer.json"
    told = f"{PIECES} has the new pieces too, and agrees with tokenizer.json on {len(alike):,} of {len(tried):,} texts"
    return told + ("" if len(alike) == len(tried) else "; on the others it did not before either")


def _ids(tokenizer: "PreTrainedTokenizerFast", line: str) -> list[int]:
    found: list[int] = tokenizer.backend_tokenizer.encode(line, add_special_tokens=False).ids
    return found


def _extend(path: Path, tokenizer: "PreTrainedTokenizerFast", pieces: Sequence[str], first_id: int) -> str:
    from sentencepiece import sentencepiece_model_pb2

    file: Any = sentencepiece_model_pb2.ModelProto()
    file.ParseFromString(path.read_bytes())
    if file.trainer_spec.model_type != _BPE:
        return "it is no BPE model"
    known = {number: token for token, number in tokenizer.get_vocab().items()}
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    for number in range(len(file.pieces), first_id):  # tokens that tokenizer.json alone has, such as one for padding
        if number not in known:
            return f"id {number} stands for nothing"
        file.pieces.add(piece=known[number], score=0.0, type=_CONTROL if number in special else _USER_DEFINED)
    if len(file.pieces) != first_id:
        return "it has ids that tokenizer.json does not have"
    lowest = min(piece.score for piece in file.pieces)
    for number, piece in enumerate(pieces):
        file.pieces.add(piece=piece, score=lowest - 1 - number, type=_NORMAL)
    file.trainer_spec.vocab_size = len(file.pieces)
    path.write_bytes(file.SerializeToString(deterministic=True))
    return ""
