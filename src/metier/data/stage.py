"""What a recipe may ask of data: the stages `documents` and `examples`.

Every source is read once when a recipe is checked, before any step runs, so bad input stops early and nothing is kept;
then near-duplicates and the contamination gate, which take longer, wait for the run (unless the gate is to stop it).
Texts stay on disk; a row costs about 100 bytes of memory. Whatever is left out of the artifact stands in
`rejects.jsonl` with its place and reason.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from metier.core.stage import KEEP_GOING, Context, Needs, Source, Stage
from metier.data.cleaning import Cleaning
from metier.data.contamination import Gate
from metier.data.files import Faults
from metier.data.grouping import OF_DOCUMENTS, OF_EXAMPLES, By, Grouper, Placer, Split, pins
from metier.data.privacy import Privacy
from metier.data.settings import (
    Duplicates,
    ExampleReplay,
    ExampleSource,
    Origin,
    Refusals,
    TextReplay,
    TextSource,
    no_weights,
    weights_agree,
)
from metier.text.refusals import HARMLESS, REFUSALS_TEST, UNSAFE

if TYPE_CHECKING:
    from metier.data.gathering import Part, Pile, Telling
    from metier.data.sources import Read, Reading
    from metier.data.spool import Fates
    from metier.data.treating import Treatment

Fraction = Field(0.0, ge=0, lt=1)


class Gathered(Stage):
    """What both have in common: what is done to rows, and which of them stay."""

    spreads: ClassVar[bool] = True
    measured: ClassVar[tuple[str, ...]]
    known: ClassVar[tuple[By, ...]]

    clean: Cleaning = Field(default_factory=Cleaning)
    """What is done to texts, and which are left out."""
    privacy: Privacy = Field(default_factory=Privacy)
    """What is done about e-mail addresses, numbers and the like."""
    duplicates: Duplicates = Field(default_factory=Duplicates)
    """Which rows are superfluous."""
    split: Split = Field(default_factory=Split)
    """What stays together, and what is fixed beforehand."""
    contamination: Gate = Field(default_factory=Gate)
    """What is done where something to measure with is also trained on."""
    keep_out: list[Annotated[str, Needs("documents", "examples")]] = Field(default_factory=list)
    """Steps whose held-out rows may not be trained on here either."""
    max_rejected: float = Field(0.05, ge=0, le=1)
    """Share of unusable rows above which the step stops."""
    seed: int = Field(0, ge=0)
    """Decides which rows are held out."""

    def check(self, sources: Mapping[str, Source]) -> None:
        """Read every source; raises DataError."""
        with ExitStack() as stack:
            whole = self.contamination.action == "stop"
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="metier-"))) if whole else None
            self._gather(sources, folder, None, private=False)

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write every split, with what was left out and why."""
        from metier.data.writing import domains, write

        telling = _telling(ctx)
        pile, fates, treatment, exposed = self._gather(ctx.sources, ctx.scratch, telling, private=True, out=ctx.out)
        more: dict[str, Any] = {**self._shares(), **treatment.json(), "contamination": exposed}
        if any(source.weight for source in self._weighted()):
            rows = domains(pile, fates, part="sources", split="train")
            weights = [source.weight for source in self._weighted()]
            more["domains"] = [{"rows": n, "weight": w} for n, w in zip(rows, weights, strict=True)]
        metrics = write(ctx.out, pile, fates, telling=telling, more=more)
        pile.remove()
        return metrics

    def _gather(
        self,
        sources: Mapping[str, Source],
        folder: Path | None,
        telling: "Telling | None",
        *,
        private: bool,
        out: Path | None = None,
    ) -> "tuple[Pile, Fates, Treatment, dict[str, Any]]":
        """Read, settle and look. folder: for the rows' text; None looks at numbers alone. out: for the list of hits.

        Returns what the gate found as the last.
        """
        from metier.data.gathering import Telling, check_filled, check_rejected, read, separate
        from metier.data.sources import Pool, Reading, workers_for
        from metier.data.treating import Treatment

        telling = telling or Telling()
        treatment = Treatment(self.clean, self.privacy, private)
        faults = Faults(KEEP_GOING.get())
        fractions = self._fractions()
        pinned = pins(self.split, lambda pattern: sources[pattern].paths)
        placer = Placer(fractions, self.seed, "train", self.split, pinned)
        reading = Reading(
            sources, treatment, faults, telling.note, by_row="row" in self.split.by, most_asked=self._most_asked()
        )
        parts = self._parts(reading)
        splits = {part.split for part in parts}
        order = (
            *self.measured,
            *([REFUSALS_TEST] if REFUSALS_TEST in splits else []),
            "train",
            "replay",
            *(["refusals"] if "refusals" in splits else []),
        )
        grouper = self._grouper() if folder is not None else None
        with ExitStack() as stack:
            workers = workers_for(sources)
            reading.pool = stack.enter_context(Pool(treatment, workers)) if workers else None
            pile = read(
                parts,
                order=order,
                placer=placer,
                grouper=grouper,
                folder=folder,
                telling=telling,
                hide=self.privacy.hidden,
            )
        faults.stop()
        check_rejected(pile, self.max_rejected)
        fates = separate(pile, repeats=self.duplicates.exact)
        expected = self._expected(sources)
        check_filled(pile, fates, expected)
        exposed: dict[str, Any] = {}
        if folder is not None:
            exposed = self._compare(sources, pile, fates, out or folder, telling)
            check_filled(pile, fates, expected)
        return pile, fates, treatment, exposed

    def _compare(
        self, sources: Mapping[str, Source], pile: "Pile", fates: "Fates", out: Path, telling: "Telling"
    ) -> dict[str, Any]:
        from metier.data.gates import drop_near, guard, keep_pairs

        near = self.duplicates.wanted
        if near is not None:
            drop_near(pile, fates, near, telling=telling)
        keep_out = {name: sources[name].path for name in self.keep_out if sources[name].paths}
        exposed = guard(pile, fates, self.contamination, keep_out=keep_out, out=out, telling=telling)
        if "refusals" in fates.order:
            keep_pairs(pile, fates)
        return exposed

    def _grouper(self) -> Grouper | None:
        own = {"question", "text", "row"}  # a key alone says these
        if set(self.split.by) <= own:
            return None
        return Grouper(self.split.by, near=self.duplicates.wanted, gate=self.contamination)

    def _shares(self) -> dict[str, float]:
        """What training mixes in, as about.json has it."""
        return {"replay_ratio": 0.0}

    def _most_asked(self) -> int | None:
        """Characters before the answer above which an example is left out."""
        return None

    @abstractmethod
    def _weighted(self) -> Sequence[Origin]:
        """The sources that are trained on."""

    @abstractmethod
    def _fractions(self) -> dict[str, float]:
        """The share of groups for each split that is held out, the one to measure with first."""

    @abstractmethod
    def _parts(self, reading: "Reading") -> "list[Part]":
        """What is read, in order."""

    @abstractmethod
    def _expected(self, sources: Mapping[str, Source]) -> dict[str, str]:
        """The splits that may not be empty, each with the setting that should fill it."""


