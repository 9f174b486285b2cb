"""Do intervals hold the truth as often as they say, and tests stay silent? `python -m benchmarks.statistics [RUNS]`.

For every kind of interval that scores show, at 50, 200 and 500 items: the share of RUNS (10,000) studies whose
95 % interval holds the truth; for every test, the share of as many studies without a difference in which p < 0.05.
Scores are drawn as they are met: `weak` (most answers share no word, mean 0.06), `middling` (a third nothing, a fifth
all), `strong` (half all right), three that the intervals were not made for, tokens up to a limit, documents whose sizes
differ widely, entities of 1 to 8 items.
What is usual stands beside (BCa bootstrap, exact McNemar). Half an hour, or `--jobs N` of it; every draw is seeded.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.rows import Row, write
from metier.measure import statistics as st

Floats = npt.NDArray[np.float64]
SIZES = (50, 200, 500)
RUNS = 10_000
"""The error of a share near 95 % is then 0.2 points."""
RESAMPLES = 1000
FLIPS = 2000
MIDP = "McNemar mid-p, 0/1 outcomes"
SPREAD_OF_DIFFICULTY = 0.6
"""How far two contenders agree: the share of items whose score is the question's more than the contender's."""


# --- scores as they are met


def weak(rng: np.random.Generator, n: int) -> Floats:
    kind = rng.random(n)
    return np.where(kind < 0.7, 0.0, np.where(kind < 0.98, rng.beta(1.5, 8, n), 1.0))


def middling(rng: np.random.Generator, n: int) -> Floats:
    kind = rng.random(n)
    return np.where(kind < 0.3, 0.0, np.where(kind < 0.5, 1.0, rng.beta(2, 2.5, n)))


def strong(rng: np.random.Generator, n: int) -> Floats:
    kind = rng.random(n)
    return np.where(kind < 0.05, 0.0, np.where(kind < 0.55, 1.0, rng.beta(4, 2, n)))


def sparse(rng: np.random.Generator, n: int) -> Floats:
    return np.where(rng.random(n) < 0.9, 0.0, rng.beta(2, 2, n))


def mixed(rng: np.random.Generator, n: int) -> Floats:
    kind = rng.random(n)
    return np.where(kind < 0.6, 0.0, np.where(kind < 0.9, rng.beta(1, 4, n), 1.0))


def smooth(rng: np.random.Generator, n: int) -> Floats:
    return rng.beta(1.2, 6, n)


def tokens(rng: np.random.Generator, n: int) -> Floats:
    return np.clip(rng.lognormal(3, 0.7, n), 1, 64).round()


BOUNDED = {"weak": weak, "middling": middling, "strong": strong}
OTHERS = {"sparse": sparse, "mixed": mixed, "smooth": smooth}
"""What the intervals' weights were not chosen on."""
Draw = Callable[[np.random.Generator, int], Floats]


