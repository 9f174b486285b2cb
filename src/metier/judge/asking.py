"""One judge asked about every case, each result kept as it comes.

A request is a case in one order of the labels (and of the two answers, in pairwise mode). Results are lines of
`asked/<judge>.jsonl` in the step's scratch, by case and turn; a run that was killed asks for what is missing. For each,
`picked` is the label's place in the rubric, None where the reply is no verdict; `place` where it stood in the list;
`first`, in pairwise mode, which of the two shown answers it was (0, 1, or 2 for neither).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from time import monotonic, perf_counter
from typing import Any

from metier.core.lines import Lines
from metier.core.stage import Context
from metier.engine.interface import Engine, Schema
from metier.engine.remote import json_object
from metier.judge.prompts import Case, by_letter, by_name, orders, shown_labels, swapped
from metier.judge.rubric import Rubric
from metier.text.nouns import Message

EVERY_SECONDS = 0.5
"""How often results are seen on the disk."""
EXCERPT = 200
Row = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A case to be judged in one order. flip: the two answers are shown the other way round. again: a second time."""

    case: int
    turn: int
    order: tuple[int, ...]
    flip: bool = False
    again: bool = False

    @property
    def key(self) -> str:
        """Its name among the kept results."""
        return f"{self.case}:{self.turn}{':again' if self.again else ''}"


