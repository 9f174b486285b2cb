# ruff: noqa: E501 - the lines of the card are as wide as they read well
"""Writes unsafe prompts with hand-off answers, and their harmless twins: what is trained on, and what is held out.

A line of `trained.txt` or `heldout.txt` holds an unsafe request and a harmless one that sounds alike. Both are asked in
the same wordings, so that no wording tells them apart.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

from tools.refusals.words import HAND_OFFS, OTHER_WORDINGS, PLACES, WORDINGS

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "recipes" / "data" / "refusals"

EACH = {"how": 5, "may": 8}
"""Wordings in which a request of `trained.txt` is trained on, of those there are: more of the fewer kind."""
OF_A_PATTERN = {"how": 14, "may": 24}
"""Fillings of a pattern that are trained on, each in one wording."""
OF_AN_EVERYDAY = 14
"""Fillings of an everyday request."""
REWORDED_EVERY = 2
"""Of the requests of `trained.txt`, every so manieth is asked in another wording too, and held out."""
FIRST_MORE = 200
"""The number of the first request of `more.txt`."""
OPENINGS = (
    "Hello. {}",
    "I have a question. {}",
    "{} Please be quick.",
    "{} Thank you.",
    "Sorry to ask. {}",
    "{} Be honest.",
)
"""What stands beside a whole question when it is trained on once more."""
NEAR = 0.5
"""What shares as many of its words with a held-out request is not trained on."""
COMMON = frozenset(("a", "an", "the", "to", "of", "and", "or", "in", "on", "at", "for", "with", "my", "me", "i", "is", "it", "that", "this", "so", "do", "how", "can", "may", "you", "be", "am"))  # fmt: skip
"""Words that make no text near to another."""


@dataclass(frozen=True)
class Pair:
    """An unsafe request and its harmless twin, verb first. kind: how, may. topic: whom it is handed off to."""

    kind: str
    topic: str
    unsafe: str
    harmless: str
    answer: str


def pairs(name: str) -> list[Pair]:
    """The pairs of a file beside this one."""
    return [Pair(*line.split("|")) for line in lines(name)]


def lines(name: str) -> list[str]:
    """The lines of a file beside this one, without its remarks."""
    text = (HERE / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def filled(pattern: Pair) -> list[Pair]:
    """A pattern with its places filled, each filling once, in an order that mixes them."""
    names = list(dict.fromkeys(re.findall(r"{(\w+)}", f"{pattern.unsafe} {pattern.harmless}")))
    found = [dict(zip(names, values, strict=True)) for values in product(*(PLACES[name] for name in names))]
    random.Random(f"{pattern.unsafe}|{pattern.harmless}").shuffle(found)
    return [replace(pattern, unsafe=pattern.unsafe.format(**f), harmless=pattern.harmless.format(**f)) for f in found]


Row = dict[str, str]


def rows(number: int, pair: Pair, wording: str, name: str, kind: str) -> tuple[Row, Row]:
    """The unsafe prompt and its twin in one wording. kind: what is said of both in `wording`."""
    common = {"topic": pair.topic, "wording": kind}
    declined = HAND_OFFS[pair.topic][number % len(HAND_OFFS[pair.topic])]
    return (
        {"id": f"{name}-unsafe", "question": wording.format(pair.unsafe), "answer": declined, **common},
        {"id": f"{name}-harmless", "question": wording.format(pair.harmless), "answer": pair.answer, **common},
    )


def trained() -> list[tuple[Row, Row]]:
    """What is trained on. A pair is left out of which one question stands already or lies near to a held-out one."""
    found: dict[str, tuple[Row, Row]] = {}
    more = [pair for pair in pairs("more.txt") if not _near(pair.unsafe) and not _near(pair.harmless)]
    for number, pair in [*enumerate(pairs("trained.txt")), *enumerate(more, FIRST_MORE)]:
        wordings = WORDINGS[pair.kind]
        for step in range(EACH[pair.kind]):
            wording = wordings[(5 * number + 3 * step) % len(wordings)]
            _add(found, rows(number + step, pair, wording, f"train-{number:03}-{step}", "trained"))
    for number, pattern in enumerate(pairs("patterns.txt")):
        wordings = WORDINGS[pattern.kind]
        free = [pair for pair in filled(pattern)[1:] if not _near(pair.unsafe) and not _near(pair.harmless)]
        for step, pair in enumerate(free[: OF_A_PATTERN[pattern.kind]]):
            wording = wordings[(5 * number + step) % len(wordings)]
            _add(found, rows(number + step, pair, wording, f"pattern-{number:03}-{step:02}", "trained"))
    for number, line in enumerate(lines("spoken.txt")):
        pair = whole(line)
        if not _near(pair.unsafe) and not _near(pair.harmless):
            for step, opening in enumerate(("{}", OPENINGS[number % len(OPENINGS)])):
                _add(found, rows(number + step, pair, opening, f"spoken-{number:03}-{step}", "trained"))
    return list({pair[0]["id"]: pair for pair in found.values()}.values())


def whole(line: str) -> Pair:
    """A line that holds whole questions rather than requests."""
    return Pair("whole", *line.split("|"))


def _add(found: dict[str, tuple[Row, Row]], pair: tuple[Row, Row]) -> None:
    questions = [row["question"] for row in pair]
    if not any(question in found for question in questions):
        found.update(dict.fromkeys(questions, pair))


@cache
def _held() -> tuple[frozenset[str], ...]:
    """The words of each held-out request of its own."""
    made = [*pairs("heldout.txt"), *map(whole, lines("asked.txt"))]
    return tuple(_words(text) for pair in made for text in (pair.unsafe, pair.harmless))


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", text.lower())) - COMMON


def _near(text: str) -> bool:
    """Whether a text shares at least NEAR of its words with a held-out one."""
    words = _words(text)
    return any(len(words & held) >= NEAR * len(words | held) for held in _held())


def everyday() -> list[Row]:
    """Harmless requests of every kind, so that what is strange is not declined for that."""
    known = {row["question"] for pair in trained() for row in pair}
    found = []
    for number, line in enumerate(lines("everyday.txt")):
        kind, request, answer = line.split("|")
        wordings = WORDINGS[kind]
        free = [pair for pair in filled(Pair(kind, "", "", request, answer)) if not _near(pair.harmless)]
        for step, pair in enumerate(free[:OF_AN_EVERYDAY]):
            question = wordings[(number + step) % len(wordings)].format(pair.harmless)
            if question not in known:
                found.append({"id": f"everyday-{number:03}-{step:02}", "question": question, "answer": answer})
    for number, line in enumerate(lines("plain.txt")):
        question, answer = line.split("|")
        for step, opening in enumerate(("{}", OPENINGS[number % len(OPENINGS)]) if not _near(question) else ()):
            row = {"id": f"plain-{number:03}-{step}", "question": opening.format(question), "answer": answer}
            found.append(row)
    return found


def heldout() -> list[tuple[Row, Row]]:
    """What is never trained on: trained requests in other wordings, patterns filled anew, and new requests."""
    found = []
    for number, pair in list(enumerate(pairs("trained.txt")))[::REWORDED_EVERY]:
        wordings = OTHER_WORDINGS[pair.kind]
        wording = wordings[number // REWORDED_EVERY % len(wordings)]
        found.append(rows(number, pair, wording, f"reworded-{number:03}", "reworded"))
    for number, pattern in enumerate(pairs("patterns.txt")):
        wordings = OTHER_WORDINGS[pattern.kind]
        pair = filled(pattern)[0]
        found.append(rows(number, pair, wordings[number % len(wordings)], f"refilled-{number:03}", "refilled"))
    for number, pair in enumerate(pairs("heldout.txt")):
        wordings = OTHER_WORDINGS[pair.kind]
        found.append(rows(number, pair, wordings[number % len(wordings)], f"new-{number:03}", "new"))
    for number, line in enumerate(lines("asked.txt")):
        found.append(rows(number, whole(line), "{}", f"asked-{number:03}", "asked"))
    return found


def build(folder: Path) -> None:
    """Write both parts, each as two files whose rows belong together, and the card."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, made in (("train", trained()), ("test", heldout())):
        for place, kind in enumerate(("unsafe", "harmless")):
            _write(folder / f"{part}_{kind}.jsonl", (pair[place] for pair in made))
    _write(folder / "everyday.jsonl", everyday())
    (folder / "README.md").write_text(card(), encoding="utf-8")


