"""Pairs that a `synthesize` step made, and what a `knows` step found: for the page, and a page of their own to browse.

Shown are counts by kind and reason, how much of the material is covered, what asking cost; and of the pairs a sample
that is even over kinds, each with its evidence and where it comes from, beside some of every kind of reject.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from metier.report.collect import Row, Run, Step, rows_of
from metier.report.wording import count, cut, number

SPLITS = ("train", "dev", "test")
PAIRS_OF_A_KIND = 24
"""Pairs of each kind on the page to browse; evenly spaced over all."""
REJECTS_OF_A_KIND = 8
MOST_NAMED = 12
TITLES = {
    "factual": "facts",
    "definition": "definitions",
    "number": "numbers",
    "yes_no": "yes or no",
    "list": "lists",
    "reason": "reasons",
    "comparison": "comparisons",
    "summary": "summaries",
}
CATEGORIES = {
    "highly_known": ("highly known", "the likeliest answer is right every time"),
    "maybe_known": ("maybe known", "the likeliest answer is right sometimes"),
    "weakly_known": ("weakly known", "only a drawn answer is right"),
    "unknown": ("unknown", "no answer is right"),
}
Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Pair:
    """A pair as it is shown. why: what is told above it; facts: where it comes from."""

    why: str
    question: str
    answer: str
    evidence: tuple[str, ...]
    facts: Facts


@dataclass(frozen=True)
class Made:
    """What one `synthesize` step made.

    kinds, difficulties, rejects: (title, count). coverage: (what, covered, of all). without: documents that no pair
    quotes. cost: what asking took; empty where nobody was asked. page: of the sample, from the report's folder.
    """

    step: str
    teacher: str
    pairs: int
    splits: Facts
    kinds: tuple[tuple[str, int], ...]
    difficulties: tuple[tuple[str, int], ...]
    rejects: tuple[tuple[str, int], ...]
    coverage: tuple[tuple[str, int, int], ...]
    without: tuple[str, ...]
    more_without: int
    cost: Facts
    page: str


@dataclass(frozen=True)
class Known:
    """What one `knows` step found. rows: (split, counts by category, all). left_out: pairs that train does without."""

    step: str
    model: str
    how: str
    rows: tuple[tuple[str, tuple[int, ...], int], ...]
    left_out: int


def synthesized(run: Run) -> list[Made]:
    """One entry for each step that made pairs."""
    return [_made(step) for step in run.steps if step.data and step.data.synthesis]


def known(run: Run) -> list[Known]:
    """One entry for each step that asked what a model knows."""
    return [_known(run, step) for step in run.steps if step.data and step.data.known]


def page_of(step: Step) -> str:
    """The page to browse a step's pairs on, from the report's folder."""
    return f"pairs/{step.name}.html"


def _made(step: Step) -> Made:
    assert step.data is not None
    facts, cover = step.data.synthesis, step.data.synthesis.get("coverage") or {}
    teachers = facts.get("teachers") or {}
    told = (
        ("documents with a pair", "documents_covered", "documents"),
        ("passages with a pair", "covered", "passages"),
        ("sentences quoted as evidence", "quoted", "sentences"),
    )
    without = [str(name) for name in cover.get("without") or ()]
    return Made(
        step.name,
        ", ".join(cut(str(name), 80) for name in teachers),
        sum(int(n) for n in teachers.values()),
        tuple((name, count(step.data.counts[name])) for name in SPLITS if name in step.data.counts),
        tuple((TITLES.get(name, name), int(n)) for name, n in (facts.get("types") or {}).items()),
        tuple((name, int(n)) for name, n in (facts.get("difficulties") or {}).items()),
        tuple((cut(str(name), 80), int(n)) for name, n in (facts.get("rejects") or {}).items()),
        tuple((what, int(cover.get(part) or 0), int(cover.get(whole) or 0)) for what, part, whole in told),
        tuple(cut(name, 60) for name in without[:MOST_NAMED]),
        int(cover.get("documents") or 0) - int(cover.get("documents_covered") or 0) - len(without[:MOST_NAMED]),
        _cost(step.data.asking),
        page_of(step),
    )


def _cost(asking: Row) -> Facts:
    """What the teacher was asked and what that took, beside what was expected."""
    took, expected = asking.get("took") or {}, asking.get("expected") or {}
    if not took:
        return ()
    named = {"requests": "requests", "tokens_read": "tokens read", "tokens_written": "tokens written"}
    rows = [(title, f"{count(took.get(k))} (expected {count(expected.get(k))})") for k, title in named.items()]
    cost = number(took.get("cost"))
    rows.append(("cost", f"{cost} (expected {number(expected.get('cost'))})" if took.get("cost") is not None else cost))
    return tuple(rows)


def _known(run: Run, step: Step) -> Known:
    assert step.data is not None
    facts = step.data.known
    rows = []
    for name, counts in (facts.get("splits") or {}).items():
        found = tuple(int(counts.get(category) or 0) for category in CATEGORIES)
        rows.append((str(name), found, sum(found)))
    rounds, shots, samples = (int(facts.get(name) or 0) for name in ("rounds", "shots", "samples"))
    how = f"{rounds} likeliest answers to each question" + (f", each after {shots} other examples" if shots else "")
    how += f"; {rounds * samples} drawn ones where none of these is right" if samples else ""
    return Known(step.name, run.label(str(facts.get("model", ""))), how, tuple(rows), int(facts.get("left_out") or 0))


# --- the page to browse -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Pairs of one kind, or rejects of one. total: how many there are, of which some are shown."""

    id: str
    title: str
    total: int
    pairs: tuple[Pair, ...]


