"""Near-duplicates: texts that share most of their runs of words.

How alike two texts are is their Jaccard similarity over runs of `ngram` words, estimated from signatures of a fixed
size (see `minhash`). At 128 permutations an estimate errs by 0.04 at most two times in three; of pairs that are exactly
0.8 alike, 98 in 100 are seen at all, and an estimate then decides. Order matters for removal: a text is dropped if one
before it that was kept is near it, so no text is dropped for its likeness to one that is gone itself.

No numpy is imported before something is computed, so a stage may name `Near` among its settings.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import Field

from metier.core.stage import Config

if TYPE_CHECKING:
    from metier.data.minhash import Signature

K = TypeVar("K")
RECALL = 0.98
"""How many of the pairs that are just at the threshold the bands have to show."""


class Near(Config):
    """When two texts count as the same."""

    jaccard: float = Field(0.8, ge=0.5, le=1)
    """Share of runs of words that two texts have in common, from which on they count as the same."""
    ngram: int = Field(5, ge=1, le=50)
    """Words in a run. Fewer make short texts comparable, more make chance likeness rarer."""
    permutations: int = Field(128, ge=32, le=1024)
    """Numbers in a text's signature: four times as many make the estimate twice as sharp and four times as slow."""

    @cached_property
    def bands(self) -> tuple[int, int]:
        """Bands of a signature, and rows in each: the longest bands that still show RECALL of pairs at `jaccard`."""
        for rows in range(self.permutations, 1, -1):
            bands = self.permutations // rows
            if 1 - (1 - self.jaccard**rows) ** bands >= RECALL:
                return bands, rows
        return self.permutations, 1


@dataclass(frozen=True)
class Match(Generic[K]):
    """A text that was there before. jaccard: the estimate from the signatures."""

    key: K
    jaccard: float


def signatures(texts: Iterable[str], near: Near) -> "Signature":
    """One row of 16-bit numbers for each text [texts, permutations]: 256 bytes a text at 128.

    10 MB of text a second on one core. Texts are taken one at a time, so a generator is never held whole.
    """
    from metier.data import minhash

    return minhash.signatures(texts, ngram=near.ngram, permutations=near.permutations)


def jaccard(one: str, other: str, near: Near) -> float:
    """The similarity itself, from the texts: 0 to 1; 0 where one of them has no word."""
    import numpy as np

    from metier.data import minhash

    a, b = (minhash.shingles(minhash.words(text), near.ngram) for text in (one, other))
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(1, len(a) + len(b) - shared)


class NearIndex(Generic[K]):
    """Texts by their signatures, to be asked for what is near. Holds no text: 0.5 to 0.9 kB for each, and its key.

    6,000 (many texts of one template, MedQuAD) to 8,000 signatures a second are asked for and added.
    """

    def __init__(self, near: Near) -> None:
        from metier.data import minhash

        bands, rows = near.bands
        self._near = near
        self._keys: list[K] = []
        self._table = minhash.Table(permutations=near.permutations, bands=bands, rows=rows)

    def __len__(self) -> int:
        return len(self._keys)

    def matches(self, signature: "Signature") -> list[Match[K]]:
        """All that are near, in the order in which they came. Empty for a text without words."""
        if not signature.any():
            return []
        found = self._table.near(signature, self._near.jaccard)
        return [Match(self._keys[number], agreement) for number, agreement in found]

    def insert(self, key: K, signature: "Signature") -> None:
        """Take in a text, whatever it is near to. One without words is left out."""
        if signature.any():
            self._keys.append(key)
            self._table.insert(signature)

    def add(self, key: K, signature: "Signature") -> K | None:
        """The first earlier key that is near; where there is none, the text is taken in and the answer is None."""
        matches = self.matches(signature)
        if matches:
            return matches[0].key
        self.insert(key, signature)
        return None


def groups(found: "Signature | Sequence[Signature]", near: Near) -> list[int]:
    """A cluster's number for each signature: the position of the cluster's first member.

    Clusters are joined by single links: two texts of different clusters are not near, but two of one cluster may be far
    from each other, with a chain of near ones between them. Takes what NearIndex takes, and 0.5 kB a text.
    """
    index: NearIndex[int] = NearIndex(near)
    first: dict[bytes, int] = {}
    parent = list(range(len(found)))
    for position, signature in enumerate(found):
        same = first.setdefault(signature.tobytes(), position) if signature.any() else position
        if same != position:
            _join(parent, same, position)
            continue
        for match in index.matches(signature):
            _join(parent, match.key, position)
        index.insert(position, signature)
    return [_root(parent, position) for position in range(len(parent))]


def _root(parent: list[int], position: int) -> int:
    while parent[position] != position:
        parent[position] = position = parent[parent[position]]
    return position


def _join(parent: list[int], one: int, other: int) -> None:
    low, high = sorted((_root(parent, one), _root(parent, other)))
    parent[high] = low
