"""What trained-on texts share with tested ones: the gate's settings, and an index of the tested texts to ask.

Three ways to be seen, each after case, punctuation and compatibility forms are gone:

- exact: the same words from beginning to end;
- n-gram: at least `overlap` of the tested text's 13-grams of words stand in one trained text, however long that is;
- jaccard: the 5-grams of words that both share, out of all that either has.

Both overlaps are counted, not estimated, and none above its threshold is missed: of a tested text's grams, any
|x| - ceil(t |x|) + 1 must contain one that is shared, so only that many, the rarest, are looked up (the prefix filter
of Chaudhuri, Ganti and Kaushik 2006). That also keeps boilerplate from costing time. What MinHash estimates is the
third of these numbers.

Why a share and not a single 13-gram, as in GPT-3's report: on MedQuAD, whose questions were parted by groups, 62 % of
the tested answers share one 13-gram with some trained answer, nearly all of it boilerplate; 7 % share four fifths.
Llama 2's report draws the line for "dirty" at the same 80 %.

An index costs about 50 bytes a tested word; asking it takes a second for a million words where little is found, and
three times that where much is. Writing without spaces between words (Chinese, Japanese) is cut into its signs. numpy is
imported when the first text is added or asked for.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from metier.core.stage import Config
from metier.text.nouns import Conversation, Document, Message, Question

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Grams = NDArray[np.uint64]

Part = Literal["question", "answer", "text"]
SHINGLE = 5
"""Words of a gram that Jaccard is counted over."""
CUT = 2000
"""Characters of a text in a list of hits."""
TRIES = 50
"""Runs of a tested text that are looked for in a long trained one, to show it from there."""


class Gate(Config):
    """What counts as having been seen, and what then happens."""

    action: Literal["stop", "drop", "report"] = "drop"
    """stop: refuse to go on. drop: leave out what was seen: of training where data is made, of the test where models
    are asked. report: change nothing, list it."""
    exact: bool = True
    """The same words from beginning to end."""
    ngram: int = Field(13, ge=5, le=50)
    """Words of a gram that overlap is counted over. Answers with fewer words are too common to be evidence and are not
    looked for; questions with fewer are found by `exact` and `jaccard`."""
    overlap: float | None = Field(0.8, gt=0, le=1)
    """Share of a tested text's n-grams that one trained text has to hold. null: not looked at."""
    jaccard: float | None = Field(0.8, gt=0, le=1)
    """5-grams of words that a tested and a trained text share, of all that either has. null: not looked at."""
    answers: bool = True
    """Look for the tested answers too, not for the questions alone."""


@dataclass(frozen=True)
class Hit:
    """A tested text that was seen.

    how: `exact`, `13-gram` or `jaccard`. score: 1, the share of its n-grams, or the Jaccard index. part: which of the
    tested item's texts. tested, trained: that text, and the one that shows it.
    """

    test_id: str
    how: str
    score: float
    part: Part
    tested: str
    trained: str

    @property
    def told(self) -> str:
        """The hit in a few words: `13-gram 0.92: the answer of q7`."""
        score = "" if self.how == "exact" else f" {self.score:.2f}"
        return f"{self.how}{score}: the {self.part} of {self.test_id}"

    def row(self, trained_id: str, split: str) -> dict[str, Any]:
        """The hit as it stands in a file, long texts cut. split: the trained item's."""
        return {
            "id": self.test_id,
            "how": self.how,
            "score": round(self.score, 4),
            "part": self.part,
            "trained_id": trained_id,
            "split": split,
            "tested": _cut(self.tested),
            "trained": _cut(self.trained, _first_shared(self.tested, self.trained)),
        }

    @property
    def strength(self) -> tuple[bool, float]:
        """What a stronger hit has more of."""
        return self.how == "exact", self.score


