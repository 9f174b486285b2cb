"""The stages at work: the candidates of `prune` and `guard`, and what becomes of the one that holds."""

import gc
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from metier.core.disk import write_whole
from metier.core.stage import Context
from metier.models.builtin import is_adapter, plain_config
from metier.models.load import load, stored_dtype
from metier.models.save import save_model
from metier.models.shape import cast_
from metier.prune.anatomy import Cut, parameters
from metier.prune.apply import Work, importance, load_plain, make, stop_of
from metier.prune.calibrate import pieces
from metier.prune.importance import Scores
from metier.prune.methods import name_of
from metier.prune.settings import calibration_source
from metier.prune.stage import Keep, Prune, predicted
from metier.prune.stream import Pieces
from metier.prune.trying import Candidate, copy_model, publish, search
from metier.text.artifacts import write_json

SCORES, MADE, TAKEN = "importance.json", "made.json", "taken.json"
NOTHING_SAVED = "mask only, nothing saved: the files, the cache and the arithmetic are what they were"
UNCHANGED = "nothing was taken: none of what was tried holds"


def prune(stage: Prune, ctx: Context) -> dict[str, float]:
    """Run `prune`: the model goes to `ctx.out`. Returns headline metrics."""
    folder = _standing(ctx, ctx.source(stage.model).path)
    asked, *less = stage.cuts_of(folder)
    config, itemsize = plain_config(folder), stored_dtype(folder).itemsize
    ids, found = _prepared(stage, ctx, folder, asked)
    work = Work(folder, stage.method, stage.heal is not None, ids, ctx.events, ctx.check_stop)
    candidates = [
        Candidate(
            cut.words,
            cut.ratio,
            partial(_made, work, cut, found),
            {"removes": cut.removes, "predicted": predicted(config, cut, itemsize)},
        )
        for cut in (asked, *less)
    ]
    outcome = search(ctx, folder, candidates, stage.guard or None)
    kept = outcome.kept
    taken: Any = {}
    if kept is not None:
        assert kept.folder is not None
        copy_model(kept.folder, ctx.out)
        taken = json.loads((kept.folder.parent / TAKEN).read_text(encoding="utf-8"))
    else:
        ctx.events.warning(f"{UNCHANGED}: the model is handed on as it was")
        make(work, Cut(asked.what, 0, asked.whole, asked.blocks), None, ctx.out)
    write_json(ctx.out / TAKEN, taken)
    verdict = UNCHANGED if kept is None else "removed" if kept.row["removes"] else NOTHING_SAVED
    if kept is not None and not kept.row["removes"]:
        verdict = NOTHING_SAVED if kept.row["ratio"] else "nothing was asked to be taken"
        ctx.events.note(f"{kept.row['title']}: {verdict}")
    about = {
        "method": name_of(stage.method),
        "asked": asked.words,
        "heal": stage.heal,
        "guarded": bool(stage.guard),
        "verdict": verdict,
    }
    return publish(ctx, outcome, about)


def keep(stage: Keep, ctx: Context) -> dict[str, float]:
    """Run `guard`: the model that holds is copied to `ctx.out`. Returns headline metrics."""
    before = ctx.source(stage.before).path
    whole = parameters(plain_config(before))
    candidates = [
        Candidate(name, 1 - parameters(plain_config(folder)) / whole, partial(_as_it_lies, folder), {"removes": True})
        for name in stage.models
        for folder in [ctx.source(name).path]
    ]
    outcome = search(ctx, before, candidates, stage.conditions)
    kept = outcome.kept
    if kept is None:
        ctx.events.warning(f"no candidate holds: {stage.before!r} is handed on as it was")
    copy_model(before if kept is None or kept.folder is None else kept.folder, ctx.out)
    verdict = f"none of {len(outcome.tries)} holds: the model before" if kept is None else f"{kept.row['title']} holds"
    about = {"method": "guard", "asked": None, "heal": None, "guarded": True, "verdict": verdict}
    return publish(ctx, outcome, about)


def _as_it_lies(folder: Path, _home: Path) -> Path:
    return folder


def _standing(ctx: Context, folder: Path) -> Path:
    """The folder of a model without an adapter: as it is, or merged in the step's scratch, in its base's type."""
    if not is_adapter(folder):
        return folder
    merged = ctx.scratch / "merged"
    if not (merged / MADE).is_file():
        ctx.check_stop()
        ctx.events.note("the adapter is merged into its base first")
        shutil.rmtree(merged, ignore_errors=True)
        loaded = load_plain(folder)
        cast_(loaded.model.parameters(), stored_dtype(folder))
        save_model(loaded.model, loaded.tokenizer, merged, stop=stop_of(loaded.tokenizer))
        write_json(merged / MADE, {})
        del loaded
        gc.collect()
    return merged


def _prepared(stage: Prune, ctx: Context, folder: Path, asked: Cut) -> tuple[Pieces | None, Scores | None]:
    """The calibration data and the scores that units are chosen by, which are kept for a run that goes on."""
    loaded = load(folder)
    ids: Pieces | None = None
    if stage.calibrates:
        step, kind = calibration_source(stage.calibration, stage.guard or None, "calibration")
        ids = pieces(
            loaded,
            ctx.source(step).path,
            kind,
            samples=stage.calibration.samples,
            tokens=stage.calibration.tokens,
            check_stop=ctx.check_stop,
        )
        count, read = sum(len(batch) for batch in ids), sum(batch.numel() for batch in ids)
        ctx.events.note(f"calibration: {count} pieces with {read:,} tokens from {step!r}")
    path = ctx.scratch / SCORES
    if not path.is_file():
        work = Work(folder, stage.method, False, ids, ctx.events, ctx.check_stop)
        write_whole(path, json.dumps(importance(loaded, work, asked)))
    found: Scores | None = json.loads(path.read_text(encoding="utf-8"))
    del loaded
    gc.collect()
    return ids, found


def _made(work: Work, cut: Cut, found: Scores | None, home: Path) -> Path:
    """The candidate of a cut in its folder, from an earlier run if it is whole there."""
    if not (home / MADE).is_file():
        shutil.rmtree(home, ignore_errors=True)
        chosen = make(work, cut, found, home)
        write_json(home.parent / TAKEN, {str(block): list(units) for block, units in chosen.items()})
        write_json(home / MADE, {})
    return home
