"""`metier run`: run the recipe with progress shown, publish its report, and end by naming it."""

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Literal

import typer

from metier.cli.console import Display, JsonLines, LiveView, PlainLines, Quiet
from metier.cli.publishing import publish_result
from metier.cli.stopping import StopFlag
from metier.core.errors import InputError
from metier.core.store import Store
from metier.core.team import Helpers
from metier.pipeline import Result, run
from metier.recipe import Recipe, load_recipe
from metier.report.partial import PartialBoard
from metier.track import open_trackers
from metier.trial.reshape import Trial

Mode = Literal["auto", "quiet", "json"]


def run_recipe(
    path: Path,
    overrides: Sequence[str],
    store: Path,
    out: Path,
    only: str | None,
    mode: Mode,
    track: Sequence[str] = (),
    *,
    keep_going: bool = False,
    max_minutes: float | None = None,
    trial: Trial | None = None,
    processes: int | None = None,
    on: str | None = None,
) -> None:
    """Run a recipe and publish the report. With `only`, a part is run and nothing published.

    track: names of trackers that hear the events too. keep_going: gather the faults of all input files first.
    max_minutes: stop at a safe point after so long. trial: as in `load_recipe`. processes: how many run the steps that
    several can run; under torchrun those that it started, of which all but the first help and publish nothing. on: the
    Ray cluster to run on.
    """
    if _helps():
        return
    recipe = load_recipe(path, overrides, trial=trial)
    display = make_display(mode)
    _, report = carry_out(
        recipe,
        store,
        out,
        display,
        only=only,
        track=track,
        keep_going=keep_going,
        max_minutes=max_minutes,
        processes=processes,
        on=on,
    )
    if report is None:
        return
    if mode == "json":
        typer.echo(json.dumps({"event": "published", "report": str(report)}, ensure_ascii=False))
    elif mode == "quiet":
        typer.echo(str(report))
    else:
        typer.echo(f"Report: {report}")


def carry_out(
    recipe: Recipe,
    store: Path,
    out: Path,
    display: Display,
    *,
    only: str | None = None,
    track: Sequence[str] = (),
    keep_going: bool = False,
    max_minutes: float | None = None,
    processes: int | None = None,
    on: str | None = None,
) -> tuple[Result, Path | None]:
    """Run a recipe with progress on `display`. Returns what was made, and the report, or None with `only`."""
    configs = {name: stage.model_dump(mode="json") for name, stage in recipe.steps.items()}
    trackers = open_trackers(track, folder=out / recipe.name, recipe=recipe.name, configs=configs)
    partial = PartialBoard(out / recipe.name, recipe.name, configs)
    with ExitStack() as stack:
        stop = stack.enter_context(StopFlag(max_minutes))
        stack.enter_context(display)
        hearing = [stack.enter_context(tracker).hear for tracker in trackers]
        listeners = [display.hear, partial.hear, *hearing]
        helpers = stack.enter_context(_helpers(processes, on, Store(store)))
        result = run(
            recipe, Store(store), listeners=listeners, stop=stop, only=only, keep_going=keep_going, helpers=helpers
        )
    if isinstance(display, LiveView | PlainLines):
        for tracker in trackers:
            if tracker.used:
                typer.echo(f"Tracked: {tracker.what}")
    return result, None if only is not None else publish_result(recipe, result.artifacts, out)


def _several() -> bool:
    """Whether torchrun, or whatever sets its variables, started this process among others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def _helps() -> bool:
    """Where this process is not the first of several: help until the first is through, and end as it ended."""
    if not _several() or os.environ["RANK"] == "0":
        return False
    from metier.scale.follow import follow

    with StopFlag() as stop:
        code = follow(stop)
    if code:
        raise typer.Exit(code)
    return True


def _helpers(processes: int | None, on: str | None, store: Store) -> AbstractContextManager[Helpers | None]:
    """The other processes; torch is imported only where there are some."""
    if on is not None:
        from metier.scale.cluster import Cluster

        if _several():
            what, cure = "torchrun started the processes already", "leave --on out, or run without torchrun"
            raise InputError(what, where="--on", value=on, cure=cure)
        return Cluster(on, store, processes)
    if (processes is None or processes == 1) and not _several():
        return nullcontext()
    from metier.scale.crew import crew

    return crew(processes, store)


def make_display(mode: Mode) -> Display:
    """How progress is shown: live on a terminal, else as lines."""
    import sys

    if mode == "json":
        return JsonLines()
    if mode == "quiet":
        return Quiet()
    return LiveView() if sys.stdout.isatty() else PlainLines()
