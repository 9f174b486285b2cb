"""Plan and run a recipe on a store: what is already made is kept, what changed is made again with what follows.

A step's key is the sha256 of its stage, version, config (without `Runtime` fields), and of what it reads: other steps
by their key, files by their contents and suffix, outside models by their contents and place. Keys need no step to have
run, so a plan is exact. Before the first step of a run starts, every step that will run looks at its input: bad
input stops the run with nothing written.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from metier.core.beside import as_ready
from metier.core.errors import InputError, Interrupted, MetierError, TrainingError, together
from metier.core.events import Events, Listener
from metier.core.fingerprint import FileDigests, Json, digest
from metier.core.machine import FILE, remember
from metier.core.measure import PeakMemory, Stopwatch, machine, now, versions
from metier.core.stage import (
    KEEP_GOING,
    STOP,
    Context,
    InputFiles,
    Reference,
    ShardFiles,
    Source,
    Stage,
    identity,
    stop_if_asked,
)
from metier.core.store import Artifact, Key, Store
from metier.core.team import Helpers, Ran
from metier.data.files import how_read
from metier.models.lock import pin, read_lock, resolve_pinned
from metier.recipe import Link, Recipe

RECORD_FORMAT = 2
"""2: with a seal."""
MOST_REASONS = 4
"""Differences that a plan names for one step; more are counted."""


@dataclass(frozen=True)
class Planned:
    """What will become of one step.

    why: what changed since the step last ran; empty where it will not run. last_seconds: how long it took last time.
    sources: what its references mean, by value; those of steps that have not run yet have no paths.
    """

    name: str
    stage: Stage
    key: Key
    state: Literal["cached", "run"]
    why: str
    artifact: Artifact | None
    last_seconds: float | None
    identity: Json
    sources: Mapping[str, Source]

    @property
    def kind(self) -> str:
        """As the recipe writes it."""
        return _kind(self.stage)


@dataclass(frozen=True)
class Result:
    """A finished run. artifacts: by step name, in running order. planned: what was planned before it started."""

    recipe: Recipe
    artifacts: dict[str, Artifact]
    planned: list[Planned]


# ---- planning -----------------------------------------------------------------------------------------------------


def plan(recipe: Recipe, store: Store, *, only: str | None = None) -> list[Planned]:
    """What a run would do, in running order. Reads input files to hash them (once each), writes no artifact.

    only: plan this step and those that it needs. Raises InputError where the recipe has no such step.
    """
    digests = FileDigests(store.root / "digests.json")
    lock = read_lock(recipe.path)
    done: dict[str, Planned] = {}
    for name in _chosen(recipe, only):
        stop_if_asked()
        done[name] = _plan_step(recipe, name, store, digests, done, lock)
    digests.save()
    return list(done.values())


def _chosen(recipe: Recipe, only: str | None) -> list[str]:
    if only is None:
        return list(recipe.steps)
    if only not in recipe.steps:
        cure = "steps of this recipe: " + ", ".join(recipe.steps)
        raise InputError("there is no such step", where=f"{recipe.path}", value=only, cure=cure)
    return recipe.needed(only)


def _plan_step(
    recipe: Recipe,
    name: str,
    store: Store,
    digests: FileDigests,
    done: Mapping[str, Planned],
    lock: Mapping[str, str],
) -> Planned:
    stage = recipe.steps[name]
    sources = {link.reference.value: _source(link, recipe.root, digests, done, lock) for link in recipe.links[name]}
    described = _describe(stage, sources)
    key = Key.of(stage.produces, described)
    artifact = store.find(key)
    last = store.ref(recipe.name, name)
    why = "" if artifact else _why(recipe.name, name, store, key, described, stage, sources)
    timed = artifact or last
    return Planned(
        name,
        stage,
        key,
        "cached" if artifact else "run",
        why,
        artifact,
        timed.record.get("seconds") if timed else None,
        described,
        sources,
    )


def _source(
    link: Link, root: Path, digests: FileDigests, done: Mapping[str, Planned], lock: Mapping[str, str]
) -> Source:
    value = link.reference.value
    if link.step is not None:
        step = done[link.step]
        paths = () if step.artifact is None else (step.artifact.files,)
        before = tuple(step.sources.values())
        return Source(value, paths, f"../../{step.key}/files", step.key.digest, before, step.stage.produces)
    if isinstance(link.reference.mark, ShardFiles):
        shards = [[path.name, digests.sample(path)] for path in link.files]
        return Source(value, link.files, value, digest(shards or value))
    if isinstance(link.reference.mark, InputFiles):
        contents = [[how_read(path), digests.file(path)] for path in link.files]
        return Source(value, link.files, value, digest(contents))  # the suffix counts: it says how a file is read
    outside = resolve_pinned(value, root, lock, digests.file)
    return replace(outside, digest=digest([outside.link, outside.digest]))  # an adapter's files hold its base's link


def _describe(stage: Stage, sources: Mapping[str, Source]) -> dict[str, Json]:
    """All that a step's artifact is made from."""

    def content(ref: Reference) -> Json:
        return sources[ref.value].digest

    return {
        "kind": _kind(stage),
        "version": type(stage).version,
        "produces": stage.produces,
        "identity": identity(stage, content),
    }


