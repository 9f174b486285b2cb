"""Articles rendered from the fact table: every fact in many sentences, orders and styles.

For: the corpus that continued pre-training reads, and the held-out articles that measure bits per byte on the domain.
An article speaks of one entry in the singular or the plural throughout; a comparison speaks of two, a list of several.
Refuses: nothing. Costs: about a second for three thousand articles; seeded, so the same bytes every time.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tools.marine.facts import Entry
from tools.marine.forms import FORMS, OPENERS

ARTICLES_PER_ENTRY = 20
HELDOUT_ARTICLES = 90


@dataclass(frozen=True)
class Article:
    """One text of the corpus."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Voice:
    """How an article speaks of its entry. plural: 'blue whales eat' instead of 'the blue whale eats'."""

    entry: Entry
    plural: bool
    rng: random.Random

    @property
    def name(self) -> str:
        return self.entry.plural if self.plural else self.entry.the

    def mention(self) -> str:
        """The name most of the time; now and then 'this whale' or a pronoun."""
        draw = self.rng.random()
        if draw < 0.7:
            return self.name
        if draw < 0.88:
            return f"these {self.entry.nouns}" if self.plural else f"this {self.entry.noun}"
        return "they" if self.plural else "it"

    def fill(self, form: str, attribute: str, *, subject: str | None = None) -> str:
        """A form with its slots filled and its verbs in the right number."""
        text = re.sub(r"<(\w+)\|(\w+)>", r"\2" if self.plural else r"\1", form)
        slots = {
            "s": subject or self.name,
            "n": self.name,
            "its": "their" if self.plural else "its",
            "the": self.entry.the,
            "a": self.entry.one,
            "noun": self.entry.noun,
            "name": self.entry.name,
            "v": self.entry.facts[attribute],
            "dim": self.entry.dim,
            "wide": self.entry.wide,
        }
        return text.format(**slots)


def sentence(text: str) -> str:
    """First letter large, after an inner mark too; exactly one mark at the end."""
    text = re.sub(r"(?:^|(?<=[.?!] ))[a-z]", lambda m: m.group().upper(), text)
    return text if text[-1] in ".!?" else text + "."


def corpus(entries: Sequence[Entry], seed: int) -> list[Article]:
    """All training articles, shuffled."""
    found: list[Article] = []
    for entry in entries:
        rng = random.Random(f"{seed}/{entry.slug}")
        for number in range(ARTICLES_PER_ENTRY):
            style = STYLES[number % len(STYLES)]
            found.append(Article(f"{entry.slug}-{number:02d}", entry.name, style(_voice(entry, rng))))
    rng = random.Random(f"{seed}/shared")
    found += _comparisons(entries, rng) + _lists(entries, rng)
    rng.shuffle(found)
    return found


def heldout(entries: Sequence[Entry], seed: int) -> list[Article]:
    """Articles in wordings that no training article uses, about a seeded choice of entries."""
    rng = random.Random(f"{seed}/heldout")
    chosen = rng.sample(list(entries), HELDOUT_ARTICLES)
    return [Article(f"{e.slug}-heldout", e.name, _heldout(_voice(e, rng))) for e in chosen]


def _voice(entry: Entry, rng: random.Random) -> Voice:
    return Voice(entry, plural=not entry.proper and rng.random() < 0.35, rng=rng)


def _order(voice: Voice) -> list[str]:
    attributes = list(voice.entry.facts)
    voice.rng.shuffle(attributes)
    return attributes


def _clause(voice: Voice, attribute: str, *, first: bool = False) -> str:
    form = voice.rng.choice(FORMS[voice.entry.form_key(attribute)].clauses)
    return voice.fill(form, attribute, subject=None if first else voice.mention())


def _plain(voice: Voice) -> str:
    """Encyclopaedia style: a clause a sentence, some joined, some opened."""
    rng, parts, clauses = voice.rng, [], [_clause(voice, a, first=i == 0) for i, a in enumerate(_order(voice))]
    while clauses:
        clause = clauses.pop(0)
        if clauses and rng.random() < 0.3:
            clause = f"{clause}, and {clauses.pop(0)}"
        elif rng.random() < 0.25:
            clause = f"{rng.choice(OPENERS)} {clause}"
        parts.append(sentence(clause))
    return " ".join(parts)


def _sentences(voice: Voice) -> str:
    """Value first, clefts, reversed orders."""
    forms = ((FORMS[voice.entry.form_key(a)].sentences, a) for a in _order(voice))
    return " ".join(sentence(voice.fill(voice.rng.choice(choices), a)) for choices, a in forms)


