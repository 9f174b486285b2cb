"""What a step is worth: the recipe without it, and both asked the same.

Without a step, whoever read what it made reads what it read. Every step that follows from there is made again beside
the full run's, under the name `<step>-without-<left out>`, and the contenders among them answer the questions, choose
among the choices and read the texts that the full run's did; all else comes from the store. All pairs stand in one
table with one correction for all that it shows (Holm).

Refuses steps that make no model, that have no model to put in their place, that only rewrite one (merge), and those
that no contender depends on. Costs the training of what follows the step, and its contenders' answers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from metier.core.errors import RecipeError, nearest
from metier.core.explain import validate
from metier.core.fingerprint import Json
from metier.core.stage import InputFiles, ModelInput, Stage, references
from metier.core.store import Artifact
from metier.evaluate.choose import Choose
from metier.evaluate.stage import Answer, Perplexity, Score
from metier.recipe import Recipe, with_steps

ASKING = ("answers", "scores", "choices")
"""What steps make that look at models; the others may be made from one."""
FULL, WITHOUT = "full", "without"

Row = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A contender of the full run, in a step that asks it, and what stands for it without a step.

    asked: the step that asks the other one.
    """

    without: str
    contender: str
    other: str
    step: str
    asked: str

    @property
    def title(self) -> str:
        """`specialist without reader`."""
        return f"{self.contender} without {self.without}"


@dataclass
class Ablation:
    """A recipe with the steps of its ablations beside its own."""

    recipe: Recipe
    pairs: list[Pair] = field(default_factory=list)


def ablatable(recipe: Recipe) -> list[str]:
    """The steps that can be left out and that a contender depends on, in running order."""
    return [name for name in recipe.steps if _refusal(recipe, name) is None]


def ablate(recipe: Recipe, without: Sequence[str]) -> Ablation:
    """The recipe with every step made again that follows from leaving out each of `without`, one at a time.

    Raises RecipeError for a step that cannot be left out.
    """
    for name in without:
        if name not in recipe.steps:
            cure = nearest(name, ablatable(recipe))
            raise RecipeError("there is no such step", where=str(recipe.path), value=name, cure=cure)
        refusal = _refusal(recipe, name)
        if refusal is not None:
            known = ablatable(recipe)
            cure = f"these can be left out: {', '.join(known)}" if known else "none of its steps can be left out"
            raise RecipeError(refusal, where=recipe.where(name), cure=cure)
    steps: dict[str, Stage] = dict(recipe.steps)
    pairs: list[Pair] = []
    for name in dict.fromkeys(without):
        others = _remade(recipe, name, steps)
        pairs += _asked(recipe, name, others, steps)
    return Ablation(with_steps(recipe, steps), pairs)


def _refusal(recipe: Recipe, name: str) -> str | None:
    """Why a step cannot be left out."""
    stage = recipe.steps[name]
    if stage.produces != "model":
        return f"{name!r} makes {stage.produces}, no model: only a step that changes a model can be left out"
    below = _below(stage)
    if below is None:
        return f"{name!r} has no single model that could be put in its place"
    if type(stage).__name__ == "Merge":
        return f"{name!r} only writes a model down in another form: without it every answer would be the same"
    if not any(_contenders(recipe, name, asking) for asking in recipe.steps.values()):
        return f"no contender of an answer, choose or perplexity step depends on {name!r}"
    return None


def _below(stage: Stage) -> str | None:
    """The one model that a step reads."""
    models = [ref.value for ref in references(stage) if isinstance(ref.mark, ModelInput)]
    return models[0] if len(models) == 1 else None


def _contenders(recipe: Recipe, name: str, asking: Stage) -> list[str]:
    """The contenders that depend on a step; the step itself only where it is the one that does."""
    if not isinstance(asking, Answer | Choose | Perplexity):
        return []
    models = asking.local if isinstance(asking, Answer) else list(asking.models)
    touched = [model for model in models if model in recipe.steps and name in recipe.needed(model)]
    return [model for model in touched if model != name] or touched


