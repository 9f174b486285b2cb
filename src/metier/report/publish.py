"""Write `runs/<recipe>/`: what people look at after a run.

    model/                   the standalone model that the run hands over (see `leaderboard.final_model`)
    adapters/<step>/         every adapter, its base named by a link that holds from here
    exports/<step>/          what was exported; its model card has time and energy of this machine added
    leaderboards_full.json   contenders x metrics x groups, in rank order
    leaderboards_full.csv    the same, a line each, for spreadsheets
    report.html              one file; opens without a network
    report.md                the same as Markdown, for a model card
    pairs/<step>.html        the pairs of a `synthesize` step, to browse

`leaderboards_partial.json`, which a run writes while answers are made (see `partial`), goes when the full one is there.

Each of them is written aside and renamed into place, so a crash leaves the earlier one; two runs that publish the
same recipe take turns. A model that is already there
unchanged (same files, sizes and times) is not copied again. Costs the disk space of a second copy of the models.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from filelock import FileLock

from metier.core.fingerprint import tree
from metier.report.collect import Result, Step, collect
from metier.report.leaderboard import as_json, final_model, rank
from metier.report.markdown import as_markdown
from metier.report.page import render, render_pairs
from metier.report.partial import FILE as PARTIAL
from metier.report.spreadsheet import leaderboard_csv
from metier.report.synthesized import page_of
from metier.report.writing import write_whole


def publish(result: Result, recipe: str, out: Path, *, description: str = "", notice: str = "") -> Path:
    """Publish a run's artifacts into `out`, and return the path of the report.

    result: step name -> (its stage as a dict with defaults, its artifact), in the recipe's order. description: the
    recipe's own. notice: what has to be known before anything in it is believed. Raises StoreError where an artifact's
    file is damaged; then nothing in `out` has changed.
    """
    run = collect(result, recipe, description, notice)
    board = rank(run)
    page, document, sheet = render(run, board), as_markdown(run, board), leaderboard_csv(run, board)
    pairs = {page_of(step): render_pairs(run, step) for step in run.steps if step.data and step.data.synthesis}
    table = json.dumps(as_json(run, board), indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    final = final_model(run)
    with FileLock(out.with_name(f".{out.name}.lock")):
        _place(out / "model", [final] if final else [], flat=True)
        _place(out / "adapters", [s for s in run.steps if s.produces == "model" and s.is_adapter], flat=False)
        exported = [s for s in run.steps if s.kind == "export"]
        _place(out / "exports", exported, flat=False)
        for step in exported:
            _complete_card(step, out / "exports" / step.name / CARD)
        write_whole(out / "leaderboards_full.json", table)
        write_whole(out / "leaderboards_full.csv", sheet)
        write_whole(out / "report.md", document)
        _write_pages(out, pairs)
        write_whole(out / "report.html", page)
        (out / PARTIAL).unlink(missing_ok=True)
    return out / "report.html"


def _write_pages(out: Path, pages: Mapping[str, str]) -> None:
    """Make `pairs/` hold these pages and no other."""
    folder = out / "pairs"
    if not pages:
        shutil.rmtree(folder, ignore_errors=True)
        return
    folder.mkdir(exist_ok=True)
    for path, page in pages.items():
        write_whole(out / path, page)
    for stale in set(folder.iterdir()) - {out / path for path in pages}:
        stale.unlink()


def _place(target: Path, steps: Iterable[Step], *, flat: bool) -> None:
    """Make `target` hold the files of `steps` and nothing else; flat: without a folder for each step."""
    wanted = {target if flat else target / step.name: step.artifact.files for step in steps}
    if not wanted:
        shutil.rmtree(target, ignore_errors=True)
        return
    present = {target} if flat else set(target.iterdir()) if target.is_dir() else set()
    if target.is_dir() and present == set(wanted) and all(_same(source, copy) for copy, source in wanted.items()):
        return
    aside, old = target.with_name(f".{target.name}.aside"), target.with_name(f".{target.name}.old")
    for left in (aside, old):  # by a publishing that was killed
        shutil.rmtree(left, ignore_errors=True)
    for copy, source in wanted.items():
        place = aside if flat else aside / copy.name
        shutil.copytree(source, place)
        _relink(place, source, copy)
    if target.exists():  # a folder cannot be renamed over a full one: there is a moment without, never with half of one
        target.rename(old)
    aside.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _same(source: Path, copy: Path) -> bool:
    """Whether `copy` holds what `source` does, by name, size and time. A base's link and a card are rewritten."""
    theirs, ours = tree(source), tree(copy)
    return theirs.keys() == ours.keys() and all(
        _mark(theirs[n]) == _mark(ours[n]) for n in theirs if n not in (BASE, CARD)
    )


BASE, CARD = "base.json", "README.md"


def _complete_card(step: Step, card: Path) -> None:
    """An exported model's card in the store is the same everywhere; here it gets what its own run measured."""
    measured = step.artifact.measured / "card.md"
    text = (step.artifact.files / CARD).read_text(encoding="utf-8")
    write_whole(card, text + ("\n" + measured.read_text(encoding="utf-8") if measured.is_file() else ""))


def _mark(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _relink(copy: Path, source: Path, home: Path) -> None:
    """An adapter's base is named relative to the store; name it relative to where the copy will lie.

    copy: where the copy lies now; source: the artifact's files; home: where the copy will lie.
    """
    path = copy / BASE
    if not path.exists():
        return
    link = json.loads(path.read_text(encoding="utf-8"))
    if str(link.get("base", "")).startswith("../"):
        base = os.path.relpath((source / link["base"]).resolve(), home.resolve())
        link["base"] = Path(base).as_posix()
        path.write_text(json.dumps(link, indent=1) + "\n", encoding="utf-8")
