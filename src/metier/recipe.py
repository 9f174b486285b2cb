"""A recipe: a YAML file that names its steps. This reads it, checks it and wires its steps together.

Everything wrong is collected and raised as one RecipeError, each part with file, line, step.field, the value found and
a cure: unknown keys, values that do not fit, steps that are missing or make the wrong thing, cycles, files that are not
there, models that cannot be loaded. Loads no model and hashes nothing: an ordinary recipe takes milliseconds.
"""

import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from metier.core.errors import InputError, RecipeError, nearest, together
from metier.core.explain import validate
from metier.core.fingerprint import Json
from metier.core.marked import parse_marked, read_marked
from metier.core.remote import is_url
from metier.core.stage import InputFiles, ModelInput, Needs, Reference, ShardFiles, Stage, Where, outside, references
from metier.models.builtin import BUILTIN, STAND_INS, resolve
from metier.trial.reshape import Trial, check_blocks, reshape

Catalogue = Mapping[str, type[Stage]]

TOP_KEYS = ("name", "description", "offline", "steps", "variants", "smoke")
STEP_NAME = r"[a-z0-9][a-z0-9_-]*"
RECIPE_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
FIRST = ("documents", "examples", "stream")
"""What is made before anything else, so that bad data stops a run before training starts."""


@dataclass(frozen=True)
class Link:
    """A reference of a step, found: another step, the files of a pattern, or (neither) a model from outside."""

    reference: Reference
    step: str | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    path: its file, as given. steps: in running order. links: a step's references in field order.
    places: where a value stands, as `file:line` or `--set`, by its path from the top of the recipe. offline: it asks
    nothing over a connection. trial: how it was read.
    """

    name: str
    description: str
    path: Path
    steps: Mapping[str, Stage]
    links: Mapping[str, tuple[Link, ...]]
    places: Mapping[Where, str]
    offline: bool = False
    trial: Trial = field(default_factory=Trial)

    @property
    def root(self) -> Path:
        """The folder that file patterns and model folders are relative to."""
        return self.path.absolute().parent

    def where(self, step: str, field: Where = ()) -> str:
        """`recipe.yaml:12: step.field`."""
        return _where(self.places, ("steps", step, *field))

    def needed(self, step: str) -> list[str]:
        """The steps that a step needs, directly or through others, and itself, in running order."""
        wanted, stack = {step}, [step]
        while stack:
            for link in self.links[stack.pop()]:
                if link.step and link.step not in wanted:
                    wanted.add(link.step)
                    stack.append(link.step)
        return [name for name in self.steps if name in wanted]

    def resolved(self) -> dict[str, Json]:
        """The recipe as plain data with every default filled in."""
        head: dict[str, Json] = {"name": self.name}
        head |= {"description": self.description} if self.description else {}
        head |= {"offline": True} if self.offline else {}
        return {**head, "steps": {name: stage.model_dump(mode="json") for name, stage in self.steps.items()}}


def load_recipe(
    path: Path, overrides: Sequence[str] = (), catalogue: Catalogue | None = None, *, trial: Trial | None = None
) -> Recipe:
    """Read and check a recipe. overrides: `step.field.sub=value`, the value in YAML. catalogue: kind -> stage.

    trial: read it as one of its variants, or at smoke size; overrides come after that.

    Raises RecipeError (or another InputError where a file or model is at fault) naming all that is wrong.
    """
    stages = catalogue if catalogue is not None else _every_stage()
    trial = trial or Trial()
    value, places = _raw(path, overrides, trial)
    steps = _build_steps(value["steps"], stages, places)
    offline = bool(value.get("offline", False)) or trial.smoke
    if offline:
        _refuse_outside(steps, places)
    links = _wire(steps, path.absolute().parent, stages, places)
    order = _order(steps, links, places)
    return Recipe(
        value["name"],
        value.get("description", ""),
        path,
        {name: steps[name] for name in order},
        {name: links[name] for name in order},
        places,
        offline,
        trial,
    )


def read_raw(path: Path, overrides: Sequence[str] = (), trial: Trial | None = None) -> tuple[dict[str, Any], Path]:
    """A recipe's plain value after `trial` and overrides, its steps unchecked, and its folder. Raises RecipeError."""
    return _raw(path, overrides, trial or Trial())[0], path.absolute().parent


def _raw(path: Path, overrides: Sequence[str], trial: Trial) -> tuple[dict[str, Any], dict[Where, str]]:
    """The value and where each part of it stands."""
    marked = read_marked(path)
    places = {where: f"{path}:{line}" for where, line in marked.lines.items()}
    _check_top(marked.value, places)
    assert isinstance(marked.value, dict)
    reshape(marked.value, trial, path.absolute().parent, places)
    if errors := [error for name in marked.value["steps"] for error in _check_name(name, places)]:
        raise together(errors)
    for override in overrides:
        _override(marked.value["steps"], override, places)
    return marked.value, places


