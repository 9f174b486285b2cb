"""Which pieces to add: BPE training that goes on from an old tokenizer's pieces, on the domain's words.

Each round takes the string that two neighbouring pieces most often make in the domain's text, so the one that saves the
most tokens now, and joins them everywhere (Sennrich et al. 2016, arXiv 1508.07909, started from the old segmentation
instead of from letters). A string counts whichever two pieces make it, as in SentencePiece. Refused are strings that
the old vocabulary has, that are more than one word's letters (`Kind.is_word`), and those that would take the tokens
saved in general text past a budget: general text is to stay what the model has learned it as.

Where a SentencePiece vocabulary lacks a letter, which then is two to four bytes, the letter is a candidate too.

Costs memory for each different word, and seconds: 3 million words, 85 thousand different ones, take three.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from metier.tokenizer.kinds import Kind, byte_of, chunks, pieces

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EVERY = 200
"""Documents or pieces between two looks at whether to stop."""
Tick = Callable[[int], None]
"""Told how many are through; may raise."""


@dataclass(frozen=True)
class Mined:
    """What was found.

    pieces: new ones, in the order of their merges. saved: the tokens that each saved in the domain text when it was
    chosen. general: the tokens that all save in the general text. domain_tokens, general_tokens: before. stopped: why
    no more were taken.
    """

    pieces: tuple[str, ...]
    saved: tuple[int, ...]
    general: int
    domain_tokens: int
    general_tokens: int
    stopped: str


def count(tokenizer: "Tokenizer", kind: Kind, texts: Iterable[str], tick: Tick = lambda _: None) -> Counter[str]:
    """How often each chunk (about a word) occurs."""
    found: Counter[str] = Counter()
    for number, text in enumerate(texts):
        if number % EVERY == 0:
            tick(number)
        found.update(chunks(tokenizer, kind, text))
    return found


def mine(
    tokenizer: "Tokenizer",
    kind: Kind,
    domain: Counter[str],
    general: Counter[str],
    *,
    most: int,
    least_count: int,
    general_share: float,
    wanted: Sequence[str] = (),
    tick: Tick = lambda _: None,
) -> Mined:
    """Up to `most` new pieces for the domain.

    domain, general: chunks with their counts. least_count: a piece that would occur less often in the domain is not
    worth its rows. general_share: of the general text's tokens, how many may be saved. wanted: pieces to have whatever
    they save, with all that lead to them.
    """
    vocabulary = tokenizer.get_vocab()
    search = _Search(kind, vocabulary)
    for chunk in sorted(domain.keys() | general.keys()):
        search.add(_parts(tokenizer, kind, chunk), domain[chunk], general[chunk])
    for piece in wanted:
        for step in steps_to(pieces(tokenizer, piece)):
            if step not in vocabulary and step not in search.chosen:
                search.take(step)
    budget = general_share * search.general_tokens
    stopped = f"max_new_tokens ({most:,}) is reached"
    while len(search.chosen) < most:
        if len(search.chosen) % EVERY == 0:
            tick(len(search.chosen))
        best = search.best(budget)
        if best is None or search.domain[best] < least_count:
            stopped = f"no piece is left that occurs {least_count} times or more (min_count) and leaves general text"
            break
        search.take(best)
    order = tuple(search.chosen)
    return Mined(
        order,
        tuple(search.chosen[piece] for piece in order),
        search.general_saved,
        search.domain_tokens,
        search.general_tokens,
        stopped,
    )


def whole_words(
    tokenizer: "Tokenizer",
    kind: Kind,
    domain: Counter[str],
    general: Counter[str],
    *,
    most: int,
    least_count: int,
    general_share: float,
    wanted: Sequence[str] = (),  # noqa: ARG001
    tick: Tick = lambda _: None,
) -> Mined:
    """As `mine`, but whole words (without the space before them), for tokenizers that take no merges.

    A word is found before the text is cut, so that the space before it becomes a token of its own: it saves two tokens
    fewer than it has pieces.
    """
    saved, sizes = Counter[str](), dict[str, int]()
    occurs, there = Counter[str](), Counter[str]()
    before = [0, 0]
    for number, chunk in enumerate(sorted(domain.keys() | general.keys())):
        if number % 10_000 == 0:
            tick(0)
        parts = pieces(tokenizer, chunk)
        before[0] += len(parts) * domain[chunk]
        before[1] += len(parts) * general[chunk]
        word = kind.shown(chunk).strip()
        if not kind.is_word(chunk) or len(parts) < 3 or "\ufffd" in word:
            continue
        sizes[word] = len(parts) - (2 if chunk.startswith(kind.space) else 1)
        saved[word] += sizes[word] * domain[chunk]
        occurs[word] += domain[chunk]
        there[word] += sizes[word] * general[chunk]
    found: dict[str, int] = {}
    spent = 0
    for word, gain in sorted(saved.items(), key=lambda pair: (-pair[1], pair[0])):
        if len(found) >= most or not gain:
            break
        if occurs[word] < least_count or spent + there[word] > general_share * before[1]:
            continue
        found[word] = gain
        spent += there[word]
    full = len(found) >= most
    stopped = f"max_new_tokens ({most:,}) is reached" if full else f"no word is left that occurs {least_count} times"
    return Mined(tuple(found), tuple(found.values()), spent, before[0], before[1], stopped)


def steps_to(parts: Sequence[str]) -> list[str]:
    """The pieces that merging from the left makes, the whole last."""
    return ["".join(parts[:end]) for end in range(2, len(parts) + 1)]


@dataclass
class _Word:
    """A chunk's pieces and how often it occurs."""

    parts: list[str]
    domain: int
    general: int


