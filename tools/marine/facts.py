"""The fact table: reads `facts/*.yaml` into entries that know their own grammar.

For: everything in this package that speaks of a species or a habitat.
Refuses: unknown keys, attributes that do not belong to the entry's class, too few facts, over-long values.
Costs: one pass over five small YAML files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

FACTS_DIR = Path(__file__).parent / "facts"
SPECIES_ATTRIBUTES = ("kind", "food", "habitat", "range", "size", "trait", "young", "enemy")
PLACE_ATTRIBUTES = ("kind", "place", "builder", "resident", "trait", "enemy", "benefit")
GRAMMAR_KEYS = ("noun", "nouns", "plural", "proper", "dim")
MIN_FACTS = 5
MAX_VALUE_WORDS = 8

SIZE_ADJECTIVES = {"in length": "long", "in height": "tall"}


@dataclass(frozen=True)
class Entry:
    """One species or habitat: its facts (attribute -> short value) and the grammar needed to speak of it."""

    name: str
    is_place: bool
    noun: str
    nouns: str
    plural: str
    proper: bool
    dim: str
    facts: dict[str, str]

    @property
    def slug(self) -> str:
        """The name as an identifier: lower case, hyphens, no apostrophes."""
        return self.name.lower().replace("'", "").replace(" ", "-")

    @property
    def the(self) -> str:
        """'the narwhal'."""
        return f"the {self.name}"

    @property
    def one(self) -> str:
        """'a narwhal', 'an orca'; a proper name keeps 'the'."""
        return self.the if self.proper else f"{article(self.name)} {self.name}"

    @property
    def wide(self) -> str:
        """The adjective that goes with how the size is measured: long, tall or wide."""
        return SIZE_ADJECTIVES.get(self.dim, "wide")

    def form_key(self, attribute: str) -> str:
        """The key of the attribute's sentence forms: a habitat's kind is asked for in other words than a species'."""
        return "kind_of_place" if self.is_place and attribute == "kind" else attribute


def article(word: str) -> str:
    """'an' before a vowel sound, else 'a'; 'European' begins with a consonant sound."""
    return "an" if word[0].lower() in "aeiou" and not word.lower().startswith(("eu", "uni")) else "a"


def _entry(name: str, raw: dict[str, object], is_place: bool) -> Entry:
    attributes = PLACE_ATTRIBUTES if is_place else SPECIES_ATTRIBUTES
    unknown = sorted(set(raw) - set(attributes) - set(GRAMMAR_KEYS))
    if unknown:
        raise ValueError(f"{name}: unknown keys {unknown}; known are {sorted({*attributes, *GRAMMAR_KEYS})}")
    facts = {key: str(raw[key]) for key in attributes if key in raw}
    if len(facts) < MIN_FACTS:
        raise ValueError(f"{name}: {len(facts)} facts, needs {MIN_FACTS}")
    for key, value in facts.items():
        if len(value.split()) > MAX_VALUE_WORDS:
            raise ValueError(f"{name}.{key}: {value!r} has more than {MAX_VALUE_WORDS} words")
    noun = str(raw.get("noun", name.split()[-1]))
    plural = str(raw.get("plural", name + "s"))
    return Entry(
        name=name,
        is_place=is_place,
        noun=noun,
        nouns=str(raw.get("nouns", plural.split()[-1] if plural.split()[-1].startswith(noun) else _plural(noun))),
        plural=plural,
        proper=bool(raw.get("proper", False)),
        dim=str(raw.get("dim", "in length")),
        facts=facts,
    )


def _plural(noun: str) -> str:
    return noun if noun in ("fish", "squid") else noun + "s"


def load_entries(folder: Path = FACTS_DIR) -> list[Entry]:
    """All entries, in file order then table order.

    Raises:
        ValueError: on a repeated name, an unknown key, too few facts or an over-long value.
    """
    entries: list[Entry] = []
    for path in sorted(folder.glob("*.yaml")):
        table: dict[str, dict[str, object]] = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries += [_entry(name, raw, path.stem == "habitats") for name, raw in table.items()]
    names = [entry.name.lower() for entry in entries]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"entries named twice: {repeated}")
    return entries
