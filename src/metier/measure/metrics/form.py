"""The form of an answer, whatever it says: how long it is, whether it ended itself, whether it goes round in circles.

Most of these are neither good nor bad by themselves; they explain the other metrics (a longer answer has a lower
precision, a model that never stops repeats itself). Imports nothing heavy.
"""

from collections.abc import Callable, Sequence

from metier.measure.metrics.interface import Answered
from metier.measure.metrics.words import ngrams, words

REPEATED = 4
"""Length of the runs of words whose repetition is counted."""


def length_ratio(text: str, reference: str) -> float:
    """Words said for each word of the reference (white space parts words)."""
    return len(text.split()) / max(1, len(reference.split()))


def distinct(n: int) -> Callable[[Answered], float]:
    """Different runs of `n` words over all of them, in one answer; 0 where it has none (Li et al. 2016, distinct-n).

    It falls with length by itself, so it compares answers of like length only.
    """

    def measure(item: Answered) -> float:
        runs = ngrams(words(item.text), n)
        return len(set(runs)) / len(runs) if runs else 0.0

    return measure


def distinct_of_all(n: int) -> Callable[[Sequence[Answered]], float]:
    """Distinct-n as published: over the runs of all answers together. No mean of items, and falls with their number."""

    def measure(items: Sequence[Answered]) -> float:
        runs = [run for item in items for run in ngrams(words(item.text), n)]
        return len(set(runs)) / len(runs) if runs else 0.0

    return measure


def repetition(item: Answered) -> float:
    """Share of the answer's runs of four words that stood in it before; 0 where it has none.

    The `seq-rep-4` of Welleck et al. 2020, over words instead of tokens, so that tokenizers compare.
    """
    runs = ngrams(words(item.text), REPEATED)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def stopped(item: Answered) -> float:
    """1 where the contender ended its turn itself."""
    return float(item.answer.stopped)


def output_tokens(item: Answered) -> float:
    """How many tokens it generated."""
    return float(item.answer.tokens)