def _remade(recipe: Recipe, name: str, steps: dict[str, Stage]) -> dict[str, str]:
    """Add what follows from leaving out a step. Returns what stands for each of the full run's steps."""
    below = _below(recipe.steps[name])
    assert below is not None
    others = {name: below}
    for other, stage in recipe.steps.items():  # in running order: what a step reads is known when it comes
        if other == name or stage.produces in ASKING or other not in _following(recipe, name):
            continue
        others[other] = f"{other}-without-{name}"
        steps[others[other]] = _redirected(stage, others)
    return others


def _following(recipe: Recipe, name: str) -> set[str]:
    return {other for other in recipe.steps if name in recipe.needed(other)}


def _asked(recipe: Recipe, name: str, others: Mapping[str, str], steps: dict[str, Stage]) -> list[Pair]:
    """Add the steps that ask what stands for the contenders; the pairs to compare."""
    pairs: list[Pair] = []
    for step, stage in recipe.steps.items():
        touched = _contenders(recipe, name, stage)
        if not touched:
            continue
        asked = f"{step}-without-{name}"
        asking: Row = {"models": list(dict.fromkeys(others[model] for model in touched))}
        asking |= _alone(stage)
        steps[asked] = _redirected(stage, others, asking)
        pairs += [Pair(name, model, others[model], step, asked) for model in touched]
    return pairs


def _alone(stage: Stage) -> Row:
    """What else has to change in a step that asks no one but what stands for its contenders."""
    if isinstance(stage, Answer):
        return {"baselines": False}
    if isinstance(stage, Choose):
        return {"select": []} if stage.select else {}
    return {"against": None}


def _redirected(stage: Stage, others: Mapping[str, str], changed: Mapping[str, Json] | None = None) -> Stage:
    """A stage that reads what stands for what it read."""
    value = stage.model_dump(mode="json", exclude_unset=True)  # some refuse even a default that is spelt out
    for ref in references(stage):
        if isinstance(ref.mark, InputFiles) or ref.value not in others:
            continue
        *outer, last = ref.where
        node: Any = value
        for part in outer:
            node = node[part]
        node[last] = others[ref.value]
    made = validate(type(stage), value | dict(changed or {}))
    assert isinstance(made, Stage), made
    return made


# ---- the table ----------------------------------------------------------------------------------------------------


def compared(ablation: Ablation, artifacts: Mapping[str, Artifact]) -> Row:
    """All pairs beside one another, as `evaluate.table.table` makes it: groups are `<title>` and `<title>, <group>`,
    the contenders `full` and `without`.
    """
    from metier.evaluate.table import Settings, table

    columns: list[Any] = []
    scores = [stage for stage in ablation.recipe.steps.values() if isinstance(stage, Score)]
    for pair in ablation.pairs:
        asking = ablation.recipe.steps[pair.step]
        made = next(make for kind, make in MAKERS.items() if isinstance(asking, kind))
        kin = [p for p in ablation.pairs if type(ablation.recipe.steps[p.step]) is type(asking)]
        alike = [p for p in kin if p.title == pair.title]
        title = pair.title if len(alike) == 1 else f"{pair.title} ({pair.step})"
        columns += made(ablation.recipe, pair, artifacts, title)
    how = scores[0] if scores else Score(answers="answers")
    return table(columns, Settings((FULL,), how.confidence, how.resamples, how.seed))


