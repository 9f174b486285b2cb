"""Questions that people ask about common medicines, with short answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tools.specialists.common import HERE, Facts, jsonl, sentence, slug
from tools.specialists.medicines import medicines

SEED = 29
CLINIC_ONLY = frozenset((HERE / "medication_without.txt").read_text(encoding="utf-8").split())
"""Left out: rarer ones, so that the rest is told often enough."""
EVAL_FACTS = 3
"""So many facts of each medicine are asked in evaluation."""


@dataclass(frozen=True)
class Asked:
    """How a fact is asked. train, held: wordings. answer: what is answered."""

    train: tuple[str, ...]
    held: tuple[str, ...]
    answer: str


ASKED = {
    "use": Asked(
        (
            "What is {name} for?",
            "Why do people take {name}?",
            "When does a doctor choose {name}?",
            "What does {name} help with?",
            "Tell me what {name} is used for.",
            "I was given {name}. What does it treat?",
            "Which trouble does {name} ease?",
            "What is {name} meant for?",
        ),
        ("For which trouble is {name} given?", "My pack says {name}. What is it meant to treat?"),
        "It is used for {use}.",
    ),
    "class": Asked(
        (
            "What kind of medicine is {name}?",
            "What is {name}?",
            "To which class of medicines does {name} belong?",
            "Tell me what sort of medicine {name} is.",
            "How do doctors classify {name}?",
            "Which sort of drug is {name}?",
            "Under which name does a pharmacist group {name}?",
            "My pack says {name}. What type of medicine is that?",
        ),
        ("Which type of drug is {name}?", "Under which heading would a pharmacist list {name}?"),
        "It is {class}.",
    ),
    "given": Asked(
        (
            "How is {name} taken?",
            "In which form does {name} come?",
            "How do patients get {name}?",
            "How is {name} given?",
            "Tell me how {name} is taken.",
            "I was given {name}. How do I take it?",
            "What form does {name} have?",
            "In what form will I get {name}?",
        ),
        ("What does {name} come as?", "In what way do I take {name}?"),
        "It is given {given}.",
    ),
    "effect": Asked(
        (
            "What side effect can {name} have?",
            "What may {name} cause?",
            "Which unwanted effect does {name} have?",
            "What trouble can come from {name}?",
            "Tell me a side effect of {name}.",
            "I take {name}. What might I notice?",
            "What can happen after taking {name}?",
            "Does {name} have a drawback?",
        ),
        ("What might I notice after taking {name}?", "What is a drawback of {name}?"),
        "It may cause {effect}.",
    ),
    "partner": Asked(
        (
            "What should not be taken with {name}?",
            "What does not go well with {name}?",
            "What does {name} interact with?",
            "Tell me what to avoid with {name}.",
            "What must I not mix with {name}?",
            "I take {name}. What should I avoid?",
            "Which mixture with {name} calls for care?",
            "What should be kept away from {name}?",
        ),
        ("Which combination with {name} calls for care?", "I take {name}. What should I keep away from?"),
        "Be careful with {partner}: {risk}.",
    ),
    "advice": Asked(
        (
            "What should I remember when I take {name}?",
            "What advice goes with {name}?",
            "What does a pharmacist say about {name}?",
            "Tell me what to mind with {name}.",
            "Do you have a tip for {name}?",
            "I was given {name}. Do you have any advice?",
            "What should users of {name} know?",
            "What should be borne in mind with {name}?",
        ),
        ("What is good to know for users of {name}?", "I was given {name}. What should I bear in mind?"),
        "{advice}.",
    ),
}


def row_of(medicine: Facts, fact: str, wording: str, number: int) -> dict[str, str]:
    """One question with its answer."""
    return {
        "id": f"{slug(medicine['name'])}-{fact}-{number}",
        "input": sentence(wording.format(**medicine)),
        "output": sentence(ASKED[fact].answer.format(**medicine)),
        "group": fact,
        "medicine": medicine["name"],
    }


def train(rows: Sequence[Facts]) -> list[dict[str, str]]:
    """Every fact in every training wording, shuffled."""
    found = [
        row_of(row, fact, wording, number)
        for row in rows
        for fact, asked in ASKED.items()
        for number, wording in enumerate(asked.train)
    ]
    random.Random(f"{SEED}/train").shuffle(found)
    return found


def evaluation(rows: Sequence[Facts]) -> list[dict[str, str]]:
    """Facts that training asks too, in wordings that it does not use."""
    rng, found = random.Random(f"{SEED}/eval"), []
    facts = list(ASKED)
    for place, row in enumerate(rows):
        for turn in range(EVAL_FACTS):
            fact = facts[(place * EVAL_FACTS + turn) % len(facts)]
            number = rng.randrange(len(ASKED[fact].held))
            found.append(row_of(row, fact, ASKED[fact].held[number], len(ASKED[fact].train) + number))
    rng.shuffle(found)
    return found


def files() -> dict[str, str]:
    """The set's files by name."""
    rows = [row for row in medicines() if row["name"] not in CLINIC_ONLY]
    return {"train.jsonl": jsonl(train(rows)), "eval.jsonl": jsonl(evaluation(rows))}
