"""Texts, instructions, refusals, terms and patient scenarios about sleep and stress."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tools.refusals.build import HAND_OFFS, OTHER_WORDINGS, WORDINGS
from tools.specialists.common import Facts, jsonl, sentence, slug, table

SEED = 31
TEXTS_PER_ENTRY = 11
TEST_QUESTIONS = 120
WORDINGS_OF_REFUSALS = 6

Subject = tuple[str, Facts]
"""Which table, and the row."""


@dataclass(frozen=True)
class Told:
    """How a fact is told, asked and answered. held: asked in the test. out: told in held-out texts."""

    told: tuple[str, ...]
    out: str
    asked: tuple[str, ...]
    held: tuple[str, ...]
    answer: str


TABLES: dict[str, tuple[str, ...]] = {
    "conditions": ("name", "what", "sign", "cause", "help"),
    "body": ("name", "what", "where", "does"),
    "methods": ("name", "what", "how", "good"),
}
WHAT = Told(
    (
        "{name} is {what}",
        "by {name} people mean {what}",
        "doctors call it {name}: {what}",
        "the meaning of {name} is {what}",
    ),
    "in plain words, {name} stands for {what}",
    (
        "What is {name}?",
        "Explain {name} in one sentence.",
        "What does {name} mean?",
        "Tell me what {name} is.",
        "How would a doctor describe {name}?",
        "I heard of {name}. What is it?",
    ),
    ("How would you describe {name}?", "Somebody mentions {name}. What is that?"),
    "{name} is {what}.",
)
FORMS: dict[str, dict[str, Told]] = {
    "conditions": {
        "what": WHAT,
        "sign": Told(
            (
                "a person with {name} {sign}",
                "whoever has {name} {sign}",
                "a sign of {name}: a person {sign}",
                "{name} shows itself when somebody {sign}",
            ),
            "in {name}, the patient {sign}",
            (
                "How does {name} show?",
                "What is a sign of {name}?",
                "What happens to a person with {name}?",
                "How do you notice {name}?",
                "What would you see in a person with {name}?",
                "Tell me a sign of {name}.",
            ),
            ("By what do you notice {name}?", "What would a patient with {name} tell?"),
            "A person with {name} {sign}.",
        ),
        "cause": Told(
            (
                "a usual cause of {name} is {cause}",
                "{name} often comes from {cause}",
                "behind {name} there is often {cause}",
                "{cause} can lead to {name}",
            ),
            "the root of {name} may be {cause}",
            (
                "What causes {name}?",
                "Where does {name} come from?",
                "What is often behind {name}?",
                "Why does a person get {name}?",
                "What may be the cause of {name}?",
                "Tell me a cause of {name}.",
            ),
            ("What may lead to {name}?", "Why do people get {name}?"),
            "A usual cause is {cause}.",
        ),
        "help": Told(
            (
                "what helps against {name} is {help}",
                "against {name}, doctors advise {help}",
                "{help} helps with {name}",
                "for {name}, the first step is {help}",
            ),
            "good advice for {name} is {help}",
            (
                "What helps against {name}?",
                "What do doctors advise against {name}?",
                "How can {name} be eased?",
                "What should be done about {name}?",
                "What is good for {name}?",
                "I have {name}. What helps?",
            ),
            ("What can be done about {name}?", "I have {name}. What would do me good?"),
            "What helps is {help}.",
        ),
    },
    "body": {
        "what": WHAT,
        "where": Told(
            (
                "{name} is found {where}",
                "you find {name} {where}",
                "the place of {name}: {where}",
                "look for {name} {where}",
            ),
            "{name} has its place {where}",
            (
                "Where or when is {name} found?",
                "Where or when would you look for {name}?",
                "Tell me where or when {name} occurs.",
                "Where or when is {name} there?",
                "In which place or at which time do you find {name}?",
                "Say where or when we find {name}.",
            ),
            ("Where or when do we meet {name}?", "In which place or at which time is {name} there?"),
            "It is found {where}.",
        ),
        "does": Told(
            (
                "{name} {does}",
                "the task of {name}: it {does}",
                "every day {name} {does}",
                "we need {name}, for it {does}",
            ),
            "the work of {name} is that it {does}",
            (
                "What does {name} do?",
                "What is the task of {name}?",
                "What is {name} good for?",
                "Why do we need {name}?",
                "Tell me what {name} does.",
                "What is the part of {name} in the body?",
            ),
            ("Which role does {name} play?", "Why does the body need {name}?"),
            "It {does}.",
        ),
    },
    "methods": {
        "what": WHAT,
        "how": Told(
            (
                "{name} is done like this: {how}",
                "to use {name}, {how}",
                "people who try {name} are told: {how}",
                "the rule of {name} is simple: {how}",
            ),
            "this is the way of {name}: {how}",
            (
                "How is {name} done?",
                "How do I use {name}?",
                "Tell me how {name} works.",
                "What should I do for {name}?",
                "I would like to try {name}. How is it done?",
                "Tell me the rule of {name}.",
            ),
            ("What do I have to do for {name}?", "I want to try {name}. How do I go about it?"),
            "{how}.",
        ),
        "good": Told(
            (
                "{name} helps with {good}",
                "doctors use {name} for {good}",
                "the use of {name} is {good}",
                "for {good}, many people choose {name}",
            ),
            "{name} has its value for {good}",
            (
                "What does {name} help with?",
                "When is {name} useful?",
                "What is the use of {name}?",
                "Why do doctors suggest {name}?",
                "Tell me what {name} is good for.",
                "What does {name} do for people?",
            ),
            ("What is the benefit of {name}?", "Why would a doctor suggest {name}?"),
            "It helps with {good}.",
        ),
    },
}
PEOPLE = (
    "Anna is a teacher of 42", "Ben is a driver of 35", "Clara is a nurse of 29", "David is a baker of 51",
    "Emma is a student of 20", "Felix is a builder of 38", "Grace is a cook of 47", "Hugo is a farmer of 60",
    "Ines is a lawyer of 33", "Jonas is a father of 31", "Karin is a singer of 26", "Leo is a clerk of 55",
)  # fmt: skip
OTHER_PEOPLE = (
    "Mira is a librarian of 44", "Nils is a painter of 27", "Olga is a gardener of 58", "Paul is a soldier of 24",
    "Rosa is a mother of 36", "Sami is a waiter of 22", "Tilda is a dentist of 49", "Victor is a fisher of 63",
)  # fmt: skip
"""Who the scenarios that are held out speak of."""
SCENARIOS = ("{who}, and {sign}. What may help?", "{who}. The problem: {they} {sign}. What would you advise?")
OTHER_SCENARIOS = (
    "{who} who {sign}. What should {they} try first?",
    "A visit: {who}. {they} {sign}. Which advice fits?",
)
SHE = frozenset(("Anna", "Clara", "Emma", "Grace", "Ines", "Karin", "Mira", "Olga", "Rosa", "Tilda"))


def subjects() -> list[Subject]:
    """All rows of the three tables."""
    return [(name, row) for name, columns in TABLES.items() for row in table(f"{name}.txt", columns)]


def about(kind: str, row: Facts, rng: random.Random) -> str:
    """All facts of an entry, or two of them, in sentences of any order; or as questions with their answers."""
    facts = rng.sample(list(FORMS[kind]), len(FORMS[kind]))
    style = rng.random()
    if style < 0.25:
        pairs = ((rng.choice(FORMS[kind][f].asked), FORMS[kind][f].answer) for f in facts)
        return " ".join(f"{sentence(q.format(**row))} {sentence(a.format(**row))}" for q, a in pairs)
    if style < 0.45:
        facts = facts[:2]
    return " ".join(sentence(rng.choice(FORMS[kind][f].told).format(**row)) for f in facts)


def corpus(rows: Sequence[Subject]) -> list[dict[str, str]]:
    """Short texts, shuffled."""
    found = []
    for kind, row in rows:
        rng = random.Random(f"{SEED}/{row['name']}")
        for number in range(TEXTS_PER_ENTRY):
            found.append(_text(row, f"{number:02d}", about(kind, row, rng)))
    random.Random(f"{SEED}/corpus").shuffle(found)
    return found


def heldout(rows: Sequence[Subject]) -> list[dict[str, str]]:
    """A text for each entry in sentences that the corpus does not have."""
    return [
        _text(row, "held", " ".join(sentence(form.out.format(**row)) for form in FORMS[kind].values()))
        for kind, row in rows
    ]


def _text(row: Facts, number: str, text: str) -> dict[str, str]:
    return {"id": f"{slug(row['name'])}-{number}", "topic": row["name"], "text": text}


def instruction(row: Facts, fact: str, number: int, wording: str, answer: str) -> dict[str, str]:
    """A row in Alpaca's form. Some put the term into `input`, where the wording allows it."""
    asked, term = wording.format(**row), row["name"]
    given = ""
    if wording == "Explain {name} in one sentence.":
        asked, given = "Explain this term in one sentence.", term
    return {
        "id": f"{slug(term)}-{fact}-{number}",
        "instruction": asked,
        "input": given,
        "output": sentence(answer.format(**row)),
        "group": fact,
        "topic": term,
    }


