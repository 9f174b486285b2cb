"""Checks plain data against a `Config` class and says what is wrong in words that a recipe's author can use.

Values are checked strictly, as JSON: `"3"` is no number, `yes` no boolean, `true` no number. Where a field takes one
of several shapes (`full` or `{lora: ...}`), the shape that the author was evidently after is the one explained.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from metier.core.errors import nearest
from metier.core.fingerprint import Json
from metier.core.stage import Config, Where

C = TypeVar("C", bound=Config)

_SHAPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "none_required": "null",
}
_YAML = {"True": "true", "False": "false", "None": "null"}
_FEW = 4
"""Keys of a block that are named one by one."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong. where: the path to it inside the checked value."""

    where: Where
    what: str
    value: object = None
    cure: str | None = None


@dataclass(frozen=True)
class _Raw:
    """One of pydantic's errors. where: the path in the data. arms: where a union was met, and the arm's label."""

    kind: str
    where: Where
    arms: tuple[tuple[Where, str], ...]
    message: str
    value: Any
    expected: str


def validate(cls: type[C], value: Json) -> C | list[Problem]:
    """An instance of `cls`, or everything that is wrong with `value`."""
    try:
        return cls.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raws = [_locate(value, raw) for raw in error.errors(include_url=False)]
        found = [_explain(cls, raw) if isinstance(raw, _Raw) else raw for raw in _settle(cls, value, raws)]
        return list(dict.fromkeys(found)) if all(_hashable(p.value) for p in found) else found


