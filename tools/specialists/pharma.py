"""Texts about medicines for a language model that only reads, and sentences for it to complete."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tools.specialists.common import HERE, Facts, jsonl, sentence, slug
from tools.specialists.medicines import medicines

SEED = 23
TEXTS_PER_MEDICINE = 18
COMPLETIONS_PER_MEDICINE = 2


@dataclass(frozen=True)
class Forms:
    """How a fact is told. told: what is trained on. held: held out. asked: direct questions. value: their answer."""

    told: tuple[str, ...]
    held: tuple[str, ...]
    asked: tuple[str, ...]
    value: str


FORMS = {
    "class": Forms(
        (
            "{name} is {class}",
            "by its class, {name} is {class}",
            "pharmacists call {name} {class}",
            "among medicines, {name} counts as {class}",
            "in every list, {name} stands as {class}",
        ),
        ("doctors call {name} {class}", "as a medicine, {name} is {class}"),
        ("what is {name}?", "to which class does {name} belong?"),
        "{class}",
    ),
    "use": Forms(
        (
            "{name} is used for {use}",
            "the main use of {name} is {use}",
            "doctors prescribe {name} for {use}",
            "for {use}, one choice is {name}",
            "patients are given {name} for {use}",
        ),
        ("doctors give {name} for {use}", "the use of {name} is {use}"),
        ("what is {name} used for?", "when do doctors prescribe {name}?"),
        "{use}",
    ),
    "works": Forms(
        (
            "{name} {works}",
            "in the body, {name} {works}",
            "{name} works in this way: it {works}",
            "how {name} acts is simple: it {works}",
            "the drug {name} {works}",
        ),
        ("the action of {name} is simple: it {works}", "in a patient, {name} {works}"),
        ("how does {name} work?", "what does {name} do in the body?"),
        "it {works}",
    ),
    "given": Forms(
        (
            "{name} is given {given}",
            "{name} is usually taken {given}",
            "patients get {name} {given}",
            "as a rule, {name} is handed out {given}",
        ),
        ("patients take {name} {given}", "most people get {name} {given}"),
        ("how is {name} given?", "in which form is {name} taken?"),
        "{given}",
    ),
    "effect": Forms(
        (
            "a side effect of {name} is {effect}",
            "{name} can cause {effect}",
            "a known trouble with {name} is {effect}",
            "some patients on {name} report {effect}",
            "with {name}, watch for {effect}",
        ),
        ("one side effect of {name} is {effect}", "{name} sometimes causes {effect}"),
        ("which side effect does {name} have?", "what can {name} cause?"),
        "{effect}",
    ),
    "partner": Forms(
        (
            "{name} interacts with {partner}: {risk}",
            "if {partner} is added to {name}, {risk}",
            "{name} and {partner} do not go well together: {risk}",
            "care is needed when {name} meets {partner}: {risk}",
            "{name} should not be mixed with {partner}: {risk}",
        ),
        ("care is needed when {name} is mixed with {partner}", "the drug {name} interacts with {partner}"),
        ("what does {name} interact with?", "what should not be mixed with {name}?"),
        "{partner}: {risk}",
    ),
    "advice": Forms(
        (
            "advice for {name}: {advice}",
            "patients on {name} are told: {advice}",
            "whoever takes {name} should remember this: {advice}",
            "the leaflet of {name} says: {advice}",
        ),
        ("good advice for {name} is this: {advice}",),
        ("which advice goes with {name}?", "what are patients on {name} told?"),
        "{advice}",
    ),
}
OPENERS = ("as a rule,", "in practice,", "it is well known that", "students learn that")


def plain(row: Facts, rng: random.Random) -> str:
    """Sentence after sentence, in any order, some joined, some opened."""
    parts = []
    for fact in rng.sample(list(FORMS), len(FORMS)):
        clause = rng.choice(FORMS[fact].told).format(**row)
        opened = fact in ("class", "use", "effect", "given") and rng.random() < 0.2
        parts.append(sentence(f"{rng.choice(OPENERS)} {clause}" if opened else clause))
    return " ".join(parts)


def short(row: Facts, rng: random.Random) -> str:
    """Three facts, as in a note."""
    return " ".join(sentence(rng.choice(FORMS[fact].told).format(**row)) for fact in rng.sample(list(FORMS), 3))


def monograph(row: Facts, rng: random.Random) -> str:
    """A fact sheet: label and value."""
    labels = {
        "class": ("Class", "Kind"),
        "use": ("Use", "Indication"),
        "works": ("Action", "Mechanism"),
        "given": ("Form", "Route"),
        "effect": ("Side effect", "Unwanted"),
        "partner": ("Interaction", "Not with"),
        "advice": ("Advice", "Note"),
    }
    facts = rng.sample(list(FORMS), len(FORMS))
    lines = [f"{rng.choice(labels[fact])}: {FORMS[fact].value.format(**row)}." for fact in facts]
    return " ".join([sentence(row["name"]), *lines])


def quiz(row: Facts, rng: random.Random) -> str:
    """Questions with their answers."""
    facts = rng.sample(list(FORMS), len(FORMS))
    pairs = ((rng.choice(FORMS[fact].asked), FORMS[fact].value) for fact in facts)
    return " ".join(f"{sentence(asked.format(**row))} {sentence(value.format(**row))}" for asked, value in pairs)


STYLES = (plain, short, monograph, quiz, plain, short)


def texts(rows: Sequence[Facts]) -> list[dict[str, str]]:
    """The corpus, shuffled: texts about one medicine, and lists of a group's medicines."""
    found = []
    for row in rows:
        rng = random.Random(f"{SEED}/{row['name']}")
        for number in range(TEXTS_PER_MEDICINE):
            text = STYLES[number % len(STYLES)](row, rng)
            found.append({"id": f"{slug(row['name'])}-{number:02d}", "topic": row["name"], "text": text})
    rng = random.Random(f"{SEED}/lists")
    for group in sorted({row["group"] for row in rows}):
        own = [row for row in rows if row["group"] == group]
        for fact in ("class", "use", "effect", "works", "partner"):
            text = " ".join(sentence(rng.choice(FORMS[fact].told).format(**row)) for row in rng.sample(own, len(own)))
            found.append({"id": f"list-{slug(group)}-{fact}", "topic": group, "text": text})
    rng.shuffle(found)
    return found


