"""Word lists and name makers of the seedling's world: everyday land life, nothing of the demo domain (`FORBIDDEN`).

Everything is plain data or a function of a seeded `random.Random`, so a seed gives the same names on every machine.
"""

from __future__ import annotations

import random

from tools.seedling.tables import table

_WORDS = table("words")
FORBIDDEN = frozenset(_WORDS["forbidden"])
"""Words of the demo domain (marine biology) that no generated text may hold, compared word by word in lower case."""
GIRLS, BOYS, ADJ, PART, COLOURS = (_WORDS[x] for x in ("girls", "boys", "adj", "part", "colours"))
_ON, _END, _C1, _V, _C2, _TAIL = (_WORDS[x] for x in ("on", "end", "c1", "v", "c2", "tail"))
REGIONS = [f"{land} {country}" for land in _WORDS["lands"] for country in _WORDS["countries"]]
SMALL = [
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
    "fifteen",
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "sixty",
]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def person(rng: random.Random) -> tuple[str, str]:
    """A full name and its pronoun ("she" or "he")."""
    girl = rng.random() < 0.5
    first = rng.choice(GIRLS if girl else BOYS)
    return f"{first} {rng.choice(_ON)}{rng.choice(_END)}", "she" if girl else "he"


def place(rng: random.Random) -> str:
    """A village-like name such as "Tolland" or "Upper Brockley"."""
    name = rng.choice(_ON) + rng.choice(_END)
    return (
        f"{rng.choice(['Upper', 'Lower', 'Great', 'Little', 'Old', 'New', 'East', 'West', 'High'])} {name}"
        if rng.random() < 0.3
        else name
    )


def coined(rng: random.Random) -> str:
    """An invented common noun such as "tosker" or "wollam"."""
    stem = rng.choice(_C1) + rng.choice(_V) + rng.choice(_C2)
    return stem + (rng.choice(_V[:5]) + rng.choice(_C2[:9]) if rng.random() < 0.25 else "") + rng.choice(_TAIL)


def plural(noun: str) -> str:
    """The plural of a noun phrase whose last word carries it."""
    irregular = {
        "mouse": "mice",
        "sheep": "sheep",
        "deer": "deer",
        "ox": "oxen",
        "goose": "geese",
        "wolf": "wolves",
        "bison": "bison",
    }
    head, _, last = noun.rpartition(" ")
    if last in irregular:
        done = irregular[last]
    elif last.endswith("mouse"):
        done = last[:-5] + "mice"
    elif last.endswith(("s", "x", "ch", "sh", "z")):
        done = last + "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        done = last[:-1] + "ies"
    else:
        done = last + "s"
    return f"{head} {done}" if head else done


def article(noun: str) -> str:
    """ "a" or "an" before a noun phrase."""
    return "an" if noun[0].lower() in "aeiou" and not noun.lower().startswith(("one", "use", "uni", "eu")) else "a"
