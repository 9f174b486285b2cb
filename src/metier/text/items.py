"""Items: questions with choices of which one is right, from an examples step or from a task's folder.

In a question's `meta`, `choices` are parted by | ("yes|no|maybe") or a JSON list, and `label` is the right one.
Refuses, naming the item: no choices, fewer than two, blank or equal ones, and a label that is no choice.
Imports nothing heavy.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase

from metier.core.errors import DataError, nearest
from metier.text.nouns import Message, Question


@dataclass(frozen=True)
class Item:
    """messages: up to the user's turn. label: one of the choices. said: what points of reference (people) chose."""

    id: str
    messages: tuple[Message, ...]
    choices: tuple[str, ...]
    label: str
    group: str = ""
    said: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def question(self) -> Question:
        """As the question of an artifact."""
        plain = not any("|" in choice or choice.startswith("[") for choice in self.choices)
        choices = "|".join(self.choices) if plain else json.dumps(list(self.choices), ensure_ascii=False)
        return Question(self.id, self.messages, self.label, self.group, {"choices": choices, "label": self.label})


def item_of(question: Question) -> Item:
    """The item that a question with choices is. Raises DataError where it is none."""
    where = f"question {question.id}"
    if "choices" not in question.meta:
        raise DataError(
            "the question has no choices",
            where=where,
            value=sorted(question.meta),
            cure="carry them along with the source's `keep: [choices, label]` (choices: yes|no|maybe), or use `answer`",
        )
    choices = parted(question.meta["choices"])
    label = question.meta.get("label", question.reference)
    return checked(Item(question.id, question.messages, choices, label.strip(), question.group), where)


def choices_path(folder: Path, contender: str) -> Path:
    """Where one contender's choices lie below the `files` of a `choices` artifact."""
    return folder / "choices" / f"{contender.replace('/', '--')}.jsonl"


def is_choices(folder: Path) -> bool:
    """Whether an artifact's files are those of choices, rather than answers."""
    return (folder / "choices").is_dir()


def parted(text: str) -> tuple[str, ...]:
    """The choices that stand in a `meta`."""
    if text.startswith("["):
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            return tuple(one.strip() for one in found)
    return tuple(part.strip() for part in text.split("|"))


def checked(item: Item, where: str) -> Item:
    """The item. Raises DataError for what is wrong with its choices or its label."""
    if len(item.choices) < 2:
        raise DataError(
            "there must be two choices or more", where=where, value=list(item.choices), cure="part them by |: yes|no"
        )
    if len(item.choices) > len(ascii_uppercase):
        raise DataError(
            f"there are {len(item.choices)} choices, and letters for {len(ascii_uppercase)}",
            where=where,
            cure="leave some out",
        )
    if not all(choice.strip() for choice in item.choices):
        raise DataError("a choice is blank", where=where, value=list(item.choices), cure="write it out or leave it out")
    twice = next((c for c, n in Counter(map(_alike, item.choices)).items() if n > 1), None)
    if twice is not None:
        raise DataError("two choices are the same", where=where, value=twice, cure="leave one out")
    for name, said in {"label": item.label, **item.said}.items():
        if said not in item.choices:
            what = "the label is no choice" if name == "label" else f"what {name} chose is no choice"
            raise DataError(what, where=where, value=said, cure=nearest(said, item.choices))
    return item


def _alike(choice: str) -> str:
    return " ".join(choice.split()).casefold()


def check_ids(items: Sequence[Item], what: str) -> None:
    """Raise DataError where two items have one id, or there are none."""
    if not items:
        raise DataError(f"there are no items: {what}", cure="give it a question with choices")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"two items of {what} have the same id", value=item.id, cure="give each an id of its own")
        seen.add(item.id)


def names_of(items: Iterable[Item]) -> tuple[str, ...] | None:
    """What classes are called: the choices that all items share, letters where only their number is shared, or None."""
    listed = list(items)
    if len({item.choices for item in listed}) == 1:
        return listed[0].choices
    if len({frozenset(item.choices) for item in listed}) == 1:
        return tuple(sorted(listed[0].choices))
    sizes = {len(item.choices) for item in listed}
    return tuple(ascii_uppercase[: sizes.pop()]) if len(sizes) == 1 else None


def class_of(item: Item, choice: str, names: Sequence[str]) -> int:
    """The class that a choice of an item belongs to."""
    return names.index(choice) if choice in names and set(names) == set(item.choices) else item.choices.index(choice)


def choice_of(item: Item, name: int, names: Sequence[str]) -> str:
    """The choice of an item that belongs to a class."""
    return names[name] if set(names) == set(item.choices) else item.choices[name]
