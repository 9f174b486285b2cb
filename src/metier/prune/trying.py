"""Try candidates one after another until one holds what the guard asks, and hand that one on; else the model before.

In the step's scratch, so that a run that was stopped goes on at the try, and the part of it, where it was:

    before/            what the guard saw of the model before, and its size
    try-1/ ...         the same of each candidate, its model folder while it is still in question, its speed beside the
                       model before, and what came of it

Each model is looked at as it was written and read back by stock classes. Two are in memory while they are timed turn by
turn, else one.
"""

import gc
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from metier.core.disk import write_whole
from metier.core.errors import ModelError
from metier.core.stage import Context
from metier.models.load import Loaded, load
from metier.prune.probe import Looker, Reading, Row
from metier.prune.settings import Guard
from metier.prune.size import size_of, speeds_of
from metier.prune.verdicts import conditions, figure
from metier.text.artifacts import write_json, write_jsonl

MODEL_FILES = frozenset({".json", ".safetensors", ".jinja", ".model", ".txt"})
NOT_COPIED = frozenset({"about.json", "made.json", "taken.json"})


@dataclass(frozen=True)
class Candidate:
    """A model that might replace the one before.

    title: as a person reads it. ratio: the share that was taken. make: writes it to a folder, or finds it; returns its
    folder, and whether that may be deleted. facts: what else the report says of it.
    """

    title: str
    ratio: float
    make: Callable[[Path], Path]
    facts: Row


@dataclass(frozen=True)
class Tried:
    """What came of a candidate. folder: where its model lies, if it holds."""

    row: Row
    measured: Row
    holds: bool
    folder: Path | None


@dataclass(frozen=True)
class Outcome:
    """before: size and score of the model before. tries: in order. kept: the one that holds, if any."""

    before: Row
    tries: Sequence[Tried]

    @property
    def kept(self) -> Tried | None:
        """The last that was tried, if it holds."""
        return self.tries[-1] if self.tries and self.tries[-1].holds else None


def search(ctx: Context, before: Path, candidates: Sequence[Candidate], guard: Guard | None) -> Outcome:
    """Try the candidates in order. before: the folder of the model that they would replace. No guard: all hold."""
    looker = None if guard is None else Looker(guard, ctx.sources, ctx.events, ctx.check_stop)
    scratch = ctx.scratch / "before"
    row, reading = _seen(before, "before", scratch, looker)
    tries: list[Tried] = []
    for number, candidate in enumerate(candidates, 1):
        ctx.check_stop()
        tried = _try(ctx, candidate, ctx.scratch / f"try-{number}", (before, reading), looker)
        tries.append(tried)
        ctx.events.progress("tries", number, len(candidates), unit="tries", holds=tried.holds)
        if tried.holds:
            break
    return Outcome(row, tries)


def _try(ctx: Context, candidate: Candidate, home: Path, before: tuple[Path, Reading], looker: Looker | None) -> Tried:
    done = home / "done.json"
    if not done.is_file():
        folder = candidate.make(home / "model")
        row, measured = _judged(ctx, candidate, folder, home, before, looker)
        if not row["holds"]:
            shutil.rmtree(home / "model", ignore_errors=True)
        write_json(done, {"row": row, "measured": measured, "folder": str(folder)})
    else:
        ctx.events.note(f"{candidate.title}: tried in the run before")
    kept = json.loads(done.read_text(encoding="utf-8"))
    holds = bool(kept["row"]["holds"])
    return Tried(kept["row"], kept["measured"], holds, Path(kept["folder"]) if holds else None)