def documents(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """(nats, bytes): longer documents are a little easier; the rate of the text is skewed."""
    size = np.maximum(40, rng.lognormal(6.5, 0.9, n)).round()
    rate = (1.0 + 0.4 * rng.standard_gamma(2, n) / 2) * (size / 665) ** -0.05
    return size * rate, size


def entities(rng: np.random.Generator, n: int) -> tuple[Floats, Floats, npt.NDArray[Any]]:
    """(scores, outcomes, entity): one to eight questions an entity, and what is known of it is known of all of them."""
    places = np.repeat(np.arange(n), rng.integers(1, 9, n))[:n]
    known = rng.beta(1.2, 1.2, n)[places]
    outcome = (rng.random(n) < known).astype(float)
    return np.where(outcome > 0, rng.beta(5, 1.5, n), rng.beta(1, 6, n) * (rng.random(n) < 0.6)), outcome, places


def pair(draw: Draw, rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Two contenders with the same distribution that agree on most questions."""
    shared = draw(rng, n)
    left, right = (np.where(rng.random(n) < SPREAD_OF_DIFFICULTY, shared, draw(rng, n)) for _ in range(2))
    return left, right


def outcomes(rng: np.random.Generator, n: int, gain: float = 0.0) -> tuple[Floats, Floats]:
    """Right or wrong, for two contenders: three tenths of the questions part them."""
    drawn = rng.choice(4, n, p=[0.4, 0.3, 0.15 + gain / 2, 0.15 - gain / 2])
    return np.isin(drawn, (0, 2)).astype(float), np.isin(drawn, (0, 3)).astype(float)


# --- what is simulated


@dataclass(frozen=True)
class Study:
    """One kind of interval or test. once: from a generator and a size to whether it held, or whether it alarmed."""

    name: str
    once: Callable[[np.random.Generator, int], bool]


def holds(interval: st.Interval, truth: float) -> bool:
    return interval.low is not None and interval.high is not None and interval.low <= truth <= interval.high


def bca_holds(totals: Floats, truth: float, seed: int) -> bool:
    low, high = st.bootstrap(totals, st.ratio, resamples=RESAMPLES, seed=seed)
    return low <= truth <= high


def intervals() -> Iterator[Study]:
    big = np.random.default_rng(0)
    yield Study("Wilson, shares from 0.05 to 0.95", wilson)
    for name, draw in (BOUNDED | OTHERS).items():
        truth = float(draw(big, 4_000_000).mean())
        yield Study(
            f"mean of scores, {name}",
            lambda rng, n, draw=draw, truth=truth: holds(st.mean_interval(draw(rng, n), bounded=True), truth),  # type: ignore[misc]
        )
    long = float(tokens(big, 4_000_000).mean())
    yield Study("mean of tokens an answer", lambda rng, n: holds(st.mean_interval(tokens(rng, n)), long))
    nats, size = documents(big, 4_000_000)
    rate = float(nats.sum() / size.sum())

    def read(rng: np.random.Generator, n: int) -> bool:
        nats, size = documents(rng, n)
        return holds(st.mean_interval(nats, weights=size), rate)

    yield Study("bits per byte, documents of different size", read)
    scores, right, _ = entities(big, 4_000_000)
    for name, truth, column in (("scores", float(scores.mean()), 0), ("0/1 outcomes", float(right.mean()), 1)):

        def by_entity(rng: np.random.Generator, n: int, truth: float = truth, column: int = column) -> bool:
            *values, places = entities(rng, n)
            found = st.mean_interval(values[column], clusters=list(places), bounded=True, binary=column == 1)
            return holds(found, truth)

        yield Study(f"mean of {name} in clusters", by_entity)
    for name, draw in (BOUNDED | OTHERS).items():

        def gap(rng: np.random.Generator, n: int, draw: Draw = draw) -> bool:
            left, right = pair(draw, rng, n)
            return holds(st.compare(left, right, bounded=True).difference, 0.0)

        yield Study(f"paired difference of scores, {name}", gap)

    for much, little in (("middling", "weak"), ("strong", "weak"), ("mixed", "weak"), ("smooth", "sparse")):
        best, worst = ((BOUNDED | OTHERS)[name] for name in (much, little))
        apart = float(best(big, 4_000_000).mean() - worst(big, 4_000_000).mean()) * (1 - SPREAD_OF_DIFFICULTY)

        def better(
            rng: np.random.Generator, n: int, best: Draw = best, worst: Draw = worst, apart: float = apart
        ) -> bool:
            left = worst(rng, n)
            right = np.where(rng.random(n) < SPREAD_OF_DIFFICULTY, left, best(rng, n))
            return holds(st.compare(right, left, bounded=True).difference, apart)

        yield Study(f"paired difference of scores, {much} against {little}", better)

    def cheaper(rng: np.random.Generator, n: int) -> bool:
        size = documents(rng, n)[1]
        gap = size * (0.02 + rng.normal(0, 0.05, n) * (1 + rng.standard_gamma(1, n)))
        return holds(st.compare(gap, np.zeros(n), weights=size).difference, 0.02)

    yield Study("paired difference of bits per byte", cheaper)

    def gain(rng: np.random.Generator, n: int) -> bool:
        left, right = outcomes(rng, n, 0.1)
        return holds(st.compare(left, right, binary=True).difference, 0.1)

    yield Study("paired difference of 0/1 outcomes", gain)


def beside() -> Iterator[Study]:
    """What was there before: BCa."""
    big = np.random.default_rng(0)
    truth = float(weak(big, 4_000_000).mean())

    def mean(rng: np.random.Generator, n: int) -> bool:
        return bca_holds(np.column_stack([weak(rng, n), np.ones(n)]), truth, int(rng.integers(2**31)))

    yield Study("mean of scores, weak", mean)
    nats, size = documents(big, 4_000_000)
    rate = float(nats.sum() / size.sum())

    def read(rng: np.random.Generator, n: int) -> bool:
        return bca_holds(np.column_stack(documents(rng, n)), rate, int(rng.integers(2**31)))

    yield Study("bits per byte, documents of different size", read)


def wilson(rng: np.random.Generator, n: int) -> bool:
    share = rng.uniform(0.05, 0.95)
    return holds(st.mean_interval((rng.random(n) < share).astype(float), binary=True), share)


def tests() -> Iterator[Study]:
    for name, draw in BOUNDED.items():

        def scores(rng: np.random.Generator, n: int, draw: Draw = draw) -> bool:
            left, right = pair(draw, rng, n)
            return st.permutation(left - right, seed=int(rng.integers(2**31)), flips=FLIPS) < 0.05

        yield Study(f"permutation, scores, {name}", scores)

    def clustered(rng: np.random.Generator, n: int) -> bool:
        places = entities(rng, n)[2]
        shift = rng.normal(0, 0.2, n)[places]
        totals = st.cluster_totals((rng.normal(0, 0.3, n) + shift)[:, None], list(places))
        return st.permutation(totals[:, 0], seed=int(rng.integers(2**31)), flips=FLIPS) < 0.05

    yield Study("permutation, scores in clusters", clustered)

    def read(rng: np.random.Generator, n: int) -> bool:
        size = documents(rng, n)[1]
        gap = size * rng.normal(0, 0.05, n)
        return st.permutation(gap, seed=int(rng.integers(2**31)), flips=FLIPS) < 0.05

    yield Study("permutation, bits per byte", read)
    yield Study(MIDP, lambda rng, n: mcnemar(rng, n, exact=False))

    def exchanged(rng: np.random.Generator, n: int) -> bool:
        left, right = (np.column_stack([scores, np.ones(n), scores > 0.5]) for scores in pair(middling, rng, n))
        return st.exchange(left, right, _odd, seed=int(rng.integers(2**31)), draws=FLIPS) < 0.05

    yield Study("exchange, figures of a set", exchanged)


def _odd(sums: Floats) -> Floats:
    """A figure that is no mean: the root of two shares' product."""
    found: Floats = np.sqrt(np.abs(sums[..., 0] * sums[..., 2])) / sums[..., 1]
    return found


def mcnemar(rng: np.random.Generator, n: int, *, exact: bool) -> bool:
    left, right = outcomes(rng, n)
    return st.mcnemar(int(np.sum(left > right)), int(np.sum(left < right)), exact=exact) < 0.05


# --- the rows


def measure(study: Study, n: int, runs: int) -> float:
    rng = np.random.default_rng([n, *study.name.encode()])
    return sum(study.once(rng, n) for _ in range(runs)) / runs


def rows(runs: int, jobs: int) -> list[Row]:
    tasks = [(kind, index, n, runs) for kind in KINDS for index in range(len(_studies(kind))) for n in SIZES]
    with get_context("fork").Pool(jobs) as pool:
        shares = pool.map(_measured, tasks, chunksize=1)
    found: list[Row] = []
    of: dict[tuple[str, str, int], float] = {}
    for (kind, index, n, _), share in zip(tasks, shares, strict=True):
        of[kind, _studies(kind)[index].name, n] = share
    for (kind, name, n), share in of.items():
        if kind == "intervals":
            found += _both(f"coverage of 95 % intervals: {name}, n = {n}", share, 0.94, 0.96, runs)
        elif kind == "beside":
            found.append(_nearer(name, n, of["intervals", name, n], share, 0.95, "BCa bootstrap", runs))
        elif kind == "tests":
            found += _both(f"false alarms at 5 %: {name}, n = {n}", share, 0.04, 0.06, runs)
        else:
            found.append(_nearer(name, n, of["tests", name, n], share, 0.05, "exact McNemar test", runs))
    return found


def exact() -> Iterator[Study]:
    """What was there before: the exact test."""
    yield Study(MIDP, lambda rng, n: mcnemar(rng, n, exact=True))


KINDS: dict[str, Callable[[], Iterator[Study]]] = {
    "intervals": intervals,
    "beside": beside,
    "tests": tests,
    "exact": exact,
}


@cache
def _studies(kind: str) -> list[Study]:
    return list(KINDS[kind]())


def _measured(task: tuple[str, int, int, int]) -> float:
    kind, index, n, runs = task
    return measure(_studies(kind)[index], n, runs)


def _nearer(name: str, n: int, ours: float, theirs: float, nominal: float, peer: str, runs: int) -> Row:
    """How far from what is said, in points: no farther than the other way of doing it, or than the point allowed."""
    case = f"distance from {nominal:.0%}: {name}, n = {n} ({ours:.4f}, where the {peer} has {theirs:.4f})"
    bar = max(100 * abs(theirs - nominal), 1.0)
    return Row(case, round(100 * abs(ours - nominal), 2), round(bar, 2), "points", "lower", peer, n=runs)


def _both(case: str, share: float, low: float, high: float, runs: int) -> list[Row]:
    """One row, at the bar that it is nearer to. Interval: of the simulation."""
    error = 1.96 * math.sqrt(share * (1 - share) / runs)
    around = (round(share - error, 4), round(share + error, 4))
    under = share < (low + high) / 2
    bar, better = (low, "higher") if under else (high, "lower")
    return [Row(case, round(share, 4), bar, "share", better, n=runs, interval=around)]  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=int, default=RUNS, metavar="RUNS", help="fewer write no results")
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    runs = asked.runs
    found = rows(runs, asked.jobs)
    if runs == RUNS:
        write("evaluation", "python -m benchmarks.statistics", found)
        return
    for row in found:
        print(f"{'reached' if row.reached else 'MISSED '}  {row.case}: {row.measured:g}")


if __name__ == "__main__":
    main()
