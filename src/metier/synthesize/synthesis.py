"""What a recipe may ask of a teacher: the stage `synthesize`. Imports nothing heavy."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from metier.core.stage import Context, ModelRef, Needs, Source, Stage
from metier.engine.endpoint import Endpoint
from metier.synthesize.grounding import Grounding
from metier.synthesize.pair import Difficulty
from metier.synthesize.settings import Ask, FactTable
from metier.text.overlap import Gate

if TYPE_CHECKING:
    from metier.synthesize.templates import Sheet

MIX: dict[Difficulty, float] = {"easy": 0.4, "medium": 0.4, "hard": 0.2}


class Synthesize(Stage):
    """Questions with answers that the material proves: by a teacher model from documents, or by templates from tables.

    What the teacher gives is held against the material: quotations have to stand there, answers in the quotations. What
    does not, and what is asked twice, is kept among the rejects with its reason.
    """

    kind: Literal["synthesize"] = "synthesize"
    produces: ClassVar[str] = "examples"
    version: ClassVar[int] = 1

    documents: Annotated[str, Needs("documents")] | None = None
    """The step whose documents are asked about; those that it holds out are not looked at."""
    teacher: ModelRef | Endpoint | None = None
    """Who writes: a model, or an endpoint with what it costs (`{endpoint: ..., model: ..., prices: {read: 0.15,
    written: 0.6}, budget: 2}`)."""
    ask: Ask = Field(default_factory=Ask)
    """How the teacher is asked."""
    tables: list[FactTable] = Field(default_factory=list)
    """Instead of documents and a teacher: fact tables with their templates, which need no model."""
    count: int | None = Field(None, ge=1)
    """At most so many pairs, even over kinds and documents. Left out: all."""
    difficulty: dict[Difficulty, float] = Field(default_factory=lambda: dict(MIX))
    """The wanted mix, each share beside the others."""
    grounding: Grounding = Field(default_factory=Grounding)
    """When an answer counts as standing in its evidence."""
    max_question_chars: int = Field(400, ge=10)
    """Longer questions are left out."""
    max_answer_chars: int = Field(1200, ge=10)
    """Longer answers are left out."""
    near: float | None = Field(0.8, gt=0, le=1)
    """Questions that share so much of their runs of five words are the same, and the later one is left out. null: only
    the same words are."""
    hold_out: Literal["document", "question"] = "document"
    """What dev and test are parted from train by. document: all pairs of a document (a table's row) on one side.
    question: the same facts in other wordings."""
    test_fraction: float = Field(0.0, ge=0, lt=1)
    """Expected share of the documents, or questions, to test with."""
    dev_fraction: float = Field(0.0, ge=0, lt=1)
    """Expected share of them to choose the best state of training by."""
    keep_out: list[Annotated[str, Needs("documents", "examples")]] = Field(default_factory=list)
    """Steps whose held-out rows may not be trained on here either."""
    contamination: Gate = Field(default_factory=Gate)
    """What counts as showing something that is tested, here and in `keep_out`, and what then happens."""
    system: str | None = Field(None, min_length=1)
    """System message of every pair."""
    seed: int = Field(0, ge=0)
    """Of what is drawn, chosen and held out."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Synthesize":
        if self.tables:
            for name in ("documents", "teacher", "ask"):
                if name in self.model_fields_set:
                    raise ValueError(f"`{name}` has no effect beside `tables`: keep one of the two")
            if "difficulty" in self.model_fields_set and self.count is None:
                raise ValueError(
                    "templates say how hard they are: `difficulty` chooses among them where `count` is given"
                )
        elif self.documents is None or self.teacher is None:
            raise ValueError("give `documents` and a `teacher` that writes of them, or `tables` with their templates")
        if isinstance(self.teacher, Endpoint):
            for name in ("batch_size", "prompt"):
                if name in self.ask.model_fields_set:
                    raise ValueError(f"`ask.{name}` is for a model that runs here: leave it out")
        if self.test_fraction + self.dev_fraction >= 1:
            raise ValueError(
                "dev_fraction and test_fraction together leave nothing to train on: keep their sum below 1"
            )
        if any(share < 0 for share in self.difficulty.values()) or not sum(self.difficulty.values()):
            raise ValueError("`difficulty` has a share of 0 or more for each, and one above 0: {easy: 1, hard: 1}")
        return self

    @property
    def fractions(self) -> dict[str, float]:
        """The expected share of each held-out split."""
        return {"test": self.test_fraction, "dev": self.dev_fraction}

    @property
    def needs_no_model(self) -> bool:
        """It writes by templates alone."""
        return bool(self.tables)

    def check(self, sources: Mapping[str, Source]) -> None:
        """Read tables and templates; or the user's examples and the documents, hold what asking will cost against the
        caps, and see whether the endpoint can be used. Raises InputError."""
        if self.tables:
            from metier.synthesize.making import from_tables

            from_tables(self.tables, self.sheets(sources), self.seed)
            return
        from metier.synthesize.asking import check_endpoint, check_estimate, estimate, material, seeds

        examples = seeds(self, sources)
        source = sources[self.documents or ""]
        if source.paths:
            check_estimate(self, estimate(self, material(self, source), examples))
        check_endpoint(self)

    def sheets(self, sources: Mapping[str, Source]) -> "list[Sheet]":
        """The tables with their templates, read. Raises DataError."""
        from metier.synthesize.making import read_sheets

        return read_sheets(self.tables, sources)

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write every split, with what was left out and why, and what of the material is covered."""
        from metier.synthesize.making import make

        return make(self, ctx)