def with_steps(recipe: Recipe, steps: Mapping[str, Stage], catalogue: Catalogue | None = None) -> Recipe:
    """The recipe with these steps instead of its own, wired and ordered again. Raises RecipeError as `load_recipe`."""
    stages = catalogue if catalogue is not None else _every_stage()
    links = _wire(steps, recipe.root, stages, recipe.places)
    order = _order(steps, links, recipe.places)
    return replace(recipe, steps={name: steps[name] for name in order}, links={name: links[name] for name in order})


def _every_stage() -> Catalogue:
    """The catalogue is read late: a recipe may be checked against another one, and then its rooms are not needed."""
    from metier.stages import CATALOGUE

    return CATALOGUE


def _where(places: Mapping[Where, str], where: Where) -> str:
    """The nearest known place of a path, and the path as a user writes it, without the leading `steps`."""
    known = where
    while known not in places:
        known = known[:-1]
    shown = where[1:] if where[:1] == ("steps",) and len(where) > 1 else where
    return f"{places[known]}: {'.'.join(map(str, shown))}" if shown else places[known]


def _error(
    places: Mapping[Where, str], where: Where, what: str, value: object = None, cure: str | None = None
) -> RecipeError:
    return RecipeError(what, where=_where(places, where), value=value, cure=cure)


# ---- the file's outline -------------------------------------------------------------------------------------------


def _check_top(value: Json, places: Mapping[Where, str]) -> None:
    if not isinstance(value, dict):
        raise _error(
            places, (), "a recipe is a mapping with the keys name and steps", value, "write `name:` and `steps:`"
        )
    errors = [
        _error(places, (key,), f"unknown key {key!r}", value[key], nearest(key, TOP_KEYS))
        for key in value
        if key not in TOP_KEYS
    ]
    for key, example in (("name", "`name: my-recipe`"), ("steps", "`steps:` with one named entry for each step")):
        if value.get(key) is None:
            errors.append(_error(places, (), f"the recipe has no {key}", cure=f"add {example}"))
    name, steps, text = value.get("name"), value.get("steps"), value.get("description", "")
    if name is not None and not (isinstance(name, str) and re.fullmatch(RECIPE_NAME, name)):
        cure = "use letters, digits, '-', '_' and '.': it names a folder"
        errors.append(_error(places, ("name",), "not a name for a recipe", name, cure))
    if not isinstance(text, str):
        errors.append(_error(places, ("description",), "should be text", text, "put it in quotes"))
    if not isinstance(value.get("offline", False), bool):
        errors.append(
            _error(places, ("offline",), "should be true or false", value["offline"], "write `offline: true`")
        )
    if steps is not None and not (isinstance(steps, dict) and steps):
        errors.append(
            _error(places, ("steps",), "should be a mapping of step names to steps", steps, "see `metier schema`")
        )
    if isinstance(steps, dict):
        errors += [error for name in steps for error in _check_name(name, places)]
    errors += check_blocks(value, places)
    if errors:
        raise together(errors)


def _refuse_outside(steps: Mapping[str, Stage], places: Mapping[Where, str]) -> None:
    """An offline recipe asks nothing over a connection: what a server on this machine passes on, nobody here knows."""
    what, cure = "the recipe is offline, and this model is behind an endpoint", "take it out, or `offline: true`"
    errors = [
        _error(places, ("steps", name, *where), what, getattr(one, "endpoint", None), cure)
        for name, stage in steps.items()
        for where, one in outside(stage)
    ]
    errors += [
        _error(places, ("steps", name, *ref.where), "the recipe is offline, and this is a URL", ref.value, cure)
        for name, stage in steps.items()
        for ref in references(stage)
        if isinstance(ref.mark, ShardFiles) and is_url(ref.value)
    ]
    if errors:
        raise together(errors)


def _check_name(name: str, places: Mapping[Where, str]) -> Iterator[RecipeError]:
    if not re.fullmatch(STEP_NAME, name):
        cure = "use small letters, digits, '-' and '_', and begin with a letter or digit"
        yield _error(places, ("steps", name), "not a name for a step", name, cure)
    if name in BUILTIN or name in STAND_INS:
        cure = f"rename the step, so that {name!r} goes on meaning the built-in model"
        yield _error(places, ("steps", name), "a step may not have the name of a built-in model", name, cure)


