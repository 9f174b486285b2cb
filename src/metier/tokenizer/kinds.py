"""What kind of BPE a tokenizer.json holds, and how its pieces are written: the two kinds that can be given merges.

    sentencepiece   Llama and TinyLlama: words start with "▁", characters that no piece has become bytes "<0xE2>"
    byte-level      GPT-2, Llama 3, the seedling: every byte is a letter of its own, a space is "Ġ"

Refuses, from the parsed file alone: WordPiece, Unigram, word lists, BPE whose pieces carry marks of their own ("##",
"</w>") or that drops merges at random. Imports nothing heavy.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from metier.core.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Name = Literal["sentencepiece", "byte-level"]
SPACE: dict[Name, str] = {"sentencepiece": "▁", "byte-level": "Ġ"}
_CHUNK = re.compile("▁*[^▁]+|▁+")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Kind:
    """A tokenizer's kind. space: how a piece writes the space before a word."""

    name: Name

    @property
    def space(self) -> str:
        """The mark."""
        return SPACE[self.name]

    def shown(self, piece: str) -> str:
        """The text that a piece stands for; bytes that are no whole character as �."""
        if self.name == "sentencepiece":
            return piece.replace("▁", " ")
        return _bytes_of(piece).decode("utf-8", errors="replace")

    def written(self, text: str) -> str:
        """The piece that stands for a text."""
        if self.name == "sentencepiece":
            return text.replace(" ", "▁")
        return "".join(_LETTER[byte] for byte in text.encode("utf-8"))

    def is_word(self, piece: str) -> bool:
        """Whether a piece is made of letters (and marks on them) alone, but for one space before: what may be new.

        Numbers, punctuation and line ends stay as they are: models count and format with them. Part of a character that
        is cut between pieces counts as a letter: what it becomes whole is looked at again.
        """
        text = piece.removeprefix(self.space)
        if not text or _BYTE.fullmatch(piece):
            return False
        if self.name == "sentencepiece":
            return all(_is_letter(char) for char in text)
        return all(_is_letter(char) or char == "\ufffd" for char in _bytes_of(text).decode("utf-8", "replace"))


def kind_of(parsed: Mapping[str, Any], *, where: str) -> Kind:
    """The kind of a parsed tokenizer.json. Raises ModelError for one that merges cannot be added to."""
    model = parsed.get("model") or {}
    name = model.get("type") or ("BPE" if "merges" in model else "Unigram" if "unk_id" in model else "WordPiece")
    if name != "BPE":
        raise _unsupported(where, f"{name} has no merges that words could be added to", name)
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _unsupported(where, f"its pieces carry the mark {model[key]!r}", f"BPE with {key}")
    if model.get("dropout"):
        raise _unsupported(where, "it drops merges at random", f"BPE with dropout {model['dropout']}")
    if any(step.get("type") == "ByteLevel" for step in _steps(parsed.get("pre_tokenizer"), "pretokenizers")):
        return Kind("byte-level")
    marks = [*_steps(parsed.get("pre_tokenizer"), "pretokenizers"), *_steps(parsed.get("normalizer"), "normalizers")]
    if any(_marks_spaces(step) for step in marks):
        return Kind("sentencepiece")
    raise _unsupported(where, "its spaces are written neither as ▁ nor as bytes", "BPE of another kind")


def chunks(tokenizer: "Tokenizer", kind: Kind, text: str) -> Iterator[str]:
    """A text in parts that merges never cross, as the model below the pre-tokenizer reads them.

    SentencePiece's reads a whole text at once, but no piece goes on past a space, so that words are as good.
    """
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    parts = (
        [text] if tokenizer.pre_tokenizer is None else [p for p, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    )
    for part in parts:
        if kind.name == "sentencepiece":
            yield from _CHUNK.findall(part)
        else:
            yield part


def byte_of(piece: str) -> bytes | None:
    """The byte that a SentencePiece piece such as <0xE2> stands for; None for any other."""
    return bytes([int(piece[3:5], 16)]) if _BYTE.fullmatch(piece) else None


def pieces(tokenizer: "Tokenizer", chunk: str) -> list[str]:
    """What the tokenizer's model makes of a chunk."""
    return [token.value for token in tokenizer.model.tokenize(chunk)]


def _marks_spaces(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Metaspace":
        return True
    return step.get("type") == "Replace" and step.get("content") == "▁"


def _steps(node: Any, key: str) -> list[Mapping[str, Any]]:
    if not isinstance(node, Mapping):
        return []
    return [inner for part in node[key] for inner in _steps(part, key)] if node.get("type") == "Sequence" else [node]


@cache
def _is_letter(char: str) -> bool:
    return unicodedata.category(char)[0] in "LM"


def _byte_letters() -> dict[int, str]:
    """GPT-2's table: printable bytes stand for themselves, the others for letters from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_LETTER = _byte_letters()
_BYTE_OF = {letter: byte for byte, letter in _LETTER.items()}


def _bytes_of(piece: str) -> bytes:
    return b"".join(bytes([_BYTE_OF[char]]) if char in _BYTE_OF else char.encode("utf-8") for char in piece)


def _unsupported(where: str, why: str, value: str) -> ModelError:
    return ModelError(
        f"this kind of tokenizer cannot be extended: {why}",
        where=where,
        value=value,
        cure="use a model with a BPE tokenizer like Llama's, GPT-2's or Llama 3's, or leave extend_tokenizer out",
    )
