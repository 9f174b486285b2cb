"""`metier export`: a folder for other people's machines, made from a model in the store, a folder or a built-in one.

The `export` stage's work without a recipe. Written aside and renamed into place when every form of it has proved to be
the model that it was made from. Refuses a folder that is there already. A stop leaves nothing behind.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

from metier.cli.chat import find_model
from metier.cli.stopping import StopFlag
from metier.core.errors import InputError
from metier.core.events import Event, Events
from metier.core.stage import STOP, stop_if_asked
from metier.core.store import Store
from metier.export.needs import check_installed
from metier.export.push import check_push
from metier.export.stage import Export, scores_of


def export_folder(
    name: str, out: Path, store: Path, settings: Mapping[str, Any], *, scores: Sequence[str], push: str | None
) -> None:
    """Export the model called `name` to the folder `out`. settings: fields of the `export` stage."""
    contender = name.rstrip("/").rsplit("/", 1)[-1]
    stage = _stage({"model": contender, **settings})
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError("the folder is there already", where=str(out), cure="name a new one")
    if push is not None:
        check_push(push)
    check_installed(stage.gguf, stage.bits)
    kept = Store(store)
    source = find_model(name, kept)
    found = [(one, scores_of(_scored(one, kept), one, contender)) for one in scores]
    from metier.export.card import CARD

    aside = out.with_name(f".{out.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)  # left by an export that was killed
    try:
        with StopFlag() as stop:
            token = STOP.set(stop)
            try:
                _export(stage, source, aside, found)
            finally:
                STOP.reset(token)
        if out.is_dir():
            out.rmdir()
        (aside / "folder").rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    typer.echo(f"exported to {out}; its model card is {out / CARD}")
    if push is not None:
        from metier.export.push import push as upload

        typer.echo(f"pushed: {upload(out, push)}")


def _export(stage: Export, source: Path, aside: Path, scores: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Write the folder, with a card that ends in what this machine measured."""
    from metier.export.card import CARD, measured_part
    from metier.export.folder import export_model
    from metier.export.history import history

    folder, known = aside / "folder", history(source, stage.model)
    folder.mkdir(parents=True)
    made = export_model(
        source,
        folder,
        stage.wanted(),
        stage.facts(scores),
        known,
        scratch=aside / "scratch",
        events=Events("export", listeners=[_tell]),
        check_stop=stop_if_asked,
    )
    with (folder / CARD).open("a", encoding="utf-8") as card:
        card.write("\n" + measured_part(made.in_llamacpp, known, stage.watts))


def _stage(settings: Mapping[str, Any]) -> Export:
    try:
        return Export.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = "--" + str(first["loc"][0]).replace("limits", "limit")
        raise InputError(str(first["msg"]), where=where, value=first.get("input")) from error


def _scored(name: str, store: Store) -> Path:
    """The files of the step `recipe/step`, which made scores."""
    recipe, _, step = name.partition("/")
    artifact = store.ref(recipe, step) if step and (store.root / "refs" / recipe).is_dir() else None
    if artifact is None or not (artifact.files / "scores.json").is_file():
        cure = "name them RECIPE/STEP, of a step that scored and has run"
        raise InputError("there are no such scores", where="--scores", value=name, cure=cure)
    return artifact.files


def _tell(event: Event) -> None:
    if event["event"] == "note":
        typer.echo(event["text"], err=True)
    elif event["event"] == "warning":
        typer.echo(f"warning: {event['text']}", err=True)
