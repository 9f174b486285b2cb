"""Documents cut into passages that a teacher reads one at a time.

A passage ends where a paragraph does, else where a sentence does, else between words; only a single word that is longer
than a passage may be is cut through. No text is lost and none stands twice, but for white space at the cuts. A last
piece that is short goes to the passage before it. Imports nothing heavy.
"""

import re
from collections.abc import Iterator, Sequence

from metier.core.errors import DataError
from metier.synthesize.pair import Passage
from metier.text.nouns import Document

_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"(?<=[.!?。！？])[\"'”’)\]]*\s+|\n")
_SPACE = re.compile(r"\s+")
SHORT = 0.25
"""A last piece of less than this share of a passage is joined to the one before."""


def passages(documents: Sequence[Document], *, size: int, name: str) -> list[Passage]:
    """The passages of all documents, in order. size: their characters at most, but for a short rest (a quarter more).

    Raises DataError for a document without a word, naming it; name: of the step that it comes from.
    """
    found: list[Passage] = []
    for document in documents:
        if not any(sign.isalnum() for sign in document.text):
            raise DataError(
                "the document is empty, so nothing can be asked of it",
                where=f"{name}: document {document.id}",
                value=document.text[:60],
                cure="leave it out of the documents: `min_chars` there does",
            )
        pieces = _with_rest([piece.strip() for piece in _pieces(document.text, size) if piece.strip()], size)
        found += [Passage(document.id, number, text) for number, text in enumerate(pieces, 1)]
    return found


def sentences(text: str) -> list[str]:
    """The sentences of a text, a line break ending one too."""
    return [piece.strip() for piece in _split(text, _SENTENCE) if any(sign.isalnum() for sign in piece)]


def spread(count: int, limit: int | None) -> list[int]:
    """Indices of at most `limit` of `count` things, evenly spaced."""
    kept = count if limit is None else min(count, limit)
    return [index * count // kept for index in range(kept)]


def _pieces(text: str, size: int, cuts: Sequence[re.Pattern[str]] = (_PARAGRAPH, _SENTENCE, _SPACE)) -> Iterator[str]:
    """Pieces of at most `size` characters, cut at the first of `cuts` that does."""
    if len(text.strip()) <= size:
        yield text
        return
    if not cuts:
        yield from (text[start : start + size] for start in range(0, len(text), size))
        return
    held = ""
    for part in _split(text, cuts[0]):
        if held and len((held + part).strip()) > size:
            yield held
            held = ""
        if len(part.strip()) > size:
            yield from _pieces(part, size, cuts[1:])
        else:
            held += part
    if held:
        yield held


def _split(text: str, cut: re.Pattern[str]) -> Iterator[str]:
    """The parts of a text, each with the cut behind it."""
    start = 0
    for match in cut.finditer(text):
        yield text[start : match.end()]
        start = match.end()
    if start < len(text):
        yield text[start:]


def _with_rest(pieces: list[str], size: int) -> list[str]:
    if len(pieces) > 1 and len(pieces[-1]) < SHORT * size:
        *before, one, rest = pieces
        return [*before, f"{one}\n{rest}"]
    return pieces
