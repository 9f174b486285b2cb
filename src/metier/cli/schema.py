"""`metier schema`: the JSON Schema of a recipe."""

import json

import typer

from metier.recipe import schema


def show_schema() -> None:
    """Print the schema."""
    typer.echo(json.dumps(schema(), indent=1, ensure_ascii=False))
