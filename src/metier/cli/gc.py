"""`metier gc`: delete the artifacts that no recipe's last run reaches."""

from collections.abc import Sequence
from pathlib import Path

import typer

from metier.cli.wording import bytes_text, table
from metier.core.store import Store
from metier.core.upkeep import Needless, clear


def clear_store(folder: Path, *, dry_run: bool, unfinished: bool) -> None:
    """Print what is not needed; delete it, unless it is a rehearsal. unfinished: what stopped steps keep too."""
    store = Store(folder)
    with store.guarded():
        found = clear(store, dry_run=dry_run, unfinished=unfinished)
    gone = [*found.objects, *(found.unfinished if unfinished else ())]
    if gone:
        table(("artifact", "made by", "size"), [(one.folder.name, one.step, bytes_text(one.size)) for one in gone])
    done = "would be deleted" if dry_run else "deleted"
    typer.echo(f"{len(gone)} {done}, {_total(gone)}; {found.kept} artifacts are reached by a recipe and stay.")
    if found.unfinished and not unfinished:
        typer.echo(
            f"{len(found.unfinished)} stopped steps keep {_total(found.unfinished)} to go on from "
            "(--unfinished deletes that too)."
        )
    if found.cache:
        typer.echo(f"{store.cache} holds {bytes_text(found.cache)} that can be made again; delete it at any time.")


def _total(found: Sequence[Needless]) -> str:
    return bytes_text(sum(one.size for one in found))