def _override(steps: dict[str, Json], text: str, places: dict[Where, str]) -> None:
    """Apply one `--set step.field.sub=value` to the raw steps. The schema checks the result like any other value."""
    target, equals, written = text.partition("=")
    parts = target.split(".")
    usage = "write --set step.field=value, as in --set tune.learning_rate=5e-5"
    if not equals or len(parts) < 2 or not all(parts):
        raise RecipeError("not an override", where="--set", value=text, cure=usage)
    if parts[0] not in steps:
        raise RecipeError("there is no such step", where="--set", value=parts[0], cure=nearest(parts[0], steps))
    value = parse_marked(written, f"--set {target}").value
    node: Any = steps
    where: Where = ("steps",)
    for part in parts[:-1]:
        node, where = _step_into(node, part, where, text, places)
    if isinstance(node, list):
        index = _index(node, parts[-1], where, text)
        node[index] = value
        where = (*where, index)
    else:
        node[parts[-1]] = value
        where = (*where, parts[-1])
    for known in [known for known in places if known[: len(where)] == where]:
        del places[known]
    places[where] = f"--set {target}"


def _step_into(node: Any, part: str, where: Where, text: str, places: dict[Where, str]) -> tuple[Any, Where]:
    """One level down, making a mapping where the recipe left the key out."""
    if isinstance(node, list):
        index = _index(node, part, where, text)
        below, inner = node[index], (*where, index)
    else:
        inner = (*where, part)
        if part not in node:
            places[inner] = f"--set {text.partition('=')[0]}"
        below = node.setdefault(part, {})
    if below is None and isinstance(node, dict):
        below = node[part] = {}
    if not isinstance(below, dict | list):
        name = ".".join(map(str, inner[1:]))
        raise RecipeError(
            f"{name} is a single value and has no keys below it",
            where=f"--set {text}",
            value=below,
            cure=f"set it as a whole: --set '{name}={{key: value}}'",
        )
    return below, inner


def _index(node: list[Any], part: str, where: Where, text: str) -> int:
    if part.isdecimal() and int(part) < len(node):
        return int(part)
    name = ".".join(map(str, where[1:]))
    cure = f"{name} has {len(node)} entries, counted from 0"
    raise RecipeError("no such entry", where=f"--set {text}", value=part, cure=cure)


# ---- the steps, one by one ----------------------------------------------------------------------------------------


def _build_steps(raw: dict[str, Json], stages: Catalogue, places: Mapping[Where, str]) -> dict[str, Stage]:
    steps: dict[str, Stage] = {}
    errors: list[InputError] = []
    for name, value in raw.items():
        made = _build_step(name, value, stages, places)
        if isinstance(made, Stage):
            steps[name] = made
        else:
            errors += made
    if errors:
        raise together(errors)
    return steps


def _build_step(name: str, value: Json, stages: Catalogue, places: Mapping[Where, str]) -> Stage | Sequence[InputError]:
    where: Where = ("steps", name)
    if not isinstance(value, dict):
        return [
            _error(places, where, "a step is a mapping that begins with its kind", value, "write `kind:` and its keys")
        ]
    kind = value.get("kind")
    if kind is None:
        return [_error(places, where, "the step has no kind", cure="add `kind:`, one of " + ", ".join(stages))]
    if not isinstance(kind, str) or kind not in stages:
        return [_error(places, (*where, "kind"), "there is no such kind of step", kind, nearest(str(kind), stages))]
    try:
        made = validate(stages[kind], value)
    except InputError as error:  # a stage's own validator has its say in our words
        return [error.within(_where(places, where))]
    if isinstance(made, Stage):
        return made
    return [_error(places, (*where, *p.where), p.what, p.value, p.cure) for p in made]


# ---- the wiring ---------------------------------------------------------------------------------------------------


def _wire(
    steps: Mapping[str, Stage], root: Path, stages: Catalogue, places: Mapping[Where, str]
) -> dict[str, tuple[Link, ...]]:
    links: dict[str, tuple[Link, ...]] = {}
    errors: list[InputError] = []
    for name, stage in steps.items():
        found: list[Link] = []
        for ref in references(stage):
            where = ("steps", name, *ref.where)
            try:
                found.append(_link(ref, steps, root, stages))
            except InputError as error:
                errors.append(error.within(_where(places, where)))
        errors += _ambiguous(name, found, places)
        links[name] = tuple(found)
    if errors:
        raise together(errors)
    return links


def _link(ref: Reference, steps: Mapping[str, Stage], root: Path, stages: Catalogue) -> Link:
    """What a reference means. Errors are still without their place."""
    if isinstance(ref.mark, Needs):
        return _link_step(ref, ref.mark.artifact, steps, stages, other=ref.mark.other)
    if isinstance(ref.mark, ShardFiles) and is_url(ref.value):
        return Link(ref)
    if isinstance(ref.mark, InputFiles):
        return Link(ref, files=match_files(ref.value, root))
    assert isinstance(ref.mark, ModelInput), ref.mark
    if ref.value in steps:
        return _link_step(ref, "model", steps, stages)
    try:
        resolve(ref.value, root, file_digest_of=lambda _path: "")  # to be checked here, hashed when planned
    except InputError as error:
        models = [name for name, stage in steps.items() if stage.produces == "model"]
        guess = nearest(ref.value, models)
        if guess.startswith("did you mean"):
            error.cure = f"{guess.rstrip('?')}, a step? {error.cure or ''}".strip()
        raise
    return Link(ref)


