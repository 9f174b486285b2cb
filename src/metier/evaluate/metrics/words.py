"""What can be measured of one answer, each a small function behind one interface.

A metric looks at one `Answered` (question, reference and what a contender said) and gives one number, so that answers
can be scored again without generating them again. Word metrics are cheap regressions: they see wording, not truth.
Refuses unknown metric names, naming the nearest. Costs microseconds an answer; imports nothing heavy.
"""

import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from metier.core.errors import InputError, nearest
from metier.text.nouns import Answer, Question


@dataclass(frozen=True)
class Answered:
    """One question with one contender's answer to it."""

    question: Question
    answer: Answer

    @property
    def reference(self) -> str:
        """What should have been said."""
        return self.question.reference

    @property
    def text(self) -> str:
        """What was said."""
        return self.answer.text


@dataclass(frozen=True)
class Metric:
    """A number per answer.

    higher_is_better: None where neither more nor less is better; such a metric is shown, but not compared.
    binary: every value is 0 or 1. bounded: every value lies in [0, 1]. reads_reference: it means nothing without one.
    """

    name: str
    measure: Callable[[Answered], float]
    higher_is_better: bool | None
    bounded: bool
    binary: bool = False
    reads_reference: bool = True


def normalize(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no English articles, single spaces.

    Source: the official SQuAD evaluation script (Rajpurkar et al. 2016).
    """
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def exact_match(text: str, reference: str) -> float:
    """1 where both are equal after SQuAD's normalisation, else 0."""
    return float(normalize(text) == normalize(reference))


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the words that both share, after SQuAD's normalisation.

    As in SQuAD 2.0: where either has no word left, 1 if both have none, else 0.
    """
    said, wanted = normalize(text).split(), normalize(reference).split()
    if not said or not wanted:
        return float(said == wanted)
    return _f1((Counter(said) & Counter(wanted)).total(), len(said), len(wanted))


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004).

    Words are runs of letters and digits in lower case, of any script; on ASCII text that makes it equal to
    rouge-score's `rougeL` without stemming, which drops everything else.
    """
    said, wanted = _WORDS.findall(text.lower()), _WORDS.findall(reference.lower())
    return _f1(common_subsequence(said, wanted), len(said), len(wanted))


def common_subsequence(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence, one big-integer addition a word (Hyyrö 2004).

    Each zero bit of `rows` is a word of `left` at which the subsequence grows.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(left)) - 1
    rows = full
    for word in right:
        shared = rows & places.get(word, 0)
        rows = ((rows + shared) | (rows - shared)) & full
    return len(left) - rows.bit_count()


def length_ratio(text: str, reference: str) -> float:
    """Words said for each word of the reference (white space parts words)."""
    return len(text.split()) / max(1, len(reference.split()))


def metric(name: str) -> Metric:
    """The metric of that name. Raises InputError naming the nearest one."""
    if name not in METRICS:
        raise InputError("no such metric", where="metrics", value=name, cure=nearest(name, METRICS))
    return METRICS[name]


def _f1(shared: int, said: int, wanted: int) -> float:
    return 2 * shared / (said + wanted) if shared else 0.0


def _stopped(item: Answered) -> float:
    """1 where the contender ended its turn itself."""
    return float(item.answer.stopped)


def _tokens(item: Answered) -> float:
    """How many tokens it generated."""
    return float(item.answer.tokens)


def _words(compare: Callable[[str, str], float]) -> Callable[[Answered], float]:
    return lambda item: compare(item.text, item.reference)


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORDS = re.compile(r"[^\W_]+")

METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("token_f1", _words(token_f1), higher_is_better=True, bounded=True),
        Metric("exact_match", _words(exact_match), higher_is_better=True, bounded=True, binary=True),
        Metric("rouge_l", _words(rouge_l), higher_is_better=True, bounded=True),
        Metric("stopped", _stopped, higher_is_better=True, bounded=True, binary=True, reads_reference=False),
        Metric("output_tokens", _tokens, higher_is_better=None, bounded=False, reads_reference=False),
        Metric("length_ratio", _words(length_ratio), higher_is_better=None, bounded=False),
    )
}
"""Every metric by its name."""
