"""What a model still knows of texts that it was to forget, and what it is still good for, item by item.

    probability          P(answer | question)^(1 / tokens)
    truth ratio          the mean of that over wrong answers, divided by that of the right one. Below 1 the model
                         prefers the truth; a model that never met it comes near 1
    extraction strength  the share of an answer that greedy decoding completes, from the fewest tokens on that suffice
    utility              harmonic mean of probability, ROUGE-L recall and max(0, 1 - truth ratio) of each set to keep
    forget quality       p-value of the Kolmogorov-Smirnov test between the truth ratios of a model and of one that
                         never met the forgotten: small where they can be told apart

As in TOFU (Maini et al. 2024, arXiv 2401.06121), where the right answer is a paraphrase of the trained one; where data
has none the trained answer itself stands in. Extraction strength is Carlini et al. 2021 (arXiv 2012.07805). Imports
nothing heavy until asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from metier.measure.figures import Figure
from metier.measure.metrics.words import common_subsequence, words


@dataclass(frozen=True)
class Known:
    """One question under one model. probability: of the trained answer. truth_ratio: wrong over right. extraction: its
    strength. rouge: ROUGE-L recall of what the model says."""

    probability: float
    truth_ratio: float
    extraction: float
    rouge: float

    @property
    def forgotten_truth(self) -> float:
        """min(R, 1 / R): 1 where right and wrong answers are as likely, in either direction less."""
        return min(self.truth_ratio, 1 / self.truth_ratio) if self.truth_ratio > 0 else 0.0

    @property
    def kept_truth(self) -> float:
        """max(0, 1 - R)."""
        return max(0.0, 1 - self.truth_ratio)


def truth_ratio(right: float, wrong: Sequence[float]) -> float:
    """Mean probability of the wrong answers over that of the right one; a huge number where that is 0."""
    return sum(wrong) / len(wrong) / max(right, 1e-300)


def recall(said: str, reference: str) -> float:
    """ROUGE-L recall: of the reference's words the share that stands in what was said, in order (Lin 2004)."""
    wanted = words(reference)
    return common_subsequence(words(said), wanted) / len(wanted) if wanted else float(not words(said))


def utility(sets: Sequence[Sequence[Known]]) -> Figure:
    """The utility over sets to keep, as a figure whose items are all of theirs."""
    import numpy as np

    count = len(sets)
    rows = []
    for place, items in enumerate(sets):
        for item in items:
            row = np.zeros(4 * count)
            row[4 * place : 4 * place + 4] = (item.probability, item.rouge, item.kept_truth, 1.0)
            rows.append(row)

    def harmonic(totals: "np.typing.NDArray[np.float64]") -> "np.typing.NDArray[np.float64]":
        parts = totals.reshape(*totals.shape[:-1], count, 4)
        means = parts[..., :3] / np.maximum(parts[..., 3:], 1)
        flat = means.reshape(*means.shape[:-2], 3 * count)
        result: np.typing.NDArray[np.float64] = 3 * count / (1 / np.maximum(flat, 1e-12)).sum(-1)
        return result

    return Figure(np.array(rows), harmonic)


def forget_quality(mine: Sequence[float], untouched: Sequence[float]) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test between truth ratios."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(mine, untouched).pvalue)
