"""`metier label`: a person labels a sample of judged answers, in the terminal or in the browser.

Neither the contender's name nor any verdict is shown. Labels are appended to a JSONL file as they are given; a
`calibrate` step reads it. Nothing that a model wrote reaches the terminal as it is.
"""

import getpass
from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from metier.core.errors import InputError, RecipeError
from metier.core.stage import Stage
from metier.core.store import Store
from metier.judge.labelling import Desk, Item, open_desk, tally
from metier.judge.stage import Calibrate, Judge
from metier.pipeline import plan
from metier.recipe import Recipe, load_recipe
from metier.report.wording import visible

USUAL = "labels.jsonl"
QUIT, SKIP, UNDO = "q", "s", "u"


def start(
    path: Path,
    overrides: Sequence[str],
    store: Path,
    *,
    step: str | None,
    labels: Path | None,
    who: str | None,
    count: int,
    seed: int,
    web: bool,
    port: int,
) -> None:
    """Open the sample, and let it be labelled."""
    recipe = load_recipe(path, overrides)
    desk = find_desk(recipe, Store(store), step=step, labels=labels, who=who, count=count, seed=seed)
    if web:
        from metier.cli.label_page import serve

        serve(desk, port)
    else:
        converse(desk)
    typer.echo(f"{len(desk.done)} of {len(desk.items)} labelled, in {desk.path}")
    for label, times in tally(desk).items():
        typer.echo(f"  {label}: {times}")


def find_desk(
    recipe: Recipe, store: Store, *, step: str | None, labels: Path | None, who: str | None, count: int, seed: int
) -> Desk:
    """The desk for a recipe's judge step. Raises InputError where there is none, or its answers are not made yet."""
    name, stage = _judge_step(recipe, step)
    planned = {one.name: one for one in plan(recipe, store, only=name)}
    answers = planned[stage.answers].artifact
    if answers is None:
        cure = f"metier run {recipe.path} --only {stage.answers}"
        raise InputError("the answers are not made yet", where=recipe.where(stage.answers), cure=cure)
    rubric = stage.read_rubric(planned[name].sources)
    file = labels or _labels_of(recipe, name)
    return open_desk(stage, answers.files, rubric, file, who=who or getpass.getuser(), count=count, seed=seed)


def _judge_step(recipe: Recipe, step: str | None) -> tuple[str, Judge]:
    judges = {name: stage for name, stage in recipe.steps.items() if isinstance(stage, Judge)}
    if step is not None:
        if step not in judges:
            cure = f"judge steps here: {', '.join(judges) or 'none'}"
            raise RecipeError("no judge step of that name", where="--step", value=step, cure=cure)
        return step, judges[step]
    if not judges:
        cure = "add one: `verdicts: {kind: judge, answers: answers, judges: [evidence]}`"
        raise RecipeError("the recipe has no judge step", where=str(recipe.path), cure=cure)
    if len(judges) > 1:
        cure = f"say which with --step: {', '.join(judges)}"
        raise RecipeError("the recipe has several judge steps", where=str(recipe.path), cure=cure)
    return next(iter(judges.items()))


def _labels_of(recipe: Recipe, judge: str) -> Path:
    """The file that a calibrate step of this judge step reads, or the usual one beside the recipe."""
    for stage in recipe.steps.values():
        if _calibrates(stage, judge):
            assert isinstance(stage, Calibrate)
            return recipe.root / stage.labels
    return recipe.root / USUAL


def _calibrates(stage: Stage, judge: str) -> bool:
    return isinstance(stage, Calibrate) and stage.verdicts == judge and not any(sign in stage.labels for sign in "*?[")


def converse(
    desk: Desk,
    ask: Callable[[str], str] = lambda prompt: str(typer.prompt(prompt, prompt_suffix=" ")),
    say: Callable[[str], None] = typer.echo,
) -> None:
    """Label in the terminal until all is done or the person quits."""
    say(f"{visible(desk.rubric.title)}\n\n{visible(desk.rubric.text)}\n")
    names = [name for name, _ in desk.labels]
    for number, (name, meaning) in enumerate(desk.labels, 1):
        say(f"  {number}  {name}: {visible(meaning)}")
    say(f"  {SKIP}  put off   {UNDO}  take the last one back   {QUIT}  stop; what is labelled is kept\n")
    item = desk.next()
    while item is not None:
        _show(desk, item, say)
        try:
            said = ask(f"1-{len(names)}, {SKIP}, {UNDO} or {QUIT}:").strip().lower()
        except (EOFError, KeyboardInterrupt, typer.Abort):
            say("")
            return
        if said == QUIT:
            return
        if said == SKIP:
            desk.skip(item)
        elif said == UNDO:
            back = desk.undo()
            if back is None:
                say("Nothing was labelled in this sitting.")
            else:
                item = back
                continue
        elif said.isdecimal() and 1 <= int(said) <= len(names):
            desk.give(item, names[int(said) - 1])
        elif said in names:
            desk.give(item, said)
        else:
            say(f"Give a number from 1 to {len(names)}, or {SKIP}, {UNDO}, {QUIT}.")
            continue
        item = desk.next()


def _show(desk: Desk, item: Item, say: Callable[[str], None]) -> None:
    say(f"\n--- {len(desk.done) + 1} of {len(desk.items)} " + "-" * 40)
    for title, text in item.texts:
        say(f"\n{title.upper()}\n{visible(text).strip() or '(empty)'}")
    say("")
