"""The strings under the fields of a `Config` class, read from its source when somebody asks.

Pydantic can read them as it makes each class, which took a quarter of the time of `metier plan`; only the schema, the
tables in the docs and error messages need them.
"""

import ast
import inspect
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import PydanticUndefined, to_jsonable_python

LAST = ("resources",)
"""Settings of every stage: they stand behind its own."""


@cache
def descriptions(cls: type[BaseModel]) -> Mapping[str, str]:
    """Field -> the string under it, as written (its lines unindented); inherited ones too, the nearest first."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= _classes(base.__module__).get(base.__qualname__, {})
    own = {name: info.description for name, info in cls.model_fields.items() if info.description}
    return {name: text for name, text in (found | own).items() if name in cls.model_fields}


def table(config: type[BaseModel], without: Collection[str] | Mapping[str, object] = ()) -> str:
    """Every setting of a class but those of `without`, with its default and what it is for: a table in Markdown."""
    lines = ["| setting | left out | |", "|---|---|---|"]
    for name, field in sorted(config.model_fields.items(), key=lambda one: one[0] in LAST):
        if name in without:
            continue
        default = field.default_factory() if field.default_factory else field.default  # type: ignore[call-arg]
        shown = "required" if default is PydanticUndefined else f"`{json.dumps(to_jsonable_python(default))}`"
        text = " ".join(descriptions(config).get(name, "").split()).replace("|", "\\|")
        lines.append(f"| `{name}` | {shown} | {text} |")
    return "\n".join([*lines, ""])


@cache
def _classes(module: str) -> Mapping[str, Mapping[str, str]]:
    """Qualified name of each class of a module -> field -> the string under it. Nothing where there is no source."""
    try:
        source = inspect.getsource(sys.modules[module])
    except (OSError, TypeError):
        return {}
    return dict(_walk(ast.parse(source), ""))


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield f"{name}{child.name}", dict(_under_fields(child))
            yield from _walk(child, f"{name}{child.name}.")
        elif isinstance(child, ast.FunctionDef):
            yield from _walk(child, f"{name}{child.name}.<locals>.")


def _under_fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, after in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            yield field.target.id, inspect.cleandoc(after.value.value)


class DescribedSchema(GenerateJsonSchema):
    """JSON Schema with the strings under the fields as descriptions."""

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        """The schema of one class."""
        made = super().model_schema(schema)
        texts = descriptions(schema["cls"])
        for name, field in made.get("properties", {}).items():
            if name in texts:
                field.setdefault("description", texts[name])
        return made
