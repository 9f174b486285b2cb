"""What a recipe's `score` steps will be able to show, for `metier plan` and `metier check`: before anything runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from metier.cli.wording import table
from metier.core.errors import InputError
from metier.measure.detectable import Detectable, detectable
from metier.pipeline import Planned

if TYPE_CHECKING:
    from metier.evaluate.stage import Score

HEAD = ("step", "questions", "right or wrong", "scores from 0 to 1", "corrected")


Powers = Sequence[tuple[str, Detectable | None]]
"""Score steps, and what each can show; None where the number of its questions is not known yet."""


def powers(planned: Sequence[Planned], folders: Mapping[str, Path] | None = None) -> Powers:
    """What the score steps can show. folders: files of data steps that were made aside, by the step's name."""
    if not any(step.kind == "score" for step in planned):
        return []
    from metier.evaluate.stage import Score

    steps = {step.name: step for step in planned}
    found: list[tuple[str, Detectable | None]] = []
    for step in planned:
        if isinstance(step.stage, Score) and step.stage.answers in steps:
            asking = steps[step.stage.answers]
            count = _asked(asking, folders or {})
            can = detectable(count, comparisons=_comparisons(step.stage, asking)) if count else None
            found.append((step.name, can))
    return found


def print_power(found: Powers) -> None:
    """Print the smallest difference that each score step can show, and a warning where that is a plausible gain."""
    if not found:
        return
    known = [(name, power) for name, power in found if power is not None]
    typer.echo("")
    if known:
        table(HEAD, [_row(name, power) for name, power in known])
        typer.echo(
            "The smallest true difference that a test at 5 % finds in 80 of 100 studies, if two contenders are right "
            "half the time and mostly on the same questions (standard deviation of a difference: 0.5; of scores 0.35). "
            "Corrected: right or wrong, after Holm's correction for all comparisons of the step."
        )
    for name, power in known:
        if power.misses_plausible_gains:
            typer.secho(
                f"{name}: a gain of 10 points would mostly be missed with {power.n} questions: ask more of them",
                fg="yellow",
            )
    for name, can in found:
        if can is None:
            typer.echo(
                f"{name}: what it can show is known when its questions are made; `metier check` makes them aside"
            )


def _asked(step: Planned, folders: Mapping[str, Path]) -> int | None:
    """How many questions the step will ask, as far as that is known: the gate may still leave some out."""
    if step.kind == "answer":
        from metier.evaluate.stage import Answer

        assert isinstance(step.stage, Answer)
        return _limited(step.stage.limit, _questions(step.stage.questions, step.stage.split, step, folders))
    if step.kind != "choose":
        return None
    from metier.evaluate.choose import Choose

    stage = step.stage
    assert isinstance(stage, Choose)
    if stage.questions is not None:
        return _limited(stage.limit, _questions(stage.questions, stage.split, step, folders))
    try:
        return _limited(stage.limit, stage.count(step.sources))
    except InputError:  # told where the step is checked
        return None


def _questions(name: str, split: str, step: Planned, folders: Mapping[str, Path]) -> int | None:
    made = step.sources[name].paths
    folder = folders.get(name) or (made[0] if made else None)
    path = folder / f"{split}.jsonl" if folder else None
    if path is None or not path.is_file():
        return None
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _limited(limit: int | None, count: int | None) -> int | None:
    return count if limit is None or count is None else min(count, limit)


def _comparisons(score: "Score", asking: Planned) -> int | None:
    """How many comparisons the step makes over all questions; None for choices, whose metrics are their own."""
    if asking.kind != "answer":
        return None
    from metier.evaluate.stage import Answer
    from metier.measure.metrics import METRICS

    assert isinstance(asking.stage, Answer)
    compared = sum(name not in METRICS or METRICS[name].higher_is_better is not None for name in score.names)
    against = len(score.against or [1])
    return max(1, compared * against * (len(asking.stage.models) - 1))


def _row(name: str, power: Detectable) -> tuple[str, ...]:
    corrected = "" if power.corrected is None else _points(power.corrected)
    return name, f"{power.n:,}", _points(power.outcomes), _points(power.scores), corrected


def _points(difference: float) -> str:
    return f"{min(1.0, difference) * 100:.1f} points"
