"""Turns one fact and one form into a sentence: mentions, pronouns, agreement, capitals.

For: `articles.py`. A `Voice` speaks of one entry in one grammatical number and remembers whether a pronoun would be
understood; a `Decks` deals every form of a fact once before it repeats one, across the whole corpus.
Refuses: nothing that `facts.py` lets through. Costs: string replacement.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field

from tools.marine.facts import Entry
from tools.marine.forms import FORMS

_AGREE = re.compile(r"<([^<>|]*)\|([^<>|]*)>")


def capitalise(text: str) -> str:
    """First letter to upper case, the rest untouched ('the USA' stays as it is)."""
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    """Capital at the start, a full stop at the end unless there is an end mark already."""
    text = capitalise(text.strip())
    return text if text.endswith((".", "?", "!")) else text + "."


@dataclass
class Decks:
    """Shuffled forms for each (entry, attribute, style), dealt without repetition until the deck is empty."""

    rng: random.Random
    _decks: dict[tuple[str, str, str], list[str]] = field(default_factory=dict)

    def deal(self, entry: Entry, attribute: str, style: str) -> str:
        """The next unused form: style is 'clause', 'sentence', 'label', 'ask', 'quiz' or 'heldout'."""
        key = (entry.name, attribute, style)
        if not self._decks.get(key):
            forms = FORMS[entry.form_key(attribute)]
            pool = {
                "clause": forms.clauses,
                "sentence": forms.sentences,
                "label": forms.labels,
                "ask": forms.asks,
                "quiz": forms.quiz,
                "heldout": forms.heldout,
            }[style]
            self._decks[key] = self.rng.sample(pool, len(pool))
        return self._decks[key].pop()


@dataclass
class Voice:
    """Speaks of one entry; `many` picks 'narwhals' rather than 'the narwhal' for the whole article."""

    entry: Entry
    rng: random.Random
    many: bool
    pronoun_ready: bool = False

    def fill(self, form: str, attribute: str, *, pronouns: bool = True) -> str:
        """The form with every slot filled; no capital and no full stop are added.

        A pronoun is used only when the sentence before spoke of the same entry in the same number.
        """
        entry = self.entry
        name = entry.plural if self.many else entry.the
        subject = self._subject(name) if pronouns and self.pronoun_ready else name
        text = _AGREE.sub(lambda m: m.group(2 if self.many else 1), form)
        slots = {
            "s": subject,
            "n": name,
            "its": "their" if self.many else "its",
            "the": entry.the,
            "a": entry.one,
            "name": entry.name,
            "v": entry.facts[attribute],
            "dim": entry.dim,
            "wide": entry.wide,
        }
        singular_only = "{s}" not in form and "{n}" not in form
        self.pronoun_ready = not (singular_only and self.many)
        return text.format_map(slots)

    def _subject(self, name: str) -> str:
        entry = self.entry
        roll = self.rng.random()
        if roll < 0.62:
            return name
        if roll < 0.82:
            return "they" if self.many else "it"
        return f"these {entry.nouns}" if self.many else f"this {entry.noun}"
