"""The forms in which a row may hold an example, and how each becomes a conversation.

    question/[context]/answer   prompt/completion   input/output   instruction/[input]/output (Alpaca)   messages
    conversations (ShareGPT)    QUESTION/CONTEXTS/LONG_ANSWER (PubMedQA)

A file keeps to one form. Further fields are ignored, but for `id`, `group` and `system`. Refuses, naming field and
cure: a missing field, values that are not text, roles out of turn. A row whose question or answer is blank is not an
error but unusable: it comes back as a reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from metier.core.errors import nearest
from metier.data.files import Problem
from metier.data.formats import pubmedqa
from metier.text.nouns import Message, Role
from metier.text.prompts import INPUT_MARK

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Shape:
    """needed, optional: a row's fields. The last needed one is what the assistant says."""

    name: str
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


SHAPES = (
    Shape("messages", ("messages",)),
    Shape("conversations", ("conversations",)),
    Shape("PubMedQA", ("QUESTION", "LONG_ANSWER"), ("CONTEXTS",)),
    Shape("instruction/input/output", ("instruction", "output"), ("input",)),
    Shape("input/output", ("input", "output")),
    Shape("prompt/completion", ("prompt", "completion")),
    Shape("question/answer", ("question", "answer"), ("context",)),
)
EXTRAS = ("id", "group", "system")
NO_INPUT = "<noinput>"
"""How Alpaca's makers, and some who copied them, write that there is no input."""
JOINED = " + "
"""Between the names of fields whose texts are joined to one, as `final_decision + LONG_ANSWER`."""
NAMES = tuple(dict.fromkeys(name for shape in SHAPES for name in (*shape.needed, *shape.optional)))


SHAREGPT_ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class Wrong(Exception):
    """What is wrong with a row. Never leaves this room: the reader, who knows the line, makes it a Problem."""

    def __init__(self, what: str, value: object = None, cure: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.value = value
        self.cure = cure

    def at(self, line: int, unit: str = "") -> Problem:
        """The same as a problem of that line, or of that row where `unit` says so."""
        return Problem(self.what, line, 0, self.value, self.cure, unit)


class Lacking(Wrong):
    """A row without a field that it needs. In a table, all other rows lack it too."""


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
    if not fields:
        return row
    renamed = {key: value for key, value in row.items() if key not in fields}
    for name, key in fields.items():
        if key in row:
            renamed[name] = row[key]
        elif all(part in row for part in key.split(JOINED)):
            renamed[name] = _joined([_text(row, part) for part in key.split(JOINED)])
        elif name not in ("input", "context", *EXTRAS):
            raise Lacking(
                f"the field {key!r} (for {name}) is missing", sorted(map(str, row)), nearest(key, map(str, row))
            )
    return renamed


def _joined(parts: Sequence[str]) -> str:
    """Texts as sentences of one; a blank one makes all of it blank, as it makes the row unusable."""
    ended = [part if part.endswith((".", "!", "?")) else f"{part}." for part in parts[:-1]]
    return " ".join([*ended, parts[-1]]) if all(parts) else ""


def messages_of(row: Row, shape: Shape) -> tuple[Message, ...] | str:
    """The conversation of a row, outer white space removed; a string says why the row is unusable."""
    if shape.name == "messages":
        return _checked_messages(row["messages"])
    if shape.name == "conversations":
        return _checked_messages(_from_sharegpt(row["conversations"]))
    if shape.name == "PubMedQA":
        row = {**row, **{name: row.get(theirs) for name, theirs in pubmedqa.FIELDS.items()}}
        shape = next(s for s in SHAPES if s.name == "question/answer")
    texts = {name: _text(row, name) for name in (*shape.needed, *shape.optional) if name in row}
    for name in shape.needed:
        if not texts[name]:
            return f"blank {name}"
    question, answer = texts[shape.needed[0]], texts[shape.needed[-1]]
    if "input" in shape.optional and texts.get("input", NO_INPUT).lower() not in ("", NO_INPUT):
        question = f"{question}{INPUT_MARK}{texts['input']}"
    if texts.get("context"):
        question = f"{texts['context']}\n\n{question}"  # the question last: what a model should hold on to
    asked = (Message("user", question), Message("assistant", answer))
    system = _text(row, "system") if "system" in row else ""
    return (Message("system", system), *asked) if system else asked


def text_of(row: Row, name: str) -> str:
    """A text field of a row, stripped; "" for null. A list of texts is joined by blank lines.

    Raises Lacking where it is missing, Wrong where it is no text.
    """
    if name in row:
        return _text(row, name, joined=True)
    if pubmedqa.is_pubmedqa(row):
        return _text(row, "CONTEXTS", joined=True)
    found = guess_field(row, "text")
    cure = f"did you mean {found!r}? Name it" if found else f"{nearest(name, map(str, row))}. Name the right one"
    what = f"the field {name!r} is missing"
    raise Lacking(what, sorted(map(str, row)), f"{cure} with the source's `field: {found or '...'}`")


def id_of(row: Row, field: str = "id") -> str | None:
    """The row's own id, or None. Whole numbers are taken as text, those that a table made 7.0 as well."""
    value = row.get(field)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, str):
        return (value or "").strip() or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise Wrong(f"the field {field!r} has to be a text or a whole number", value, "correct it or leave it out")


