"""Questions and short answers, split so that the test measures what it says.

For: `train.jsonl`, `dev.jsonl` and `test.jsonl`. A fact is an entry and an attribute. About a third of the facts are
*corpus-only*: they stand in articles, but no training question asks them. The rest are *trained*. The test asks both
kinds in wordings that no training question uses; dev asks trained facts in a third set of wordings.
What an entry is (its kind) is always trained: it can often be guessed from the name, so it would flatter the test.
Refuses: nothing. Costs: nothing; seeded.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tools.marine.articles import sentence
from tools.marine.facts import Entry

CORPUS_ONLY_SHARE = 0.38
WORDINGS_PER_FACT = 4
TEST_PER_GROUP = 170
DEV = 60


@dataclass(frozen=True)
class Wordings:
    """The ways to ask one attribute; the three sets share none."""

    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """A question with its one right answer."""

    id: str
    question: str
    answer: str
    entity: str
    attribute: str
    group: str
    wording: str

    def row(self) -> dict[str, str]:
        """As it stands in the file; the wording is left out."""
        return {k: v for k, v in vars(self).items() if k != "wording"}


WORDINGS: dict[str, Wordings] = {
    "kind": Wordings(
        train=(
            "What is {the}?",
            "What kind of creature is {the}?",
            "What sort of living thing is {the}?",
            "How would you classify {the}?",
            "To which group does {the} belong?",
            "Tell me what {the} is.",
            "Say what kind of animal or plant {the} is.",
        ),
        dev=("What type of creature is {a}?", "Please classify {the} for me."),
        test=(
            "In a few words, what would you call {the}?",
            "Which kind of life form is {a}?",
            "I have never heard of {the}. What is it?",
            "If I see {a}, what sort of creature am I looking at?",
        ),
    ),
    "kind_of_place": Wordings(
        train=(
            "What is {the}?",
            "What kind of place is {the}?",
            "What sort of place is {the}?",
            "Tell me what {the} is.",
            "How would you describe {the}?",
            "What does the term {name} mean?",
        ),
        dev=("What type of place is {the}?",),
        test=(
            "In a few words, what would you call {the}?",
            "I have never heard of {the}. What is it?",
            "Explain briefly what {the} is.",
            "What should I imagine when I hear of {the}?",
        ),
    ),
    "food": Wordings(
        train=(
            "What does {the} eat?",
            "What does {the} feed on?",
            "What is the main food of {the}?",
            "What is the diet of {the}?",
            "Which food does {the} live on?",
            "Tell me what {the} eats.",
            "What do {many} eat?",
            "On what does {the} feed?",
        ),
        dev=("What do {many} feed on?", "Which food does {a} eat?"),
        test=(
            "When {a} is hungry, what does it look for?",
            "What would you find in the stomach of {a}?",
            "What keeps {many} fed?",
            "Which meals does {a} take?",
            "What is usually eaten by {many}?",
        ),
    ),
    "habitat": Wordings(
        train=(
            "What kind of place does {the} live in?",
            "What is the habitat of {the}?",
            "In what kind of place does {the} live?",
            "What sort of home does {the} live in?",
            "In what sort of place do {many} live?",
            "Tell me what kind of place {the} lives in.",
            "What surroundings does {the} live in?",
        ),
        dev=("What habitat does {the} live in?", "What kind of home does {the} have?"),
        test=(
            "What sort of surroundings would you search to find {a}?",
            "Which habitat suits {many}?",
            "In which surroundings do {many} make their home?",
            "What kind of place does {a} call home?",
        ),
    ),
    "range": Wordings(
        train=(
            "In which part of the world does {the} live?",
            "What is the range of {the}?",
            "Where in the world is {the} found?",
            "In which waters is {the} found?",
            "Which region does {the} come from?",
            "Tell me which part of the world {the} lives in.",
            "Where on the map do {many} live?",
        ),
        dev=("In what part of the world are {many} found?", "Which region does {the} live in?"),
        test=(
            "Where would I have to travel to see {a} in the wild?",
            "Across which waters are {many} scattered?",
            "Point to the part of the globe where {many} occur.",
            "In which region of the world might a ship meet {a}?",
        ),
    ),
    "size": Wordings(
        train=(
            "How big does {the} grow?",
            "How large can {the} get?",
            "What size does {the} reach?",
            "What is the greatest size of {the}?",
            "How big do {many} get?",
            "Tell me how big {the} can grow.",
            "How much can {the} measure?",
        ),
        dev=("How large does {a} grow?", "What size can {a} reach?"),
        test=(
            "What would a tape measure read on the largest {name}?",
            "Up to what size may {many} grow?",
            "Which dimensions may {a} attain?",
            "At most, how big would {a} be?",
        ),
    ),
    "trait": Wordings(
        train=(
            "What is {the} known for?",
            "What is special about {the}?",
            "What makes {the} special?",
            "What is {the} famous for?",
            "What is the most notable feature of {the}?",
            "Tell me something special about {the}.",
            "What are {many} known for?",
        ),
        dev=("What is remarkable about {the}?", "What is {a} famous for?"),
        test=(
            "Why do people remember {the}?",
            "By which feature could I tell {a}?",
            "What is the striking thing about {many}?",
            "What would surprise me most about {the}?",
        ),
    ),
    "young": Wordings(
        train=(
            "How does {the} breed?",
            "What young does {the} have?",
            "How does {the} reproduce?",
            "What are the young of {the} like?",
            "What does {the} produce when it breeds?",
            "Tell me how {the} breeds.",
            "How do {many} breed?",
        ),
        dev=("How do {many} reproduce?", "What kind of young does {a} have?"),
        test=(
            "How does a new {name} come into the world?",
            "What can you say about the eggs or babies of {the}?",
            "In what way do {many} get their offspring?",
            "With what does family life start for {many}?",
        ),
    ),
    "enemy": Wordings(
        train=(
            "What threatens {the}?",
            "What is the main danger to {the}?",
            "What hunts or harms {the}?",
            "What is {the} in danger from?",
            "Which danger does {the} face?",
            "Tell me what threatens {the}.",
            "What are {many} threatened by?",
        ),
        dev=("What is a threat to {the}?", "What endangers {many}?"),
        test=(
            "What should {the} be protected from?",
            "Because of what are {many} at risk?",
            "What may kill or hurt {a}?",
            "Which risk do {many} run?",
        ),
    ),
    "place": Wordings(
        train=(
            "Where is {the} found?",
            "Where does {the} lie?",
            "Where would you find {the}?",
            "What is the location of {the}?",
            "Tell me where {the} is found.",
            "Where do you look for {the}?",
        ),
        dev=("Where is {the} located?",),
        test=(
            "Where must I go to visit {the}?",
            "In what part of the sea does {the} occur?",
            "Point out where {the} is.",
            "At which spots can {a} exist?",
        ),
    ),
    "builder": Wordings(
        train=(
            "What forms {the}?",
            "What builds {the}?",
            "How is {the} formed?",
            "What is {the} made by?",
            "What creates {the}?",
            "Tell me what forms {the}.",
        ),
        dev=("What makes {the}?",),
        test=(
            "By what process or creature does {a} come about?",
            "To what does {the} owe its beginning?",
            "What has to be there before {a} can arise?",
            "What gives rise to {the}?",
        ),
    ),
    "resident": Wordings(
        train=(
            "What lives at {the}?",
            "Which animals live at {the}?",
            "What animals does {the} shelter?",
            "Who lives at {the}?",
            "Which creatures are found at {the}?",
            "Tell me what lives at {the}.",
        ),
        dev=("What animals live at {the}?",),
        test=(
            "Which animals might a visitor to {the} see?",
            "Which tenants does {the} have?",
            "What creatures inhabit {the}?",
            "Whom could you watch at {the}?",
        ),
    ),
    "benefit": Wordings(
        train=(
            "What does {the} provide?",
            "Why does {the} matter?",
            "What is {the} good for?",
            "What does {the} give?",
            "What is the benefit of {the}?",
            "Tell me why {the} matters.",
        ),
        dev=("What does {the} offer?",),
        test=(
            "What would people miss if {the} vanished?",
            "For what should {the} be protected?",
            "What useful thing comes from {the}?",
            "How does {the} help?",
        ),
    ),
}


@dataclass(frozen=True)
class Split:
    """All questions, by what they are for."""

    train: list[Pair]
    dev: list[Pair]
    test: list[Pair]
    corpus_only: frozenset[tuple[str, str]]


def split(entries: Sequence[Entry], seed: int) -> Split:
    """Deal the facts out and ask them."""
    rng = random.Random(f"{seed}/questions")
    hidden: set[tuple[str, str]] = set()
    for entry in entries:
        askable = [a for a in entry.facts if a != "kind"]
        rng.shuffle(askable)
        hidden |= {(entry.slug, a) for a in askable[: round(len(askable) * CORPUS_ONLY_SHARE)]}
    by_slug = {e.slug: e for e in entries}
    facts = [(e.slug, a) for e in entries for a in e.facts]
    trained = [f for f in facts if f not in hidden]
    train: list[Pair] = []
    for slug, attribute in trained:
        wordings = WORDINGS[by_slug[slug].form_key(attribute)].train
        for wording in rng.sample(wordings, WORDINGS_PER_FACT):
            train.append(_pair(by_slug[slug], attribute, wording, "trained", f"train-{len(train):04d}"))
    rng.shuffle(train)
    reworded = rng.sample([f for f in trained if f[1] != "kind" or rng.random() < 0.4], TEST_PER_GROUP + DEV)
    test: list[Pair] = []
    for group, chosen in (
        ("reworded", reworded[:TEST_PER_GROUP]),
        ("corpus-only", rng.sample(sorted(hidden), TEST_PER_GROUP)),
    ):
        for slug, attribute in chosen:
            wording = rng.choice(WORDINGS[by_slug[slug].form_key(attribute)].test)
            test.append(_pair(by_slug[slug], attribute, wording, group, f"test-{len(test):04d}"))
    dev: list[Pair] = []
    for slug, attribute in reworded[TEST_PER_GROUP:]:
        wording = rng.choice(WORDINGS[by_slug[slug].form_key(attribute)].dev)
        dev.append(_pair(by_slug[slug], attribute, wording, "reworded", f"dev-{len(dev):04d}"))
    return Split(train, dev, test, frozenset(hidden))


def _pair(entry: Entry, attribute: str, wording: str, group: str, identity: str) -> Pair:
    if entry.proper:  # a proper name has no plural and keeps "the"
        wording = wording.replace("{many}", "{the}").replace("{a}", "{the}")
    question = wording.format(the=entry.the, a=entry.one, many=entry.plural, name=entry.name)
    return Pair(identity, question, sentence(entry.facts[attribute]), entry.slug, attribute, group, wording)
