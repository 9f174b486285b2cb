"""The stage `knowledge`: what each contender still knows of what it was to forget, and what it is still good for.

Not to be confused with refusals: a model that declines may know all the same, and this asks for likelihoods. Imports
without torch, numpy or scipy; those start inside `run`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from metier.core.errors import DataError, RecipeError, nearest
from metier.core.stage import Context, ModelRef, Needs, Source, Stage
from metier.evaluate.held import Held, check_held
from metier.evaluate.stage import check_against, check_contenders, check_distinct, check_split, check_unique
from metier.text.artifacts import read_questions, write_json, write_jsonl
from metier.text.nouns import Question


class Knowledge(Stage):
    """Measure knowledge by likelihood: of a set that was to be forgotten, and of sets that were to be kept.

    As TOFU does (arXiv 2401.06121), with extraction strength (arXiv 2012.07805). Contenders that were never trained on
    the forgotten (`untouched`) show what forgetting should look like.
    """

    kind: Literal["knowledge"] = "knowledge"
    produces: ClassVar[str] = "scores"
    version: ClassVar[int] = 1

    models: list[ModelRef | Held] = Field(min_length=1)
    """The contenders: steps, built-in names, folders, hub ids, or `{model: X, bits: 4bit}`, which is X with its weights
    rounded when it is loaded: forgotten knowledge may come back there. The first is what others are compared with."""
    forget: Annotated[str, Needs("examples")]
    """The step whose questions were to be forgotten."""
    retain: Annotated[str, Needs("examples")]
    """The step whose questions were to be kept."""
    others: list[Annotated[str, Needs("examples")]] = Field(default_factory=list)
    """Further steps whose questions the model should still answer: they are part of the utility."""
    split: Literal["train", "test", "dev"] = "train"
    """Which part of `forget`: train is what was unlearned word for word, test asks the same in other words."""
    retain_split: Literal["train", "test", "dev"] = "train"
    """Which part of `retain` and `others`."""
    untouched: str | None = None
    """The contender that was never trained on what is forgotten: forget quality says how like it each other one is."""
    wrong: int = Field(5, ge=1)
    """Wrong answers a question, for the truth ratio."""
    perturbed: str | None = None
    """The entry of the questions' `meta` (a source's `keep`) that holds wrong answers, parted by |. Left out: answers
    to other questions of the same step, those of the nearest length."""
    alike: str | None = None
    """The entry of the questions' `meta` by which wrong answers are chosen first: such as what is asked for, so that a
    size stands beside sizes."""
    paraphrased: str | None = None
    """The entry of the questions' `meta` that holds the right answer in other words, for the truth ratio. Left out: the
    answer itself, which the trained model knows by heart."""
    limit: int | None = Field(None, ge=1)
    """Ask at most so many questions of each step, evenly spaced."""
    max_new_tokens: int = Field(64, ge=1)
    """An answer is cut after so many tokens."""
    batch_size: int = Field(32, ge=1)
    """Questions answered at a time."""
    against: list[str] | None = None
    """As in `score`."""
    resamples: int = Field(2000, ge=200)
    """Bootstrap resamples of the utility's interval."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """As in `score`."""
    seed: int = Field(0, ge=0)
    """Of the resampling."""

    @model_validator(mode="after")
    def _agrees(self) -> "Knowledge":
        if self.perturbed is not None and self.alike is not None:
            raise ValueError("alike chooses wrong answers, and `perturbed` gives them: leave one out")
        return self

    @property
    def names(self) -> list[str]:
        """What the contenders are called in results, in order."""
        return [one if isinstance(one, str) else one.title for one in self.models]

    @property
    def kept(self) -> list[str]:
        """The steps of what is to be kept."""
        return [self.retain, *self.others]

    def check(self, sources: Mapping[str, Source]) -> None:
        """Contenders differ, steps differ, there is something to ask, and each question has what is asked of it."""
        check_contenders(self.names)
        check_against(self.against, self.names)
        check_distinct("retain and others", self.kept)
        if self.forget in self.kept:
            where = "retain" if self.forget == self.retain else "others"
            raise RecipeError(
                "the same questions cannot be forgotten and kept", where=where, value=self.forget, cure="name another"
            )
        if self.untouched is not None:
            try:
                check_against([self.untouched], self.names)
            except RecipeError as error:
                error.where = "untouched"
                raise
        check_held(self.models)
        for step in (self.forget, *self.kept):
            if sources[step].paths:
                self.questions(sources[step])

    def questions(self, source: Source) -> list[Question]:
        """The questions of a step. Raises DataError where there are none, or one lacks what is asked of it."""
        forgotten = source.name == self.forget
        split = self.split if forgotten else self.retain_split
        check_split(source, split, "forget" if forgotten else "retain")
        found = read_questions(source.path, split)
        check_unique([q.id for q in found], f"questions of {source.name!r}")
        check_entries(found, source.name, perturbed=self.perturbed, paraphrased=self.paraphrased, alike=self.alike)
        return found

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write items and scores. Returns every contender's means."""
        from metier.evaluate.answering import spread
        from metier.evaluate.knowing import Asking, columns, know
        from metier.evaluate.table import Settings, table

        asked = {step: self.questions(ctx.source(step)) for step in (self.forget, *self.kept)}
        sets = {step: [found[i] for i in spread(len(found), self.limit)] for step, found in asked.items()}
        asking = Asking(
            self.wrong, self.perturbed, self.alike, self.paraphrased, self.max_new_tokens, self.batch_size, self.seed
        )
        contenders: Sequence[tuple[str, str, str | None]] = [
            (one, one, None) if isinstance(one, str) else (one.title, one.model, one.bits) for one in self.models
        ]
        rows = know(ctx, contenders, sets, asking)
        made = columns(rows, self.names, self.forget, self.kept, self.untouched)
        against = tuple(self.against or self.names[:1])
        settings = Settings(against, self.confidence, self.resamples, self.seed)
        scores = table(made, settings) | {
            "contenders": dict.fromkeys(self.names, "model"),
            "held": {one.title: {"model": one.model, "bits": one.bits} for one in self.models if isinstance(one, Held)},
            "knowledge": {"forget": self.forget, "retain": self.kept, "untouched": self.untouched},
        }
        write_jsonl(ctx.out / "items.jsonl", rows)
        write_json(ctx.out / "scores.json", scores)
        return {f"{row['contender']} {row['metric']}": row["mean"] for row in scores["rows"]}


def check_entries(
    questions: Sequence[Question], step: str, *, perturbed: str | None, paraphrased: str | None, alike: str | None
) -> None:
    """Raise DataError for the first question whose meta lacks an entry that is named, or that has no answer."""
    for question in questions:
        if not question.reference.strip():
            raise DataError(
                "the question has no answer to look for", where=f"{step}: question {question.id}", cure="give it one"
            )
        for setting, entry in (("perturbed", perturbed), ("paraphrased", paraphrased), ("alike", alike)):
            if entry is not None and not question.meta.get(entry, "").strip():
                raise DataError(
                    f"the question's meta has no entry {entry!r} (question {question.id} of {step!r})",
                    where=setting,
                    value=entry,
                    cure=f"add it to the source's `keep`, or leave it out: {nearest(entry, question.meta)}",
                )