def _of_answers(recipe: Recipe, pair: Pair, artifacts: Mapping[str, Artifact], title: str) -> list[Any]:
    """The columns of both contenders' answers to the questions that both were asked."""
    from metier.evaluate.scoring import clusters, exposed, item_rows, read_all
    from metier.evaluate.table import ALL, answer_columns
    from metier.measure.metrics import metric

    full, other = (artifacts[step].files for step in (pair.step, pair.asked))
    left = list(read_all(full).values())[_place(recipe, pair.step, pair.contender)]
    right = list(read_all(other).values())[_place(recipe, pair.asked, pair.other)]
    shared = {a.question.id for a in left} & {a.question.id for a in right}
    answers = {side: [a for a in said if a.question.id in shared] for side, said in ((FULL, left), (WITHOUT, right))}
    scores = [s for s in recipe.steps.values() if isinstance(s, Score) and s.answers == pair.step]
    named = [name for s in scores for name in s.metrics if isinstance(name, str)] or ["token_f1", "exact_match"]
    measured = [metric(name) for name in dict.fromkeys(named)]
    if not all(a.question.reference.strip() for a in answers[FULL]):
        measured = [m for m in measured if not m.reads_reference]
    rows = item_rows(answers, measured)
    key = scores[0].cluster if scores else None
    found = answer_columns(
        rows,
        measured,
        exposed(full).seen | exposed(other).seen,
        clusters=clusters([a.question for a in answers[FULL]], key),
        answers=answers,
    )
    return [replace(c, group=title if c.group == ALL else f"{title}, {c.group}") for c in found]


def _of_choices(recipe: Recipe, pair: Pair, artifacts: Mapping[str, Artifact], title: str) -> list[Any]:
    """The columns of what both contenders chose of the items that both were asked."""
    from metier.evaluate.labels import Choices, columns, read_choices
    from metier.evaluate.scoring import exposed
    from metier.evaluate.table import ALL

    full, other = (artifacts[step].files for step in (pair.step, pair.asked))
    sides: Row = {}
    for side, folder, step, name in ((FULL, full, pair.step, pair.contender), (WITHOUT, other, pair.asked, pair.other)):
        made = read_choices(folder)
        sides[side] = dict(zip(made.items, list(made.chosen.values())[_place(recipe, step, name)], strict=True))
    items = tuple(item for item in sides[FULL] if item in sides[WITHOUT])
    both = Choices(items, dict.fromkeys(sides, "model"), {s: [said[i] for i in items] for s, said in sides.items()})
    found = columns(both, exposed(full).seen | exposed(other).seen, (FULL,))
    return [replace(c, group=title if c.group == ALL else f"{title}, {c.group}") for c in found]


def _of_readings(recipe: Recipe, pair: Pair, artifacts: Mapping[str, Artifact], title: str) -> list[Any]:
    """The columns of both contenders' readings of the documents that both read."""
    from metier.evaluate.reading import columns
    from metier.text.artifacts import read_jsonl

    sides: dict[str, dict[tuple[str, str], Row]] = {}
    for side, step, name in ((FULL, pair.step, pair.contender), (WITHOUT, pair.asked, pair.other)):
        rows = list(read_jsonl(artifacts[step].files / "items.jsonl"))
        wanted = list(dict.fromkeys(row["contender"] for row in rows))[_place(recipe, step, name)]
        sides[side] = {(row["group"], row["id"]): row for row in rows if row["contender"] == wanted}
    both = [key for key in sides[FULL] if key in sides[WITHOUT]]
    found = columns([rows[key] | {"contender": side} for side, rows in sides.items() for key in both])
    return [replace(c, group=f"{title}, {c.group}") for c in found]


def _place(recipe: Recipe, step: str, contender: str) -> int:
    """Which of a step's contenders it is: an artifact that another recipe made may have another name for it."""
    stage = recipe.steps[step]
    assert isinstance(stage, Answer | Choose | Perplexity)
    return (stage.names if isinstance(stage, Answer) else list(stage.models)).index(contender)


MAKERS: Mapping[type[Stage], Callable[[Recipe, Pair, Mapping[str, Artifact], str], list[Any]]] = {
    Answer: _of_answers,
    Choose: _of_choices,
    Perplexity: _of_readings,
}
"""Kind of asking step -> what makes the columns of a pair."""
