"""Small skills in chat and text: arithmetic, clock and calendar, opposites, definitions, instructions, lists, small
talk."""

from __future__ import annotations

import random

from tools.seedling import stories
from tools.seedling import words as w
from tools.seedling.tables import table

Pair = tuple[str, str]
NUM = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
OPPOSITE = table("skills")["opposite"]
MEANING = table("skills")["meaning"]
HOW = table("skills")["how"]
LISTS = {
    "fruits": ["apples", "pears", "plums", "cherries", "grapes", "figs", "peaches"],
    "colours": ["red", "blue", "green", "yellow", "brown", "white", "black"],
    "tools": ["a hammer", "a saw", "a knife", "a spade", "a rake", "a needle"],
    "farm animals": ["cows", "sheep", "goats", "pigs", "hens", "horses", "donkeys"],
    "days of the week": w.DAYS,
    "months": w.MONTHS,
    "trees": ["oak", "birch", "pine", "elm", "beech", "maple", "fir"],
    "things in a kitchen": ["a pot", "a spoon", "a stove", "a table", "a plate", "a kettle"],
    "jobs": ["a baker", "a teacher", "a farmer", "a doctor", "a tailor", "a miller"],
    "kinds of weather": ["rain", "snow", "wind", "fog", "sunshine", "frost"],
}
TALK = table("skills")["talk"]


def _sum(rng: random.Random) -> Pair:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    if rng.random() < 0.3 and a + b <= 20:
        return f"What is {NUM[a]} plus {NUM[b]}?", f"{NUM[a + b].capitalize()}."
    if rng.random() < 0.5:
        return rng.choice([f"What is {a} plus {b}?", f"How much is {a} and {b}?", f"Add {a} and {b}."]), f"{a + b}."
    if rng.random() < 0.6:
        return rng.choice([f"What is {a + b} minus {a}?", f"Take {a} from {a + b}."]), f"{b}."
    c, d = rng.randint(2, 9), rng.randint(2, 9)
    return f"What is {c} times {d}?", f"{c * d}."


def _apples(rng: random.Random) -> Pair:
    a, b = rng.randint(2, 10), rng.randint(1, 9)
    name, what = rng.choice(w.GIRLS + w.BOYS), rng.choice(["apples", "coins", "eggs", "books", "nuts", "buttons"])
    if rng.random() < 0.5 or b >= a:
        return (
            f"{name} has {NUM[a]} {what} and gets {NUM[b]} more. How many {what} does {name} have now?",
            f"{NUM[a + b].capitalize()}.",
        )
    return (
        f"{name} has {NUM[a]} {what} and gives away {NUM[b]}. How many {what} are left?",
        f"{NUM[a - b].capitalize()}.",
    )


def _calendar(rng: random.Random) -> Pair:
    names = rng.choice([w.DAYS, w.MONTHS])
    kind = "day" if names is w.DAYS else "month"
    i = rng.randrange(len(names))
    if rng.random() < 0.5:
        return f"Which {kind} comes after {names[i]}?", f"{names[(i + 1) % len(names)]}."
    return f"Which {kind} comes before {names[i]}?", f"{names[i - 1]}."


def _clock(rng: random.Random) -> Pair:
    h, n = rng.randint(1, 9), rng.randint(1, 3)
    return (
        f"It is {NUM[h]} o'clock. What time will it be in {NUM[n]} hour{'s' if n > 1 else ''}?",
        f"{NUM[h + n].capitalize()} o'clock.",
    )


def _opposite(rng: random.Random) -> Pair:
    a, b = rng.choice(OPPOSITE).split(":")
    return rng.choice(
        [f"What is the opposite of {a}?", f"Give the opposite of {a}.", f"{a.capitalize()} is the opposite of what?"]
    ), f"{b.capitalize()}."


def _meaning(rng: random.Random) -> Pair:
    a, b = rng.choice(MEANING).split("=")
    q = rng.choice(["What is {x}?", "What does the word {a} mean?", "Explain the word {a}.", "Define {a}."])
    return q.replace("{x}", f"{w.article(a)} {a}").replace("{a}", a), f"{b[0].upper()}{b[1:]}."


def _how(rng: random.Random) -> Pair:
    a, b = rng.choice(HOW).split("=")
    return rng.choice(["How do you {a}?", "How can I {a}?", "Tell me how to {a}.", "What must I do to {a}?"]).replace(
        "{a}", a
    ), b


def _list(rng: random.Random) -> Pair:
    name = rng.choice(list(LISTS))
    n = rng.randint(2, 4)
    picked = rng.sample(LISTS[name], n)
    text = ", ".join(picked[:-1]) + " and " + picked[-1]
    return f"Name {NUM[n]} {name}.", f"{text[0].upper()}{text[1:]}."


def _talk(rng: random.Random) -> Pair:
    a, b = rng.choice(TALK).split("=")
    return a, b


def _story(rng: random.Random) -> Pair:
    text = stories.story(rng)
    name = next(x for x in text.replace(".", " ").replace(",", " ").split() if x in w.GIRLS or x in w.BOYS)
    return rng.choice(
        [f"Tell me a story about {name}.", f"Write a short story about {name}.", f"Do you know a story about {name}?"]
    ), text


def _day(rng: random.Random) -> Pair:
    return rng.choice(
        ["Describe an ordinary day.", "Tell me about somebody's day.", "Write about daily life."]
    ), stories.routine(rng)


def _read(rng: random.Random) -> Pair:
    """A question on a passage that stands in the question itself."""
    name, thing, spot = (
        rng.choice(w.GIRLS + w.BOYS),
        rng.choice(stories.GRAMMAR["thing"]),
        rng.choice(stories.GRAMMAR["spot"]),
    )
    food, day = rng.choice(stories.GRAMMAR["food"]), rng.choice(w.DAYS)
    text = f"On {day} {name} found {thing} {spot} and then ate {food}."
    q, a = rng.choice(
        [
            ("What did {n} find?", thing),
            ("Where was it found?", spot),
            ("What did {n} eat?", food),
            ("On which day was it?", day),
            ("Who found it?", name),
        ]
    )
    return f"{text} {q.replace('{n}', name)}", f"{a[0].upper()}{a[1:]}."


SKILLS = [
    (_sum, 4),
    (_apples, 2),
    (_calendar, 2),
    (_clock, 1),
    (_opposite, 2),
    (_meaning, 4),
    (_how, 3),
    (_list, 2),
    (_talk, 4),
    (_story, 3),
    (_day, 1),
    (_read, 4),
]


def skill(rng: random.Random) -> Pair:
    """One question with its answer that needs no fact of the world."""
    makers, weights = zip(*SKILLS, strict=True)
    made: Pair = rng.choices(makers, weights)[0](rng)
    return made