def _link_step(
    ref: Reference, artifact: str, steps: Mapping[str, Stage], stages: Catalogue, *, other: str = ""
) -> Link:
    fitting = [name for name, stage in steps.items() if stage.produces in (artifact, other)]
    made = steps[ref.value].produces if ref.value in steps else None
    if made in (artifact, other):
        return Link(ref, step=ref.value)
    makers = " or ".join(kind for kind, cls in stages.items() if cls.produces == artifact)
    cure = f"steps that make {artifact}: {', '.join(fitting)}" if fitting else f"add a step of kind {makers}"
    if made is None:
        guess = nearest(ref.value, fitting)
        raise RecipeError(
            "there is no step of that name",
            value=ref.value,
            cure=guess if guess.startswith("did you mean") else cure,
        )
    what = f"a step that makes {artifact} is needed here, and {ref.value!r} makes {made}"
    raise RecipeError(what, value=ref.value, cure=cure)


def _ambiguous(name: str, links: Sequence[Link], places: Mapping[Where, str]) -> Iterator[RecipeError]:
    """A stage finds its sources by their written value, so one value may not mean two things in one step."""
    first: dict[str, Link] = {}
    for link in links:
        value = link.reference.value
        other = first.setdefault(value, link)
        if (other.step, other.files) != (link.step, link.files):
            what = f"the same words mean something else in {other.reference.field}"
            yield _error(places, ("steps", name, *link.reference.where), what, value, f"write ./{value} for the file")


def match_files(pattern: str, root: Path) -> tuple[Path, ...]:
    """The readable files that a pattern names: one file, all below a folder (hidden ones left out), or a glob's.

    Sorted by path. Raises RecipeError where there are none, or for all that cannot be opened.
    """
    exact = root / Path(pattern).expanduser()
    if exact.is_file():
        files = [exact]
    elif exact.is_dir():
        below = exact.rglob("*")
        files = [p for p in below if p.is_file() and not any(s.startswith(".") for s in p.relative_to(exact).parts)]
    else:
        import glob

        files = [p for p in map(Path, glob.glob(str(exact), recursive=True)) if p.is_file()]  # noqa: PTH207 - absolute
    if not files:
        raise RecipeError("no file is there", value=pattern, cure=_cure_for_no_file(exact, root))
    closed = [error for path in files if (error := _closed(path)) is not None]
    if closed:
        raise together(closed)
    return tuple(sorted(files, key=lambda p: p.as_posix()))


def _closed(path: Path) -> RecipeError | None:
    """What is wrong with a file that cannot be opened."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return RecipeError(f"the file cannot be read: {error.strerror}", value=str(path), cure="check its permissions")
    return None


def _cure_for_no_file(exact: Path, root: Path) -> str:
    if exact.is_dir():
        return "the folder holds no file"
    neighbours = [p.name for p in exact.parent.iterdir() if p.is_file()] if exact.parent.is_dir() else []
    guess = nearest(exact.name, neighbours)
    if guess.startswith("did you mean"):
        return guess
    return f"paths are relative to the recipe's folder: {root}"


# ---- the order ----------------------------------------------------------------------------------------------------


def _order(steps: Mapping[str, Stage], links: Mapping[str, tuple[Link, ...]], places: Mapping[Where, str]) -> list[str]:
    """Every step after what it needs; then documents and examples first; then as written."""
    rank = {name: (stage.produces not in FIRST, i, name) for i, (name, stage) in enumerate(steps.items())}
    waits = {name: {link.step for link in links[name] if link.step} for name in steps}
    ready = [rank[name] for name in steps if not waits[name]]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        name = heapq.heappop(ready)[2]
        order.append(name)
        for other in steps:
            if name in waits[other]:
                waits[other].discard(name)
                if not waits[other]:
                    heapq.heappush(ready, rank[other])
    if len(order) < len(steps):
        cycle = _cycle(waits)
        link = next(link for link in links[cycle[0]] if link.step == cycle[1])
        raise _error(
            places,
            ("steps", cycle[0], *link.reference.where),
            "the steps need one another in a circle: " + " -> ".join(cycle),
            link.reference.value,
            "let one of them start from something else",
        )
    return order


def _cycle(waits: Mapping[str, set[str]]) -> list[str]:
    """One circle among steps that all wait for another, from a step back to itself."""
    trail = [next(name for name, others in waits.items() if others)]
    while trail.count(trail[-1]) == 1:
        trail.append(min(waits[trail[-1]]))
    return trail[trail.index(trail[-1]) :]