def _kind(stage: Stage) -> str:
    return str(type(stage).model_fields["kind"].default)


# ---- why a step runs ----------------------------------------------------------------------------------------------


def _why(
    recipe: str,
    name: str,
    store: Store,
    key: Key,
    described: dict[str, Json],
    stage: Stage,
    sources: Mapping[str, Source],
) -> str:
    """What differs from what the step last made, in a few words."""
    before = store.ref_key(recipe, name)
    last = store.ref(recipe, name)
    if before is None:
        return "new"
    if before == str(key):
        lost = last.loss() if last else ""
        return f"its artifact is damaged: {lost}" if lost else "its artifact is gone"
    if last is None:
        return "changed, and what it last made is gone"
    record = last.record
    if record["kind"] != described["kind"]:
        return f"kind {record['kind']} -> {described['kind']}"
    reasons = []
    if record["version"] != described["version"]:
        reasons.append(f"stage version {record['version']} -> {described['version']}")
    old_config, new_config = record["config"], stage.model_dump(mode="json")
    for path in _differences(record["identity"], described["identity"], ()):
        reasons.append(_reason(path, _look(old_config, path), _look(new_config, path), sources))
    more = [f"and {len(reasons) - MOST_REASONS} more"] if len(reasons) > MOST_REASONS else []
    return ", ".join([*reasons[:MOST_REASONS], *more])


_ABSENT = object()


def _differences(old: Json, new: Json, where: tuple[str | int, ...]) -> Iterable[tuple[str | int, ...]]:
    """Paths at which two values differ, as deep as both have the same shape."""
    if isinstance(old, dict) and isinstance(new, dict) and (not where or old.keys() & new.keys()):
        for key in dict.fromkeys([*new, *old]):
            yield from _differences(old.get(key, _ABSENT), new.get(key, _ABSENT), (*where, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from _differences(a, b, (*where, place))
    elif type(old) is not type(new) or old != new:
        yield where


def _look(value: Json, where: Sequence[str | int]) -> Json:
    """The part of a value at a path, or _ABSENT."""
    for part in where:
        inside = part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))
        if not inside:
            return _ABSENT
        value = value[part]
    return value


def _reason(where: Sequence[str | int], old: Json, new: Json, sources: Mapping[str, Source]) -> str:
    field = ".".join(map(str, where))
    if isinstance(new, str) and old == new and new in sources:
        return f"{field}: {new} changed"
    if old == new and isinstance(new, list):
        return f"{field}: changed"
    if old is _ABSENT:
        return f"{field} set to {_show(new)}"
    if new is _ABSENT:
        return f"{field} left out (was {_show(old)})"
    return f"{field} {_show(old)} -> {_show(new)}"


