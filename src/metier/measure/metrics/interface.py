"""The one interface of a metric: all answers of one contender in, one number for each out.

A metric sees the whole set at once, because some need it (the idf of TF-IDF) and models are loaded once. What is no
mean of its items (corpus BLEU, distinct n-grams of a set) is a `Whole`, shown beside the metric. Imports nothing heavy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from metier.text.nouns import Answer, Question

if TYPE_CHECKING:
    from metier.measure.figures import Figure


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


Measure = Callable[[Sequence[Answered]], list[float]]
"""From one contender's answers to a number for each, in their order."""


@dataclass(frozen=True)
class Whole:
    """A figure of a set of answers that is no mean of theirs.

    measure: gives the figure with what of each answer adds up to it, so that answers can be resampled; or the bare
    number, which is shown without an interval.
    """

    name: str
    measure: "Callable[[Sequence[Answered]], Figure | float]"
    higher_is_better: bool | None


@dataclass(frozen=True)
class Metric:
    """A number per answer.

    higher_is_better: None where neither more nor less is better; such a metric is shown, but not compared.
    binary: every value is 0 or 1. bounded: every value lies in [0, 1]. reads_reference: it means nothing without one.
    needs: the package that it imports and the extra that brings it. whole: the figure of the set that belongs to it; it
    restates the metric, so it is shown and not tested. applies: to which questions; the others have no value (None: to
    all). rare: it counts what should not happen, so a count of none gets a bound of its own, the rule of three.
    """

    name: str
    measure: Measure
    higher_is_better: bool | None
    bounded: bool
    binary: bool = False
    reads_reference: bool = True
    needs: tuple[str, str] | None = None
    whole: Whole | None = None
    applies: Callable[[Question], bool] | None = None
    rare: bool = False


def each(measure: Callable[[Answered], float]) -> Measure:
    """A metric of one answer at a time."""
    return lambda items: [measure(item) for item in items]


def pairs(compare: Callable[[str, str], float]) -> Measure:
    """A metric of an answer and its reference, one at a time."""
    return lambda items: [compare(item.text, item.reference) for item in items]