def meta_of(row: Row, keep: Sequence[str]) -> dict[str, str]:
    """What a row tells beside its text: its form's own, and the fields in `keep` that hold a text or a number."""
    kept = {name: str(row[name]).strip() for name in keep if isinstance(row.get(name), str | int | float)}
    return {**(pubmedqa.meta(row) if pubmedqa.is_pubmedqa(row) else {}), **kept}


def _text(row: Row, name: str, *, joined: bool = False) -> str:
    value = row[name]
    if (joined or name == "context") and isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n\n".join(part.strip() for part in value)  # passages
    if value is None:
        return ""
    if not isinstance(value, str):
        nested = isinstance(value, list | dict)
        cure = "write its text there, or name another field" if nested else f'quote it: "{name}": "..."'
        raise Wrong(f"the field {name!r} holds {_kind(value)} where text is expected", value, cure)
    if "\0" in value:
        raise Wrong(f"the field {name!r} holds a NUL character", value[:60], "remove it: no text needs one")
    return value.strip()


def _from_sharegpt(value: Any) -> Any:
    """ShareGPT's turns as messages. What is none stays, for the check of messages to refuse."""
    if not isinstance(value, list) or not value:
        raise Wrong(
            "the field 'conversations' has to be a list of turns",
            value,
            'write [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]',
        )
    return [
        {"role": SHAREGPT_ROLES.get(str(turn["from"]).lower(), turn["from"]), "content": turn.get("value")}
        if isinstance(turn, dict) and "from" in turn
        else turn
        for turn in value
    ]


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


def guess_field(row: Row, name: str) -> str | None:
    """Which field of a row may hold what we call `name`; None where none looks like it.

    A field counts by its name, and of several the one with the longest text: of `questionID` and `questionText` it is
    the second. Fields that hold numbers, links or single words are left out where others are there.
    """
    if name in row:
        return name
    fields = [str(key) for key, value in row.items() if value is None or isinstance(value, str | list)]
    alike = get_close_matches(name, fields, n=5, cutoff=0.6)
    for alias in (name, *ALIASES.get(name, ())):
        alike += [key for key in fields if alias in key.lower() and key not in alike]
    prose = [key for key in alike if isinstance(row[key], list) or " " in str(row[key] or "").strip()]
    return max(prose or alike, key=lambda key: len(str(row[key] or "")), default=None)


ALIASES = {
    "question": ("query", "prompt", "instruction", "ask", "input", "title"),
    "answer": ("response", "reply", "output", "completion"),
    "text": ("content", "body", "abstract", "article", "passage", "document", "contexts"),
    "messages": ("conversation", "dialog", "chat", "turns"),
}
"""Other words for our fields, as data sets have them."""


def guess_fields(row: Row) -> dict[str, str] | None:
    """The mapping that may make an example of a row in no known form: our names to its own; None for no idea."""
    question, answer = guess_field(row, "question"), guess_field(row, "answer")
    return {"question": question, "answer": answer} if question and answer and question != answer else None


def _missing(row: Row) -> Lacking:
    """The form that the row comes nearest to, the field it lacks, and the mapping to write."""
    keys = [str(key) for key in row]

    def guess(name: str) -> str | None:
        return guess_field(row, name) or next(iter(get_close_matches(name, keys, n=1, cutoff=0.6)), None)

    def likeness(shape: Shape) -> tuple[int, int]:
        return sum(name in row for name in shape.needed), sum(_looks_like(name, keys) for name in shape.needed)

    best = max(SHAPES, key=likeness)
    if likeness(best) == (0, 0):
        forms = ", ".join(s.name for s in SHAPES)
        example = _mapping(guess_fields(row) or {"question": "your_question", "answer": "your_answer"})
        return Lacking(
            "no question and answer found in the row",
            sorted(keys),
            f"rows hold one of {forms}; or name your fields: fields: {example}",
        )
    lacking = [name for name in best.needed if name not in row]
    mapping = _mapping({name: guess(name) or "your_field" for name in best.needed})
    names = " and ".join(repr(name) for name in lacking)
    lack = f"the field {names} of {best.name} is" if len(lacking) == 1 else f"the fields {names} of {best.name} are"
    return Lacking(
        f"{lack} missing",
        sorted(keys),
        f"rename your fields, or add to the source: fields: {mapping}",
    )


def _looks_like(name: str, keys: Sequence[str]) -> bool:
    return name in keys or bool(get_close_matches(name, keys, n=1, cutoff=0.6))


def _mapping(fields: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{name}: {key}" for name, key in fields.items()) + "}"


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list) else "an object"