class _Search:
    """All words in pieces, and for each string that two neighbours make how many tokens it would save."""

    def __init__(self, kind: Kind, vocabulary: Collection[str]) -> None:
        self._kind = kind
        self._vocabulary = vocabulary
        self._words: list[_Word] = []
        self._where: dict[str, set[int]] = defaultdict(set)
        self._heap: list[tuple[int, str]] = []
        self._allowed: dict[str, bool] = {}
        self._refused: set[str] = set()
        self.domain: Counter[str] = Counter()
        self.general: Counter[str] = Counter()
        self.chosen: dict[str, int] = {}
        self.domain_tokens = self.general_tokens = self.general_saved = 0

    def add(self, parts: list[str], domain: int, general: int) -> None:
        """Count a word."""
        size = sum(self._size(part) for part in parts)
        self.domain_tokens += size * domain
        self.general_tokens += size * general
        self._words.append(_Word(parts, domain, general))
        self._enter(len(self._words) - 1)

    def best(self, budget: float) -> str | None:
        """The string that saves most, ties by its letters; None where none is left."""
        while self._heap:
            negative, piece = heapq.heappop(self._heap)
            now = self.domain[piece]
            if now <= 0 or piece in self._refused:
                continue
            if -negative != now:
                heapq.heappush(self._heap, (-now, piece))
                continue
            if piece in self.chosen or self.general_saved + self.general[piece] <= budget:
                return piece
            self._refused.add(piece)
        return None

    def take(self, piece: str) -> None:
        """Join it everywhere. One that is taken already, which later pieces made possible elsewhere, costs nothing."""
        met = sorted(self._where.pop(piece, ()))
        self.general_saved += self.general[piece]
        gain = self.domain[piece]
        for index in met:
            self._leave(index)
        self.chosen[piece] = self.chosen.get(piece, 0) + gain
        touched: set[str] = set()
        for index in met:
            word = self._words[index]
            word.parts = _joined(word.parts, piece)
            touched.update(self._enter(index))
        for one in touched:
            heapq.heappush(self._heap, (-self.domain[one], one))

    def _enter(self, index: int) -> list[str]:
        word, met = self._words[index], []
        for piece, saves in self._candidates(word.parts):
            if piece not in self.domain:
                heapq.heappush(self._heap, (-1 << 40, piece))  # looked at again when it is popped
            self.domain[piece] += saves * word.domain
            self.general[piece] += saves * word.general
            self._where[piece].add(index)
            met.append(piece)
        return met

    def _leave(self, index: int) -> None:
        word = self._words[index]
        for piece, saves in self._candidates(word.parts):
            self.domain[piece] -= saves * word.domain
            self.general[piece] -= saves * word.general
            self._where[piece].discard(index)

    def _candidates(self, parts: Sequence[str]) -> Iterator[tuple[str, int]]:
        """What could be joined in a word, with the tokens saved."""
        if self._kind.name == "sentencepiece":
            for part in parts:
                if self._is_bytes(part) and self._fits(part):
                    yield part, self._size(part) - 1
        for left, right in pairwise(parts):
            if self._is_bytes(left) or self._is_bytes(right):
                continue
            if self._fits(left + right):
                yield left + right, 1

    def _fits(self, piece: str) -> bool:
        known = self._allowed.get(piece)
        if known is None:
            known = piece not in self._vocabulary and self._kind.is_word(piece)
            self._allowed[piece] = known
        return known

    def _is_bytes(self, part: str) -> bool:
        """Whether it is a letter that is written as bytes still."""
        return len(part) == 1 and part not in self._vocabulary and part not in self.chosen

    def _size(self, part: str) -> int:
        return len(part.encode("utf-8")) if self._is_bytes(part) else 1


def _joined(parts: Sequence[str], piece: str) -> list[str]:
    """Two neighbours that make the piece become it, from the left."""
    out: list[str] = []
    at = 0
    while at < len(parts):
        if at + 1 < len(parts) and parts[at] + parts[at + 1] == piece:
            out.append(piece)
            at += 2
        else:
            out.append(parts[at])
            at += 1
    return out


def _parts(tokenizer: "Tokenizer", kind: Kind, chunk: str) -> list[str]:
    parts = pieces(tokenizer, chunk)
    return _whole_letters(parts) if kind.name == "sentencepiece" else parts


def _whole_letters(parts: Sequence[str]) -> list[str]:
    """Bytes of SentencePiece (<0xE2> ...) that make a character become that character."""
    out: list[str] = []
    held = b""
    for part in parts:
        byte = byte_of(part)
        if byte is None:
            out.append(part)
            continue
        held += byte
        try:
            out.append(held.decode("utf-8"))
            held = b""
        except UnicodeDecodeError:
            continue
    return out