class Documents(Gathered):
    """Read texts to train on, and set some aside to measure with."""

    kind: Literal["documents"] = "documents"
    produces: ClassVar[str] = "documents"
    version: ClassVar[int] = 3
    measured: ClassVar[tuple[str, ...]] = ("heldout",)
    known: ClassVar[tuple[By, ...]] = OF_DOCUMENTS

    sources: list[TextSource] = Field(default_factory=list)
    """The texts to train on. None, where the step only holds texts to measure with."""
    heldout: list[TextSource] = Field(default_factory=list)
    """Texts to measure with; a training text that stands here too is dropped from training."""
    heldout_fraction: float = Fraction
    """Share of the sources' documents to hold out as well, chosen by their content and the seed."""
    replay: TextReplay | None = None
    """General texts to mix in when training, against forgetting."""
    min_chars: int = Field(1, ge=1)
    """Documents with fewer characters are rejected."""

    @model_validator(mode="after")
    def _something_to_read(self) -> "Documents":
        if not self.sources and not self.heldout:
            raise ValueError("give `sources` to train on, `heldout` to measure with, or both")
        if not self.sources and (self.replay or self.heldout_fraction):
            raise ValueError("`replay` and `heldout_fraction` have no effect without `sources`")
        self.split.check(self.known, self._fractions())
        weights_agree(self.sources)
        no_weights("heldout", self.heldout)
        no_weights("replay", self.replay.sources if self.replay else [])
        return self

    def _weighted(self) -> Sequence[TextSource]:
        return self.sources

    def _fractions(self) -> dict[str, float]:
        return {"heldout": self.heldout_fraction}

    def _shares(self) -> dict[str, float]:
        return {"replay_ratio": self.replay.ratio if self.replay else 0.0}

    def _parts(self, reading: "Reading") -> "list[Part]":
        from metier.data.gathering import Part

        def texts(source: TextSource) -> "partial[Read]":
            return partial(reading.documents, source, self.min_chars)

        parts = [
            Part("sources", None, [texts(s) for s in self.sources]),
            Part("heldout", "heldout", [texts(s) for s in self.heldout]),
        ]
        if self.replay:
            made = [partial(reading.step, self.replay.step)] if self.replay.step else map(texts, self.replay.sources)
            parts.append(Part("replay", "replay", list(made), grouped=False))
        return parts

    def _expected(self, sources: Mapping[str, Source]) -> dict[str, str]:
        expected = {"train": "sources"} if self.sources else {}
        expected |= _held_out(self, "heldout", self.heldout, self.heldout_fraction)
        if self.replay and _is_there(self.replay.step, sources):
            expected["replay"] = "replay"
        return expected


