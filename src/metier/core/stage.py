"""The one interface between a recipe and the code that does the work.

A stage is a frozen pydantic class. Its fields are the recipe's keys: one declaration is schema, help text (the string
under the field), default and check. Unknown keys are refused. Marks on a field say what its value refers to:

    Needs("examples")   the name of a step that produces that kind of artifact, or one of two kinds
    ModelRef            a step that produces a model, a built-in name, a local folder or a hub id
    FilePattern         a file, folder or glob, relative to the recipe's own folder
    ShardPattern        the same or a URL, of files too large to be hashed
    Runtime()           no effect on the result, so not part of the artifact's identity

A stage sees only its `Context`. What it writes under `out` must be a function of its config and inputs alone (the
same bytes every time); whatever depends on the clock or the machine (latency, memory) goes under `measured`. What
it leaves there as `machine.json` is remembered for later estimates.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from metier.core.errors import Interrupted
from metier.core.events import Events
from metier.core.fingerprint import Json
from metier.core.machine import Estimate, Machine
from metier.core.team import Team


class Mark:
    """Base of the marks that a stage's fields may carry."""


@dataclass(frozen=True)
class Needs(Mark):
    """The value names a step that produces this kind of artifact; or this other kind, where there are two."""

    artifact: str
    other: str = ""


@dataclass(frozen=True)
class ModelInput(Mark):
    """The value names a model: a step, a built-in, a folder or a hub id."""


@dataclass(frozen=True)
class InputFiles(Mark):
    """The value is a file, folder or glob; its contents are part of the identity, its path is not."""


@dataclass(frozen=True)
class ShardFiles(InputFiles):
    """The value is a folder, glob or URL of files that are read as a stream. Local ones count by their names, sizes and
    samples of their contents, a URL as it is written: what lies there is looked up when the step runs."""


@dataclass(frozen=True)
class Runtime(Mark):
    """The field has no effect on the result."""


KEEP_GOING: ContextVar[bool] = ContextVar("keep_going", default=False)
"""Whether a stage that looks for bad input gathers the problems of all files, instead of stopping at the first."""

STOP: ContextVar[Callable[[], bool]] = ContextVar("stop", default=lambda: False)
"""Whether the run that is under way was asked to stop. For loops that no `Context` reaches: see `stop_if_asked`."""


def stop_if_asked() -> None:
    """Raise Interrupted when the run was asked to stop. For loops that also run outside a step; 0.2 us."""
    if STOP.get()():
        raise Interrupted("stopped on request", cure="run the same command again: it goes on from here")


ModelRef = Annotated[str, ModelInput()]
FilePattern = Annotated[str, InputFiles()]
ShardPattern = Annotated[str, ShardFiles()]

Where = tuple[str | int, ...]


