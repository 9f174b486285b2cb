"""A recipe read differently: as one of its variants, or at smoke size. Works on the raw YAML, before it is checked.

    variants:
      best:
        steps: {adapter: {learning_rate: 2.0e-4}}      # instead of what stands in `steps`
    smoke:
      models: {TinyLlama/TinyLlama-1.1B-Chat-v1.0: seedling}
      steps: {adapter: {max_steps: 20}}

An entry of such `steps` names a step and the fields that differ, each as a whole; null takes a field, or the step,
out; a step with another `kind`, or one that was not there, is written whole. What is left out stays as it is. Refuses
unknown keys, variants that are not there, and steps that are neither there nor whole.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from metier.core.errors import RecipeError, nearest
from metier.core.fingerprint import Json
from metier.core.stage import Where
from metier.models.builtin import BUILTIN, STAND_INS

SMOKE: Literal["smoke"] = "smoke"
STEP_KEYS = ("steps",)
SMOKE_KEYS = ("models", "steps")
VARIANT_KEYS = ("description", "steps", "smoke")
STAND_IN = "seedling"
"""What stands for a model that `smoke.models` does not name."""
CUTS: dict[str, dict[str, int]] = {
    "pretrain": {"max_steps": 40},
    "tune": {"max_steps": 40},
    "unlearn": {"max_steps": 10},
    "answer": {"limit": 40},
    "choose": {"limit": 60},
    "perplexity": {"limit": 20},
    "knowledge": {"limit": 20},
    "judge": {"limit": 20},
}
"""What smoke size means for a step that `smoke.steps` does not name."""
NOTICE = (
    "This is a smoke run: a small model stands in for the real one, and steps are cut short. It shows that every step "
    "works; its figures are those of the stand-in and say nothing of the real model."
)
MODEL_FIELDS = frozenset({"model", "models", "teacher", "before"})
"""The fields of a step, at any depth, in which a hub id is a model."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w][\w.-]*(?:@[\w.-]+)?")

Places = dict[Where, str]


@dataclass(frozen=True)
class Trial:
    """How a recipe is read. variant: one of its `variants`. smoke: at smoke size."""

    variant: str | None = None
    smoke: bool = False

    @property
    def suffix(self) -> str:
        """What the recipe's name ends with, so that nothing of it is taken for the recipe's own results."""
        return (f"-{self.variant}" if self.variant else "") + ("-smoke" if self.smoke else "")

    @property
    def notice(self) -> str:
        """What the report says above everything else."""
        return NOTICE if self.smoke else ""


def check_blocks(value: Mapping[str, Json], places: Mapping[Where, str]) -> Iterator[RecipeError]:
    """What is wrong with the outline of `variants` and `smoke`."""
    variants = value.get("variants", {})
    if not isinstance(variants, dict):
        cure = "write `variants: {best: {steps: {...}}}`"
        yield _error(places, ("variants",), "should be a mapping of names to what differs", variants, cure)
        variants = {}
    for name, variant in variants.items():
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) or name == SMOKE:
            cure = "use small letters, digits and '-', and not `smoke`"
            yield _error(places, ("variants", name), "not a name for a variant", name, cure)
        yield from _check_block(variant, ("variants", name), VARIANT_KEYS, places)
        if isinstance(variant, dict) and "smoke" in variant:
            yield from _check_block(variant["smoke"], ("variants", name, "smoke"), SMOKE_KEYS, places)
    if "smoke" in value:
        yield from _check_block(value["smoke"], ("smoke",), SMOKE_KEYS, places)


def _check_block(
    block: Json, where: Where, keys: tuple[str, ...], places: Mapping[Where, str]
) -> Iterator[RecipeError]:
    if not isinstance(block, dict):
        yield _error(places, where, "should be a mapping", block, f"its keys are {', '.join(keys)}")
        return
    for key in block:
        if key not in keys:
            yield _error(places, (*where, key), f"unknown key {key!r}", block[key], nearest(key, keys))
    if not isinstance(block.get("description", ""), str):
        yield _error(places, (*where, "description"), "should be text", block["description"], "put it in quotes")
    steps = block.get("steps", {})
    if not isinstance(steps, dict):
        yield _error(places, (*where, "steps"), "should be a mapping of steps to what differs", steps)
    else:
        for name, fields in steps.items():
            if fields is not None and not isinstance(fields, dict):
                cure = "write the fields that differ, or null to take the step out"
                yield _error(places, (*where, "steps", name), "should be a mapping of fields", fields, cure)
    yield from _check_models(block.get("models", {}), (*where, "models"), places)


def _check_models(models: Json, where: Where, places: Mapping[Where, str]) -> Iterator[RecipeError]:
    known = sorted({*BUILTIN, *STAND_INS})
    if not isinstance(models, dict):
        yield _error(places, where, "should be a mapping of models to their stand-ins", models, f"one of {known}")
        return
    for name, stand_in in models.items():
        if stand_in not in known:
            cure = f"{nearest(str(stand_in), known)} (there are {', '.join(known)})"
            yield _error(places, (*where, name), "there is no such stand-in", stand_in, cure)


