"""Stories, days and letters from a small grammar, so that the base writes plain connected English.

`tell` expands `#symbol#` into one of the lines of `GRAMMAR`; `{h}` hero, `{f}` friend, `{she}`, `{her}`, `{Her}`,
`{obj}` follow the hero's pronoun. A plot is a list of slots and each slot is drawn anew, so two stories of one plot
rarely share three sentences.
"""

from __future__ import annotations

import random
import re

from tools.seedling import words as w
from tools.seedling.tables import table

_SYMBOL = re.compile(r"#(\w+)#")

GRAMMAR = table("grammar")


def _expand(text: str, rng: random.Random) -> str:
    while True:
        found = _SYMBOL.search(text)
        if found is None:
            return text
        text = text[: found.start()] + rng.choice(GRAMMAR[found.group(1)]) + text[found.end() :]


def _cast(rng: random.Random) -> dict[str, str]:
    girl = rng.random() < 0.5
    hero, friend = rng.choice(w.GIRLS if girl else w.BOYS), rng.choice(w.GIRLS + w.BOYS)
    she, her, obj = ("she", "her", "her") if girl else ("he", "his", "him")
    return {
        "h": hero,
        "f": friend,
        "she": she,
        "She": she.capitalize(),
        "her": her,
        "Her": her.capitalize(),
        "obj": obj,
    }


def _fix(text: str) -> str:
    text = re.sub(r"\b([Aa]) (?=[aeiou](?!ne\b))", r"\1n ", text)
    return re.sub(r"(^|[.!?] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


def _lines(symbol: str, low: int, high: int, cast: dict[str, str], rng: random.Random) -> list[str]:
    forms = rng.sample(GRAMMAR[symbol], min(rng.randint(low, high), len(GRAMMAR[symbol])))
    return [_fix(_expand(form, rng).format(**cast)) for form in forms]


def story(rng: random.Random) -> str:
    """A story of four to eleven sentences: opening, way, trouble, attempts, end."""
    cast = _cast(rng)
    parts = _lines("open", 1, 1, cast, rng) + _lines("move", 0, 2, cast, rng) + _lines("trouble", 1, 1, cast, rng)
    parts += _lines("try", 1, 3, cast, rng) + _lines("end", 1, 3, cast, rng)
    if rng.random() < 0.25:
        parts += _lines("moral", 1, 1, cast, rng)
    return " ".join(parts)


def routine(rng: random.Random) -> str:
    return " ".join(_lines("routine", 3, 7, _cast(rng), rng))


def weather(rng: random.Random) -> str:
    return " ".join(_lines("weather_s", 2, 5, _cast(rng), rng))


def letter(rng: random.Random) -> str:
    cast = _cast(rng)
    body = " ".join(_lines("letter", 3, 6, cast, rng))
    return f"Dear {cast['f']},\n{body}\n{rng.choice(['Yours', 'Love', 'Best wishes', 'Your friend'])},\n{cast['h']}"


def dialogue(rng: random.Random) -> str:
    cast = _cast(rng)
    return "\n".join(
        _expand(f, rng).format(**cast).replace("|", "\n") for f in rng.sample(GRAMMAR["say"], rng.randint(1, 3))
    )


NOUNS, VERBS, OBJECTS, ADJS, PLACES, TIMES, WHY = (
    table("words")[f"free.{x}"] for x in ("nouns", "verbs", "objects", "adjs", "places", "times", "why")
)
"""The words of free sentences; a verb stands as base:past."""


_PEOPLE = ["young", "kind", "tired", "clever", "poor", "rich", "tall"]


def _third(verb: str) -> str:
    """The third person singular of a verb."""
    if verb.endswith(("sh", "ch")):
        return verb + "es"
    return verb[:-1] + "ies" if verb.endswith("y") and verb[-2] not in "aeiou" else verb + "s"


_PAST_TIMES = {"yesterday", "last week", "two days ago"}
_PAST_WHY = ("was", "rang", "were", "would", "arrived", "went")


def sentence(rng: random.Random) -> str:
    """One free sentence with number and tense in agreement."""
    many, past = rng.random() < 0.35, rng.random() < 0.6
    noun = rng.choice(NOUNS)
    base, _, was = rng.choice(VERBS).partition(":")
    verb = was if past else base if many else _third(base)
    dets = ["the", "two", "three", "many", "some", "these"] if many else ["the", "a", "the", "every", "my", "this"]
    det = rng.choice(dets)
    look = rng.choice([*ADJS[:2], *_PEOPLE]) + " " if rng.random() < 0.4 else ""
    named = "children" if many and noun == "child" else w.plural(noun) if many else noun
    owner = rng.choice(["the", "a", "his", "her", "their", "the"])
    obj = f"{owner} {rng.choice(ADJS) + ' ' if rng.random() < 0.5 else ''}{rng.choice(OBJECTS)}"
    tail = [rng.choice(PLACES)] if rng.random() < 0.5 else []
    if rng.random() < 0.35:
        tail.append(
            rng.choice([t for t in TIMES if past == (t in _PAST_TIMES) or t[:2] in {"in", "at", "on", "af", "be"}])
        )
    if rng.random() < 0.3:
        tail.append(rng.choice([x for x in WHY if any(v in x for v in _PAST_WHY) == past]))
    return _fix(" ".join([det, look + named, verb, obj, *tail]) + ".")


def paragraph(rng: random.Random) -> str:
    return " ".join(sentence(rng) for _ in range(rng.randint(2, 6)))


KINDS = [(story, 8), (routine, 3), (weather, 1), (letter, 2), (dialogue, 2), (paragraph, 3)]


def tell(rng: random.Random) -> str:
    """One general document."""
    makers, weights = zip(*KINDS, strict=True)
    return str(rng.choices(makers, weights)[0](rng))
