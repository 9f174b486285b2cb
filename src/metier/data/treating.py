"""What is done to every text between reading and splitting: cleaned, and looked through for what is private."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from metier.data.cleaning import Cleaning
from metier.data.privacy import Privacy

PLACES = 5
"""Places named for a kind of finding."""


@dataclass
class Treatment:
    """Treats texts and counts what it did. private: whether to look for what is private.

    changed: texts by what was changed in them. found: findings by kind, with the first places of each.
    """

    clean: Cleaning
    privacy: Privacy
    private: bool = True
    changed: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)
    rows: int = 0

    def __call__(self, where: str, texts: Sequence[str]) -> "Treated":
        """The texts of one row, treated. where: `file name:line`."""
        made: list[str] = []
        reason = ""
        for text in texts:
            cleaned = self._cleaner(text)
            self.changed.update(cleaned.changed)
            reason = reason or cleaned.reason or ("" if cleaned.text.strip() else "blank after cleaning")
            made.append(cleaned.text)
        if reason:
            return Treated(tuple(made), "filtered", reason)
        return self._kept_private(where, made)

    def _kept_private(self, where: str, texts: Sequence[str]) -> "Treated":
        if not self.private or self.privacy.action == "off":
            return Treated(tuple(texts))
        applied = [self.privacy.apply(text) for text in texts]
        kinds = Counter(found.kind for _, findings in applied for found in findings)
        if kinds:
            self.rows += 1
            self.found.update(kinds)
            for kind in kinds:
                places = self.places.setdefault(kind, [])
                if len(places) < PLACES:
                    places.append(where)
            if self.privacy.action == "drop":
                return Treated(tuple(texts), "private", f"private: {', '.join(sorted(kinds))}")
        return Treated(tuple(text for text, _ in applied))

    @cached_property
    def _cleaner(self) -> Any:
        return self.clean.cleaner()

    def fresh(self) -> "Treatment":
        """The same with nothing counted yet."""
        other = Treatment(self.clean, self.privacy, self.private)
        other.__dict__["_cleaner"] = self._cleaner  # may have taken a second to load
        return other

    def merge(self, other: "Treatment") -> None:
        """Count what another one did to later rows."""
        self.changed.update(other.changed)
        self.found.update(other.found)
        self.rows += other.rows
        for kind, places in other.places.items():
            self.places[kind] = [*self.places.get(kind, []), *places][:PLACES]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_cleaner"}

    def json(self) -> dict[str, Any]:
        """As it stands in about.json."""
        return {
            "cleaned": dict(sorted(self.changed.items())),
            "privacy": {
                "action": self.privacy.action,
                "rows": self.rows,
                "found": dict(sorted(self.found.items())),
                "first": dict(sorted(self.places.items())),
            },
        }


@dataclass(frozen=True)
class Treated:
    """A row's texts. kind: what the row counts as where it is left out, "" where it stays; reason: why."""

    texts: tuple[str, ...]
    kind: str = ""
    reason: str = ""