def _judged(
    ctx: Context, candidate: Candidate, folder: Path, home: Path, before: tuple[Path, Reading], looker: Looker | None
) -> tuple[Row, Row]:
    facts: Row = {"title": candidate.title, "ratio": candidate.ratio, **candidate.facts}
    try:
        seen, reading = _seen(folder, candidate.title, home, looker)
    except ModelError as error:  # what it puts out is not a number
        ctx.events.warning(f"{candidate.title}: {error.what}")
        return facts | {"holds": False, "why": error.what, "conditions": []}, {}
    ctx.check_stop()
    measured = speeds_of(load(before[0]), load(folder))
    gc.collect()
    found = [] if looker is None else conditions(before[1], reading, looker.guard)
    failed = [one for one in found if not one.holds]
    for one in failed:
        ctx.events.note(f"{candidate.title}: {one.name} does not hold ({one.why})")
    return facts | seen | {"holds": not failed, "why": "", "conditions": [one.row for one in found]}, measured


def _seen(folder: Path, name: str, home: Path, looker: Looker | None) -> tuple[Row, Reading]:
    """Size and score, and what the guard looks at; kept in `home`."""
    kept = home / "seen.json"
    loaded: Loaded | None = None
    if not kept.is_file():
        loaded = load(folder)
        home.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps({"size": size_of(loaded).row}))
    known = json.loads(kept.read_text(encoding="utf-8"))
    reading: Reading = {}
    row: Row = {"size": known["size"]}
    if looker is not None:
        whole = home / "reading.json"
        if not whole.is_file():
            reading = looker.look(loaded or load(folder), name, home)
            write_whole(whole, json.dumps(reading))
        reading = json.loads(whole.read_text(encoding="utf-8"))
        row["score"] = asdict(figure(reading, looker.guard))
    del loaded
    gc.collect()  # a model's modules refer to one another in circles: without this two would be in memory
    return row, reading


def publish(ctx: Context, outcome: Outcome, about: Row) -> dict[str, float]:
    """Write about.json, the guard's rows and the speeds; the model is in `ctx.out` already. Returns headline metrics.

    about: what else about.json says.
    """
    kept = outcome.kept
    after = kept.row if kept is not None else outcome.before
    rows = [outcome.before | {"ratio": 0.0}, *(tried.row for tried in outcome.tries)]
    points = [
        {
            "ratio": row["ratio"],
            "score": row["score"]["mean"],
            "low": row["score"]["low"],
            "high": row["score"]["high"],
            "size_bytes": row["size"]["bytes"],
        }
        for row in rows
        if "score" in row
    ]
    write_json(
        ctx.out / "about.json",
        {
            **about,
            "parameters": {"trained": 0, "total": after["size"]["parameters"]},
            "bytes": after["size"]["bytes"],
            "kept": None if kept is None else kept.row["title"],
            "ratio": 0.0 if kept is None else kept.row["ratio"],
            "before": outcome.before,
            "tries": [tried.row for tried in outcome.tries],
            "points": points,
        },
    )
    write_jsonl(ctx.out / "guard.jsonl", _item_rows(ctx, outcome))
    write_json(ctx.measured / "about.json", {"tries": [tried.measured for tried in outcome.tries]})
    return {
        "ratio": 0.0 if kept is None else float(kept.row["ratio"]),
        "tries": len(outcome.tries),
        "parameters": after["size"]["parameters"],
        "bytes": after["size"]["bytes"],
        "cache_bytes": after["size"]["cache_bytes"],
    }


def _item_rows(ctx: Context, outcome: Outcome) -> list[Row]:
    """What the guard saw, item by item: which model, which part, and the row."""
    homes = {"before": ctx.scratch / "before"}
    homes |= {t.row["title"]: ctx.scratch / f"try-{number}" for number, t in enumerate(outcome.tries, 1)}
    found: list[Row] = []
    for name, home in homes.items():
        if (home / "reading.json").is_file():
            reading: Reading = json.loads((home / "reading.json").read_text(encoding="utf-8"))
            found += [{"model": name, "part": part, **row} for part, rows in reading.items() for row in rows]
    return found


def copy_model(folder: Path, out: Path) -> None:
    """Copy what loading a model reads."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in MODEL_FILES and path.name not in NOT_COPIED:
            shutil.copyfile(path, out / path.name)
