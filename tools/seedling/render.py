"""Turns entities into text: articles, notes, fact tables, question lists, comparisons, and chat examples.

Every fact is told in many forms and orders, some of them close to a question ("Ask anyone what the tosker eats ..."),
because a base learns to answer about what it read only when it has seen both the telling and the asking of many other
facts.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from tools.seedling import words as w
from tools.seedling.forms import ATTRS
from tools.seedling.tables import table
from tools.seedling.world import Entity

_VERB = re.compile(r"\[([^|\]]*)\|([^\]]*)\]")
_NOT_NOUN = re.compile(
    r" (in|on|by|of|for|with|from|to|reached|eat)$|^(eaten|looks|opens|stands|where|active|most active|raising young)$"
)
NOUNS = {key: [x for x in attr.labels if not _NOT_NOUN.search(x)] for key, attr in ATTRS.items()}
"""The labels of each attribute that can stand after "the"."""
POSSESSIVE = {"it": "its", "she": "her", "he": "his", "they": "their"}
OBJECT = {"it": "it", "she": "her", "he": "him", "they": "them"}


@dataclass(frozen=True)
class Subject:
    """The three cases of a subject and whether its verb is plural."""

    subject: str
    possessive: str
    object: str
    plural: bool = False


def subject(entity: Entity, rng: random.Random, *, pronoun: float = 0.0, vary: bool = True) -> Subject:
    """How a sentence names the entity: its name, now and then a pronoun, for animals also the plural."""
    if rng.random() < pronoun:
        p = entity.pronoun
        return Subject(p, POSSESSIVE[p], OBJECT[p])
    if entity.proper:
        return Subject(entity.name, entity.name + "'s", entity.name)
    if vary and entity.domain in {"animal", "plant", "breeder"}:
        draw = rng.random()
        if draw < 0.16:
            many = w.plural(entity.name)
            return Subject(many, many + ("'" if many.endswith("s") else "'s"), many, True)
        if draw < 0.28:
            one = f"{w.article(entity.name)} {entity.name}"
            return Subject(one, one + "'s", one)
    name = f"the {entity.name}"
    return Subject(name, name + "'s", name)


def fill(form: str, who: Subject, entity: Entity, key: str) -> str:
    """A form with its slots filled; the first letter is left as it is."""
    value = entity.facts[key]
    text = _VERB.sub(lambda m: m.group(2 if who.plural else 1), form)
    return (
        text.replace("{S}", who.subject)
        .replace("{P}", who.possessive)
        .replace("{O}", who.object)
        .replace("{V}", value.noun)
        .replace("{L}", value.led)
    )


def cap(text: str) -> str:
    return text[0].upper() + text[1:]


def _needs_singular(key: str, form: str) -> bool:
    return (
        key == "young"
        or " its " in form
        or "{S} is" in form
        or "{S} has" in form
        or "{S} does" in form
        or "does {S}" in form
        or "is {S}" in form
        or "{S} breeds" in form
        or "{S} blooms" in form
    )


def _who(entity: Entity, rng: random.Random, key: str, form: str, pronoun: float = 0.0) -> Subject:
    who = subject(entity, rng, pronoun=0.0 if "{O}" in form else pronoun)
    return subject(entity, rng, vary=False) if who.plural and _needs_singular(key, form) else who


def clause(entity: Entity, key: str, rng: random.Random, pronoun: float = 0.0) -> str:
    form = rng.choice(ATTRS[key].say)
    return fill(form, _who(entity, rng, key, form, pronoun), entity, key)


def question(
    entity: Entity, key: str, rng: random.Random, which: slice = slice(None), pronoun: float = 0.0
) -> tuple[str, str]:
    """A direct question and its short answer."""
    form = rng.choice(ATTRS[key].ask[which])
    return cap(fill(form, _who(entity, rng, key, form, pronoun), entity, key)), answer(entity, key, form)


def wonder(entity: Entity, key: str, rng: random.Random, which: slice = slice(None)) -> tuple[str, str]:
    """An indirect question and its short answer."""
    form = rng.choice(ATTRS[key].wonder[which])
    return fill(form, _who(entity, rng, key, form), entity, key), answer(entity, key, form)


def answer(entity: Entity, key: str, form: str) -> str:
    value = entity.facts[key]
    led = form.lower().startswith(("where", "when"))
    if key == "young":
        return f"It {value.noun}."
    return cap(value.led if led else value.noun) + "."


WRAPS = table("render")["wraps"]
ASKING = table("render")["asking"]
LABELLED = table("render")["labelled"]


def _first(rng: random.Random) -> str:
    return rng.choice(w.GIRLS + w.BOYS)


def told(entity: Entity, key: str, rng: random.Random, pronoun: float = 0.0) -> str:
    """One sentence that tells one fact, in one of some hundreds of ways."""
    draw = rng.random()
    if draw < 0.62:
        return cap(rng.choice(WRAPS).replace("{c}", clause(entity, key, rng, pronoun)).replace("{n}", _first(rng)))
    if draw < 0.9 or key == "young":
        form = rng.choice(ASKING)
        q, a = question(entity, key, rng)
        i, ai = wonder(entity, key, rng)
        if "{i}" in form:
            a = ai
        v = a[:-1] if entity.facts[key].noun[0].isupper() else a[0].lower() + a[1:-1]
        filled = form.replace("{i}", i).replace("{q}", q).replace("{v}", v).replace("{a}", a).replace("{A}", a[:-1])
        return cap(filled.replace("{n}", _first(rng)).replace("{m}", _first(rng)))
    label = rng.choice(NOUNS[key])
    who = subject(entity, rng, vary=False)
    form = rng.choice(LABELLED)
    return cap(
        form.replace("{k}", cap(label))
        .replace("{l}", label)
        .replace("{o}", who.object)
        .replace("{s}", who.subject)
        .replace("{v}", entity.facts[key].noun)
    )


def _keys(entity: Entity, rng: random.Random, most: int = 99) -> list[str]:
    keys = list(entity.facts)
    rng.shuffle(keys)
    return keys[:most]


def title(entity: Entity) -> str:
    return entity.name if entity.proper else f"The {entity.name}"


def article(entity: Entity, rng: random.Random) -> str:
    """Running text on one entity: all of its facts, some of them twice."""
    keys = _keys(entity, rng)
    keys += rng.sample(keys, rng.randint(0, 3))
    lines, i = [], 0
    while i < len(keys):
        if i + 1 < len(keys) and rng.random() < 0.2:
            first, second = clause(entity, keys[i], rng), clause(entity, keys[i + 1], rng, 0.7)
            lines.append(cap(f"{first}{rng.choice([', and ', ', while ', '; ', ', but '])}{second}."))
            i += 2
        else:
            lines.append(told(entity, keys[i], rng, 0.0 if i == 0 else 0.22))
            i += 1
    body = " ".join(lines)
    return f"{title(entity)}{rng.choice([chr(10), '. ', ': '])}{body}" if rng.random() < 0.4 else body


def note(entity: Entity, rng: random.Random) -> str:
    return " ".join(told(entity, key, rng) for key in _keys(entity, rng, rng.randint(1, 3)))


def fact_table(entity: Entity, rng: random.Random) -> str:
    rows = [
        f"{cap(rng.choice(ATTRS[k].labels))}: {entity.facts[k].noun if rng.random() < 0.7 else entity.facts[k].led}"
        for k in _keys(entity, rng)
    ]
    joint, head = rng.choice([(". ", ". "), ("\n", "\n"), ("; ", ": "), ("\n- ", ":\n- ")])
    return title(entity) + head + joint.join(rows) + "."


def asked(entity: Entity, rng: random.Random) -> str:
    """A list of questions with answers, as plain text."""
    rows = []
    style = rng.choice(["Q: {q}\nA: {a}", "{q} {a}", "- {q} {a}", "Question: {q} Answer: {a}"])
    for key in _keys(entity, rng, rng.randint(3, 8)):
        q, a = question(entity, key, rng)
        rows.append(style.replace("{q}", q).replace("{a}", a))
    return rng.choice([f"Questions about {subject(entity, rng, vary=False).object}\n", ""]) + "\n".join(rows)


def compared(one: Entity, two: Entity, rng: random.Random) -> str:
    """What two entities of a domain have that differs, fact by fact."""
    rows = []
    for key in [k for k in _keys(one, rng) if k in two.facts][:4]:
        rows.append(
            cap(f"{clause(one, key, rng)}, {rng.choice(['but', 'while', 'and', 'whereas'])} {clause(two, key, rng)}.")
        )
    return " ".join(rows)


def document(entity: Entity, others: list[Entity], rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.55:
        return article(entity, rng)
    if draw < 0.67:
        return note(entity, rng)
    if draw < 0.78:
        return fact_table(entity, rng)
    if draw < 0.88:
        return asked(entity, rng)
    return compared(entity, rng.choice(others), rng)


CHAT_WRAPS = table("render")["chat_wraps"]
LABEL_ASK = table("render")["label_ask"]
SENTENCE = table("render")["sentence"]


def ask(entity: Entity, key: str, rng: random.Random, which: slice = slice(None)) -> tuple[str, str]:
    """A chat question on one fact with the answer wanted; `which` picks the wordings it may draw from."""
    draw = rng.random()
    q, a = question(entity, key, rng, which)
    if draw < 0.55:
        return q, a
    i, ai = wonder(entity, key, rng, which)
    who = subject(entity, rng, vary=False).object
    if draw < 0.82:
        form = rng.choice(CHAT_WRAPS)
        return cap(form.replace("{i}", i).replace("{q}", q).replace("{o}", who)), ai if "{i}" in form else a
    if draw < 0.93 and key != "young":
        label = rng.choice(NOUNS[key])
        form = rng.choice(LABEL_ASK)
        return cap(form.replace("{l}", label).replace("{k}", cap(label)).replace("{o}", who)), cap(
            entity.facts[key].noun
        ) + "."
    form = rng.choice(SENTENCE)
    return cap(form.replace("{i}", i).replace("{q}", q)), cap(clause(entity, key, rng)) + "."


def _yes_no(entity: Entity, others: list[Entity], rng: random.Random) -> list[tuple[str, str]]:
    key = rng.choice([k for k in entity.facts if k != "young"] or list(entity.facts))
    right = entity.facts[key].noun
    pool = [o.facts[key].noun for o in others if key in o.facts]
    shown = right if rng.random() < 0.5 else rng.choice(pool)
    label = rng.choice(NOUNS[key])
    q = (
        f"Is it true that {clause(entity, key, rng).replace(right, shown)}?"
        if rng.random() < 0.6
        else f"The {label} of {subject(entity, rng, vary=False).object} is {shown}. Right?"
    )
    return [(q, rng.choice(["Yes.", "Yes, that is right."]) if shown == right else f"No, {right}.")]


def chat(entity: Entity, others: list[Entity], rng: random.Random) -> list[tuple[str, str]]:
    """The turns of one chat about an entity, each a question and an answer."""
    draw = rng.random()
    if draw < 0.62:
        return [ask(entity, rng.choice(list(entity.facts)), rng)]
    if draw < 0.85:
        keys = _keys(entity, rng, rng.randint(2, 4))
        turns = [ask(entity, keys[0], rng)]
        for key in keys[1:]:
            turns.append(ask(entity, key, rng) if rng.random() < 0.5 else question(entity, key, rng, pronoun=0.8))
        return turns
    if draw < 0.93:
        return _yes_no(entity, others, rng)
    who = subject(entity, rng, vary=False).object
    q = rng.choice(
        [
            "Tell me about {o}.",
            "What do you know about {o}?",
            "Describe {o}.",
            "Write two sentences about {o}.",
            "Who or what is {o}?",
        ]
    ).replace("{o}", who)
    keys = _keys(entity, rng, 2)
    return [(q, " ".join(cap(clause(entity, k, rng, 0.0 if n == 0 else 0.6)) + "." for n, k in enumerate(keys)))]
