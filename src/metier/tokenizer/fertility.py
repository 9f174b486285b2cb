"""Fertility: how many tokens a tokenizer makes of a word and of a byte, before and after an extension.

A word is what stands between white space, a byte one of UTF-8, so that the figures do not depend on any tokenizer.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from metier.core.errors import MetierError
from metier.tokenizer.kinds import Kind
from metier.tokenizer.mining import Tick

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")

AT_ONCE = 500
"""Texts that are cut in one call."""


@dataclass(frozen=True)
class Fertility:
    """What two tokenizers make of some texts. tokens: the old one's and the new one's, without special tokens.

    untouched: texts that hold no new token, all of which both cut alike.
    """

    texts: int
    words: int
    bytes: int
    tokens: tuple[int, int]
    untouched: int

    @property
    def saving(self) -> float:
        """The share of the tokens that are saved, 0 to 1."""
        return 1 - self.tokens[1] / self.tokens[0] if self.tokens[0] else 0.0

    def json(self) -> dict[str, Any]:
        """As it stands in about.json."""
        old, new = self.tokens
        return {
            "texts": self.texts,
            "words": self.words,
            "bytes": self.bytes,
            "tokens": {"before": old, "after": new},
            "tokens_per_word": {"before": _ratio(old, self.words), "after": _ratio(new, self.words)},
            "tokens_per_byte": {"before": _ratio(old, self.bytes), "after": _ratio(new, self.bytes)},
            "saving": round(self.saving, 6),
            "untouched": self.untouched,
        }


@dataclass(frozen=True)
class Seen:
    """A new token in use. pieces: what the old tokenizer made of it. count: how often it occurs in the domain."""

    token: str
    pieces: tuple[str, ...]
    count: int

    def json(self) -> dict[str, Any]:
        """As it stands in a file."""
        return {"token": self.token, "pieces": list(self.pieces), "count": self.count}


def compare(
    old: "Tokenizer", new: "Tokenizer", texts: Iterable[str], first_new: int, tick: Tick = lambda _: None
) -> tuple[Fertility, Mapping[int, int]]:
    """Both tokenizers on some texts, and how often each new id occurs. Costs a second for about a megabyte.

    Raises MetierError for a text that holds no new token and is cut otherwise, or that does not come back as before:
    an extension that does so is worth nothing, whatever it saves.
    """
    counted = words = size = untouched = 0
    before = after = 0
    used = Counter[int]()
    for batch in batches(texts):
        tick(counted)
        counted += len(batch)
        words += sum(len(text.split()) for text in batch)
        size += sum(len(text.encode("utf-8")) for text in batch)
        known = [one.ids for one in old.encode_batch_fast(batch, add_special_tokens=False)]
        ids = [one.ids for one in new.encode_batch_fast(batch, add_special_tokens=False)]
        before += sum(map(len, known))
        after += sum(map(len, ids))
        untouched += _check(old, new, batch, known, ids, first_new)
        used.update(number for text in ids for number in text if number >= first_new)
    return Fertility(counted, words, size, (before, after), untouched), used


def seen(
    kind: Kind,
    made: Sequence[str],
    added: Sequence[str],
    old_pieces: Sequence[Sequence[str]],
    used: Mapping[int, int],
    first: int,
) -> list[Seen]:
    """Every new token (merged pieces, then added ones) with its old pieces, the one that saves most first."""
    names = [*map(kind.shown, made), *added]
    rows = [
        Seen(name, tuple(map(kind.shown, parts)), used.get(first + number, 0))
        for number, (name, parts) in enumerate(zip(names, old_pieces, strict=True))
    ]
    return sorted(rows, key=lambda row: (-row.count * (len(row.pieces) - 1), row.token))


def _check(
    old: "Tokenizer",
    new: "Tokenizer",
    texts: Sequence[str],
    before: Sequence[Sequence[int]],
    after: Sequence[Sequence[int]],
    first_new: int,
) -> int:
    """How many texts hold no new token; raises MetierError where the new tokenizer does what it must not."""
    fresh = [any(number >= first_new for number in ids) for ids in after]
    same = zip(old.decode_batch(list(before)), new.decode_batch(list(after)), strict=True)
    for text, has_new, then, now, (was, back) in zip(texts, fresh, before, after, same, strict=True):
        if was != back or (not has_new and list(then) != list(now)):
            raise MetierError(
                "the extended tokenizer does not give a text back as the old one did"
                if was != back
                else "the extended tokenizer cuts a text otherwise that holds no new token",
                value=text[:200],
                cure="leave out those of `words` that stand in it, or use another `style`",
            )
    return fresh.count(False)


def batches(texts: Iterable[T]) -> Iterator[list[T]]:
    """What is iterated, some at once."""
    left = iter(texts)
    while batch := list(islice(left, AT_ONCE)):
        yield batch


def _ratio(tokens: int, of: int) -> float | None:
    return round(tokens / of, 6) if of else None
