"""MinHash signatures and a hash table over them: the arithmetic under `near`.

A text is the set of its runs of n words (shingles). A signature keeps, for each of P random orders of all shingles,
the lowest 16 bits of the first one's number; two texts agree in a place with a chance of their Jaccard similarity, plus
one in 65,536 (Broder 1997; 16 bits are enough: Li and König, b-bit minwise hashing, arXiv 0908.2244). The orders are
multiply-shift hashes of 64-bit arithmetic, like those of datasketch and datatrove but without a prime's slow remainder.
Nothing depends on Python's own hash, the machine or a library's version: a text has the same signature everywhere.

Beside datasketch 2.0, on 16,407 answers of 21 MB (`python -m benchmarks.data near`): the same error, 0.04 at 128
places, in 0.25 to 0.57 of the time. rensa 0.5 is two or three times faster again, but its signatures changed with that
version, and with them what the same recipe would drop.
Letters: N texts, P places of a signature, B bands, S shingles of a text.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Signature = npt.NDArray[np.uint16]

_WORD = re.compile(r"\w+")
_SEED = 1
_BLOCK = 512
"""Shingles hashed at a time: 512 x 128 numbers of 8 bytes stay in the second-level cache."""
_FULL = 0.75
"""Share of a band's first slots that may be taken before they are doubled."""
_WINDOW = 8
_SMALLEST = 1024


