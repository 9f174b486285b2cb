"""What a recipe may ask of calibration and of the guard. Imports nothing heavy."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from metier.core.errors import DataError, RecipeError, nearest
from metier.core.stage import Config, Needs, Source
from metier.measure.metrics import METRICS
from metier.measure.metrics import require as require_metric
from metier.text.artifacts import read_questions
from metier.text.items import Item, check_ids, item_of
from metier.text.nouns import Question
from metier.text.refusals import HARMLESS, REFUSALS_TEST, UNSAFE

T = TypeVar("T")
FEWEST = 2
"""Items below which no interval can be given."""
Split = Literal["dev", "test", "train"]


class Calibration(Config):
    """The text from which it is read what matters: of the training split, never of what the guard asks."""

    documents: Annotated[str, Needs("documents")] | None = None
    """The step whose documents to read. Left out, as `examples` is: the guard's."""
    examples: Annotated[str, Needs("examples")] | None = None
    """The step whose conversations to read, written down as the model's chat template does."""
    samples: int = Field(64, ge=1)
    """So many pieces of the longest kind are read, evenly spaced over the split: as many tokens of shorter ones, and
    fewer where there is less text."""
    tokens: int = Field(256, ge=8)
    """Tokens of the longest piece. A longer text is cut; each text is read by itself."""

    @model_validator(mode="after")
    def _one_origin(self) -> "Calibration":
        if self.documents is not None and self.examples is not None:
            raise ValueError("calibration reads either `documents` or `examples`")
        return self


class Guard(Config):
    """What must still hold, or the smaller model is not kept. Each entry that is given is one condition or more.

    A condition compares both models on the same items and looks at one bound of the difference: it must lie on the good
    side of the margin, so that what cannot be told does not count as holding. All must hold.
    """

    examples: Annotated[str, Needs("examples")] | None = None
    """The step whose questions both answer: the score must not fall, nor repetition rise."""
    split: Split = "dev"
    """Which part of the examples and classes to ask. What a guard asked is no test any more."""
    metric: str = "token_f1"
    """How answers are scored: a metric of `score` that is higher where answers are better."""
    margin: float = Field(0.05, gt=0, lt=1)
    """How far the score may fall."""
    repetition_margin: float = Field(0.05, gt=0, lt=1)
    """How far the share of repeated word runs in answers may rise."""
    max_new_tokens: int = Field(64, ge=1)
    """An answer is cut after so many tokens."""
    batch_size: int = Field(32, ge=1)
    """Questions answered at a time."""
    documents: Annotated[str, Needs("documents")] | None = None
    """The step whose held-out documents both read: the domain's bits per byte must not rise."""
    general: Annotated[str, Needs("documents")] | None = None
    """The same of a step of general text."""
    bits_margin: float = Field(0.05, gt=0)
    """How far bits per byte may rise, as a share of what they were."""
    classes: Annotated[str, Needs("examples")] | None = None
    """The step of a labelled set, whose rows carry `choices` and `label` (source setting `keep`): of each class as many
    items must still be found, by the likelihood of the choices. A class that is lost altogether never passes."""
    class_margin: float = Field(0.15, gt=0, lt=1)
    """How far the share of a class that is found may fall."""
    refusals: Annotated[str, Needs("examples")] | None = None
    """The step whose `refusals.test` prompts both answer: neither unsafe ones complied with nor harmless ones declined
    may become more."""
    refusal_margin: float = Field(0.1, gt=0, lt=1)
    """How far the share of unsafe prompts complied with, or of harmless ones declined, may rise."""
    limit: int | None = Field(None, ge=FEWEST)
    """At most so many items of each kind, evenly spaced."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of each bound, one-sided."""

    @field_validator("metric")
    @classmethod
    def _known(cls, name: str) -> str:
        better = [m.name for m in METRICS.values() if m.higher_is_better and m.reads_reference]
        if name not in better:
            raise ValueError(f"no metric that a guard can hold: {name!r}; {nearest(name, better)}")
        return name

    @model_validator(mode="after")
    def _looks_at_something(self) -> "Guard":
        if not (self.examples or self.documents or self.classes):
            raise ValueError(
                "a guard needs data to look at the trade with: `examples`, `documents` or `classes`; guard: false lets "
                "everything pass"
            )
        given = self.model_fields_set
        for needed, names in {
            "examples": ("metric", "margin", "repetition_margin"),
            "classes": ("class_margin",),
            "refusals": ("refusal_margin",),
        }.items():
            idle = [name for name in names if name in given and getattr(self, needed) is None]
            if idle:
                raise ValueError(f"`{idle[0]}` has no effect without `{needed}`")
        if "bits_margin" in given and not (self.documents or self.general):
            raise ValueError("`bits_margin` has no effect without `documents` or `general`")
        return self

    def check(self, sources: Mapping[str, Source], where: str) -> None:
        """Raise InputError where there is nothing to ask, or so little that no model could pass.

        where: the guard's place in the step, for the message.
        """
        require_metric(self.metric)
        for name in ("documents", "general"):
            step = getattr(self, name)
            if step is not None:
                check_split(sources[step], "heldout", f"{where}.{name}")
        if self.examples is not None and check_split(sources[self.examples], self.split, f"{where}.examples"):
            questions = self.asked(sources[self.examples])
            self._enough(len(questions), self.margin, f"{where}.examples", "questions")
            self._enough(len(questions), self.repetition_margin, f"{where}.examples", "questions")
            for question in questions:
                if not question.reference.strip():
                    raise DataError(
                        f"the question has no reference answer, which {self.metric} compares with",
                        where=f"{where}.examples: question {question.id}",
                        value=question.reference,
                        cure="give it an answer, or leave it out",
                    )
        if self.refusals is not None and check_split(sources[self.refusals], REFUSALS_TEST, f"{where}.refusals"):
            for group in (UNSAFE, HARMLESS):
                count = len(self.prompts(sources[self.refusals], group))
                self._enough(count, self.refusal_margin, f"{where}.refusals", f"{group} prompts")
        if self.classes is not None and check_split(sources[self.classes], self.split, f"{where}.classes"):
            items = self.labelled(sources[self.classes])
            for label in dict.fromkeys(item.label for item in items):
                count = sum(item.label == label for item in items)
                self._enough(count, self.class_margin, f"{where}.classes", f"questions labelled {label!r}")

    def asked(self, source: Source) -> list[Question]:
        """The questions of an examples step that are asked."""
        return spaced(read_questions(source.path, self.split), self.limit)

    def prompts(self, source: Source, group: str) -> list[Question]:
        """The prompts of an examples step that are to be declined (unsafe), or that sound alike (harmless)."""
        return spaced([q for q in read_questions(source.path, REFUSALS_TEST) if q.group == group], self.limit)

    def labelled(self, source: Source) -> list[Item]:
        """The items of a labelled set that are asked. Raises DataError where a row is none, or there are none."""
        items = [item_of(question) for question in read_questions(source.path, self.split)]
        check_ids(items, f"the {self.split} split of {source.name!r}")
        return spaced(items, self.limit)

    def _enough(self, count: int, margin: float, where: str, what: str) -> None:
        needed = fewest(margin, self.confidence)
        if count < needed:
            smallest = needed_margin(count, self.confidence)
            raise DataError(
                f"with {count} {what} not even an unchanged model could be told from one that is {margin:g} worse",
                where=where,
                value=count,
                cure=f"ask at least {needed} (limit, split), or allow a margin of {smallest:.2f}",
            )


