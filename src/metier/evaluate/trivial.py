"""Contenders that need no model: what any answer should be better than.

`copy of the question` says the question again: what a metric gives for sharing its words. `nearest training answer`
looks up the training question that is most like the one asked, by words weighted with their rarity (TF-IDF, cosine),
and gives its answer: what mere look-up reaches. A question without a word in common gets an empty answer.

TF-IDF as in scikit-learn's defaults: words of two letters or more, smoothed idf, rows of length 1. Costs a pass over
the training questions; 200,000 of them take seconds and some 200 MB.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metier.core.measure import Stopwatch
from metier.text.nouns import Message, Question

if TYPE_CHECKING:
    from scipy.sparse import csr_array

COPY = "copy of the question"
NEAREST = "nearest training answer"
NAMES = (COPY, NEAREST)
AT_ONCE = 256
"""Questions whose similarities are in memory at a time."""
_WORD = re.compile(r"(?u)\b\w\w+\b")


@dataclass(frozen=True)
class Baseline:
    """A contender without a model: its answers in the order of the questions, and how long they took in all."""

    name: str
    texts: list[str]
    seconds: float


def copies(questions: Sequence[Question]) -> Baseline:
    """Each question's last message again."""
    return Baseline(COPY, [question.messages[-1].content.strip() for question in questions], 0.0)


def nearest_answers(questions: Sequence[Question], train: Sequence[Question]) -> Baseline:
    """The reference of the most similar training question; of equally similar ones the first."""
    watch = Stopwatch()
    known = [asked_text(one.messages) for one in train]
    vocabulary, idf = _weights(known)
    theirs = _rows(known, vocabulary, idf).T.tocsc()
    texts: list[str] = []
    for start in range(0, len(questions), AT_ONCE):
        asked = [asked_text(one.messages) for one in questions[start : start + AT_ONCE]]
        alike = _rows(asked, vocabulary, idf) @ theirs
        for row in range(len(asked)):
            values = alike.data[alike.indptr[row] : alike.indptr[row + 1]]
            columns = alike.indices[alike.indptr[row] : alike.indptr[row + 1]]
            best = min(columns[values >= values.max() - 1e-12], default=None) if len(values) else None
            texts.append("" if best is None else train[int(best)].reference.strip())
    return Baseline(NEAREST, texts, watch.seconds)


def asked_text(messages: Sequence[Message]) -> str:
    """What a user said in a conversation; instructions and answers before it tell nothing of this question."""
    return "\n".join(message.content for message in messages if message.role == "user")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _weights(texts: Sequence[str]) -> tuple[dict[str, int], list[float]]:
    """Each word's column, and its inverse document frequency."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(dict.fromkeys(_words(text), 1))
    vocabulary = {word: column for column, word in enumerate(sorted(counts))}
    return vocabulary, [math.log((1 + len(texts)) / (1 + counts[word])) + 1 for word in vocabulary]


def _rows(texts: Sequence[str], vocabulary: dict[str, int], idf: Sequence[float]) -> "csr_array":
    from scipy.sparse import csr_array

    data: list[float] = []
    columns: list[int] = []
    ends = [0]
    for text in texts:
        found = Counter(vocabulary[word] for word in _words(text) if word in vocabulary)
        weights = [count * idf[column] for column, count in sorted(found.items())]
        length = math.sqrt(sum(weight * weight for weight in weights)) or 1.0
        data += [weight / length for weight in weights]
        columns += sorted(found)
        ends.append(len(data))
    return csr_array((data, columns, ends), shape=(len(texts), len(vocabulary)))
