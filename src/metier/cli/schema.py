"""`metier schema`: the JSON Schema of a recipe, for editors."""

import json
from typing import Any

import typer
from pydantic.json_schema import models_json_schema

from metier.core.described import DescribedSchema
from metier.models.builtin import BUILTIN, STAND_INS
from metier.recipe import RECIPE_NAME, STEP_NAME, Catalogue
from metier.stages import CATALOGUE


def show_schema() -> None:
    """Print the schema."""
    typer.echo(json.dumps(schema(), indent=1, ensure_ascii=False))


def schema(catalogue: Catalogue | None = None) -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe, for editors: a step is told apart by its `kind`."""
    stages = CATALOGUE if catalogue is None else catalogue
    refs, definitions = models_json_schema(
        [(cls, "validation") for cls in stages.values()], schema_generator=DescribedSchema
    )
    for cls in stages.values():
        _require_kind(definitions["$defs"], refs[(cls, "validation")]["$ref"])
    named = {kind: refs[(cls, "validation")]["$ref"] for kind, cls in stages.items()}
    step = {
        "type": "object",
        "discriminator": {"propertyName": "kind", "mapping": named},
        "oneOf": [{"$ref": ref} for ref in named.values()],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Metier recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "steps"],
        "properties": {
            "name": {"type": "string", "pattern": f"^{RECIPE_NAME}$", "description": "Names the folder of results."},
            "description": {"type": "string", "description": "What the recipe is for, shown in its report."},
            "offline": {
                "type": "boolean",
                "default": False,
                "description": "Refuse every model behind an endpoint, one on this machine too.",
            },
            "steps": {
                "type": "object",
                "description": "The steps by name.",
                "minProperties": 1,
                "propertyNames": {"pattern": f"^{STEP_NAME}$"},
                "additionalProperties": step,
            },
            "variants": {
                "type": "object",
                "description": "Other settings under a name, for `--variant NAME`.",
                "additionalProperties": {**_block(), "properties": {**_block()["properties"], **_more()}},
            },
            "smoke": {"description": "What `--smoke` changes.", **_with_models()},
        },
        "$defs": definitions["$defs"],
    }


def _block() -> dict[str, Any]:
    """The schema of what differs: fields by step, null where one is taken out."""
    fields = {"type": ["object", "null"], "description": "Fields that differ, each as a whole; null takes one out."}
    steps = {"type": "object", "description": "Steps that differ, by name.", "additionalProperties": fields}
    return {"type": "object", "additionalProperties": False, "properties": {"steps": steps}}


def _with_models() -> dict[str, Any]:
    block = _block()
    stand_ins = {"enum": sorted({*BUILTIN, *STAND_INS})}
    models = {"type": "object", "description": "Stand-ins by model.", "additionalProperties": stand_ins}
    return {**block, "properties": {"models": models, **block["properties"]}}


def _more() -> dict[str, Any]:
    text = {"type": "string", "description": "What the variant is for, instead of the recipe's own description."}
    return {"description": text, "smoke": {"description": "As `smoke`, after it.", **_with_models()}}


def _require_kind(definitions: dict[str, Any], ref: str) -> None:
    """A stage's class has its kind as a default; in a recipe the kind must be written."""
    definition = definitions[ref.rsplit("/", 1)[-1]]
    definition["required"] = ["kind", *(name for name in definition.get("required", []) if name != "kind")]