def scenario(who: str, form: str, row: Facts) -> str:
    """A patient's case in a sentence or two."""
    name = who.split()[0]
    they = "she" if name in SHE else "he"
    return sentence(form.format(who=who, they=they, sign=row["sign"]))


def train(rows: Sequence[Subject]) -> list[dict[str, str]]:
    """Every fact in every training wording, and cases with what may help; shuffled."""
    found = []
    for kind, row in rows:
        for fact, form in FORMS[kind].items():
            found += [instruction(row, fact, i, w, form.answer) for i, w in enumerate(form.asked)]
    rng = random.Random(f"{SEED}/cases")
    for kind, row in rows:
        if kind == "conditions":
            for number, who in enumerate(rng.sample(PEOPLE, 4)):
                case = scenario(who, SCENARIOS[number % 2], row)
                found.append(
                    {
                        "id": f"{slug(row['name'])}-case-{number}",
                        "instruction": "Answer the patient scenario." if number % 2 else case,
                        "input": case if number % 2 else "",
                        "output": reference(row),
                        "group": "case",
                        "topic": row["name"],
                    }
                )
    random.Random(f"{SEED}/train").shuffle(found)
    return found


def reference(row: Facts) -> str:
    """What a case is answered: what helps, and when to see a doctor."""
    return sentence(f"what helps is {row['help']}. If it lasts, see a doctor")


