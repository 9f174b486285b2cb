"""What a recipe may ask of a teacher: the stage `synthesize`. Imports nothing heavy."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from metier.core.stage import Context, Needs, Source, Stage
from metier.synthesize.grounding import Grounding
from metier.synthesize.pair import Difficulty
from metier.synthesize.settings import FactTable
from metier.text.overlap import Gate

if TYPE_CHECKING:
    from metier.synthesize.templates import Sheet

MIX: dict[Difficulty, float] = {"easy": 0.4, "medium": 0.4, "hard": 0.2}


class Synthesize(Stage):
    """Questions with answers that the material proves: written from fact tables by templates, or by a teacher model."""

    kind: Literal["synthesize"] = "synthesize"
    produces: ClassVar[str] = "examples"
    version: ClassVar[int] = 1

    tables: list[FactTable] = Field(default_factory=list)
    """Fact tables with their templates, which need no model."""
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
        if not self.tables:
            raise ValueError("give `tables` with their templates")
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

    def check(self, sources: Mapping[str, Source]) -> None:
        """Read the tables and their templates; raises DataError."""
        from metier.synthesize.making import from_tables

        from_tables(self.tables, self.sheets(sources), self.seed)

    def sheets(self, sources: Mapping[str, Source]) -> "list[Sheet]":
        """The tables with their templates, read. Raises DataError."""
        from metier.synthesize.making import read_sheets

        return read_sheets(self.tables, sources)

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write every split, with what was left out and why, and what of the material is covered."""
        from metier.synthesize.making import make

        return make(self, ctx)