def _table(voice: Voice) -> str:
    rows = [(voice.rng.choice(FORMS[voice.entry.form_key(a)].labels), a) for a in _order(voice)]
    head = voice.rng.choice(("{}.", "Facts about {}.", "Name: {}.", "Fact sheet: {}.", "{}, in short."))
    lines = [f"{label}: {voice.entry.facts[a]}." for label, a in rows]
    return " ".join([sentence(head.format(voice.entry.the)), *lines])


ASKERS = (
    "Visitors often ask {q}; the answer is {v}.",
    "Ask a guide {q} and you will hear: {v}.",
    "People wonder {q}. It is {v}.",
    "Do you know {q}? The answer is {v}.",
    "Children like to ask {q}. The teacher says: {v}.",
    "If somebody asks you {q}, answer: {v}.",
    "A diver was asked {q}. The reply was: {v}.",
    "Every student should know {q}: {v}.",
)


def _asked(voice: Voice) -> str:
    """Indirect questions with their answers."""
    parts = []
    for a in _order(voice):
        question = voice.fill(voice.rng.choice(FORMS[voice.entry.form_key(a)].asks), a)
        parts.append(sentence(voice.rng.choice(ASKERS).format(q=question, v=voice.entry.facts[a])))
    return " ".join(parts)


def _quiz(voice: Voice) -> str:
    """A quiz night: question, then the bare answer."""
    head = voice.rng.choice(("Quiz: {}.", "Questions about {}.", "A round about {}.", "Test yourself on {}."))
    parts = [sentence(head.format(voice.entry.the))]
    for a in _order(voice):
        question = voice.fill(voice.rng.choice(FORMS[voice.entry.form_key(a)].quiz), a)
        parts.append(f"{sentence(question)} {sentence(voice.entry.facts[a])}")
    return " ".join(parts)


def _mixed(voice: Voice) -> str:
    """A guide's talk: clauses, reversed sentences and questions in turn."""
    rng, parts = voice.rng, []
    for i, a in enumerate(_order(voice)):
        forms = FORMS[voice.entry.form_key(a)]
        kind = rng.random()
        if kind < 0.45:
            parts.append(sentence(_clause(voice, a, first=i == 0)))
        elif kind < 0.75:
            parts.append(sentence(voice.fill(rng.choice(forms.sentences), a)))
        else:
            question = voice.fill(rng.choice(forms.quiz), a)
            parts.append(f"{sentence(question)} {sentence(voice.entry.facts[a])}")
    return " ".join(parts)


def _heldout(voice: Voice) -> str:
    forms = ((FORMS[voice.entry.form_key(a)].heldout, a) for a in _order(voice))
    return " ".join(sentence(voice.fill(voice.rng.choice(choices), a)) for choices, a in forms)


STYLES: tuple[Callable[[Voice], str], ...] = (_plain, _sentences, _quiz, _asked, _mixed, _table, _plain, _quiz)


def _comparisons(entries: Sequence[Entry], rng: random.Random) -> list[Article]:
    """Two entries of one class, attribute by attribute."""
    found = []
    for number, one in enumerate(entries):
        other = rng.choice([e for e in entries if e is not one and e.is_place == one.is_place])
        voices = [Voice(e, plural=False, rng=rng) for e in (one, other)]
        shared = [a for a in one.facts if a in other.facts]
        rng.shuffle(shared)
        parts = []
        for a in shared:
            form = rng.choice(FORMS[one.form_key(a)].clauses)
            left, right = (v.fill(form, a) for v in voices)
            parts.append(sentence(f"{left}, {rng.choice(('while', 'but', 'and', 'whereas'))} {right}"))
        found.append(Article(f"pair-{number:03d}", f"{one.name} and {other.name}", " ".join(parts)))
    return found


def _lists(entries: Sequence[Entry], rng: random.Random) -> list[Article]:
    """Several entries, one attribute: a table of foods, of sizes, of dangers."""
    found = []
    for attribute in ("food", "habitat", "range", "size", "trait", "young", "enemy", "builder", "resident", "benefit"):
        holders = [e for e in entries if attribute in e.facts and not (e.is_place and attribute == "enemy")]
        rng.shuffle(holders)
        for start in range(0, len(holders), 6):
            voices = [Voice(e, plural=False, rng=rng) for e in holders[start : start + 6]]
            form = rng.choice(FORMS[attribute].clauses)
            text = " ".join(sentence(v.fill(form, attribute)) for v in voices)
            found.append(Article(f"list-{attribute}-{start // 6:02d}", FORMS[attribute].labels[0], text))
    return found
