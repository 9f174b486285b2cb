"""A sample of judged answers for people to label: which ones, what is shown of them, and where the labels go.

The sample is drawn at random, the same number from each contender, whatever the judges said: only then do the labels
tell of the whole. It is shown in a random order, without the contender's name and without any verdict. In comparisons
the two answers change places by chance. Labels are appended and flushed one by one.
"""

import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from metier.core.errors import InputError
from metier.judge.cases import cases_of, text_digest
from metier.judge.labels import read_labels
from metier.judge.prompts import Case, pair_rubric, swapped
from metier.judge.rubric import Rubric

if TYPE_CHECKING:
    from metier.judge.stage import Judge

TURNED = {"better": "worse", "worse": "better", "tie": "tie"}
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Item:
    """An answer to label. case: as it is shown. turned: the two answers of a comparison stand the other way round."""

    key: Key
    case: Case
    turned: bool = False

    @property
    def texts(self) -> list[tuple[str, str]]:
        """What is shown, with its title."""
        found = [("Question", self.case.question), *((name.title(), text) for name, text in self.case.evidence.items())]
        if self.case.other is None:
            return [*found, ("Answer", self.case.answer)]
        return [*found, ("First answer", self.case.answer), ("Second answer", self.case.other)]


class Desk:
    """A sample, and one person's labels of it in a file."""

    def __init__(self, items: Sequence[Item], rubric: Rubric, path: Path, who: str) -> None:
        self.items = list(items)
        self.rubric = rubric
        self.path = path
        self.who = who
        self.done: dict[Key, str] = {}
        self._passed: set[Key] = set()
        self._history: list[Key] = []
        if path.is_file():
            wanted = {item.key for item in items}
            self.done = {
                (one.id, one.contender, one.answer): one.label
                for one in read_labels([path])
                if one.who == who and (one.id, one.contender, one.answer) in wanted
            }

    @property
    def labels(self) -> list[tuple[str, str]]:
        """The labels, with what they mean, as they are shown."""
        if self.rubric.good != "better":
            return list(self.rubric.meanings.items())
        return [
            ("first", "the first answer is better"),
            ("second", "the second is better"),
            ("neither", "no difference"),
        ]

    def next(self) -> Item | None:
        """The next item without a label; those passed over come last. None where all are labelled."""
        left = [item for item in self.items if item.key not in self.done]
        return next((item for item in left if item.key not in self._passed), next(iter(left), None))

    def find(self, number: int) -> Item | None:
        """The item of that number."""
        return self.items[number] if 0 <= number < len(self.items) else None

    def give(self, item: Item, shown: str) -> None:
        """Write a label down, by the name under which it was shown. Raises InputError for one that is none."""
        names = [name for name, _ in self.labels]
        if shown not in names:
            raise InputError("no such label", where="label", value=shown, cure=", ".join(names))
        label = self.rubric.labels[names.index(shown)]
        label = TURNED[label] if item.turned else label
        self._write(item.key, label)
        self.done[item.key] = label
        self._history.append(item.key)

    def skip(self, item: Item) -> None:
        """Put it off until the others are done."""
        if item.key in self._passed:
            self.items.sort(key=lambda one: one.key == item.key)
        self._passed.add(item.key)

    def undo(self) -> Item | None:
        """Take the last label of this sitting back, in the file too. Returns its item."""
        if not self._history:
            return None
        key = self._history.pop()
        del self.done[key]
        self._write(key, None)
        return next(item for item in self.items if item.key == key)

    def _write(self, key: Key, label: str | None) -> None:
        names = ("id", "contender", "answer")
        time = datetime.now(UTC).isoformat(timespec="seconds")
        row = dict(zip(names, key, strict=True)) | {"label": label, "who": self.who, "time": time}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                end = file.seek(0, os.SEEK_END)
                if end:
                    file.seek(end - 1)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            cure = "give another file with --labels"
            raise InputError(
                f"the label cannot be written: {error.strerror}", where=str(self.path), cure=cure
            ) from error


def open_desk(stage: "Judge", folder: Path, rubric: Rubric, path: Path, *, who: str, count: int, seed: int = 0) -> Desk:
    """The sample of a judge step's answers. folder: of the answers' files. count: items in all."""
    if not who.strip():
        raise InputError("who labels has no name", where="--who", value=who, cure="give one: labels are kept by it")
    cases = cases_of(replace_overflow(stage), folder).cases
    decided = pair_rubric(rubric) if stage.pairwise else rubric
    return Desk([_item(case, seed) for case in sample(cases, count, seed)], decided, path, who)


def replace_overflow(stage: "Judge") -> "Judge":
    """A person can read what is too long for a judge."""
    return stage.model_copy(update={"overflow": "skip"})


def sample(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """`count` cases, the same number (to one) of each contender, drawn and shuffled by the seed."""
    by: dict[str, list[Case]] = {}
    for case in cases:
        by.setdefault(case.contender, []).append(case)
    drawn = random.Random(f"metier labels {seed}")
    for mine in by.values():
        drawn.shuffle(mine)
    taken: list[Case] = []
    for place in range(max(map(len, by.values()), default=0)):
        taken += [mine[place] for mine in by.values() if place < len(mine)]
    chosen = taken[:count]
    drawn.shuffle(chosen)
    return chosen


def _item(case: Case, seed: int) -> Item:
    key = (case.id, case.contender, text_digest(case.answer))
    turned = case.other is not None and random.Random(f"{seed} {key}").random() < 0.5
    return Item(key, swapped(case) if turned else replace(case), turned)


def tally(desk: Desk) -> Mapping[str, int]:
    """How often each label was given."""
    return {label: sum(one == label for one in desk.done.values()) for label in desk.rubric.labels}