def test(rows: Sequence[Subject]) -> list[dict[str, str]]:
    """Facts that training asks too, in wordings that it does not use."""
    rng = random.Random(f"{SEED}/test")
    facts = [(kind, row, fact) for kind, row in rows for fact in FORMS[kind]]
    found = []
    for kind, row, fact in rng.sample(facts, TEST_QUESTIONS):
        number = rng.randrange(2)
        form = FORMS[kind][fact]
        found.append(instruction(row, fact, len(form.asked) + number, form.held[number], form.answer))
    return found


def scenarios(rows: Sequence[Subject]) -> list[dict[str, object]]:
    """Cases of people and in wordings that training does not have, with what a good answer has to say."""
    found: list[dict[str, object]] = []
    conditions = [row for kind, row in rows if kind == "conditions"]
    for number in range(2 * len(conditions)):
        row, turn = conditions[number % len(conditions)], number // len(conditions)
        who = OTHER_PEOPLE[number % len(OTHER_PEOPLE)]
        context = " ".join(sentence(FORMS["conditions"][f].told[0].format(**row)) for f in ("sign", "help"))
        found.append(
            {
                "id": f"case-{number:02d}",
                "question": scenario(who, OTHER_SCENARIOS[turn], row),
                "answer": reference(row),
                "key_facts": [row["help"], "see a doctor"],
                "context": f"{context} If a problem lasts, a doctor should look at it.",
                "group": "case",
                "topic": row["name"],
            }
        )
    return found


def terms(rows: Sequence[Subject]) -> list[dict[str, str]]:
    """Words of the field, each with what it means."""
    found = []
    for _, row in rows:
        word = row["name"]
        for article in ("a ", "the "):
            word = word.removeprefix(article)
        if " " not in word:
            found.append({"word": word, "text": row["what"]})
    return found + [{"word": row["name"], "text": row["text"]} for row in table("terms.txt", ("name", "text"))]


REFUSED = ("form", "topic", "unsafe", "harmless", "answer")
HAND_OFF = {"dose": "medicine", "diagnosis": "health", "crisis": "crisis"}
"""Which of the hand-offs fits a topic."""


def refusals() -> dict[str, list[dict[str, str]]]:
    """Prompts that are declined and their harmless twins, row by row: trained on, and held out."""
    known = table("sleep_refusals.txt", REFUSED, "unsafe")
    new = table("sleep_refusals_new.txt", REFUSED, "unsafe")
    trained = [(row, WORDINGS[row["form"]][:WORDINGS_OF_REFUSALS]) for row in known]
    held = [(row, OTHER_WORDINGS[row["form"]][i % 6 : i % 6 + 1]) for i, row in enumerate(known)]
    held += [(row, OTHER_WORDINGS[row["form"]][:2]) for row in new]
    made: dict[str, list[dict[str, str]]] = {}
    for part, asked in (("train", trained), ("test", held)):
        for side in ("unsafe", "harmless"):
            made[f"refusals_{part}_{side}.jsonl"] = [
                _prompt(row, wording, f"{part}-{number:02d}-{turn}", turn, side)
                for number, (row, wordings) in enumerate(asked)
                for turn, wording in enumerate(wordings)
            ]
    return made


def _prompt(row: Facts, wording: str, name: str, turn: int, side: str) -> dict[str, str]:
    declined = HAND_OFFS[HAND_OFF[row["topic"]]]
    return {
        "id": f"{name}-{side}",
        "question": wording.format(row[side]),
        "answer": declined[turn % len(declined)] if side == "unsafe" else row["answer"],
        "topic": row["topic"],
    }


def files() -> dict[str, str]:
    """The set's files by name."""
    rows = subjects()
    made = {"corpus.jsonl": corpus(rows), "corpus_heldout.jsonl": heldout(rows), "train.jsonl": train(rows)}
    made |= {"test.jsonl": test(rows), "terms.jsonl": terms(rows), **refusals()}
    return {name: jsonl(found) for name, found in made.items()} | {"scenarios.jsonl": jsonl(scenarios(rows))}