class Config(BaseModel):
    """Base of everything that stands in a recipe: frozen, unknown keys refused, a field documented by what is under it.

    The strings are read by `metier.core.described` and validators built when they are first needed: at start both would
    cost more than all else.
    """

    elsewhere: ClassVar[bool] = False
    """Whether it names a model that is asked over a connection, which a recipe with `offline: true` refuses."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, allow_inf_nan=False)


UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(MB|GB|TB)")


class Resources(Config):
    """What a step takes on a cluster (`metier run --on`). None of it changes what comes out, but for the last bits of a
    training step with another number of workers or CPUs."""

    workers: int | None = Field(None, ge=1)
    """Processes that share the work: those that train together; elsewhere how many read, encode, answer or judge at
    a time. Left out: for training what `--processes` says, or one; else as many as the cluster has CPUs."""
    cpus: int | None = Field(None, ge=1)
    """CPUs of each worker. Left out: a training worker gets its share of a machine, any other one."""
    gpus: float | None = Field(None, ge=0)
    """GPUs of each worker; a part of one where several share it. Left out: one for each training worker, where the
    cluster has some."""
    memory: str | None = None
    """Memory of each worker, such as `16GB`: so that no more of them come to one machine than it holds."""
    restarts: int | None = Field(None, ge=0)
    """How often a training step begins again from its last checkpoint after a worker or its machine was lost. Left out:
    5."""

    @field_validator("memory")
    @classmethod
    def _a_size(cls, value: str | None) -> str | None:
        if value is not None and not SIZE.fullmatch(value.strip()):
            raise ValueError("write a number with MB, GB or TB, as in 16GB")
        return value

    @field_validator("gpus")
    @classmethod
    def _whole_or_part(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError("more than one GPU comes whole: write 1, 2, ..., or a part of one such as 0.5")
        return value

    @property
    def bytes(self) -> int | None:
        """The memory in bytes."""
        if self.memory is None:
            return None
        found = SIZE.fullmatch(self.memory.strip())
        assert found is not None
        return int(float(found[1]) * UNITS[found[2]])


@dataclass(frozen=True)
class Reference:
    """A value in a stage that points outside it. where: the path to it, such as ('sources', 0, 'path')."""

    where: Where
    mark: Mark
    value: str

    @property
    def field(self) -> str:
        """The path as a user writes it: `sources.0.path`."""
        return ".".join(str(part) for part in self.where)


@dataclass(frozen=True)
class Source:
    """What a reference resolved to.

    name: as written in the recipe. paths: the matched files of a pattern, or one folder (empty while a step has not
    run). link: how an artifact refers to it from inside its own `files/` folder: `../../<key>/files`, a built-in name,
    a hub id or an absolute folder. digest: its content or, for a step, its key. made_from: for a step, what it reads.
    produces: for a step, the kind of artifact.
    """

    name: str
    paths: tuple[Path, ...]
    link: str
    digest: str
    made_from: tuple["Source", ...] = ()
    produces: str = ""

    @property
    def path(self) -> Path:
        """The one file or folder."""
        (path,) = self.paths
        return path


@dataclass(frozen=True)
class Context:
    """All that a running stage sees of the world.

    out: the artifact's files, deterministic. measured: what depends on clock and machine. scratch: resumable state that
    survives a crash and is deleted on success. sources: every reference of the stage, by its value. cache: what may be
    deleted at any time and made again, shared by all steps (None: there is none). team: this process's place among
    those that run the step together (None: it runs alone).
    """

    step: str
    out: Path
    measured: Path
    scratch: Path
    events: Events
    sources: Mapping[str, Source]
    stop: Callable[[], bool] = field(default=lambda: False)
    cache: Path | None = None
    team: Team | None = None

    def source(self, value: str) -> Source:
        """What the reference written as `value` resolved to."""
        return self.sources[value]

    def check_stop(self) -> None:
        """Raise Interrupted when a signal or the time limit asked to stop. Call it in every long loop."""
        if self.stop():
            raise Interrupted(
                f"step {self.step!r} was stopped", cure="run the same command again: it goes on from here"
            )


class Stage(Config, ABC):
    """A kind of step. Subclasses give `kind` (a Literal with its default), `produces` and `version`.

    produces: the kind of artifact it leaves. version: raised whenever the same config would now produce something else.
    several: whether several processes can run it together (see `Context.team`). spreads: whether parts of its work go
    to other processes of a cluster (see `metier.core.workers.spread`).
    """

    produces: ClassVar[str]
    version: ClassVar[int] = 1
    several: ClassVar[bool] = False
    spreads: ClassVar[bool] = False

    resources: Annotated[Resources | None, Runtime()] = None
    """What the step takes of a cluster's machines, with `metier run --on`; without, it has no effect. See
    `docs/scale.md`."""

    @model_validator(mode="after")
    def _resources_have_effects(self) -> "Stage":
        wanted = self.resources.model_fields_set if self.resources else set()
        if "workers" in wanted and not (self.several or self.spreads):
            raise ValueError("resources.workers has no effect: one process does the work of this kind; leave it out")
        if "restarts" in wanted and not self.several:
            raise ValueError("resources.restarts has no effect here: it is for steps that train; leave it out")
        return self

    def check(self, sources: Mapping[str, Source]) -> None:
        """Look for bad input before any step of the run starts: raises InputError. Loads no weights, writes nothing.

        Sources of steps that have not run yet have no paths.
        """

    def preparation(self, ctx: Context) -> Callable[[], None] | None:  # noqa: ARG002
        """What other processes can do before several run the step together, such as to encode a large corpus into the
        cache; None where it is not worth a start of its own. Looks at sizes alone."""
        return None

    def check_processes(self, count: int) -> None:
        """Raise InputError where so many processes cannot share the work evenly."""

    def estimate(self, sources: Mapping[str, Source], machine: Machine) -> Estimate | None:  # noqa: ARG002
        """What `run` will take; None for a stage that cannot tell. Reads headers and samples, imports nothing heavy."""
        return None

    @abstractmethod
    def run(self, ctx: Context) -> Mapping[str, float]:
        """Do the work, write `ctx.out`, and return deterministic headline metrics (kept in the record)."""


def references(stage: Config) -> list[Reference]:
    """Every marked reference in a stage, in field order."""
    found: list[Reference] = []
    _walk(stage, (), lambda ref: found.append(ref))
    return found


def outside(value: Any, where: Where = ()) -> list[tuple[Where, Config]]:
    """What in a stage's config is `elsewhere`, and where it stands."""
    if isinstance(value, Config):
        found = [(where, value)] if value.elsewhere else []
        return found + [
            one for name in type(value).model_fields for one in outside(getattr(value, name), (*where, name))
        ]
    if isinstance(value, Mapping):
        return [found for name, one in value.items() for found in outside(one, (*where, str(name)))]
    if isinstance(value, list | tuple):
        return [found for index, one in enumerate(value) for found in outside(one, (*where, index))]
    return []