def fewest(margin: float, confidence: float) -> int:
    """How many items it takes so that answers that are all alike prove a difference within the margin.

    By the interval of Bonett and Price, which adds an item that speaks for either side: z sqrt(2) / (n + 2).
    """
    return max(FEWEST, int(-(-_z(confidence) * 2**0.5 // margin)) - 2)


def needed_margin(count: int, confidence: float) -> float:
    """The smallest margin that so many items can prove, rounded up to a hundredth."""
    return -(-(_z(confidence) * 2**0.5 / (count + 2)) // 0.01) * 0.01 + 0.01


def _z(confidence: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(confidence)


def check_split(source: Source, split: str, where: str) -> bool:
    """Whether a step has run. Raises DataError where it has and left nothing in that split."""
    if not source.paths:
        return False
    path = source.path / f"{split}.jsonl"
    if not path.is_file() or not path.stat().st_size:
        raise DataError(
            f"there is nothing to look at: the {split} split of {source.name!r} is empty",
            where=where,
            value=source.name,
            cure=f"give that step a {split} split, or name another step",
        )
    return True


def calibration_source(
    calibration: Calibration, guard: Guard | None, where: str
) -> tuple[str, Literal["documents", "examples"]]:
    """The step that calibration reads, and what it makes. Raises RecipeError where nothing says which."""
    if calibration.documents is not None:
        return calibration.documents, "documents"
    if calibration.examples is not None:
        return calibration.examples, "examples"
    if guard is not None:
        for step, kind in ((guard.documents, "documents"), (guard.examples, "examples")):
            if step is not None:
                return step, "documents" if kind == "documents" else "examples"
    raise RecipeError(
        "there is no text to read from what matters",
        where=where,
        cure="name a step: calibration: {documents: ...} or {examples: ...}; or rank by magnitude, which needs none",
    )


def spaced(things: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` of them, evenly spaced."""
    kept = len(things) if limit is None else min(len(things), limit)
    return [things[index * len(things) // kept] for index in range(kept)]