@dataclass(frozen=True)
class Sheet:
    """Everything that one judge is asked. letters: by log-probabilities of letters, else by JSON with a name."""

    cases: Sequence[Case]
    rubric: Rubric
    secret: str
    letters: bool
    turns: int
    repeated: tuple[int, ...] = ()
    skipped: frozenset[int] = frozenset()

    @property
    def pairwise(self) -> bool:
        """Whether two answers are compared."""
        return bool(self.cases) and self.cases[0].other is not None

    def requests(self) -> list[Request]:
        """In the order in which they are put, all cases of one order together: their prompts begin alike."""
        count = len(self.rubric.labels)
        found = []
        for turn in range(self.turns):
            for index, case in enumerate(self.cases):
                if index not in self.skipped:
                    found.append(self._request(case, index, turn, count))
        again = [i for i in self.repeated if i not in self.skipped]
        return found + [self._request(self.cases[i], i, 0, count, again=True) for i in again]

    def _request(self, case: Case, index: int, turn: int, count: int, *, again: bool = False) -> Request:
        """A judge that is asked in few orders begins with another one each case, so that no place is favoured."""
        few = self.turns < count * (1 + self.pairwise)
        start = sum(case.id.encode()) if few else 0
        step, flip = (turn // 2, bool((turn + start) % 2)) if self.pairwise else (turn, False)
        return Request(index, turn, tuple(orders(count, step + 1, start)[step]), flip, again)

    def prompt(self, request: Request) -> tuple[tuple[Message, ...], list[str]]:
        """What is put, and the letters of the labels."""
        case = self.cases[request.case]
        shown = swapped(case) if request.flip else case
        if self.letters:
            return by_letter(shown, self.rubric, request.order, self.secret)
        return by_name(shown, self.rubric, request.order, self.secret), []

    def schema(self) -> Schema:
        """Of a reply in JSON."""
        return {
            "type": "object",
            "properties": {"verdict": {"type": "string", "enum": list(shown_labels(self.rubric))}},
            "required": ["verdict"],
            "additionalProperties": False,
        }


def ask_all(ctx: Context, name: str, engine: Engine, sheet: Sheet, kept: Lines) -> None:
    """Put to the judge what is not kept yet."""
    requests = sheet.requests()
    known = {index for index, request in enumerate(requests) if request.key in kept.rows}
    if known:
        ctx.events.note(f"{name}: {len(known)} of {len(requests)} verdicts kept from the run before")
    waiting: list[Row] = []
    last, total = monotonic(), len(requests)

    def keep() -> None:
        kept.add(waiting)
        waiting.clear()
        ctx.events.progress(name, len(kept.rows), total, unit="verdicts")

    try:
        for rows in _results(ctx, engine, sheet, requests, known):
            waiting += rows
            if monotonic() - last >= EVERY_SECONDS:
                keep()
                last = monotonic()
    finally:
        if waiting:
            keep()


def _results(
    ctx: Context, engine: Engine, sheet: Sheet, requests: Sequence[Request], known: set[int]
) -> Iterator[list[Row]]:
    def stopped() -> bool:
        ctx.check_stop()
        return False

    put = [sheet.prompt(request) for request in requests]
    prompts = [messages for messages, _ in put]
    if len(known) == len(requests):
        return
    started = perf_counter()
    if sheet.letters:
        for part in engine.choices(prompts, [letters for _, letters in put], done=known, should_stop=stopped):
            seconds = (perf_counter() - started) / max(1, len(part))
            started = perf_counter()
            rows = []
            for index, choice in part:
                row = _row(sheet, requests[index], choice.index)
                if choice.logprobs is not None:
                    row["logprobs"] = _unflipped(sheet, requests[index], choice.logprobs)
                said = choice.said
                cost = {"seconds": seconds, "tokens": 0, "read": 0}
                if said is not None:
                    cost = {"seconds": said.seconds, "tokens": said.tokens, "read": said.read}
                    row |= {"said": said.text[:EXCERPT]} if choice.index is None else {}
                rows.append(row | cost)
            yield rows
        return
    for answers in engine.answers(prompts, schema=sheet.schema(), done=known, should_stop=stopped):
        rows = []
        for index, said in answers:
            picked = verdict_in(said.text, shown_labels(sheet.rubric))
            row = _row(sheet, requests[index], picked)
            row |= {"said": said.text[:EXCERPT]} if picked is None else {}
            rows.append(row | {"seconds": said.seconds, "tokens": said.tokens, "read": said.read})
        yield rows


def verdict_in(text: str, labels: Sequence[str]) -> int | None:
    """The label that a reply names as its verdict, and None for anything but a JSON object with one of them."""
    value = json_object(text)
    named = None if value is None else value.get("verdict")
    return labels.index(named) if isinstance(named, str) and named in labels else None


def _row(sheet: Sheet, request: Request, picked: int | None) -> Row:
    row: Row = {"key": request.key, "picked": None, "place": None}
    if picked is None:
        return row
    row["place"] = request.order.index(picked)
    row["picked"] = _turned(picked) if request.flip else picked
    return row | ({"first": picked} if sheet.pairwise else {})


def _turned(label: int) -> int:
    """The label of a comparison, as the other answer's: better is worse."""
    return (1, 0, 2)[label]


def _unflipped(sheet: Sheet, request: Request, values: Sequence[float]) -> list[float]:
    """Log-probabilities of the labels among themselves, in the rubric's order."""
    total = log_sum(values)
    among = [value - total for value in values]
    return [among[_turned(i)] for i in range(3)] if request.flip and sheet.pairwise else among


def log_sum(values: Sequence[float]) -> float:
    """log of the sum of the exponentials."""
    top = max(values)
    return top + log(sum(exp(value - top) for value in values))


def settle(sheet: Sheet, results: Sequence[Row]) -> Row:
    """What several results of one case come to: verdict (a label or None), shares, and how many orders say the same.

    Log-probabilities are averaged over the orders; where there are none, orders vote, and a draw is no decision:
    `unknown` (`tie` for a comparison) where there is such a label, else none.
    """
    labels = sheet.rubric.labels
    valid = [row for row in results if row["picked"] is not None]
    if not valid:
        said = next((row["said"] for row in results if "said" in row), "")
        return {"verdict": None, "why": f"no valid reply: {json.dumps(said, ensure_ascii=False)}"}
    if all("logprobs" in row for row in valid):
        mean = [sum(row["logprobs"][i] for row in valid) / len(valid) for i in range(len(labels))]
        weights = [exp(value - log_sum(mean)) for value in mean]
    else:
        weights = [sum(row["picked"] == i for row in valid) / len(valid) for i in range(len(labels))]
    top = max(weights)
    best = [i for i, weight in enumerate(weights) if weight == top]
    neither = next((i for i, label in enumerate(labels) if label in ("unknown", "tie")), None)
    if sheet.pairwise and len({row["picked"] for row in valid}) > 1 and not any("logprobs" in row for row in valid):
        best = [2]  # what one order says and the other does not is a draw
    chosen = best[0] if len(best) == 1 else neither
    if chosen is None:
        return {"verdict": None, "why": "the orders of the labels draw", "shares": _rounded(labels, weights)}
    agree = sum(row["picked"] == chosen for row in valid) / len(valid)
    return {"verdict": labels[chosen], "shares": _rounded(labels, weights), "agree": round(agree, 4)}


def _rounded(labels: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    return {label: round(weight, 6) for label, weight in zip(labels, weights, strict=True)}
