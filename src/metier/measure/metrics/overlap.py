"""BLEU and chrF by sacrebleu, on a scale from 0 to 1 (theirs is 100 times as much).

Both were made for corpora of translations. Per item they are rough, so that BLEU's figure for all items together
stands beside the mean. Needs the extra `eval`. Costs about 50 microseconds an answer.
"""

from collections.abc import Sequence
from typing import Any

from metier.measure.figures import Figure, Floats
from metier.measure.metrics.interface import Answered

ORDERS = 4
"""BLEU looks at runs of one to four words."""


def bleu(items: Sequence[Answered]) -> list[float]:
    """Sentence BLEU (Papineni et al. 2002): 13a words, exponential smoothing, only the orders that the answer has.

    As sacrebleu's `sentence_bleu`; an empty answer or reference gives 0.
    """
    scorer = _bleu()
    return [min(1.0, float(scorer.sentence_score(i.text, [i.reference]).score) / 100) for i in items]


def corpus_bleu(items: Sequence[Answered]) -> Figure:
    """Corpus BLEU as sacrebleu's `corpus_bleu`: matches summed over all answers before anything is divided.

    An answer adds its matches and runs of each order, its length and the reference's.
    """
    import numpy as np

    scorer = _bleu()
    rows = []
    for item in items:
        found = scorer.sentence_score(item.text, [item.reference])
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
    return Figure(np.asarray(rows, dtype=np.float64), _corpus)


def chrf(items: Sequence[Answered]) -> list[float]:
    """chrF2 of each answer (Popović 2015): F-score of runs of one to six characters, recall counting twice."""
    from sacrebleu.metrics import CHRF

    scorer = CHRF()
    return [min(1.0, float(scorer.sentence_score(i.text, [i.reference]).score) / 100) for i in items]


def _corpus(sums: Floats) -> Floats:
    """Corpus BLEU from sums (..., 10)."""
    import numpy as np
    from sacrebleu.metrics import BLEU

    flat = np.rint(sums.reshape(-1, sums.shape[-1])).astype(int).tolist()
    found = [
        BLEU.compute_bleu(row[:ORDERS], row[ORDERS : 2 * ORDERS], row[-2], row[-1], smooth_method="exp").score / 100
        for row in flat
    ]
    return np.asarray(found).reshape(sums.shape[:-1])


def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)
