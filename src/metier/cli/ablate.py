"""`metier ablate`: run a recipe without a step, from what is made already, and set the results beside the full run."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer

from metier.cli.ablation import FULL, ablatable, ablate, compared
from metier.cli.run import Mode, make_display
from metier.cli.stopping import StopFlag
from metier.cli.wording import number_text, table
from metier.core.errors import RecipeError
from metier.core.store import Store
from metier.pipeline import run
from metier.recipe import load_recipe
from metier.text.artifacts import write_json
from metier.trial.reshape import Trial

FILE = "ablations.json"
HEAD = ("what", "metric", "n", "full", "without", "the step adds", "95 %", "p (Holm)", "without it")
COLOURS = {"worse": "green", "better": "red"}

Row = dict[str, Any]


def run_ablations(
    path: Path,
    overrides: Sequence[str],
    store: Path,
    out: Path,
    without: Sequence[str],
    mode: Mode,
    *,
    each: bool,
    trial: Trial | None = None,
) -> None:
    """Run the full recipe where that is not done, then without each step, and print and write one table.

    Raises RecipeError for a step that cannot be left out, or where none is named.
    """
    recipe = load_recipe(path, overrides, trial=trial)
    if each and without:
        raise RecipeError("--each leaves out every step in turn: name none", where="--without", value=list(without))
    chosen = ablatable(recipe) if each else list(without)
    if not chosen:
        known = ablatable(recipe)
        cure = f"--without one of: {', '.join(known)}; or --each" if known else "it needs contenders that were trained"
        raise RecipeError("no step to leave out", where=str(path), cure=cure)
    ablation = ablate(recipe, chosen)
    with ExitStack() as stack:
        stop = stack.enter_context(StopFlag())
        display = stack.enter_context(make_display(mode))
        result = run(ablation.recipe, Store(store), listeners=[display.hear], stop=stop)
    found = compared(ablation, result.artifacts)
    target = out / recipe.name / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, found | {"without": chosen, "pairs": [_pair_row(pair) for pair in ablation.pairs]})
    if mode == "json":
        typer.echo(json.dumps({"event": "ablated", "table": str(target)}, ensure_ascii=False))
        return
    if mode != "quiet":
        _show(found)
    typer.echo(f"Written: {target}")


def _pair_row(pair: Any) -> Row:
    return {"title": pair.title, "without": pair.without, "contender": pair.contender, "other": pair.other}


def _show(found: Row) -> None:
    """A line for each pair and metric: both means, and what the step adds."""
    full = {(row["group"], row["metric"]): row for row in found["rows"] if row["contender"] == FULL}
    lines = []
    for row in found["rows"]:
        before = full[row["group"], row["metric"]]
        if row["contender"] != FULL:
            lines.append(_line(row, before))
    percent = f"{100 * found['confidence']:g} %"
    table([percent if cell == "95 %" else cell for cell in HEAD], lines, COLOURS)


def _line(row: Row, full: Row) -> list[str]:
    means = [_number(full["mean"]), _number(row["mean"])]
    versus: Mapping[str, Any] = next(iter(row["versus"]), {})
    if not versus:
        return [row["group"], row["metric"], str(row["n"]), *means, "", "", "", ""]
    low, high = versus["low"], versus["high"]
    interval = "" if low is None else f"[{_number(-high)}, {_number(-low)}]"
    gap = [_number(-versus["difference"]), interval, number_text(versus["p_holm"]), versus["verdict"]]
    return [row["group"], row["metric"], str(row["n"]), *means, *gap]


def _number(value: float | None) -> str:
    return "" if value is None else number_text(value)
