"""`metier check`: the recipe, its wiring, every file and model that it reads, and what training will make of them.

Loads no weights. Makes the data aside, in a temporary folder, and leaves nothing behind but the page that `--html` asks
for. Exits 2 where anything would stop the run or teach something else than was meant; everything found is said first.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import typer

from metier.cli.console import Display, LiveView, PlainLines
from metier.cli.looking import Data, Leak, is_data, leaks, look, make
from metier.cli.power import powers, print_power
from metier.cli.proof import Looked, Proof, prove, too_long
from metier.cli.tokens import print_data, print_leaks, print_proof
from metier.cli.wording import bytes_text, table
from metier.core.errors import InputError, together
from metier.core.events import Event, Events
from metier.core.stage import KEEP_GOING, InputFiles, ModelInput, ShardFiles
from metier.core.store import Store
from metier.evaluate.stage import Answer
from metier.pipeline import Planned, check, plan
from metier.recipe import Recipe, load_recipe
from metier.train.stage import Training
from metier.trial.reshape import Trial

CHUNK = 1 << 20
IN_LINES = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".text", ".md", ".markdown")
"""Files that people count in lines."""
SHOWN = 2
"""Examples of a training step that are shown token by token in the terminal, and in the page."""
SHOWN_IN_PAGE = 6


@dataclass(frozen=True)
class Findings:
    """All that was found. unknown: what cannot be looked at before the run, and why."""

    recipe: Recipe
    looked_at: tuple[tuple[str, str, str], ...]
    data: tuple[Data, ...]
    leaks: tuple[Leak, ...]
    proofs: tuple[Proof, ...]
    unknown: tuple[str, ...]
    problems: tuple[InputError, ...]


def check_recipe(
    path: Path,
    overrides: Sequence[str],
    store: Path,
    *,
    keep_going: bool = False,
    html: Path | None = None,
    trial: Trial | None = None,
) -> None:
    """Check all steps, made or not, and print what was looked at. html: write a page with more examples as well."""
    recipe = load_recipe(path, overrides, trial=trial)
    planned = plan(recipe, Store(store))
    listening = Listening(_display())
    token = KEEP_GOING.set(keep_going)
    try:
        with TemporaryDirectory(prefix="metier-check-") as aside, listening.display:
            found = _findings(recipe, planned, Path(aside), listening, SHOWN_IN_PAGE if html is not None else SHOWN)
            can_show = powers(planned, {data.step: data.folder for data in found.data})
    except InputError:
        listening.print_notes()  # what made the readers wonder may be the reason
        raise
    finally:
        KEEP_GOING.reset(token)
    _print(found)
    print_power(can_show)
    if html is not None:
        from metier.cli.check_page import write_page

        write_page(found, html)
        typer.echo(f"Page: {html}")
    if found.problems:
        raise together(found.problems)
    typer.echo(f"{path}: {len(planned)} step{'s' * (len(planned) != 1)}, nothing wrong.")


@dataclass
class Listening:
    """Hears the steps that are looked at: progress goes to the display, notes are kept by step, to stand beside what
    was found."""

    display: Display
    notes: dict[str, list[str]] = field(default_factory=dict)

    def hear(self, event: Event) -> None:
        """Show or keep an event."""
        if event["event"] in ("note", "warning"):
            self.notes.setdefault(event["step"], []).append(str(event["text"]))
        elif event["event"] == "progress":
            self.display.hear(event)

    def events(self, step: str) -> Events:
        """Events that are heard here."""
        return Events(step, listeners=[self.hear])

    def print_notes(self) -> None:
        """Say all that was noted."""
        for step, notes in self.notes.items():
            for text in dict.fromkeys(notes):
                typer.echo(f"{step}: note: {text}", err=True)


def _display() -> Display:
    return LiveView() if sys.stdout.isatty() else PlainLines(err=True)  # what is found may be piped into a file


def _findings(recipe: Recipe, planned: Sequence[Planned], aside: Path, listening: Listening, shown: int) -> Findings:
    """Make the data, look at it, and prove what training reads of it. Raises what makes the data unreadable."""
    steps = {step.name: step for step in planned}
    data, unknown = _data(recipe, planned, aside, listening)
    proofs: list[Proof] = []
    known: dict[object, Looked] = {}
    problems: list[InputError] = []
    for step in planned:
        if isinstance(step.stage, Answer) and step.stage.questions in data:
            folder = data[step.stage.questions].folder
            problems += [error.within(recipe.where(step.name)) for error in too_long(recipe, steps, step.name, folder)]
        if not isinstance(step.stage, Training) or step.stage.data not in data:
            continue
        try:
            folder, events = data[step.stage.data].folder, listening.events(step.name)
            proof = prove(recipe, steps, step.name, folder, shown=shown, events=events, known=known)
        except InputError as error:
            problems.append(error.within(recipe.where(step.name)))
            continue
        if proof is None:
            unknown.append(f"{step.name}: its tokens, before the model that it starts from is made")
            continue
        proofs.append(proof)
        problems += [problem.within(recipe.where(step.name)) for problem in proof.problems()]
    rows = tuple(_row(recipe, step) for step in planned)
    seen = tuple(leaks(recipe, steps, data, listening.events("check")))
    return Findings(recipe, rows, tuple(data.values()), seen, tuple(proofs), tuple(unknown), tuple(problems))


def _data(
    recipe: Recipe, planned: Sequence[Planned], aside: Path, listening: Listening
) -> tuple[dict[str, Data], list[str]]:
    """Every data step's files, made or found. Raises the faults of all steps together, the others' too."""
    folders: dict[str, Path] = {}
    data: dict[str, Data] = {}
    unknown: list[str] = []
    errors: list[InputError] = []
    for step in planned:
        if not is_data(step):  # making a data step checks it
            try:
                check(recipe, [step])
            except InputError as error:
                errors.append(error)
        if step.stage.produces not in ("documents", "examples") or not (is_data(step) or step.artifact):
            continue
        try:
            folder = make(recipe, step, folders, aside, [listening.hear])
        except InputError as error:
            errors.append(error.within(recipe.where(step.name)))
            continue
        if folder is None:
            check(recipe, [step])
            unknown.append(f"{step.name}: its data, before the steps that it needs have run")
            continue
        folders[step.name] = folder
        if is_data(step):
            notes = listening.notes.get(step.name, ())
            data[step.name] = look(step.name, step.kind, folder, listening.events(step.name), notes)
    if errors:
        raise together(errors)
    return data, unknown


def _print(found: Findings) -> None:
    table(("step", "kind", "looked at"), found.looked_at)
    for data in found.data:
        print_data(data)
    for leak in found.leaks:
        print_leaks(leak)
    for proof in found.proofs:
        print_proof(proof, SHOWN)
    for text in found.unknown:
        typer.echo(f"\nnot known yet: {text}")
    if found.data:
        typer.echo("")


def _row(recipe: Recipe, step: Planned) -> tuple[str, str, str]:
    files: dict[Path, None] = {}
    others = []
    for link in recipe.links[step.name]:
        if isinstance(link.reference.mark, ShardFiles):  # too many, or too far away, to be counted
            others.append(link.reference.value)
        elif isinstance(link.reference.mark, InputFiles):
            files.update(dict.fromkeys(link.files))
        elif isinstance(link.reference.mark, ModelInput) and link.step is None:
            others.append(f"model {link.reference.value}")
        else:
            others.append(link.reference.value)
    seen = [_files_text(list(files))] if files else []
    return step.name, step.kind, ", ".join([*seen, *dict.fromkeys(others)])


def _files_text(files: Sequence[Path]) -> str:
    """How many files, their lines where all have some, and their size."""
    lines: int | None = 0
    size = 0
    for path in files:
        size += path.stat().st_size
        lines = None if lines is None or path.suffix.lower() not in IN_LINES else lines + _lines(path)
    counted = "" if lines is None else f"{lines:,} line{'s' * (lines != 1)}, "
    return f"{len(files)} file{'s' * (len(files) != 1)} ({counted}{bytes_text(size)})"


def _lines(path: Path) -> int:
    """Lines, the last one too where nothing ends it."""
    count, last = 0, b"\n"
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            count += chunk.count(b"\n")
            last = chunk[-1:]
    return count + (last != b"\n")