def _hashable(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _locate(value: Json, raw: Any) -> _Raw:
    """Split pydantic's location into the path in the data and the labels of union arms that it mixes in."""
    where: list[str | int] = []
    arms: list[tuple[Where, str]] = []
    node = value
    for place, part in enumerate(raw["loc"]):
        if (isinstance(node, dict) and part in node) or (
            isinstance(node, list) and isinstance(part, int) and part < len(node)
        ):
            node = node[part]
            where.append(part)
        elif raw["type"] == "missing" and place == len(raw["loc"]) - 1:
            where.append(part)
        else:
            arms.append((tuple(where), str(part)))
    expected = str(raw.get("ctx", {}).get("expected", ""))
    return _Raw(raw["type"], tuple(where), tuple(arms), raw["msg"], raw["input"], expected)


def _settle(cls: type[BaseModel], value: Json, raws: Sequence[_Raw]) -> list[_Raw | Problem]:
    """Keep, of every union, the errors of the arm that the author was after."""
    settled: list[_Raw | Problem] = [raw for raw in raws if not raw.arms]
    groups: dict[Where, dict[str, list[_Raw]]] = {}
    for raw in raws:
        if raw.arms:
            inner = _Raw(raw.kind, raw.where, raw.arms[1:], raw.message, raw.value, raw.expected)
            groups.setdefault(raw.arms[0][0], {}).setdefault(raw.arms[0][1], []).append(inner)
    for where, arms in groups.items():
        chosen = _choose(cls, where, _at(value, where), arms)
        settled += [chosen] if isinstance(chosen, Problem) else _settle(cls, value, chosen)
    return settled


def _choose(cls: type[BaseModel], where: Where, value: Json, arms: Mapping[str, list[_Raw]]) -> list[_Raw] | Problem:
    shaped = [raws for raws in arms.values() if not any(raw.where == where and _is_shape(raw) for raw in raws)]
    if not shaped:
        return _no_shape(cls, where, value, arms)
    inside = len(where) + 1
    clean = [
        raws for raws in shaped if not any(raw.kind == "extra_forbidden" and len(raw.where) == inside for raw in raws)
    ]
    if clean:
        return min(clean, key=lambda raws: (-max(len(raw.where) for raw in raws), len(raws)))
    known = _keys(cls, where)
    unknown = {raw.where: raw for raws in shaped for raw in raws if raw.kind == "extra_forbidden"}
    strangers = [raw for raw in unknown.values() if raw.where[-1] not in known]
    if strangers:
        return strangers
    keys = ", ".join(str(place[-1]) for place in unknown)
    return Problem(where, f"the keys {keys} cannot stand together", value, f"keep one of: {', '.join(sorted(known))}")


def _is_shape(raw: _Raw) -> bool:
    return raw.kind in _SHAPES or raw.kind in ("literal_error", "enum")


def _no_shape(cls: type[BaseModel], where: Where, value: Json, arms: Mapping[str, list[_Raw]]) -> Problem:
    """The value has none of the shapes that the field takes: name them all."""
    literals: list[str] = []
    shapes: list[str] = []
    for raw in (raw for raws in arms.values() for raw in raws):
        if raw.expected:
            literals += _literals(raw.expected)
        elif raw.kind.startswith("model_"):
            keys = sorted(_keys(cls, where))
            shapes += [f"{{{key}: ...}}" for key in keys] if len(keys) <= _FEW else [f"a block of {', '.join(keys)}"]
        else:
            shapes.append(_SHAPES.get(raw.kind, raw.message))
    choices = list(dict.fromkeys([*(_YAML.get(one, repr(one)) for one in literals), *shapes]))
    guess = nearest(value, literals) if isinstance(value, str) and literals else ""
    cure = guess if guess.startswith("did you mean") else "write " + " or ".join(choices)
    return Problem(where, "not a value that this key takes", value, cure)


def _explain(cls: type[BaseModel], raw: _Raw) -> Problem:
    about = _about(cls, raw.where)
    if raw.kind == "extra_forbidden":
        return Problem(raw.where, "unknown key", raw.value, nearest(str(raw.where[-1]), _keys(cls, raw.where[:-1])))
    if raw.kind == "missing":
        return Problem(raw.where, "this key is missing", None, f"add `{raw.where[-1]}:`. {about}".rstrip(". ") + ".")
    if raw.kind in ("literal_error", "enum"):
        return Problem(raw.where, "not a value that this key takes", raw.value, _near_literal(raw))
    if raw.kind in _SHAPES:
        cure = about
        if raw.kind == "string_type":
            cure = "put it in quotes"
        elif raw.kind in ("int_type", "float_type") and isinstance(raw.value, str):
            cure = f"write it without quotes. {about}".strip()
        elif raw.kind.startswith("model_"):
            cure = "known here: " + ", ".join(sorted(_keys(cls, raw.where)))
        return Problem(raw.where, f"should be {_SHAPES[raw.kind]}", raw.value, cure or None)
    if raw.kind in ("value_error", "assertion_error"):
        what = raw.message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return Problem(raw.where, what, raw.value if raw.where else None, about or None)
    return Problem(raw.where, raw.message.replace("Input should", "should"), raw.value, about or None)


def _near_literal(raw: _Raw) -> str:
    return nearest(str(raw.value), _literals(raw.expected))


def _literals(expected: str) -> list[str]:
    """Pydantic names the values of a Literal as `'a', 'b' or 'c'`."""
    return re.findall(r"'([^']*)'", expected) or [expected]


def _about(cls: type[BaseModel], where: Where) -> str:
    """What the string under a field says, and its default."""
    from metier.core.described import descriptions

    model = next((m for m in _models(cls, where[:-1]) if where[-1] in m.model_fields), None) if where else None
    if model is None:
        return ""
    name = str(where[-1])
    info = model.model_fields[name]
    text = " ".join(descriptions(model).get(name, "").split())
    if not info.is_required() and info.default_factory is None:
        text = f"{text} Default: {json.dumps(info.default, default=str)}.".strip()
    return text


def _at(value: Json, where: Where) -> Json:
    for part in where:
        value = value[part]
    return value


def _arms(annotation: Any) -> Iterable[Any]:
    """The plain types below unions and `Annotated`."""
    if get_origin(annotation) is Annotated:
        yield from _arms(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for arm in get_args(annotation):
            yield from _arms(arm)
    else:
        yield annotation


def _below(annotation: Any, part: str | int) -> Iterable[Any]:
    """The types that the part of a value may have."""
    for arm in _arms(annotation):
        if isinstance(arm, type) and issubclass(arm, BaseModel):
            if part in arm.model_fields:
                yield from _arms(arm.model_fields[str(part)].annotation)
        elif get_origin(arm) in (list, tuple, set, frozenset, Sequence):
            yield from _arms(get_args(arm)[0])
        elif get_origin(arm) in (dict, Mapping):
            yield from _arms(get_args(arm)[1])


def _types(cls: type[BaseModel], where: Where) -> list[Any]:
    """Every type that the value at a path may have."""
    types: list[Any] = [cls]
    for part in where:
        types = [inner for outer in types for inner in _below(outer, part)]
    return types


def _models(cls: type[BaseModel], where: Where) -> list[type[BaseModel]]:
    return [t for t in _types(cls, where) if isinstance(t, type) and issubclass(t, BaseModel)]


def _keys(cls: type[BaseModel], where: Where) -> set[str]:
    """The keys known at a path."""
    return {name for model in _models(cls, where) for name in model.model_fields}