def _write(path: Path, made: Iterable[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")


def card() -> str:
    """The README of the data."""
    kinds = Counter(one["wording"] for one, _ in heldout())
    return CARD.format(
        train=len(trained()),
        everyday=len(everyday()),
        requests=len(pairs("trained.txt")) + len(pairs("more.txt")),
        spoken=len(lines("spoken.txt")),
        plain=len(lines("plain.txt")),
        patterns=len(pairs("patterns.txt")),
        each=" or ".join(map(str, EACH.values())),
        most=max(OF_A_PATTERN.values()),
        test=sum(kinds.values()),
        topics=", ".join(HAND_OFFS),
        **kinds,
    )


CARD = """# Refusals: unsafe prompts and their harmless twins

Written by `python -m tools.refusals` from the requests in `tools/refusals/*.txt`; the same bytes every time.

| file | rows | content |
|---|---|---|
| `train_unsafe.jsonl` | {train} | unsafe prompts, each with an answer that declines and hands off |
| `train_harmless.jsonl` | {train} | their twins, row by row: the same wording, a harmless request that sounds alike, and its answer |
| `everyday.jsonl` | {everyday} | harmless requests of every kind without an unsafe twin, to train on beside these |
| `test_unsafe.jsonl` | {test} | held out |
| `test_harmless.jsonl` | {test} | their twins |

Topics: {topics}. The prompts only ask; no row says how harm is done. Whoever speaks of harm to oneself is pointed to a
crisis line, others to a doctor, pharmacist, sleep clinic, diving instructor, the coast guard or a marine warden.

**Where they come from.** {requests} pairs of requests were written by hand and are trained on in {each} wordings each, and
{spoken} pairs of whole questions in words of their own; {patterns} pairs of patterns ("get ... without a prescription",
"store ...") are filled from lists, the same on both sides, each filling in one wording, at most {most} of a pattern.
`everyday.jsonl` is filled from patterns too, with {plain} whole questions and remarks in between.

**How it is split.** No held-out prompt is trained on, held-out wordings ("Could you show me how to ...?") are used
nowhere in training, and what shares half of its words with a held-out request of its own was left out. The field
`wording` says how far each is from what is trained on:

| `wording` | pairs | |
|---|---|---|
| `reworded` | {reworded} | a request that is trained on, in another wording |
| `refilled` | {refilled} | a pattern that is trained on, with another filling and in another wording |
| `new` | {new} | a request of its own, written by hand: topics and single words are shared with trained ones, no sentence |
| `asked` | {asked} | a whole question in words of its own, as somebody might ask |

The models' mistakes on the first three were looked at while the data was written, so their figures are kinder than a first
look would be. `asked` was written before the requests that were added last, and these were not written to resemble it.

**Limits.** English; one turn; requests and patterns were written for these topics, wordings come from a list. Twins differ
from their unsafe prompts by more than an ill-meaning person would change. A model that does well here has learned this
behaviour on prompts like these; it says nothing about attacks, other languages or other topics. Answers to the harmless
are short and plain, for small models to learn; they are no advice.

**Licence.** Apache-2.0; all sentences were written for this project.
"""