def reshape(value: dict[str, Any], trial: Trial, root: Path, places: Places) -> None:
    """Change a recipe's raw value, outline checked, into what `trial` asks for. root: the recipe's folder.

    places: where each value stands; those of what is put in come with it. Raises RecipeError.
    """
    blocks: list[tuple[Where, Mapping[str, Any]]] = []
    if trial.variant is not None:
        variants = value.get("variants") or {}
        if trial.variant not in variants:
            cure = nearest(trial.variant, variants) if variants else "the recipe has no `variants`"
            raise RecipeError("there is no such variant", where="--variant", value=trial.variant, cure=cure)
        variant = variants[trial.variant]
        _merge(value["steps"], variant.get("steps", {}), ("variants", trial.variant, "steps"), places)
        if "description" in variant:
            value["description"] = variant["description"]
        blocks.append((("variants", trial.variant, "smoke"), variant.get("smoke", {})))
    if trial.smoke:
        blocks.insert(0, (("smoke",), value.get("smoke", {})))
        _shrink(value["steps"], blocks, root, places)
    value["name"] += trial.suffix


def _shrink(steps: dict[str, Any], blocks: list[tuple[Where, Mapping[str, Any]]], root: Path, places: Places) -> None:
    """Smoke size: the blocks in turn, the usual cuts where none names the step, and stand-ins for models."""
    models: dict[str, str] = {}
    named: set[str] = set()
    for where, block in blocks:
        _merge(steps, block.get("steps", {}), (*where, "steps"), places)
        models |= block.get("models", {})
        named |= set(block.get("steps", {}))
    for name, step in steps.items():
        kind = step.get("kind") if isinstance(step, dict) else None
        for field, most in CUTS.get(str(kind), {}).items() if name not in named else ():
            given = step.get(field)
            step[field] = min(given, most) if isinstance(given, int) else most
        steps[name] = _stand_in(step, models, steps, root, free=False)


def _merge(steps: dict[str, Any], changes: Mapping[str, Any], where: Where, places: Places) -> None:
    """Put what a block says of steps into them."""
    for name, fields in changes.items():
        target: Where = ("steps", name)
        old = steps.get(name)
        if fields is None:
            if old is None:
                raise _error(places, (*where, name), "there is no such step to take out", name, nearest(name, steps))
            del steps[name]
            _forget(places, target)
            continue
        kind = fields.get("kind")
        if old is None and kind is None:
            cure = f"{nearest(name, steps)} (a new step begins with its kind)"
            raise _error(places, (*where, name), "there is no such step", name, cure)
        if not isinstance(old, dict) or (kind is not None and kind != old.get("kind")):
            steps[name] = dict(fields)
            _move(places, (*where, name), target)
            continue
        for field, given in fields.items():
            if given is None:
                old.pop(field, None)
                _forget(places, (*target, field))
            else:
                old[field] = given
                _move(places, (*where, name, field), (*target, field))


def _move(places: Places, source: Where, target: Where) -> None:
    """Values at `target` now stand where those at `source` do."""
    _forget(places, target)
    for known in [known for known in places if known[: len(source)] == source]:
        places[(*target, *known[len(source) :])] = places[known]


def _forget(places: Places, where: Where) -> None:
    for known in [known for known in places if known[: len(where)] == where]:
        del places[known]


def _stand_in(value: Any, models: Mapping[str, str], steps: Mapping[str, Any], root: Path, *, free: bool) -> Any:
    """A value with its models replaced. free: it stands in a field that names models."""
    if isinstance(value, dict):
        return {
            key: _stand_in(one, models, steps, root, free=key in MODEL_FIELDS and "endpoint" not in value)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [_stand_in(one, models, steps, root, free=free) for one in value]
    if not isinstance(value, str):
        return value
    if value in models:
        return models[value]
    return STAND_IN if free and _is_hub_id(value, steps, root) else value


def _error(
    places: Mapping[Where, str], where: Where, what: str, value: object = None, cure: str | None = None
) -> RecipeError:
    known = where
    while known not in places:
        known = known[:-1]
    return RecipeError(what, where=f"{places[known]}: {'.'.join(map(str, where))}", value=value, cure=cure)


def outside_models(value: Mapping[str, Any], root: Path) -> list[str]:
    """The hub ids that a raw recipe names as models, in order, each once. root: the recipe's folder."""
    steps = value["steps"]
    found: dict[str, None] = {}
    for step in steps.values():
        _gather(step, steps, root, found, free=False)
    return list(found)


def _gather(value: Any, steps: Mapping[str, Any], root: Path, found: dict[str, None], *, free: bool) -> None:
    if isinstance(value, dict):
        for key, one in value.items():
            _gather(one, steps, root, found, free=key in MODEL_FIELDS and "endpoint" not in value)
    elif isinstance(value, list):
        for one in value:
            _gather(one, steps, root, found, free=free)
    elif isinstance(value, str) and free and _is_hub_id(value, steps, root):
        found[value] = None


def _is_hub_id(value: str, steps: Mapping[str, Any], root: Path) -> bool:
    """Whether a model's name is an id of the hub, and nothing that is here."""
    return value not in steps and bool(_HUB_ID.fullmatch(value)) and not (root / value).exists()
