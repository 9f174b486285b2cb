"""The catalogue names every stage that there is, by its kind and its place."""

import ast
from pathlib import Path

import pytest

import metier
from metier.cli.schema import schema
from metier.core.described import descriptions
from metier.core.stage import Stage
from metier.stages import CATALOGUE, STAGES

PACKAGE = Path(metier.__file__).parent


def stages_in_source() -> set[str]:
    """Every class with a `kind` of its own, as `module:Class`."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(_is_kind(line) for line in node.body):
                module = ".".join(("metier", *path.relative_to(PACKAGE).with_suffix("").parts))
                found.add(f"{module}:{node.name}")
    return found


def _is_kind(line: ast.stmt) -> bool:
    named = isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == "kind" and line.value is not None
    return named and "Literal" in ast.unparse(line.annotation)


def test_the_catalogue_has_every_stage_and_no_other():
    assert sorted(STAGES.values()) == sorted(stages_in_source())


@pytest.mark.parametrize("kind", STAGES)
def test_a_stage_stands_under_its_kind_and_says_what_its_settings_are(kind: str):
    stage = CATALOGUE[kind]
    assert issubclass(stage, Stage)
    assert stage.model_fields["kind"].default == kind
    assert stage.produces
    assert set(descriptions(stage)) >= set(stage.model_fields) - {"kind"}


def test_a_kind_that_is_none_is_not_there():
    assert "traim" not in CATALOGUE
    assert CATALOGUE.get("traim") is None


def test_the_schema_tells_what_each_setting_is():
    made = schema()
    stages = [
        made["$defs"][ref["$ref"].rsplit("/", 1)[-1]]
        for ref in made["properties"]["steps"]["additionalProperties"]["oneOf"]
    ]
    assert len(stages) == len(STAGES)
    untold = [
        (one["title"], name)
        for one in stages
        for name, field in one["properties"].items()
        if "description" not in field
    ]
    assert {name for _, name in untold} <= {"kind"}
