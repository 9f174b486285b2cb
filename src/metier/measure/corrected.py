"""The true shares of labels behind those that an imperfect judge gives, with intervals, from what people labelled too.

A judge that errs gives label j with probability p_j = sum over k of theta_k C_kj, where C_kj is how often it says j of
what people call k. So theta is the p behind which C lies: C transposed, inverted, times p. With two labels that is
Rogan and Gladen (1978): theta = (p + q0 - 1) / (q0 + q1 - 1) (for language models as judges: arXiv 2511.21140).

Two designs, by what people labelled:

    own       answers of this very contender, drawn at random: judge and people both tell of them (Tenenbein 1970).
              Posterior under Dirichlet(1/2) priors, by Gibbs sampling over what the unlabelled ones truly are.
    borrowed  answers of others alone: the judge is taken to err on all alike. Shares and error rates are drawn from
              their posteriors, the equation is solved for each draw (as in Lang and Reiczigel 2014, by simulation).

What people say is taken for the truth, and labelled answers for a random sample of each label's. Coverage of both is
measured by `benchmarks/judges.py`. Refuses nothing: no interval where a label of people's never came up in `borrowed`.

Shapes: K labels; S chains; R draws. Tables have a row for each true label and a column for each of the judge's.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from metier.measure.figures import Floats

PRIOR = 0.5
CHAINS, BURN_IN, KEPT = 200, 60, 60
DRAWS = 4000
SINGULAR = 1e-6


@dataclass(frozen=True)
class Corrected:
    """Shares of K labels. plain: as the judge gives them. solved: theta of the equation above, None where the judge's
    labels tell nothing; it may lie outside of [0, 1]. shares: the estimate. low, high: its interval.

    labelled: of this contender's answers; borrowed_from: of all.
    """

    plain: tuple[float, ...]
    solved: tuple[float, ...] | None
    shares: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    design: Literal["own", "borrowed"]
    labelled: int
    borrowed_from: int


def rogan_gladen(p: float, q0: float, q1: float) -> float:
    """The true share of a label of two. p: the judge's share; q1: how often it finds it where it is; q0: how often it
    does not where it is not.
    """
    return (p + q0 - 1) / (q0 + q1 - 1)


def solve(given: ArrayLike, table: ArrayLike) -> Floats | None:
    """theta from the judge's counts (K) and a table of people's and the judge's labels (K, K).

    None where a label of people's never came up, or the judge's labels are no evidence of people's.
    """
    counts, errors = np.asarray(given, dtype=np.float64), np.asarray(table, dtype=np.float64)
    if not errors.sum(1).all() or not counts.sum():
        return None
    rates = errors / errors.sum(1, keepdims=True)
    if abs(float(np.linalg.det(rates))) < SINGULAR:
        return None
    solved: Floats = np.linalg.solve(rates.T, counts / counts.sum())
    return solved


def corrected(
    given: ArrayLike, table: ArrayLike, own: ArrayLike | None = None, *, confidence: float = 0.95, seed: int = 0
) -> Corrected | None:
    """The true shares of one contender's labels.

    given: how often the judge gave each label, of all its answers (K). table: people's labels (rows) and the judge's
    (columns) of every labelled answer, anybody's (K, K). own: the part of `table` that is of this contender's answers.
    None where nobody labelled anything, or no answer of this contender and no answer of some label.
    """
    counts, errors = np.asarray(given, dtype=np.float64), np.asarray(table, dtype=np.float64)
    mine = np.zeros_like(errors) if own is None else np.asarray(own, dtype=np.float64)
    if not errors.sum() or not counts.sum():
        return None
    rng = np.random.default_rng(seed)
    if mine.sum():
        draws, design = _own(counts - mine.sum(0), errors, mine.sum(1), rng), "own"
    elif errors.sum(1).all():
        draws, design = _borrowed(counts, errors, rng), "borrowed"
    else:
        return None
    tail = (1 - confidence) / 2
    low, high = np.clip(np.quantile(draws, [tail, 1 - tail], axis=0), 0.0, 1.0)
    solved = solve(counts, errors)
    return Corrected(
        _tuple(counts / counts.sum()),
        None if solved is None else _tuple(solved),
        _tuple(np.clip(np.median(draws, axis=0) if design == "borrowed" else draws.mean(0), 0.0, 1.0)),
        _tuple(low),
        _tuple(high),
        "own" if design == "own" else "borrowed",
        int(mine.sum()),
        int(errors.sum()),
    )


def _own(rest: Floats, table: Floats, known: Floats, rng: np.random.Generator) -> Floats:
    """Draws of theta (R, K). rest: the judge's labels of what nobody labelled. known: people's, of this contender."""
    labels = len(rest)
    unlabelled = np.maximum(rest, 0).astype(np.int64)
    shares_sk = rng.dirichlet(known + PRIOR, CHAINS)
    rates_skj = _dirichlet(np.broadcast_to(table + PRIOR, (CHAINS, labels, labels)), rng)
    kept = []
    for turn in range(BURN_IN + KEPT):
        weights_skj = shares_sk[:, :, None] * rates_skj
        weights_skj /= weights_skj.sum(1, keepdims=True)
        truly = np.stack([rng.multinomial(unlabelled[j], weights_skj[:, :, j]) for j in range(labels)], 2)
        shares_sk = _dirichlet(truly.sum(2) + known + PRIOR, rng)
        rates_skj = _dirichlet(truly + table[None] + PRIOR, rng)
        if turn >= BURN_IN:
            kept.append(shares_sk)
    return np.concatenate(kept)


def _borrowed(counts: Floats, table: Floats, rng: np.random.Generator) -> Floats:
    """Solutions (R, K) for draws of the judge's shares and error rates."""
    labels = len(counts)
    rates_rkj = _dirichlet(np.broadcast_to(table + PRIOR, (DRAWS, labels, labels)), rng)
    given_rj = rng.dirichlet(counts + PRIOR, DRAWS)
    sound = np.abs(np.linalg.det(rates_rkj)) > SINGULAR
    solved: Floats = np.linalg.solve(rates_rkj[sound].transpose(0, 2, 1), given_rj[sound][:, :, None])[:, :, 0]
    return solved


def _dirichlet(alpha: ArrayLike, rng: np.random.Generator) -> Floats:
    """A draw for each row of the last axis."""
    drawn = rng.standard_gamma(np.asarray(alpha, dtype=np.float64))
    drawn = np.maximum(drawn, 1e-300)
    shares: Floats = drawn / drawn.sum(-1, keepdims=True)
    return shares


def _tuple(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