class Examples(Gathered):
    """Read questions and answers, or longer conversations, to train on and to test with."""

    kind: Literal["examples"] = "examples"
    produces: ClassVar[str] = "examples"
    version: ClassVar[int] = 3
    measured: ClassVar[tuple[str, ...]] = ("test", "dev")
    known: ClassVar[tuple[By, ...]] = OF_EXAMPLES

    sources: list[ExampleSource] = Field(default_factory=list)
    """The examples to train on. None, where the step only holds examples to measure with."""
    dev: list[ExampleSource] = Field(default_factory=list)
    """Examples to choose the best state of training by; none of their questions is trained on."""
    test: list[ExampleSource] = Field(default_factory=list)
    """Examples to measure with; a question that stands here is dropped from everything else."""
    dev_fraction: float = Fraction
    """Share of the sources' questions to use as dev as well, chosen by the question and the seed."""
    test_fraction: float = Fraction
    """Share of the sources' questions to use as test as well, chosen by the question and the seed."""
    system: str | None = Field(None, min_length=1)
    """System message for the examples that bring none of their own."""
    max_question_chars: int | None = Field(None, ge=1)
    """Examples with more characters before their answer are left out of every split, and listed in `rejects.jsonl`: a
    test that no contender can read whole measures something else. null: any length."""
    replay: ExampleReplay | None = None
    """General examples to mix in when training, against forgetting."""
    refusals: Refusals | None = None
    """Questions to be declined, with harmless twins: to train on, to measure with, or both."""

    @model_validator(mode="after")
    def _leave_some(self) -> "Examples":
        if not self.sources and not (self.test or self.dev or (self.refusals and self.refusals.test)):
            raise ValueError("give `sources` to train on, `test` or `dev` to measure with, or both")
        if not self.sources and (self.replay or self.dev_fraction or self.test_fraction):
            raise ValueError("`replay`, `dev_fraction` and `test_fraction` have no effect without `sources`")
        if self.dev_fraction + self.test_fraction >= 1:
            raise ValueError(
                "dev_fraction and test_fraction together leave nothing to train on: keep their sum below 1"
            )
        self.split.check(self.known, self._fractions())
        weights_agree(self.sources)
        no_weights("dev", self.dev)
        no_weights("test", self.test)
        no_weights("replay", self.replay.sources if self.replay else [])
        no_weights("refusals", self.refusals.origins if self.refusals else [])
        mixed = sum(self._shares().values())
        if mixed >= 1:
            raise ValueError(
                f"replay and refusals together are {mixed:.0%} of what is trained on: leave room for `sources`"
            )
        return self

    def _most_asked(self) -> int | None:
        return self.max_question_chars

    def _weighted(self) -> Sequence[ExampleSource]:
        return self.sources

    def _fractions(self) -> dict[str, float]:
        return {"test": self.test_fraction, "dev": self.dev_fraction}

    def _shares(self) -> dict[str, float]:
        shares = {"replay_ratio": self.replay.ratio if self.replay else 0.0}
        return shares | ({"refusal_share": self.refusals.share} if self.refusals and self.refusals.sources else {})

    def _parts(self, reading: "Reading") -> "list[Part]":
        from metier.data.gathering import Part

        def rows(source: ExampleSource) -> "partial[Read]":
            return partial(reading.conversations, source, self.system)

        parts = [
            Part("sources", None, [rows(s) for s in self.sources]),
            Part("test", "test", [rows(s) for s in self.test]),
            Part("dev", "dev", [rows(s) for s in self.dev]),
        ]
        if self.replay:
            made = [partial(reading.step, self.replay.step)] if self.replay.step else map(rows, self.replay.sources)
            parts.append(Part("replay", "replay", list(made), grouped=False))
        if self.refusals and self.refusals.sources:
            given = [partial(reading.pairs, self.refusals, self.system)]
            parts.append(Part("refusals", "refusals", given, grouped=False))
        if self.refusals and self.refusals.test:
            asked = ((UNSAFE, self.refusals.test), (HARMLESS, self.refusals.test_twins))
            prompts = [partial(reading.prompts, s, self.system, group) for group, sources in asked for s in sources]
            parts.append(Part("refusals.test", REFUSALS_TEST, prompts, grouped=False))
        return parts

    def _expected(self, sources: Mapping[str, Source]) -> dict[str, str]:
        expected = {"train": "sources"} if self.sources else {}
        expected |= _held_out(self, "test", self.test, self.test_fraction)
        expected |= _held_out(self, "dev", self.dev, self.dev_fraction)
        if self.replay and _is_there(self.replay.step, sources):
            expected["replay"] = "replay"
        if self.refusals and self.refusals.test:
            expected[REFUSALS_TEST] = "refusals.test"
        return expected | ({"refusals": "refusals"} if self.refusals and self.refusals.sources else {})


def _held_out(stage: Gathered, name: str, given: Sequence[Any], fraction: float) -> dict[str, str]:
    """What should fill a split that is held out, where anything should."""
    if given:
        return {name: name}
    if fraction:
        return {name: f"{name}_fraction"}
    if name in stage.split.ids:
        return {name: f"split.ids.{name}"}
    return {name: "split.folds"} if stage.split.folds and name == stage.measured[0] else {}


def _is_there(step: str | None, sources: Mapping[str, Source]) -> bool:
    """Whether what is mixed in can be read: a step that has not run yet cannot."""
    return step is None or bool(sources[step].paths)


def _telling(ctx: Context) -> "Telling":
    from metier.data.gathering import Telling

    total = sum(path.stat().st_size for source in ctx.sources.values() for path in source.paths if path.is_file())

    def tick(rows: int, done: int) -> None:
        ctx.check_stop()
        size = round(min(done, total) / 1e6, 3), round(total / 1e6, 3)
        ctx.events.progress("read", *size, unit="MB", rows=rows)

    def progress(task: str, done: int, total: int) -> None:
        ctx.check_stop()
        ctx.events.progress(task, done, total, unit="rows")

    return Telling(ctx.events.note, tick, progress)
