"""What `prune` and `guard` steps tried: sizes as counted, speeds as measured, and every condition with its bound.

A step whose artifact says nothing of what it tried is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from metier.report.collect import Row, Run, Step
from metier.report.wording import MISSING, count, duration, interval, metric, number, short_count, signed


@dataclass(frozen=True)
class Model:
    """A row of sizes. kept: it is the one that was handed on. cells: in the order of `SIZES`."""

    title: str
    kept: bool
    verdict: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Held:
    """A condition of one try. cells: in the order of `CONDITIONS`."""

    title: str
    name: str
    holds: bool
    cells: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Pruned:
    """One step. failed: why tries had no conditions."""

    step: str
    sentence: str
    models: tuple[Model, ...]
    conditions: tuple[Held, ...]
    score: str


SIZES = (
    "Share taken",
    "Parameters",
    "Of them zero",
    "Size",
    "Cache a token",
    "Prompt",
    "Tokens a second",
    "Speed",
    "Score",
)
CONDITIONS = ("Before", "After", "Difference", "Bound", "Limit", "n")


def pruned(run: Run) -> tuple[Pruned, ...]:
    """All such steps of a run, in its order."""
    return tuple(_pruned(step) for step in run.steps if step.pruning.get("tries"))


def _pruned(step: Step) -> Pruned:
    about, measured = step.pruning, step.pruning_measured
    timed = measured.get("tries") or [{}] * len(about["tries"])
    first: Row = next((speed for speed in timed if speed), {})
    speeds = [
        {name.removeprefix("before_"): value for name, value in first.items() if name.startswith("before_")},
        *({name.removeprefix("after_"): value for name, value in speed.items()} for speed in timed),
    ]
    rows = [{"title": "before", "ratio": 0.0, **about["before"]}, *about["tries"]]
    scored = next((row["score"]["name"] for row in rows if row.get("score")), "")
    models = tuple(_model(row, speed, about, scored) for row, speed in zip(rows, speeds, strict=True))
    conditions = tuple(held for row in about["tries"] for held in _conditions(row))
    return Pruned(step.name, _sentence(about), models, conditions, metric(scored).title if scored else "")


def _size(size: float | None) -> str:
    """Bytes to three places: 9.31 MB, 3.07 kB."""
    if size is None:
        return MISSING
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"


def _foretold(about: Row) -> str:
    """Whether files came out as large as config.json said before; of tries that were predicted and measured."""
    pairs = [
        (row["predicted"]["bytes"], row["size"]["bytes"])
        for row in about["tries"]
        if row.get("predicted") and row.get("size")
    ]
    if not pairs:
        return ""
    exact = sum(told == found for told, found in pairs)
    return f" Bytes as predicted in {exact} of {len(pairs)}."


def _sentence(about: Row) -> str:
    tried = len(about["tries"])
    what = f"Asked: {about['asked']}. " if about.get("asked") else ""
    found = f"{tried} {'model was' if tried == 1 else 'models were'} tried. " if about.get("guarded") else ""
    kept = f"Kept: {about['kept']}. " if about.get("kept") else "Kept: the model before. "
    healed = "Projections were refitted to calibration text. " if about.get("heal") else ""
    unwatched = "" if about.get("guarded") else "No guard looked. "
    verdict = str(about["verdict"])
    return f"{what}{healed}{found}{unwatched}{kept}{verdict[:1].upper()}{verdict[1:]}.{_foretold(about)}"


def _model(row: Row, speed: Row, about: Row, scored: str) -> Model:
    size, score = row.get("size") or {}, row.get("score")
    said = metric(scored) if scored else None
    before = row["title"] == "before"
    kept = row["title"] == about["kept"] or (before and not about["kept"])
    verdict = "" if before else "holds" if row["holds"] else "does not hold"
    if not before and not about.get("guarded"):
        verdict = "not looked at"
    cells = (
        f"{row['ratio']:.1%}",
        short_count(size.get("parameters")),
        count(size.get("zeros")),
        _size(size.get("bytes")),
        _size(size.get("cache_bytes")),
        duration(speed.get("prompt_seconds")),
        count(1 / speed["token_seconds"]) if speed.get("token_seconds") else MISSING,
        f"{speed['ratio']:.2f} \u00d7" if speed.get("ratio") else MISSING,
        f"{number(score['mean'], said.digits)} {interval(score['low'], score['high'], said.digits)}"
        if score and said
        else MISSING,
    )
    return Model(str(row["title"]), kept, verdict, cells)


def _conditions(row: Row) -> Iterator[Held]:
    if not row["conditions"] and row.get("why"):
        yield Held(str(row["title"]), "puts out numbers", False, (MISSING,) * len(CONDITIONS), str(row["why"]))
    for one in row["conditions"]:
        sign = "at least" if one["higher"] else "at most"
        cells = (
            number(one["before"], 3),
            number(one["after"], 3),
            signed(one["difference"], 3),
            MISSING if one["bound"] is None else signed(one["bound"], 3),
            f"{sign} {signed(one['limit'], 3)}",
            count(one["n"]),
        )
        yield Held(str(row["title"]), str(one["name"]), bool(one["holds"]), cells, str(one["why"]))