def identity(stage: Config, resolve: Callable[[Reference], Json]) -> Json:
    """The stage's config as JSON, without Runtime fields, each reference replaced by what `resolve` says it is."""
    return _walk(stage, (), resolve)


def _walk(stage: BaseModel, where: Where, visit: Callable[[Reference], Json]) -> Json:
    result: dict[str, Json] = {}
    for name, info in type(stage).model_fields.items():
        if any(isinstance(mark, Runtime) for mark in info.metadata):
            continue
        marks = tuple(m for m in info.metadata if isinstance(m, Mark))
        result[name] = _walk_value(getattr(stage, name), info.annotation, marks, (*where, name), visit)
    return result


def _walk_value(
    value: Any, annotation: Any, marks: tuple[Mark, ...], where: Where, visit: Callable[[Reference], Json]
) -> Json:
    if isinstance(value, BaseModel):
        return _walk(value, where, visit)
    if isinstance(value, Mapping):
        arms = get_args(_choose(annotation, value))
        inner = arms[1] if len(arms) == 2 else Any
        return {str(k): _walk_value(v, *_unwrap(inner, v), (*where, str(k)), visit) for k, v in value.items()}
    if isinstance(value, list | tuple):
        inner = next(iter(get_args(_choose(annotation, value))), Any)
        return [_walk_value(v, *_unwrap(inner, v), (*where, i), visit) for i, v in enumerate(value)]
    if isinstance(value, str):
        for mark in (*marks, *_unwrap(annotation, value)[1]):
            return visit(Reference(where, mark, value))
    return value


def _unwrap(annotation: Any, value: Any) -> tuple[Any, tuple[Mark, ...]]:
    """Strip `Annotated` and unions down to the arm that a value took, keeping the marks on the way."""
    annotation = _choose(annotation, value)
    if get_origin(annotation) is Annotated:
        plain, *metadata = get_args(annotation)
        return plain, tuple(m for m in metadata if isinstance(m, Mark))
    return annotation, ()


def _choose(annotation: Any, value: Any) -> Any:
    """The arm of a union that fits the value's shape; a marked arm first, as only strings carry marks."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    arms: Iterator[Any] = iter(get_args(annotation))
    wanted = (list, tuple) if isinstance(value, list | tuple) else (dict,) if isinstance(value, Mapping) else None
    fitting = [a for a in arms if (get_origin(a) in wanted if wanted else get_origin(a) is Annotated)]
    return fitting[0] if fitting else annotation