def _show(value: Json) -> str:
    """A value in a few characters: `2e-5`, `full`, `{lora: {r: 8}}`."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        mantissa, _, exponent = repr(value).partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    if isinstance(value, dict):
        text = "{" + ", ".join(f"{key}: {_show(inner)}" for key, inner in value.items()) + "}"
    elif isinstance(value, list):
        text = "[" + ", ".join(map(_show, value)) + "]"
    else:
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- running ------------------------------------------------------------------------------------------------------


def run(
    recipe: Recipe,
    store: Store,
    *,
    listeners: Sequence[Listener] = (),
    stop: Callable[[], bool] = lambda: False,
    only: str | None = None,
    keep_going: bool = False,
    helpers: Helpers | None = None,
) -> Result:
    """Make what is missing, in order. A run that was stopped goes on from here when called again.

    listeners: hear every event (`run_started`, then each step's, then `run_finished`). stop: asked between steps, by
    the stages in their loops, and while inputs are hashed and checked. keep_going: gather the faults of all input files
    first. helpers: other processes, for the steps that several can run. Raises InputError before anything is written
    where the input of any step is bad, Interrupted where `stop` said so, and what a failing step raises, its place in
    the recipe added.
    """
    token = STOP.set(stop)
    try:
        with store.guarded():
            return _run(recipe, store, listeners, stop, only=only, keep_going=keep_going, helpers=helpers)
    finally:
        STOP.reset(token)


def _run(
    recipe: Recipe,
    store: Store,
    listeners: Sequence[Listener],
    stop: Callable[[], bool],
    *,
    only: str | None,
    keep_going: bool,
    helpers: Helpers | None,
) -> Result:
    planned = plan(recipe, store, only=only)
    waiting = [step for step in planned if step.state == "run"]
    check(recipe, waiting, keep_going=keep_going, helpers=helpers)
    pin(recipe.path, (source for step in planned for source in step.sources.values()))
    whole = Events("", listeners=list(listeners))
    watch = Stopwatch()
    with ExitStack() as stack:
        if any(step.state == "run" for step in planned):
            stack.enter_context(store.in_use(stop_if_asked))
            if any(step.artifact and step.artifact.loss() for step in planned):  # cleared away since it was planned
                planned = plan(recipe, store, only=only)
        whole.emit("run_started", recipe=recipe.name, steps=[summary(step) for step in planned])
        artifacts: dict[str, Artifact] = {}

        def make(step: Planned, stop: Callable[[], bool]) -> Artifact:
            events = Events(step.name, listeners=list(listeners))
            if step.artifact is None:
                made = _run_step(recipe, step, store, artifacts, events, stop, helpers)
            else:
                made = step.artifact
                events.emit("cached", key=str(step.key), metrics=made.record["metrics"])
            store.set_ref(recipe.name, step.name, str(step.key))
            return made

        if helpers is None or not helpers.places:
            for step in planned:
                artifacts[step.name] = make(step, stop)
        else:
            needs = {step.name: {link.step for link in recipe.links[step.name] if link.step} for step in planned}
            works = {step.name: partial(make, step) for step in planned}
            for name, made in as_ready(works, needs, stop):
                artifacts[name] = made
    whole.emit("run_finished", recipe=recipe.name, seconds=round(watch.seconds, 3))
    return Result(recipe, {step.name: artifacts[step.name] for step in planned}, planned)


def check(
    recipe: Recipe, steps: Sequence[Planned], *, keep_going: bool = False, helpers: Helpers | None = None
) -> None:
    """Let every step look at its input. Raises InputError with the faults of all; writes nothing.

    keep_going: a step too looks at all of its files before it raises, instead of stopping at the first faulty one.
    helpers: the processes that are to run the steps that several can run, and the room that there is.
    """
    token = KEEP_GOING.set(keep_going or KEEP_GOING.get())
    try:
        _check(recipe, steps, helpers)
    finally:
        KEEP_GOING.reset(token)


def _check(recipe: Recipe, steps: Sequence[Planned], helpers: Helpers | None) -> None:
    errors: list[InputError] = []
    for step in steps:
        try:
            if helpers is not None:
                helpers.check(step.stage)
            if step.stage.several:
                step.stage.check_processes(1 if helpers is None else helpers.processes(step.stage))
            step.stage.check(step.sources)
        except InputError as error:
            errors.append(error.within(recipe.where(step.name)))
    if errors:
        raise together(errors)


def summary(step: Planned) -> dict[str, Json]:
    """A planned step as an event tells it."""
    return {
        "step": step.name,
        "kind": _kind(step.stage),
        "key": str(step.key),
        "state": step.state,
        "why": step.why,
        "last_seconds": step.last_seconds,
    }


def _run_step(
    recipe: Recipe,
    step: Planned,
    store: Store,
    artifacts: Mapping[str, Artifact],
    events: Events,
    stop: Callable[[], bool],
    helpers: Helpers | None,
) -> Artifact:
    waiting = _Waiting(step.name, events, stop)
    waiting.check_stop()
    try:
        with store.build(step.key, waiting) as workspace:
            made = store.find(step.key)
            if made is not None:  # by another process, while this one waited or ran the steps before
                events.emit("cached", key=str(step.key), metrics=made.record["metrics"])
                return made
            events.path = workspace.events
            sources = _sources_now(recipe, step, artifacts)
            ctx = Context(
                step.name, workspace.files, workspace.measured, workspace.state, events, sources, stop, store.cache
            )
            artifact = store.commit(workspace, _execute(recipe, step, ctx, helpers))
            _remember_machine(store, artifact)
            return artifact
    except MetierError as error:
        _tell_failure(events, error.what)
        raise error.within(recipe.where(step.name))  # noqa: B904 - the same error
    except BaseException as error:
        error.add_note(f"this happened in step {step.name!r} of {recipe.path}")
        _tell_failure(events, f"{type(error).__name__}: {error}")
        raise


def _remember_machine(store: Store, artifact: Artifact) -> None:
    learned = artifact.measured / FILE
    if learned.is_file():
        remember(store.root, json.loads(learned.read_text(encoding="utf-8")))


def _tell_failure(events: Events, what: str) -> None:
    """The step's file of events is gone with its workspace; those who listen still want to know."""
    events.path = None
    events.emit("failed", error=what)


@dataclass
class _Waiting:
    """Called while another process makes the same artifact."""

    step: str
    events: Events
    stop: Callable[[], bool]
    told: bool = False

    def __call__(self) -> None:
        if not self.told:
            self.events.note("another process is making this step: waiting for it")
            self.told = True
        self.check_stop()

    def check_stop(self) -> None:
        if self.stop():
            raise Interrupted(
                "stopped before the step started", cure="run the same command again: finished steps are kept"
            )


def _sources_now(recipe: Recipe, step: Planned, artifacts: Mapping[str, Artifact]) -> dict[str, Source]:
    """The step's sources, with the folders of the steps that have run by now."""
    made = {link.reference.value: artifacts[link.step].files for link in recipe.links[step.name] if link.step}
    return {
        value: replace(source, paths=(made[value],)) if value in made else source
        for value, source in step.sources.items()
    }


def _execute(recipe: Recipe, step: Planned, ctx: Context, helpers: Helpers | None) -> dict[str, Json]:
    """Run the stage in its workspace and return the artifact's record."""
    started, watch, events, sources = now(), Stopwatch(), ctx.events, ctx.sources
    events.emit("started", kind=_kind(step.stage), key=str(step.key), why=step.why)
    if step.stage.resources is not None and (helpers is None or not helpers.places):
        events.note("resources have no effect here: they are for a cluster (metier run --on)")
    with PeakMemory() as memory:
        ran = Ran(step.stage.run(ctx)) if helpers is None else helpers.run(step.stage, ctx)
    metrics, peak_bytes = _checked(ran.metrics), ran.peak_bytes or memory.peak_bytes
    seconds = round(watch.seconds, 3)
    events.emit("finished", metrics=metrics, seconds=seconds, peak_rss_bytes=peak_bytes)
    fields: dict[str, str] = {}
    for link in recipe.links[step.name]:
        fields.setdefault(link.reference.value, link.reference.field)
    return {
        "format": RECORD_FORMAT,
        "kind": _kind(step.stage),
        "version": type(step.stage).version,
        "produces": step.stage.produces,
        "step": step.name,
        "recipe": recipe.name,
        "config": step.stage.model_dump(mode="json"),
        "identity": step.identity["identity"],
        "inputs": {v: {"digest": s.digest, "link": s.link, "field": fields[v]} for v, s in sources.items()},
        "metrics": metrics,
        "seconds": seconds,
        "peak_rss_bytes": peak_bytes,
        "started": started,
        "versions": versions(),
        "machine": machine(),
    }


def _checked(metrics: Mapping[str, float]) -> dict[str, Any]:
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingError(f"the step's metric {name!r} is not a finite number", value=value)
    return dict(metrics)
