"""`metier store verify`: hash what the store holds again, and say what is not as it was written."""

import json
from pathlib import Path

import typer

from metier.cli.wording import bytes_text
from metier.core.errors import StoreError
from metier.core.store import Store
from metier.core.upkeep import Found, verify


def verify_store(folder: Path, *, remove: bool = False, as_json: bool = False) -> None:
    """Print what was read and what is wrong; remove: delete damaged artifacts, so that the next run makes them again.

    Raises StoreError (exit code 1) where anything is damaged and stays.
    """
    store = Store(folder)
    with store.guarded():
        found = verify(store)
    if as_json:
        typer.echo(json.dumps(_json(found), ensure_ascii=False))
    else:
        _tell(found)
    if found.damage and remove:
        with store.guarded(), store.alone():
            for key in found.damaged:
                store.discard(store.objects / key)
        typer.echo(f"{len(found.damaged)} damaged artifacts removed: the next run makes them again.", err=as_json)
    elif found.damage:
        raise StoreError(
            f"{len(found.damaged)} of {found.objects} artifacts are damaged",
            where=str(store.root),
            cure="run `metier store verify --remove` and the recipe again: what is removed is made anew",
        )


def _tell(found: Found) -> None:
    typer.echo(f"{found.objects} artifacts, {found.files} files, {bytes_text(found.size)} read.")
    for one in found.damage:
        typer.echo(f"damaged: {one.where}: {one.what}")
    for name in found.lost:
        typer.echo(f"gone: what {name} last made; it is made again when asked for")
    if not found.damage:
        typer.echo("All is as it was written.")


def _json(found: Found) -> dict[str, object]:
    damage = [{"key": one.key, "where": str(one.where), "what": one.what} for one in found.damage]
    return {
        "objects": found.objects,
        "files": found.files,
        "bytes": found.size,
        "damage": damage,
        "lost": found.lost,
    }