def words(text: str) -> list[str]:
    """The text's words: runs of letters, digits and underscores, compatibility forms unified, case folded."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def shingles(found: Sequence[str], ngram: int) -> npt.NDArray[np.uint64]:
    """The distinct runs of `ngram` words as sorted 32-bit numbers [S]; fewer words than that make one shorter run.

    Two different runs share a number with a chance of one in four thousand million.
    """
    hashed = np.fromiter(map(_word_hash, found), np.uint64, len(found))
    length = min(ngram, len(found))
    count = len(found) - length + 1 if length else 0
    mixed = np.zeros(count, np.uint64)
    for k, factor in enumerate(_odd(length, stream=0)):
        mixed += hashed[k : k + count] * factor
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xD6E8FEB86659FD93)
    return np.unique(mixed >> np.uint64(32))


def signatures(texts: Iterable[str], *, ngram: int, permutations: int) -> Signature:
    """One row of `permutations` numbers for each text [N, P]. A text without a word has zeros."""
    factors, offsets = _orders(permutations)
    rows = [_signature(shingles(words(text), ngram), factors, offsets) for text in texts]
    return np.stack(rows) if rows else np.empty((0, permutations), np.uint16)


def _signature(
    found: npt.NDArray[np.uint64], factors: npt.NDArray[np.uint64], offsets: npt.NDArray[np.uint64]
) -> Signature:
    if not len(found):
        return np.zeros(len(factors), np.uint16)
    first = np.full(len(factors), 2**32 - 1, np.uint64)
    for start in range(0, len(found), _BLOCK):
        numbers = (factors * found[start : start + _BLOCK] + offsets) >> np.uint64(32)
        np.minimum(first, numbers.min(axis=1), out=first)
    return first.astype(np.uint16)


def agreement(one: Signature, rows: Signature) -> npt.NDArray[np.float64]:
    """The share of places in which each of `rows` [N, P] is like `one` [P]: about the Jaccard similarity [N]."""
    return np.asarray((rows == one).mean(axis=1))


class Table:
    """Signatures, found by any band of `rows` neighbouring places that they share. They are numbered from 0.

    An open-addressing table for each band, all in one array. A signature of 128 places in 18 bands takes 256 bytes, and
    168 for its slots. Both arrays double when full: up to twice that is held, and once more while they grow.
    """

    def __init__(self, *, permutations: int, bands: int, rows: int) -> None:
        self._bands, self._rows = bands, rows
        self._factors = _odd(rows, stream=1)
        self._stored: Signature = np.empty((_SMALLEST, permutations), np.uint16)
        self._count = 0
        self._of_band = np.arange(bands)[:, None]
        self._grow(_SMALLEST * 2)

    def __len__(self) -> int:
        return self._count

    def signature(self, number: int) -> Signature:
        """The signature that was stored under this number [P]."""
        row: Signature = self._stored[number]
        return row

    def near(self, signature: Signature, least: float) -> list[tuple[int, float]]:
        """Number and agreement of every stored signature that shares a band and agrees in `least` or more, in order."""
        found = self._walk(signature)[1]
        if not len(found):
            return []
        agrees = agreement(signature, self._stored[found])
        close = agrees >= least
        return list(zip(found[close].tolist(), agrees[close].tolist(), strict=True))

    def insert(self, signature: Signature) -> int:
        """Store a signature; its number."""
        if self._count >= _FULL * self._size:
            self._grow(self._size * 2)
        if self._count == len(self._stored):
            self._stored = np.concatenate([self._stored, np.empty_like(self._stored)])
        free = self._walk(signature)[0]
        self._stored[self._count] = signature
        self._slots[self._of_band[:, 0], free] = self._count + 1
        self._count += 1
        return self._count - 1

    def _walk(self, signature: Signature) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """From where each band's key leads, on to the first free slot of each band [B], and the numbers passed."""
        at = self._homes(signature[: self._bands * self._rows].reshape(self._bands, self._rows))
        passed, free = [], np.full(self._bands, -1)
        searching, width = np.arange(self._bands), _WINDOW
        while len(searching):
            # The last slot is never filled, so a window that reaches over the end sees a free one there.
            places = np.minimum(at[searching, None] + np.arange(width), self._slots.shape[1] - 1)
            window = self._slots[searching[:, None], places]
            empty = window == 0
            ends = empty.any(axis=1)
            first = np.where(ends, empty.argmax(axis=1), width)
            passed.append(window[np.arange(width) < first[:, None]])
            free[searching[ends]] = at[searching[ends]] + first[ends]
            searching = searching[~ends]
            at[searching] += width
            width *= 2  # texts made from one template share bands: a thousand of them stand in a row
        numbers = np.unique(np.concatenate(passed)).astype(np.int64) - 1
        return free, numbers

    def _homes(self, places: Signature) -> npt.NDArray[np.int64]:
        """The slot where the search for a band with these places [N, rows] begins [N]."""
        keys = (places.astype(np.uint64) * self._factors).sum(axis=1, dtype=np.uint64)
        keys ^= keys >> np.uint64(32)
        keys *= np.uint64(0xD6E8FEB86659FD93)
        return np.asarray((keys >> np.uint64(32)) % np.uint64(self._size), np.int64)

    def _grow(self, size: int) -> None:
        """A table of `size` first slots and, behind them, room for all that it may hold: no search wraps round."""
        self._size = size
        self._slots = np.zeros((self._bands, size + int(_FULL * size) + 1), np.uint32)
        numbers = np.arange(self._count)
        for band in range(self._bands):
            homes = self._homes(self._stored[: self._count, band * self._rows : (band + 1) * self._rows])
            order = np.argsort(homes, kind="stable")
            # Each lands on its home or just behind the one before it: what inserting them one by one would give.
            places = np.maximum.accumulate(homes[order] - numbers) + numbers
            self._slots[band, places] = order + 1


@lru_cache(maxsize=1 << 16)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@lru_cache(maxsize=8)
def _orders(permutations: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Factors and offsets of the multiply-shift hashes, each [P, 1]."""
    return _odd(permutations, stream=2)[:, None], _random(permutations, stream=3)[:, None]


@lru_cache(maxsize=32)
def _odd(count: int, *, stream: int) -> npt.NDArray[np.uint64]:
    return _random(count, stream=stream) | np.uint64(1)


def _random(count: int, *, stream: int) -> npt.NDArray[np.uint64]:
    """The same numbers on every machine and with every version of numpy, whose generators promise no such thing."""
    drawn = (hashlib.blake2b(f"{_SEED} {stream} {i}".encode(), digest_size=8).digest() for i in range(count))
    return np.frombuffer(b"".join(drawn), "<u8").astype(np.uint64)
