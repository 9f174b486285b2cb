"""Word metrics: what answer and reference share. Cheap regressions, which see wording and not truth.

Costs microseconds an answer; imports nothing heavy.
"""

import re
import string
from collections import Counter
from collections.abc import Callable


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


def words(text: str) -> list[str]:
    """Runs of letters and digits in lower case, of any script."""
    return _WORDS.findall(text.lower())


def ngrams(parts: list[str], n: int) -> list[tuple[str, ...]]:
    """Every run of `n` parts, in order; none where there are fewer."""
    return list(zip(*(parts[start:] for start in range(n)), strict=False))


def rouge_n(n: int) -> Callable[[str, str], float]:
    """F1 over runs of `n` words (Lin 2004). Words as in `rouge_l`; equal to rouge-score's `rouge1`, `rouge2` there."""

    def measure(text: str, reference: str) -> float:
        said, wanted = ngrams(words(text), n), ngrams(words(reference), n)
        return _f1((Counter(said) & Counter(wanted)).total(), len(said), len(wanted))

    return measure


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004).

    Words are runs of letters and digits in lower case, of any script; on ASCII text that makes it equal to
    rouge-score's `rougeL` without stemming, which drops everything else.
    """
    said, wanted = words(text), words(reference)
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


def _f1(shared: int, said: int, wanted: int) -> float:
    return 2 * shared / (said + wanted) if shared else 0.0


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORDS = re.compile(r"[^\W_]+")
