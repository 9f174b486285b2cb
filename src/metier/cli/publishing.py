"""What `run` and `report` share: publish a recipe's artifacts into `<out>/<recipe>/`."""

from collections.abc import Mapping
from pathlib import Path

from metier.core.store import Artifact
from metier.recipe import Recipe


def publish_result(recipe: Recipe, artifacts: Mapping[str, Artifact], out: Path) -> Path:
    """Publish and return the report's path."""
    from metier.report import publish

    result = {name: (stage.model_dump(mode="json"), artifacts[name]) for name, stage in recipe.steps.items()}
    return publish(result, recipe.name, out / recipe.name, description=recipe.description, notice=recipe.trial.notice)