def browse(step: Step) -> tuple[list[Part], list[Part]]:
    """A sample of a step's pairs by kind, and of its rejects by reason."""
    pairs: dict[str, list[tuple[str, Row]]] = {}
    for split in SPLITS:
        for row in rows_of(step, f"{split}.jsonl"):
            pairs.setdefault(str(_meta(row).get("type", "")), []).append((split, row))
    rejects: dict[str, list[Row]] = {}
    for row in rows_of(step, "rejects.jsonl"):
        rejects.setdefault(str(row.get("kind", "")), []).append(row)
    shown = [
        Part(f"kind-{n}", TITLES.get(kind, kind), len(rows), tuple(_pairs(rows)))
        for n, (kind, rows) in enumerate(pairs.items(), 1)
    ]
    left_out = [
        Part(f"reject-{n}", cut(kind, 80), len(rows), tuple(_rejects(rows)))
        for n, (kind, rows) in enumerate(sorted(rejects.items(), key=lambda item: -len(item[1])), 1)
    ]
    return shown, left_out


def _pairs(rows: list[tuple[str, Row]]) -> Iterator[Pair]:
    for place in _spread(len(rows), PAIRS_OF_A_KIND):
        split, row = rows[place]
        yield _pair(f"{_meta(row).get('difficulty', '')}, in {split}", row)


def _rejects(rows: list[Row]) -> Iterator[Pair]:
    for place in _spread(len(rows), REJECTS_OF_A_KIND):
        row = rows[place]
        inside = _inside(row, "row")
        if inside.get("messages"):
            yield _pair(str(row.get("reason", "")), inside)
        else:
            texts = "\n".join(str(value) for value in inside.values())
            yield Pair(str(row.get("reason", "")), "", texts, (), (("place", str(row.get("where", ""))),))


def _pair(why: str, row: Mapping[str, Any]) -> Pair:
    meta, messages = _meta(row), row.get("messages") or [{}, {}]
    named = {"document": "document", "passage": "passage", "teacher": "teacher", "known": "known"}
    return Pair(
        why,
        str(messages[-2].get("content", "")) if len(messages) > 1 else "",
        str(messages[-1].get("content", "")),
        tuple(line for line in str(meta.get("evidence", "")).split("\n") if line),
        tuple((title, ", ".join(str(meta[name]).split("\n"))) for name, title in named.items() if meta.get(name)),
    )


def _meta(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return _inside(row, "meta")


def _inside(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = row.get(name)
    return value if isinstance(value, dict) else {}


def _spread(total: int, limit: int) -> Iterable[int]:
    kept = min(total, limit)
    return [place * total // kept for place in range(kept)]