class Index:
    """Tested texts, to be asked which of them a trained text shows. Made from texts in any order; add all, then ask."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._owners: list[tuple[str, Part, str]] = []
        self._vocabulary: dict[str, int] = {}
        self._same: dict[bytes, list[int]] = {}
        self._lengths: set[int] = set()
        self._tables: list[tuple[str, _Table]] = []
        if gate.overlap is not None:
            self._tables.append((f"{gate.ngram}-gram", _Table(gate.ngram, gate.overlap, contained=True)))
        if gate.jaccard is not None:
            self._tables.append(("jaccard", _Table(SHINGLE, gate.jaccard, contained=False)))

    def __len__(self) -> int:
        """How many texts it holds."""
        return len(self._owners)

    def add(self, test_id: str, text: str, part: Part = "text") -> None:
        """Take in a tested text. Blank ones, and answers too short to be evidence, are passed over."""
        found = words(text)
        if not text.strip() or (part == "answer" and (len(found) < self._gate.ngram or not self._gate.answers)):
            return
        number = len(self._owners)
        self._owners.append((test_id, part, text))
        if self._gate.exact:
            self._same.setdefault(_mark(found, text), []).append(number)
            self._lengths.add(len(found))
        ids = [self._vocabulary.setdefault(word, len(self._vocabulary)) for word in found]
        for _, table in self._tables:
            table.add(number, ids)

    def add_item(
        self, item: Document | Conversation | Question, test_id: str | None = None, *, answers: bool = True
    ) -> None:
        """Take in all texts of a tested item, under its own id or another. answers: whether its answer is one."""
        for part, text in asked_texts(item):
            if answers or part != "answer":
                self.add(test_id or item.id, text, part)

    def hits(self, text: str) -> list[Hit]:
        """The tested items that a trained text shows, each by its strongest hit, in the order in which they came."""
        return self.hits_of([text])

    def hits_of(self, texts: Sequence[str]) -> list[Hit]:
        """The same for an item of several texts, such as `trained_texts` gives."""
        best: dict[str, tuple[int, Hit]] = {}
        for text in texts:
            for number, how, score in self._ask(text):
                test_id, part, tested = self._owners[number]
                hit = Hit(test_id, how, score, part, tested, text)
                if test_id not in best or hit.strength > best[test_id][1].strength:
                    best[test_id] = (number, hit)
        return [hit for _, hit in sorted(best.values(), key=lambda found: found[0])]

    def _ask(self, text: str) -> Iterator[tuple[int, str, float]]:
        if not self._owners:
            return
        found = words(text)
        if len(found) in self._lengths:
            yield from ((number, "exact", 1.0) for number in self._same.get(_mark(found, text), ()))
        if len(found) < SHINGLE or not self._tables:
            return
        ids = self._ids(found)
        for how, table in self._tables:
            yield from ((number, how, score) for number, score in table.ask(ids))

    def _ids(self, found: Sequence[str]) -> list[int]:
        """Numbers of words; those that no tested text has get numbers of their own, different for different words."""
        ids: list[int | None] = list(map(self._vocabulary.get, found))
        if None not in ids:
            return ids  # type: ignore[return-value]
        new: dict[str, int] = {}
        first = len(self._vocabulary)
        return [
            new.setdefault(word, first + len(new)) if number is None else number
            for word, number in zip(found, ids, strict=True)
        ]


class _Table:
    """Sets of n-grams, to be asked which of them another set holds (contained) or resembles (Jaccard)."""

    def __init__(self, n: int, threshold: float, *, contained: bool) -> None:
        self.n = n
        self.threshold = threshold
        self.contained = contained
        self.sets: dict[int, Grams] = {}
        self._lookup: tuple[Grams, NDArray[np.int64], NDArray[np.int64]] | None = None

    def add(self, number: int, ids: Sequence[int]) -> None:
        grams = _grams(ids, self.n)
        if grams.size:
            self.sets[number] = grams
            self._lookup = None

    def ask(self, ids: Sequence[int]) -> Iterator[tuple[int, float]]:
        """(number, score) of every set at or above the threshold."""
        import numpy as np

        grams = _grams(ids, self.n)
        if not grams.size or not self.sets:
            return
        keys, starts, owners = self._lookup = self._lookup or self._rarest()
        at = np.searchsorted(keys, grams)
        at = at[keys[np.minimum(at, keys.size - 1)] == grams]
        if not at.size:
            return
        for number in np.unique(np.concatenate([owners[starts[i] : starts[i + 1]] for i in at])).tolist():
            score = self._score(self.sets[number], grams)
            if score >= self.threshold:
                yield number, score

    def _score(self, tested: "Grams", trained: "Grams") -> float:
        import numpy as np

        if not self.contained:
            smaller, larger = sorted((tested.size, trained.size))
            if smaller < self.threshold * larger:
                return 0.0
        small, large = (tested, trained) if tested.size < trained.size else (trained, tested)
        at = np.minimum(np.searchsorted(large, small), large.size - 1)
        shared = int(np.count_nonzero(large[at] == small))
        return shared / (tested.size if self.contained else tested.size + trained.size - shared)

    def _rarest(self) -> "tuple[Grams, NDArray[np.int64], NDArray[np.int64]]":
        """The grams to look for, sorted; where each one's owners start; the owners."""
        import numpy as np

        known, counts = np.unique(np.concatenate(list(self.sets.values())), return_counts=True)
        chosen, owners = [], []
        for number, grams in self.sets.items():
            needed = grams.size - math.ceil(self.threshold * grams.size - 1e-9) + 1
            order = np.argsort(counts[np.searchsorted(known, grams)], kind="stable")
            chosen.append(grams[order[:needed]])
            owners.append(np.full(needed, number, dtype=np.int64))
        flat, who = np.concatenate(chosen), np.concatenate(owners)
        order = np.argsort(flat, kind="stable")
        keys, starts = np.unique(flat[order], return_index=True)
        return keys, np.append(starts, flat.size), who[order]


