"""What a rehearsal runs: each training step of a recipe by itself, on a model of true size, for a few optimizer steps.

A training step keeps its settings but for its length: `STEPS` optimizer steps, without accumulation and dev losses. It
starts from the outside model that its chain of models begins with, or from that model with its extended vocabulary;
what was trained before changes neither memory nor time. Data that are not there (yet to be brought, or on the hub) are
replaced by those of the recipe's `smoke` block. Works on the raw recipe; refuses a recipe that trains nothing.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metier.core.errors import RecipeError

STEPS = 3
"""The first prepares kernels; two more are enough for a pace."""
TRAINING = ("pretrain", "tune", "unlearn")
KEEPING = ("extend_tokenizer",)
"""Steps between a model and its training that change sizes."""
DATA = ("documents", "examples", "synthesize")
NO_DEV = ("dev_every", "keep_best", "patience", "prefix_cache")
HELD_OUT = ("heldout", "heldout_fraction", "dev", "dev_fraction")
CUT: dict[str, Any] = {"max_steps": STEPS, "epochs": 1, "accumulation": 1}

Raw = dict[str, Any]


@dataclass(frozen=True)
class Rehearsed:
    """One training step. model: the outside model it starts from, by its name in the recipe.

    steps: what it needs, itself included, raw, paths absolute, as it is rehearsed. whole: its own fields as the recipe
    has them. lent: data steps whose data are those of the smoke block.
    """

    step: str
    model: str
    steps: Raw
    whole: Raw
    lent: tuple[str, ...]

    def data(self) -> Raw:
        """The steps that need no model."""
        return {name: step for name, step in self.steps.items() if step.get("kind") in DATA}

    def on(self, folder: Path, steps: Raw | None = None) -> Raw:
        """The steps with a folder in place of the outside model."""
        return {name: _replaced(step, self.model, str(folder)) for name, step in (steps or self.steps).items()}


def rehearsals(value: Mapping[str, Any], root: Path) -> list[Rehearsed]:
    """What is to be rehearsed of a raw recipe, in its order. root: its folder. Raises RecipeError where nothing is."""
    steps: Raw = deepcopy(dict(value["steps"]))
    lent = set(_lend(steps, (value.get("smoke") or {}).get("steps", {}), root))
    found = []
    for name, step in steps.items():
        if not isinstance(step, dict) or step.get("kind") not in TRAINING:
            continue
        start = _start(steps, step)
        outside = start if start not in steps else str(steps[start].get("model"))
        needed = _closure({**steps, name: {**step, "model": start}}, name)
        made = {one: _cut(body, root, steps) for one, body in needed.items()}
        found.append(Rehearsed(name, outside, made, _absolute(step, root, steps), tuple(sorted(lent & set(made)))))
    if not found:
        raise RecipeError(
            "the recipe trains nothing, so there is nothing to rehearse",
            where="--rehearse",
            cure=f"steps of kind {', '.join(TRAINING)} are rehearsed",
        )
    return found


def _start(steps: Raw, step: Mapping[str, Any]) -> str:
    """The step or outside model that a training step is rehearsed on."""
    model = str(step.get("model"))
    while model in steps and steps[model].get("kind") not in KEEPING:
        below = steps[model].get("model") or steps[model].get("before")
        if not isinstance(below, str):
            raise RecipeError(
                "it cannot be told which model of the hub this one comes from",
                where=f"--rehearse: {model}",
                value=below,
            )
        model = below
    return model


def _closure(steps: Raw, name: str) -> Raw:
    """A step and those that it names, directly or through others."""
    wanted, stack = {name}, [name]
    while stack:
        for value in strings_in(steps[stack.pop()]):
            if value in steps and value not in wanted:
                wanted.add(value)
                stack.append(value)
    return {one: steps[one] for one in steps if one in wanted}


def strings_in(value: Any) -> Iterator[str]:
    """Every string in lists and objects, however deep; not the keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from strings_in(one)


def _cut(step: Raw, root: Path, steps: Raw) -> Raw:
    """A step as it is rehearsed."""
    made: Raw = _absolute(step, root, steps)
    kind = made.get("kind")
    if kind in TRAINING:
        made = {key: one for key, one in made.items() if key not in NO_DEV} | CUT
    elif kind in DATA and made.get("sources"):
        made = {key: one for key, one in made.items() if key not in HELD_OUT}
    return made


def _absolute(value: Any, root: Path, steps: Raw) -> Any:
    """A value whose paths hold from anywhere."""
    if isinstance(value, dict):
        return {key: _absolute(one, root, steps) for key, one in value.items()}
    if isinstance(value, list):
        return [_absolute(one, root, steps) for one in value]
    if isinstance(value, str) and value not in steps and _is_there(value, root):
        return str((root / value).absolute())
    return value


def _is_there(value: str, root: Path) -> bool:
    if not value or "\n" in value or len(value) > 500 or value.startswith(("/", "~")):
        return False
    return next(root.glob(value), None) is not None if "*" in value else (root / value).exists()


def _lend(steps: Raw, smoke: Mapping[str, Any], root: Path) -> Iterator[str]:
    """Give data steps whose files are not there, or lie on the hub, what the smoke block reads instead."""
    for name, step in steps.items():
        instead = smoke.get(name)
        if not isinstance(step, dict) or step.get("kind") not in DATA or not isinstance(instead, dict):
            continue
        if any(_missing(source, root) for source in step.get("sources") or ()):
            steps[name] = {**step, **{key: one for key, one in instead.items() if one is not None}}
            yield name


def _missing(source: Any, root: Path) -> bool:
    if not isinstance(source, dict):
        return False
    path = source.get("path")
    return "hub" in source or (isinstance(path, str) and not Path(path).is_absolute() and not _is_there(path, root))


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(one, old, new) for key, one in value.items()}
    if isinstance(value, list):
        return [_replaced(one, old, new) for one in value]
    return new if value == old else value
