"""Who goes into which split, and what may not stand in two.

A group (all rows with the same normalised question, or the same text) goes whole into one split, chosen by a hash of
its key and the seed. So a row's split does not depend on the other rows: adding some moves none of the old. Shares are
met on average only: 10 % of 200 groups is 20 give or take 4. What else may make a group, and who is pinned to a split
by a list of ids, stands in `metier.data.grouping`.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from metier.core.fingerprint import digest
from metier.text.nouns import Message
from metier.text.overlap import folded, letters

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """An item on its way into a split. key: its group. content: digest of all of it. where: `file name:line`."""

    item: T
    key: str
    content: str
    where: str


@dataclass(frozen=True)
class Dropped(Generic[T]):
    """An item that another one makes superfluous (`repeats ...`) or unfair (`also in ...`)."""

    entry: Entry[T]
    reason: str
    leak: bool


def share(seed: int, key: str) -> float:
    """A number in [0, 1) that only seed and key decide, evenly spread over keys."""
    hashed = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return int.from_bytes(hashed[:7], "big") / 2**56


def assign(
    entries: Iterable[Entry[T]], fractions: Mapping[str, float], *, seed: int, rest: str
) -> dict[str, list[Entry[T]]]:
    """Every entry in one split: `fractions` gives the expected share of groups for each, `rest` takes the others."""
    splits: dict[str, list[Entry[T]]] = {rest: [], **{name: [] for name in fractions}}
    for entry in entries:
        at, name = share(seed, entry.key), rest
        for candidate, fraction in fractions.items():
            if at < fraction:
                name = candidate
                break
            at -= fraction
        splits[name].append(entry)
    return splits


def separate(
    splits: Mapping[str, Sequence[Entry[T]]], order: Sequence[str]
) -> tuple[dict[str, list[Entry[T]]], list[Dropped[T]]]:
    """Drop what stands twice. order: splits from the most protected (test) to the least (train).

    An entry whose key stands in an earlier split is a leak; one whose whole content stood before in its own split is a
    repetition. What is left keeps its order.
    """
    kept: dict[str, list[Entry[T]]] = {}
    dropped: list[Dropped[T]] = []
    owner: dict[str, str] = {}
    for name in order:
        seen: dict[str, str] = {}
        kept[name] = []
        for entry in splits.get(name, ()):
            if entry.key in owner:
                dropped.append(Dropped(entry, f"also in {owner[entry.key]}, so not in {name}", leak=True))
            elif entry.content in seen:
                dropped.append(Dropped(entry, f"repeats {seen[entry.content]}", leak=False))
            else:
                seen[entry.content] = entry.where
                kept[name].append(entry)
        owner.update({entry.key: name for entry in kept[name]})
    return kept, dropped


def text_key(text: str) -> str:
    """What makes two texts the same text: case-folded, compatibility forms unified, white space as one space."""
    return digest(" ".join(unicodedata.normalize("NFKC", text).casefold().split()))


def question_key(messages: Sequence[Message]) -> str:
    """What makes two questions the same: all turns before the answer but the system's, their letters and digits only.

    A question of signs alone (`+?`) keeps them.
    """
    asked = "\n".join(m.content for m in messages[:-1] if m.role != "system")
    return digest(letters(asked) or folded(asked))


def answer_key(messages: Sequence[Message]) -> str:
    """What makes two answers the same: the letters and digits of the last message."""
    said = messages[-1].content
    return digest(letters(said) or folded(said))


def content_id(content: str) -> str:
    """An item's id where its source gives none: the first 16 hex digits of its content's digest (8 bytes: two of a
    million items share one with a chance of 3 in 100 million)."""
    return content[:16]
