"""`metier init --like RECIPE`: a recipe that ships, with its data, as the beginning of one's own.

Copies the recipe's text, its comments included, under a new name, and every file that it reads to the same place beside
it, so that the copy runs at once (`--smoke`) and each file can be replaced by one's own. Writes over nothing.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import metier
from metier.core.errors import InputError, nearest
from metier.core.marked import read_marked
from metier.trial.rehearse import strings_in


def recipes_folder() -> Path:
    """Where the recipes lie that ship: inside the installed package, or in the project's folder.

    Raises InputError where they are in neither.
    """
    package = Path(metier.__file__).resolve().parent
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        if (folder / "quickstart.yaml").is_file():
            return folder
    raise InputError("the recipes did not come with this installation", cure="copy them from the project's folder")


def write_like(name: str, out: Path) -> None:
    """Copy a recipe and its data. Raises InputError for a name that there is not, and where something is in the way."""
    folder = recipes_folder()
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise InputError("there is no such recipe", where="--like", value=name, cure=nearest(name, known))
    source = folder / f"{name}.yaml"
    if out.exists():
        raise InputError("the file is there already", where=str(out), cure="name another one with --out")
    target = out.absolute().parent
    files = list(_files(read_marked(source).value, folder))
    wanted = {file: target / file.relative_to(folder) for file in files}
    taken = [copy for file, copy in wanted.items() if copy.exists() and copy.read_bytes() != file.read_bytes()]
    if taken:
        cure = "start in an empty folder"
        raise InputError("another file of that name is there already", where=str(taken[0]), cure=cure)
    own = re.sub(r"[^A-Za-z0-9_.-]+", "-", out.stem).strip("-._") or "recipe"
    text = (
        source.read_text(encoding="utf-8")
        .replace(f"recipes/{name}.yaml", out.name)
        .replace(f"runs/{name}", f"runs/{own}")
    )
    text = re.sub(rf"^name: {re.escape(name)}$", f"name: {own}", text, count=1, flags=re.MULTILINE)
    for file, copy in wanted.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    target.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8", newline="\n")
    typer.echo(f"Wrote {out} and {len(files)} files of data beside it: put your own in their place.")
    typer.echo(
        f"Next: `metier run {out} --smoke` shows every step on what is there; `metier check {out} --smoke` reads it."
    )


def _files(value: Any, folder: Path) -> Iterator[Path]:
    """Every file below `folder` that a recipe's value names, each once, with the note that lies beside it."""
    found: dict[Path, None] = {}
    for text in strings_in(value):
        place = folder / text
        if not text or "\n" in text or text.startswith(("/", "~", ".")) or len(text) > 300:
            continue
        if place.is_dir():
            found |= dict.fromkeys(path for path in sorted(place.rglob("*")) if path.is_file())
        elif "*" in text:
            found |= dict.fromkeys(path for path in sorted(folder.glob(text)) if path.is_file())
        elif place.is_file():
            found[place] = None
    for path in list(found):
        if (path.parent / "README.md").is_file():
            found[path.parent / "README.md"] = None
    yield from found