def heldout(rows: Sequence[Facts]) -> list[dict[str, str]]:
    """A text for each medicine in sentences that the corpus does not have."""
    found = []
    for row in rows:
        rng = random.Random(f"{SEED}/{row['name']}/held")
        facts = rng.sample(list(FORMS), len(FORMS))
        text = " ".join(sentence(rng.choice(FORMS[fact].held).format(**row)) for fact in facts)
        found.append({"id": f"{slug(row['name'])}-held", "topic": row["name"], "text": text})
    return found


def completions(rows: Sequence[Facts]) -> list[dict[str, str]]:
    """Beginnings of sentences that the corpus does not have, each with its end; the facts take turns."""
    asked = ("class", "use", "works", "given", "effect", "partner")
    found = []
    for number in range(COMPLETIONS_PER_MEDICINE * len(rows)):
        row, fact = rows[number // COMPLETIONS_PER_MEDICINE], asked[number % len(asked)]
        form = FORMS[fact].held[number // len(asked) % 2]
        begin, end = form.split("{" + fact + "}")
        assert not end, form
        prompt = begin.strip().format(**row)
        found.append(
            {
                "id": f"{slug(row['name'])}-{fact}",
                "prompt": prompt[0].upper() + prompt[1:],
                "completion": row[fact] + ".",
                "group": fact,
                "topic": row["name"],
            }
        )
    return found


def chosen() -> list[Facts]:
    """The medicines that are told of: few enough for each to be told of often."""
    names = (HERE / "pharma_with.txt").read_text(encoding="utf-8").splitlines()
    return [row for row in medicines() if row["name"] in names]


def files() -> dict[str, str]:
    """The set's files by name."""
    rows = chosen()
    return {
        "corpus.jsonl": jsonl(texts(rows)),
        "corpus_heldout.jsonl": jsonl(heldout(rows)),
        "completions.jsonl": jsonl(completions(rows)),
    }
