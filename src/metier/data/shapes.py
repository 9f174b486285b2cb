"""The forms in which a row may hold an example, and how each becomes a conversation.

    question/answer   prompt/completion   input/output   instruction/[input]/output   messages

A file keeps to one form. Further fields are ignored, but for `id`, `group` and `system`. Refuses, naming field and
cure: a missing field, values that are not text, roles out of turn. A row whose question or answer is blank is not an
error but unusable: it comes back as a reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from metier.core.errors import nearest
from metier.data.files import Problem
from metier.text.nouns import Message, Role

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Shape:
    """needed, optional: a row's fields. The last needed one is what the assistant says."""

    name: str
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


SHAPES = (
    Shape("messages", ("messages",)),
    Shape("instruction/input/output", ("instruction", "output"), ("input",)),
    Shape("input/output", ("input", "output")),
    Shape("prompt/completion", ("prompt", "completion")),
    Shape("question/answer", ("question", "answer")),
)
EXTRAS = ("id", "group", "system")
NAMES = tuple(dict.fromkeys(name for shape in SHAPES for name in (*shape.needed, *shape.optional)))


class Wrong(Exception):
    """What is wrong with a row. Never leaves this room: the reader, who knows the line, makes it a Problem."""

    def __init__(self, what: str, value: object = None, cure: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.value = value
        self.cure = cure

    def at(self, line: int) -> Problem:
        """The same as a problem of that line."""
        return Problem(self.what, line, 0, self.value, self.cure)


def check_mapping(fields: Mapping[str, str]) -> None:
    """Raise ValueError unless the mapping's names (ours) are those of one shape, with `id`, `group`, `system`."""
    for name, key in fields.items():
        if name not in (*NAMES, *EXTRAS):
            raise ValueError(f"unknown field name {name!r}: {nearest(name, (*NAMES, *EXTRAS))}")
        if not key.strip():
            raise ValueError(f"the field for {name!r} is blank: name the field of your rows that holds it")
    ours = set(fields) - set(EXTRAS)
    if ours and not any(set(s.needed) <= ours <= {*s.needed, *s.optional} for s in SHAPES):
        forms = ", ".join(s.name for s in SHAPES)
        raise ValueError(f"the names {', '.join(sorted(ours))} make no form of example; the forms are {forms}")


def find_shape(row: Row) -> Shape:
    """The form of a row. Raises Wrong where it has none, or several."""
    fitting = [s for s in SHAPES if all(name in row for name in s.needed)]
    if len(fitting) > 1 and fitting[0].name == "instruction/input/output":
        fitting = [s for s in fitting if s.name != "input/output"]  # its own `input` makes it look like both
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        first = fitting[0]
        raise Wrong(
            f"the row fits several forms: {', '.join(s.name for s in fitting)}",
            sorted(map(str, row)),
            f"say which with the source's `fields`, such as fields: {_mapping({n: n for n in first.needed})}",
        )
    raise _missing(row)


def mapped_shape(fields: Mapping[str, str]) -> Shape | None:
    """The form that a mapping describes; None where it only maps `id`, `group` or `system`."""
    ours = set(fields) - set(EXTRAS)
    return next((s for s in SHAPES if set(s.needed) <= ours <= {*s.needed, *s.optional}), None) if ours else None


def rename(row: Row, fields: Mapping[str, str]) -> Row:
    """The row under our names. Raises Wrong for a mapped field that the row lacks."""
    renamed = {key: value for key, value in row.items() if key not in fields}
    for name, key in fields.items():
        if key in row:
            renamed[name] = row[key]
        elif name not in ("input", *EXTRAS):
            raise Wrong(
                f"the field {key!r} (for {name}) is missing", sorted(map(str, row)), nearest(key, map(str, row))
            )
    return renamed


def messages_of(row: Row, shape: Shape) -> tuple[Message, ...] | str:
    """The conversation of a row, outer white space removed; a string says why the row is unusable."""
    if shape.name == "messages":
        return _checked_messages(row["messages"])
    texts = {name: _text(row, name) for name in (*shape.needed, *shape.optional) if name in row}
    for name in shape.needed:
        if not texts[name]:
            return f"blank {name}"
    question, answer = texts[shape.needed[0]], texts[shape.needed[-1]]
    if shape.optional and texts.get("input"):
        question = f"{question}\n\n{texts['input']}"
    asked = (Message("user", question), Message("assistant", answer))
    system = _text(row, "system") if "system" in row else ""
    return (Message("system", system), *asked) if system else asked


def text_of(row: Row, name: str) -> str:
    """A text field of a row, stripped; "" for null. Raises Wrong where it is missing or no text."""
    if name not in row:
        cure = nearest(name, map(str, row))
        raise Wrong(
            f"the field {name!r} is missing", sorted(map(str, row)), f"{cure} Name it with the source's `field: ...`"
        )
    return _text(row, name)


def id_of(row: Row) -> str | None:
    """The row's own id, or None. Whole numbers are taken as text."""
    value = row.get("id")
    if value is None or isinstance(value, str):
        return (value or "").strip() or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise Wrong("the field 'id' has to be a text or a whole number", value, "correct it or leave it out")


def _text(row: Row, name: str) -> str:
    value = row[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Wrong(
            f"the field {name!r} holds {_kind(value)} where text is expected", value, f'quote it: "{name}": "..."'
        )
    return value.strip()


def _checked_messages(value: Any) -> tuple[Message, ...] | str:
    if not isinstance(value, list) or not value:
        raise Wrong(
            "the field 'messages' has to be a list of messages",
            value,
            'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
        )
    messages = tuple(_message(item, index) for index, item in enumerate(value))
    turns = [m.role for m in messages if m.role != "system"]
    if any(m.role == "system" for m in messages[1:]):
        raise Wrong("a system message stands after other messages", [m.role for m in messages], "put it first, once")
    if turns != [("user", "assistant")[i % 2] for i in range(len(turns))] or turns[-1:] != ["assistant"]:
        raise Wrong(
            "the roles in 'messages' are out of turn",
            [m.role for m in messages],
            "after an optional system message, user and assistant take turns, and the last is the assistant",
        )
    blank = next((m.role for m in messages if not m.content), None)
    return f"blank {blank} message" if blank else messages


def _message(item: Any, index: int) -> Message:
    if not isinstance(item, dict):
        raise Wrong(f"message {index + 1} has to be an object", item, 'write {"role": "user", "content": "..."}')
    role = item.get("role")
    for known in get_args(Role):
        if role == known:
            content = text_of(item, "content") if "content" in item else None
            if content is None:
                raise Wrong(f"message {index + 1} has no 'content'", item, 'write {"role": ..., "content": "..."}')
            return Message(known, content)
    raise Wrong(
        f"message {index + 1} has no known role",
        item if role is None else role,
        'roles are "system", "user" and "assistant", in the field "role"',
    )


def _missing(row: Row) -> Wrong:
    """The form that the row comes nearest to, the field it lacks, and the mapping to write."""
    keys = [str(key) for key in row]

    def guess(name: str) -> str | None:
        return name if name in row else next(iter(get_close_matches(name, keys, n=1, cutoff=0.6)), None)

    def likeness(shape: Shape) -> tuple[int, int]:
        return sum(name in row for name in shape.needed), sum(guess(name) is not None for name in shape.needed)

    best = max(SHAPES, key=likeness)
    if likeness(best) == (0, 0):
        forms = ", ".join(s.name for s in SHAPES)
        return Wrong(
            "no question and answer found in the row",
            sorted(keys),
            f"rows hold one of {forms}; or name your fields: fields: {{question: your_question, answer: your_answer}}",
        )
    lacking = [name for name in best.needed if name not in row]
    mapping = _mapping({name: guess(name) or "your_field" for name in best.needed})
    names = " and ".join(repr(name) for name in lacking)
    lack = f"the field {names} of {best.name} is" if len(lacking) == 1 else f"the fields {names} of {best.name} are"
    return Wrong(
        f"{lack} missing",
        sorted(keys),
        f"rename your fields, or add to the source: fields: {mapping}",
    )


def _mapping(fields: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{name}: {key}" for name, key in fields.items()) + "}"


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list) else "an object"