def _grams(ids: Sequence[int], n: int) -> "Grams":
    """The different n-grams, sorted, each as 64 bits: two different ones of a billion share them once in 30 tries."""
    import numpy as np

    if len(ids) < n:
        return np.empty(0, dtype=np.uint64)
    mixed = np.asarray(ids, dtype=np.uint64)  # splitmix64's finaliser: near numbers become far ones
    mixed = (mixed + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(32)
    size = len(ids) - n + 1
    hashed = np.zeros(size, dtype=np.uint64)
    for place in range(n):
        hashed = hashed * np.uint64(0x5851F42D4C957F2D) + mixed[place : place + size]
    return np.unique(hashed)


def _mark(found: Sequence[str], text: str) -> bytes:
    """What the same words in the same order share; texts of signs alone are told apart by their signs."""
    whole = " ".join(found) or "\0" + folded(text)
    return hashlib.blake2b(whole.encode(), digest_size=16).digest()


def _cut(text: str, at: int = 0) -> str:
    """At most CUT characters from `at` on, and how many are left out."""
    if len(text) <= CUT:
        return text
    start = min(at, len(text) - CUT)
    return f"{'… ' if start else ''}{text[start : start + CUT]} … ({len(text) - CUT:,} more characters)"


def _first_shared(tested: str, trained: str) -> int:
    """Where in a long trained text the first run of words that both share begins; 0 where it is not found at once."""
    if len(trained) <= CUT:
        return 0
    found, plain = words(tested), folded(trained)
    for start in range(min(TRIES, len(found) - SHINGLE + 1)):
        shared = re.search(r"[\W_]+".join(map(re.escape, found[start : start + SHINGLE])), plain)
        if shared:
            return shared.start()
    return 0


def asked_texts(item: Document | Conversation | Question) -> list[tuple[Part, str]]:
    """The texts that a tested item must not have been seen by: what is asked, and the answer; or the document."""
    if isinstance(item, Document):
        return [("text", item.text)]
    if isinstance(item, Question):
        return [("question", _asked(item.messages)), ("answer", item.reference)]
    return [("question", _asked(item.messages[:-1])), ("answer", item.messages[-1].content)]


def trained_texts(item: Document | Conversation) -> list[str]:
    """The texts in which a trained item may show a tested one: the document; or every turn and all that was asked."""
    if isinstance(item, Document):
        return [item.text]
    turns = [m.content for m in item.messages if m.role != "system"]
    return list(dict.fromkeys([_asked(item.messages[:-1]), *turns]))


def _asked(messages: Sequence[Message]) -> str:
    """All turns before the answer but the system's, as questions are told apart elsewhere."""
    return "\n".join(m.content for m in messages if m.role != "system")


# ---- words --------------------------------------------------------------------------------------------------------


def folded(text: str) -> str:
    """Compatibility forms unified, case gone."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def letters(text: str) -> str:
    """Letters, marks and digits alone, folded, one space between runs of them; empty for a text of signs alone."""
    return " ".join(folded(text).translate(_LETTERS).split())


def words(text: str) -> list[str]:
    """The same in pieces; signs of scripts that put no space between words count as one each."""
    return folded(text).translate(_WORDS).split()


def _is_letter(sign: str) -> bool:
    return sign.isalnum() or unicodedata.category(sign)[0] == "M"


_UNSPACED = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
"""Kana and Han. Thai, Lao and Khmer also do without spaces, but their marks bind to the sign before."""


class _Signs(dict[int, str]):
    """A table for str.translate that looks each sign up in Unicode's data once."""

    def __init__(self, *, cut: bool) -> None:
        self._cut = cut

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        kept = sign if _is_letter(sign) else " "
        if self._cut and any(low <= code <= high for low, high in _UNSPACED):
            kept = f" {sign} "
        self[code] = kept
        return kept


_LETTERS = _Signs(cut=False)
_WORDS = _Signs(cut=True)
