"""YAML as data only, with the line of every value kept so that errors can point at it.

The YAML 1.2 core reading of plain scalars: `2e-5` is a number, only `true` and `false` are booleans (`yes`, `no`,
`on`, `off` are text), `012` is twelve, dates are text. Refuses duplicate keys, keys that are not text, tags, merge
keys, several documents in a file, aliases that refer to themselves or multiply beyond reason, and bad encoding.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from metier.core.errors import RecipeError
from metier.core.fingerprint import Json
from metier.core.stage import Where

MOST_NODES = 100_000
"""A recipe has hundreds; more is an alias that multiplies itself."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the core schema of YAML 1.2 in place of the wider one of 1.1."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the name and type are the base class's


_PREFIX = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
)
for _tag, _pattern, _first in _SCALARS:
    _starts = ["" if letter == "\0" else letter for letter in _first]
    _Loader.add_implicit_resolver(_PREFIX + _tag, re.compile(f"(?:{_pattern})\\Z"), _starts)


@dataclass(frozen=True)
class Marked:
    """A YAML value and, for the path to each part of it, the line (from 1) where that part stands."""

    value: Json
    lines: dict[Where, int] = field(default_factory=dict)


def read_marked(path: Path) -> Marked:
    """The one document of a YAML file. Raises RecipeError with file and line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(
            f"the file is not UTF-8 text (byte {error.start})",
            where=f"{path}:{line}",
            value=error.object[error.start : error.end],
            cure="save it as UTF-8",
        ) from error
    except OSError as error:
        raise RecipeError(
            f"the file cannot be read: {error.strerror}",
            where=str(path),
            cure="give the path of a recipe (a YAML file)",
        ) from error
    return parse_marked(text, str(path))


def parse_marked(text: str, name: str) -> Marked:
    """The one document of a YAML text; `name` stands for it in errors."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return Marked(None, {(): 1})
        builder = _Builder(name)
        return Marked(builder.build(node, (), ()), {(): 1, **builder.lines})
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, name) from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise RecipeError(f"a character that YAML does not allow ({error.reason})", where=f"{name}:{line}") from error
    except RecursionError as error:
        raise RecipeError("nested too deeply", where=name, cure="a recipe is a few levels deep") from error


def _syntax_error(error: yaml.MarkedYAMLError, name: str) -> RecipeError:
    problem, mark = error.problem or "not YAML", error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}" if mark else name
    cure = "check indentation, colons and quotes here and on the line above"
    if "'\\t'" in problem:
        cure = "indent with spaces, not tabs"
    elif "single document" in (error.context or ""):
        cure = "keep one recipe per file: remove the `---` between them"
    context = f"{error.context}, " if error.context else ""
    return RecipeError(f"not valid YAML: {context}{problem}", where=where, cure=cure)


class _Builder:
    """Turns the node graph into plain values, filling `lines`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Where, int] = {}
        self.count = 0

    def error(self, node: yaml.Node, what: str, *, value: object = None, cure: str | None = None) -> RecipeError:
        return RecipeError(what, where=f"{self.name}:{node.start_mark.line + 1}", value=value, cure=cure)

    def build(self, node: yaml.Node, where: Where, above: tuple[int, ...]) -> Json:
        self.count += 1
        if self.count > MOST_NODES:
            raise self.error(node, "aliases multiply to too many values", cure="write the values out")
        if id(node) in above:
            raise self.error(node, "an alias refers to itself", cure="write the value out")
        self.lines.setdefault(where, node.start_mark.line + 1)
        inside = (*above, id(node))
        if node.tag not in _KINDS:
            raise self.error(
                node, f"the tag {node.tag!r} is not allowed", cure="a recipe is plain data: remove the tag"
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, where, inside)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*where, i), inside) for i, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, where: Where, above: tuple[int, ...]) -> dict[str, Json]:
        result: dict[str, Json] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != _PREFIX + "str":
                value = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
                raise self.error(key_node, "a key must be text", value=value, cure="put the key in quotes")
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            if key in result:
                first = self.lines[(*where, key)]
                raise self.error(
                    key_node, f"the key {key!r} stands here twice (first on line {first})", cure="keep one of the two"
                )
            if key == "<<":
                raise self.error(key_node, "merge keys are not allowed", cure="write the keys out")
            self.lines[(*where, key)] = line
            result[key] = self.build(value_node, (*where, key), above)
        return result

    def _scalar(self, node: yaml.Node) -> Json:
        text = str(node.value)
        kind = node.tag.removeprefix(_PREFIX)
        try:
            return _READ[kind](text)
        except ValueError as error:
            raise self.error(node, f"not a {kind}", value=text) from error


def _int(text: str) -> int:
    """Leading zeros are decimal; `0o` and `0x` are octal and hexadecimal."""
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _float(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan") if text.lower()[-3:] in ("inf", "nan") else text)


_READ: dict[str, Any] = {
    "str": str,
    "null": lambda _text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _int,
    "float": lambda text: _float(text.lower()),
}
_KINDS = {_PREFIX + kind for kind in (*_READ, "map", "seq")}
