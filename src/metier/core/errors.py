"""Every error that Metier raises on purpose.

    MetierError                exit 1   something went wrong that the user can act on
    +-- InputError             exit 2   the user's input is wrong; nothing was written
    |   +-- RecipeError                 the recipe: keys, values, wiring
    |   +-- DataError                   a data file: format, fields, encoding
    |   +-- ModelError                  a model: missing, unreadable, or not what the setting needs
    |   +-- MissingExtra                an optional dependency is not installed
    +-- StoreError             exit 1   the store: unreadable, damaged, out of space
    +-- TrainingError          exit 1   training cannot go on (loss not finite, nothing to learn from)
    +-- EndpointError          exit 1   a server that answers questions failed for good
    +-- Interrupted            exit 75  stopped on request; the next run goes on from here

A message names what is wrong, where (file:line, step.field), the value found, and the cure.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Self, TypeVar


class MetierError(Exception):
    """Base of all deliberate errors.

    what: one sentence. where: `file:line` or `step.field`. value: the offending value, shown shortened.
    cure: what to do about it. others: further errors found in the same look, shown after this one.
    """

    exit_code = 1
    others: tuple["MetierError", ...] = ()

    def __init__(self, what: str, *, where: str | None = None, value: object = None, cure: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.value = value
        self.cure = cure

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        lines = [head]
        if self.value is not None:
            lines.append(f"  found: {shorten(self.value)}")
        if self.cure:
            lines.append(f"  cure:  {self.cure}")
        return "\n".join([*lines, *map(str, self.others)])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as it stands: subclasses are made from other words than an exception keeps."""
        return _again, (type(self), self.args, self.__dict__)

    def within(self, place: str) -> Self:
        """The same error, its `where` preceded by the larger place that it lies in."""
        self.where = f"{place}: {self.where}" if self.where else place
        return self


def _again(cls: type[MetierError], args: tuple[Any, ...], state: dict[str, Any]) -> MetierError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


E = TypeVar("E", bound=MetierError)


def together(errors: Sequence[E]) -> E:
    """One error that shows all of `errors`, at least one: the first, with the rest as its `others`."""
    first, *rest = errors
    first.others = (*first.others, *rest)
    return first


class InputError(MetierError):
    """The user's input is wrong. Raised before anything is written."""

    exit_code = 2


class RecipeError(InputError):
    """The recipe is malformed, names something unknown, or is wired wrongly."""


class DataError(InputError):
    """A data file cannot be read as what it should be."""


class ModelError(InputError):
    """A model is missing, unreadable, or does not fit the setting."""


class MissingExtra(InputError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, *, needed_by: str) -> None:
        super().__init__(
            f"{needed_by} needs the package {package!r}, which is not installed",
            cure=f"pip install 'metier[{extra}]'",
        )


class StoreError(MetierError):
    """The store cannot be read or written."""


class TrainingError(MetierError):
    """Training cannot go on."""


class EndpointError(MetierError):
    """A server that answers questions failed, however often it was asked."""


class Interrupted(MetierError):
    """Stopped on request (signal or time limit); finished steps are kept and the next run goes on."""

    exit_code = 75


def shorten(value: object, limit: int = 120) -> str:
    """`repr` of a value on one line, cut in the middle past `limit` characters."""
    text = repr(value)
    if len(text) <= limit:
        return text
    return f"{text[: limit * 2 // 3]} ... {text[-limit // 4 :]}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A cure for an unknown name: the nearest known one, or the list of all."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known here: " + ", ".join(names) if names else "nothing is known here"
