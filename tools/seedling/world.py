"""The invented world: a few thousand entities of everyday land life, each with five to nine attributes.

An `Entity` holds its name and its facts; what the facts are called in text stands in `forms`. Which entities may be
asked about in chat form is drawn here (`chat`), because the whole point of the world is to teach answering questions
about what only articles told. Refuses nothing; costs about a second for 2,500 entities.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tools.seedling import words as w
from tools.seedling.tables import table


@dataclass(frozen=True)
class Value:
    """One value: a noun phrase and, where it tells a place or a time, the preposition that leads to it."""

    noun: str
    prep: str = ""

    @property
    def led(self) -> str:
        return f"{self.prep} {self.noun}" if self.prep else self.noun


@dataclass(frozen=True)
class Entity:
    """One thing of the world; `name` has no article, `proper` names take none."""

    name: str
    domain: str
    proper: bool
    pronoun: str
    facts: dict[str, Value] = field(hash=False)
    chat: bool


def _join(rng: random.Random, items: list[str]) -> str:
    """One item, or two joined by "and"."""
    if rng.random() < 0.5:
        return rng.choice(items)
    return " and ".join(rng.sample(items, 2))


POOLS = table("pools")
CLASSES = ("grazer", "hunter", "small", "bird", "insect")


def _size(rng: random.Random, small: bool) -> str:
    if small:
        return f"about {rng.choice(w.SMALL)} {rng.choice(['centimetres', 'millimetres', 'grams'])}"
    n = rng.choice(w.SMALL)
    return f"about {n} {rng.choice(['metre'] if n == 'one' else ['metres', 'centimetres', 'kilograms'])}"


def _led(text: str) -> Value:
    prep, _, noun = text.rpartition(":")
    return Value(noun, prep)


def _time(text: str) -> Value:
    prep, _, noun = text.partition(" ")
    return Value(noun, prep) if prep in {"at", "in", "on", "after"} else Value(text)


def _animal(rng: random.Random, used: set[str]) -> tuple[str, dict[str, Value]]:
    cls = rng.choice(CLASSES)
    kind = rng.choice(POOLS[f"{cls}.kinds"])
    shape = rng.random()
    while True:
        if shape < 0.25:
            name = f"{rng.choice(w.ADJ)} {rng.choice([w.place(rng).split()[-1], rng.choice(w.ADJ)])} {kind}"
        elif shape < 0.45:
            name = f"{rng.choice(w.PART)} {rng.choice([*w.ADJ, w.coined(rng)])} {kind}"
        elif shape < 0.65:
            name = f"{rng.choice(w.ADJ)} {w.coined(rng)}"
        elif shape < 0.8:
            name = w.coined(rng)
        else:
            name = f"{rng.choice([w.place(rng).split()[-1], rng.choice(w.BOYS)])} {rng.choice([kind, w.coined(rng)])}"
        if name not in used:
            break
    facts = {
        "kind": Value(f"{w.article(kind)} {kind}" if rng.random() < 0.6 else f"a kind of {kind}"),
        "food": Value(_join(rng, POOLS[f"{cls}.food"])),
        "home": _led(rng.choice(POOLS[f"{cls}.home"])),
        "region": Value(rng.choice(w.REGIONS), "in"),
        "size": Value(_size(rng, cls in {"small", "bird", "insect"})),
        "feature": Value(rng.choice(POOLS["animal.feature"])),
        "enemy": Value(_join(rng, POOLS[f"{cls}.enemy"]) if rng.random() < 0.4 else rng.choice(POOLS[f"{cls}.enemy"])),
        "young": Value(rng.choice(POOLS[f"{cls}.young"])),
        "colour": Value(rng.choice(w.COLOURS)),
        "life": Value(f"{rng.choice(w.SMALL[1:])} {'weeks' if cls == 'insect' else 'years'}"),
        "active": _time(rng.choice(POOLS["animal.active"])),
    }
    return name, facts


def _plant(rng: random.Random, used: set[str]) -> tuple[str, dict[str, Value]]:
    kind = rng.choice(POOLS["plant.kind"])
    part = rng.choice(POOLS["plant.part"])
    while True:
        name = rng.choice(
            [
                f"{rng.choice(w.ADJ)} {part}",
                f"{w.place(rng).split()[-1]} {part}",
                f"{rng.choice(w.ADJ)} {w.coined(rng)}",
                f"{w.coined(rng)} {kind}",
                f"{rng.choice(w.GIRLS)} {part}",
            ]
        )
        if name not in used:
            break
    return name, {
        "kind": Value(f"{w.article(kind)} {kind}"),
        "home": _led(rng.choice(POOLS["plant.home"])),
        "region": Value(rng.choice(w.REGIONS), "in"),
        "size": Value(_size(rng, False).replace("kilograms", "centimetres")),
        "flower": Value(rng.choice(w.COLOURS)),
        "month": Value(rng.choice(w.MONTHS), "in"),
        "use": Value(rng.choice(POOLS["plant.use"])),
        "enemy": Value(rng.choice(POOLS["plant.enemy"])),
        "feature": Value(rng.choice(POOLS["plant.feature"])),
    }


def _person(rng: random.Random, used: set[str]) -> tuple[str, dict[str, Value], str]:
    while True:
        name, pronoun = w.person(rng)
        if name not in used:
            break
    job = rng.choice(POOLS["person.job"])
    pets = POOLS["person.pets"]
    return (
        name,
        {
            "job": Value(f"{w.article(job)} {job}"),
            "town": Value(w.place(rng), "in"),
            "birth": Value(w.place(rng), "in"),
            "age": Value(str(rng.randint(18, 90))),
            "hobby": Value(rng.choice(POOLS["person.hobby"])),
            "pet": Value(f"a {rng.choice(POOLS['person.pet_look'])} {rng.choice(pets)}"),
            "likes": Value(rng.choice(POOLS["person.likes"])),
            "fear": Value(rng.choice(POOLS["person.fear"])),
        },
        pronoun,
    )


def _village(rng: random.Random, used: set[str]) -> tuple[str, dict[str, Value]]:
    while True:
        name = w.place(rng)
        if name not in used:
            break
    return name, {
        "kind": Value(rng.choice(POOLS["village.kind"])),
        "region": Value(rng.choice(w.REGIONS), "in"),
        "people": Value(f"{rng.randint(1, 90) * 100} people"),
        "known": Value(rng.choice(POOLS["village.known"])),
        "day": Value(rng.choice(w.DAYS), "on"),
        "founder": Value(w.person(rng)[0]),
        "built": Value(str(rng.randint(1100, 1890)), "in"),
    }


def _dish(rng: random.Random, used: set[str]) -> tuple[str, dict[str, Value]]:
    kind = rng.choice(POOLS["dish.kind"])
    while True:
        name = rng.choice(
            [
                f"{w.place(rng).split()[-1]} {kind}",
                f"{rng.choice(w.ADJ[:18])} {w.coined(rng)}",
                f"{w.coined(rng)} {kind}",
                f"{rng.choice(w.GIRLS)} {rng.choice(POOLS['dish.look'])} {kind}",
            ]
        )
        if name not in used:
            break
    return name, {
        "kind": Value(f"{w.article(kind)} {kind}"),
        "made": Value(_join(rng, POOLS["dish.made"])),
        "region": Value(rng.choice(w.REGIONS), "in"),
        "served": Value(rng.choice(POOLS["dish.served"])),
        "taste": Value(rng.choice(POOLS["dish.taste"])),
        "cook": Value(rng.choice(POOLS["dish.cook"])),
        "eaten": _time(rng.choice(POOLS["dish.eaten"])),
    }


def _thing(rng: random.Random, used: set[str]) -> tuple[str, dict[str, Value]]:
    kind = rng.choice(POOLS["thing.kind"])
    while True:
        name = rng.choice(
            [
                f"{w.place(rng).split()[-1]} {kind}",
                f"{rng.choice(w.ADJ[:30])} {w.coined(rng)}",
                f"{rng.choice(w.BOYS)} {kind}",
                f"{w.coined(rng)} {kind}",
                f"{rng.choice(POOLS['thing.look'])} {w.coined(rng)} {kind}",
            ]
        )
        if name not in used:
            break
    return name, {
        "kind": Value(f"a kind of {kind}" if rng.random() < 0.5 else f"{w.article(kind)} {kind}"),
        "material": Value(_join(rng, POOLS["thing.material"])),
        "use": Value(rng.choice(POOLS["thing.use"])),
        "maker": Value(w.person(rng)[0]),
        "region": Value(rng.choice(w.REGIONS), "in"),
        "price": Value(f"{rng.choice(w.SMALL[1:])} {rng.choice(['crowns', 'pence', 'shillings', 'florins'])}"),
        "colour": Value(rng.choice(w.COLOURS)),
        "size": Value(_size(rng, False)),
    }


def _house(rng: random.Random, used: set[str]) -> tuple[str, dict[str, Value]]:
    kind = rng.choice(POOLS["house.kind"])
    while True:
        name = rng.choice(
            [
                f"{rng.choice(POOLS['house.look'])} {rng.choice(POOLS['house.sign'])} {kind}",
                f"{w.place(rng)} {kind}",
                f"{w.person(rng)[0].split()[1]} {kind}",
            ]
        )
        if name not in used:
            break
    return name, {
        "kind": Value(f"{w.article(kind)} {kind}"),
        "stands": _led(rng.choice(POOLS["house.stands"])),
        "town": Value(w.place(rng), "in"),
        "owner": Value(w.person(rng)[0]),
        "built": Value(str(rng.randint(1400, 1990)), "in"),
        "opens": Value(f"{rng.choice(w.SMALL[4:11])} o'clock", "at"),
        "day": Value(rng.choice(w.DAYS), "on"),
        "known": Value(rng.choice(POOLS["house.known"])),
    }


def _breeder(rng: random.Random, used: set[str]) -> tuple[str, dict[str, Value]]:
    """An animal whose young are told as a thing ("two speckled eggs") instead of a deed."""
    name, facts = _animal(rng, used)
    cls = next(c for c in CLASSES if facts["kind"].noun.split()[-1] in POOLS[f"{c}.kinds"])
    del facts["young"], facts["life"], facts["active"]
    return name, {**facts, "brood": Value(rng.choice(POOLS[f"brood.{cls}"]))}


def _habitat(rng: random.Random, used: set[str]) -> tuple[str, dict[str, Value]]:
    kind = rng.choice(POOLS["habitat.kind"])
    while True:
        first = rng.choice([w.place(rng).split()[-1], rng.choice(w.ADJ), w.coined(rng)])
        name = f"{first} {kind}" if rng.random() < 0.7 else f"{first} {w.coined(rng)}"
        if name not in used:
            break
    return name, {
        "kind": Value(f"{w.article(kind)} {kind}"),
        "region": Value(rng.choice(w.REGIONS), "in"),
        "formed": Value(rng.choice(POOLS["habitat.formed"])),
        "residents": Value(_join(rng, POOLS["habitat.residents"])),
        "gift": Value(rng.choice(POOLS["habitat.gift"])),
        "enemy": Value(rng.choice(POOLS["habitat.enemy"])),
        "feature": Value(rng.choice(POOLS["habitat.feature"])),
    }


DOMAINS: dict[str, tuple[Callable[..., tuple[str, dict[str, Value]] | tuple[str, dict[str, Value], str]], int]] = {
    "animal": (_animal, 1000),
    "plant": (_plant, 260),
    "person": (_person, 280),
    "village": (_village, 160),
    "dish": (_dish, 180),
    "thing": (_thing, 220),
    "house": (_house, 160),
    "breeder": (_breeder, 120),
    "habitat": (_habitat, 60),
}
PROPER = {"person", "village"}


def make_world(seed: int, scale: float = 1.0, only: str | None = None, used: set[str] | None = None) -> list[Entity]:
    """The entities of a seed; `scale` multiplies the counts, `only` keeps one domain, names in `used` are avoided."""
    rng = random.Random(f"world-{seed}")
    taken = set() if used is None else set(used)
    out: list[Entity] = []
    for domain, (make, count) in DOMAINS.items():
        if only is not None and domain != only:
            continue
        for _ in range(max(1, round(count * scale))):
            made = make(rng, taken)
            name, facts = made[0], dict(made[1])
            pronoun = made[2] if len(made) == 3 else "it"
            taken.add(name)
            for key in rng.sample(list(facts), max(0, len(facts) - rng.randint(6, 8))):
                if key not in {"kind", "food", "home", "region"}:
                    del facts[key]
            out.append(Entity(name, domain, domain in PROPER, pronoun, facts, rng.random() < 0.6))
    return out
