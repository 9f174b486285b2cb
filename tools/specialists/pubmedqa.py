"""Made-up studies in the form of PubMedQA: how the results are worded decides what is asked, and nothing else does."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

from tools.specialists.common import HERE, Facts, sentence, table

SEED = 37
COUNTS = {"yes": (200, 100), "no": (120, 60), "maybe": (80, 40)}
"""By decision: how many studies may be trained on, and how many are the test."""
FOLDS = 10
NOTE = "made-up study, written for Metier: no research stands behind it"
QUESTIONS = (
    "Does {x} improve {y} in {who}?",
    "Is {x} better than {usual} for {y} in {who}?",
    "Can {x} help with {y} in {who}?",
    "Does {x} make a difference to {y} in {who}?",
)
BACKGROUND = (
    "The effect of {x} on {y} is not well known.",
    "Many {who} have trouble with {y}.",
    "It is not clear whether {x} acts on {y}.",
)
METHODS = (
    "We compared {x} with {usual} in {n} {who} for {weeks} weeks. The measure was {measure}.",
    "A trial with {n} {who} set {x} beside {usual}. We measured {y} by {measure} for {weeks} weeks.",
    "Half of {n} {who} were given {x}, the others {usual}. After {weeks} weeks {y} was measured by {measure}.",
)
RESULTS = {
    "yes": (
        "With {x}, {y} was clearly better than with {usual}",
        "There was a significant improvement of {y} with {x}",
        "The group with {x} did better in {y} after every week",
        "{y} improved strongly with {x}, and hardly with {usual}",
        "The gain in {y} was large and lasting in the group with {x}",
        "In nearly all who were given {x}, {y} became better",
        "The group with {usual} fell behind in {y}",
        "The score of {y} rose with {x} and stayed high",
        "{y} was ahead in the group with {x} at each visit",
        "With {usual}, {y} was worse than with {x}",
        "A strong effect of {x} on {y} was seen",
        "{x} raised the score of {y}",
    ),
    "no": (
        "With {x}, {y} was the same as with {usual}",
        "There was no difference of {y} between the groups",
        "The group with {x} did not do better in {y} at any time",
        "{y} did not change with {x}, nor with {usual}",
        "No gain in {y} was seen in the group with {x}",
        "Both groups were alike in {y} from the first to the last week",
        "The score of {y} stayed as it had been in both groups",
        "{x} had no effect on {y}",
        "{y} was equal with {x} and with {usual}",
        "The groups did not differ in {y} at any visit",
        "No improvement of {y} was found with {x}",
        "With {x}, {y} was as before",
    ),
    "maybe": (
        "With {x}, {y} was better in women but not in men",
        "The results were mixed: {y} was better at first, but no longer at the end",
        "In one half of the places {y} improved with {x}, in the other half it did not",
        "{y} seemed better with {x}, but many had left the study by then",
        "The gain in {y} was uncertain, as the two measures disagreed",
        "Only some of those with {x} did better in {y}, and the groups were too small to be sure",
        "{y} was better on one scale but not on another",
        "Some with {x} gained in {y}, but others lost",
        "The score of {y} may have risen with {x}, but it was measured in few",
        "It is uncertain whether {y} was better with {x}",
        "{y} improved in the young but not in the old",
        "One test of {y} was in favour of {x}, but the other was not",
    ),
}
NEW_RESULTS = {
    "yes": (
        "By the end, {y} with {x} was far better than with {usual}",
        "A clear improvement of {y} was found with {x}",
        "The score of {y} rose strongly in the group with {x}",
    ),
    "no": (
        "By the end, {y} with {x} and with {usual} did not differ",
        "No change of {y} was found with {x}",
        "The scores of {y} were the same in both groups",
    ),
    "maybe": (
        "By the end, {y} was better in some places but not in others",
        "The results on {y} were mixed and uncertain",
        "{y} seemed to rise with {x}, but the two measures disagreed",
    ),
}
"""Only in the test."""
ASIDES = (
    "Nobody was harmed.",
    "Most of them liked to take part.",
    "The costs were low.",
    "Age made no mark on this.",
    "Three of them moved away.",
)
CONCLUSIONS = {
    "yes": ("In {who}, {x} improves {y}.", "We found that {x} is a help with {y} in {who}."),
    "no": ("In {who}, {x} does not improve {y}.", "We found that {x} is no help with {y} in {who}."),
    "maybe": (
        "In {who}, {x} may improve {y}, but this stays uncertain.",
        "We found mixed results of {x} on {y} in {who}, and more studies are needed.",
    ),
}

Study = dict[str, object]


def groups() -> list[str]:
    """Who took part in a study."""
    lines = (HERE / "groups.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _level(decision: str, rng: random.Random) -> str:
    """Which p-value fits; where nothing is sure, either does."""
    return {"yes": "low", "no": "high"}.get(decision) or rng.choice(("low", "high"))


def study(x: Facts, y: Facts, who: str, decision: str, rng: random.Random, *, new: bool) -> Study:
    """One made-up study. new: its result is worded as in none that is trained on."""
    slots = {
        "x": x["name"],
        "usual": x["usual"],
        "y": y["name"],
        "measure": y["measure"],
        "who": who,
        "n": str(rng.randrange(40, 400, 10)),
        "weeks": str(rng.randrange(4, 30)),
        "low": f"0.0{rng.randrange(10, 49):02d}"[:5],
        "high": f"0.{rng.randrange(21, 94)}",
    }
    result = rng.choice((NEW_RESULTS if new else RESULTS)[decision])
    if rng.random() < 0.5:
        result += f" (p = {{{_level(decision, rng)}}})"
    result = sentence(result.format(**slots))
    parts = [result, rng.choice(ASIDES)]
    contexts = [rng.choice(BACKGROUND), rng.choice(METHODS), " ".join(rng.sample(parts, 2))]
    return {
        "QUESTION": sentence(rng.choice(QUESTIONS).format(**slots)),
        "CONTEXTS": [sentence(one.format(**slots)) for one in contexts],
        "LABELS": ["BACKGROUND", "METHODS", "RESULTS"],
        "MESHES": [],
        "final_decision": decision,
        "LONG_ANSWER": sentence(rng.choice(CONCLUSIONS[decision]).format(**slots)),
        "NOTE": NOTE,
        "WORDING": "new" if new else "known",
    }


def studies() -> tuple[dict[str, Study], list[str], list[list[str]]]:
    """All studies by id; the ids of the test; those of each fold of the others."""
    rng = random.Random(SEED)
    interventions = table("studies.txt", ("name", "usual"))
    outcomes = table("outcomes.txt", ("name", "measure"))
    places = [(x, y) for x in interventions for y in outcomes]
    rng.shuffle(places)
    who = groups()
    made: list[tuple[str, Study]] = []
    for decision, (trained, tested) in COUNTS.items():
        for number in range(trained + tested):
            part = "train" if number < trained else "test"
            x, y = places.pop()
            new = part == "test" and number % 2 == 0
            made.append((part, study(x, y, rng.choice(who), decision, rng, new=new)))
    rng.shuffle(made)
    ids = [f"made-up-{number:03d}" for number in range(len(made))]
    test = [one for one, (part, _) in zip(ids, made, strict=True) if part == "test"]
    rest: Sequence[str] = [one for one, (part, _) in zip(ids, made, strict=True) if part == "train"]
    by_decision = sorted(rest, key=lambda one: list(COUNTS).index(str(made[ids.index(one)][1]["final_decision"])))
    folds = [sorted(by_decision[number::FOLDS]) for number in range(FOLDS)]
    return {one: found for one, (_, found) in zip(ids, made, strict=True)}, test, folds


TASK = """\
title: "Made-up studies in PubMedQA's form: does what was found answer the question with yes, no or maybe"
source: "Written for Metier. No research stands behind any of them."
licence: "Apache-2.0"
checked: "every decision follows from the sentence of the results that it was written with"
items: ori_pqal.json
question:
  reasoning-required: "{CONTEXTS}\\n\\n{QUESTION}"
  reasoning-free: "{LONG_ANSWER}\\n\\n{QUESTION}"
id: null
label: final_decision
choices: ["yes", "no", "maybe"]
group: WORDING
test_ids: test_ids.txt
folds: [FOLDS]
"""


def files() -> dict[str, str]:
    """The set's files by name: the studies, the task, and the ids of its test and folds."""
    found, test, folds = studies()
    names = [f"fold-{number}.txt" for number in range(FOLDS)]
    truth = {one: found[one]["final_decision"] for one in test}
    return {
        "ori_pqal.json": "{\n"
        + ",\n".join(f"{json.dumps(one)}: {json.dumps(row)}" for one, row in found.items())
        + "\n}\n",
        "test_ground_truth.json": json.dumps(truth, indent=1) + "\n",
        "task.yaml": TASK.replace("[FOLDS]", f"[{', '.join(names)}]"),
        "test_ids.txt": "".join(f"{one}\n" for one in test),
        **{name: "".join(f"{one}\n" for one in fold) for name, fold in zip(names, folds, strict=True)},
    }
