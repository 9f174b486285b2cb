"""What a recipe may ask of judges: `judge` lets them label answers, `calibrate` holds them against people's labels.

Imports without torch, numpy or scipy; those start inside `run`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from metier.core.errors import DataError, InputError, RecipeError
from metier.core.stage import Config, Context, FilePattern, ModelRef, Needs, Source, Stage
from metier.engine.endpoint import Endpoint
from metier.engine.interface import Asking
from metier.judge.cases import cases_of
from metier.judge.rubric import Rubric, read, shipped

EVIDENCE = "evidence"


class LocalJudge(Config):
    """A judge whose model runs here: by the log-probabilities of the labels' letters."""

    model: ModelRef
    """A step, a built-in name, a folder or a hub id in the local cache: `google/medgemma-4b-it`,
    `epfl-llm/meditron-7b`."""
    name: str | None = Field(None, min_length=1)
    """What it is called in results; the model's name where nothing is given."""
    family: str | None = Field(None, min_length=1)
    """Which models it is kin to (gemma, llama ...); guessed from the name where nothing is given. Judges of one family
    share their errors, so their agreement says little."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """How its weights are held: bfloat16 takes half the memory (8 GB for 4 billion parameters), and each order of the
    labels is then read on its own."""

    @property
    def title(self) -> str:
        """What it is called in results."""
        return self.name or self.model


class JudgeEndpoint(Endpoint):
    """A judge behind an endpoint: by JSON held to the labels, or by log-probabilities (`choose`)."""

    family: str | None = Field(None, min_length=1)
    """As of a judge whose model runs here."""


class EvidenceJudge(Config):
    """The judge without a large model, helped by a sentence encoder."""

    evidence: ModelRef
    """A small model for sentence-transformers, whose cosine of answer and evidence counts as support where the wording
    differs. `evidence` alone, without a mapping, is the same judge without an encoder."""

    @property
    def title(self) -> str:
        """What it is called in results."""
        return EVIDENCE


class RubricFile(Config):
    """A rubric of one's own."""

    file: FilePattern
    """A Markdown file: `# Title`, what to decide, `## Labels`, a list of `- label: meaning`, the good one first."""


class Pairwise(Config):
    """Answers are compared instead of labelled."""

    against: str = Field(min_length=1)
    """The contender that every other one is compared with, question by question, in both orders."""


AnyJudge = Literal["evidence"] | EvidenceJudge | JudgeEndpoint | LocalJudge


class Judge(Stage):
    """Let judges label every answer against its reference or context, or compare two answers.

    A judge whose model runs here is read by the log-probabilities of its labels over permuted orders; one behind an
    endpoint is held to JSON, or read alike. What gives no valid verdict is unscored and counted. Every verdict is kept
    as it comes: a run that was killed goes on where it was.
    """

    kind: Literal["judge"] = "judge"
    spreads: ClassVar[bool] = True
    produces: ClassVar[str] = "verdicts"
    version: ClassVar[int] = 1

    answers: Annotated[str, Needs("answers")]
    """The step whose answers to judge."""
    judges: list[AnyJudge] = Field(min_length=1)
    """Who judges: `evidence`, `{model: ...}` for one that runs here, `{endpoint: ..., model: ...}` for one elsewhere.
    Two or more of different families, so that they can be held against each other."""
    rubric: str | RubricFile = "consistency"
    """What is decided: `consistency`, `clinical-safety`, `helpfulness`, or `{file: my-rubric.md}`."""
    by: Literal["reference", "context", "both", "question"] = "reference"
    """What answers are held against: the reference, the question's context (its meta entry `context_field`), both, or
    nothing but the question."""
    context_field: str = Field("context", min_length=1)
    """The entry of the questions' `meta` (a source's `keep`) that holds the context."""
    pairwise: Pairwise | None = None
    """Compare each contender's answers with those of one of them, `{against: base}`, in both orders, instead of
    labelling them."""
    contenders: list[str] | None = Field(None, min_length=1)
    """Whose answers to judge; all but those that need no model (a copy of the question, the nearest answer) where
    nothing is given."""
    limit: int | None = Field(None, ge=1)
    """Judge the answers to at most so many questions, evenly spaced."""
    orders: int | None = Field(None, ge=1, le=12)
    """In how many orders of the labels each judge is asked. Left out: as many as there are labels where
    log-probabilities are read, so that each label stands at each place once, and one where JSON is asked for."""
    repeat: int = Field(50, ge=0)
    """So many answers, evenly spaced, are put to every judge behind an endpoint a second time, to see whether it says
    the same again. A judge that runs here computes the same again."""
    longest: int = Field(40_000, ge=100)
    """Characters of question, evidence and answer together that are put to a judge at most."""
    overflow: Literal["stop", "skip"] = "stop"
    """What becomes of an answer that is longer, or does not fit a judge's context: the run is refused before anything
    is asked, or that answer stays unscored and is counted."""
    max_new_tokens: int = Field(64, ge=1)
    """Of a reply in JSON."""
    seed: int = Field(0, ge=0)
    """Of the marks between which judged texts stand."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the intervals; 1 minus this is the tests' error rate."""

    @property
    def names(self) -> list[str]:
        """What the judges are called in results, in order."""
        return [one if isinstance(one, str) else one.title for one in self.judges]

    def check(self, sources: Mapping[str, Source]) -> None:
        """Judges differ, endpoints can be spoken to, the rubric is one, and every answer can be put to a judge."""
        rubric = self.read_rubric(sources)
        self._check_judges(rubric)
        if sources[self.answers].paths:
            cases_of(self, sources[self.answers].path)
        for index, one in enumerate(self.judges):
            if isinstance(one, Endpoint):
                self._check_endpoint(one, f"judges.{index}")

    def read_rubric(self, sources: Mapping[str, Source]) -> Rubric:
        """The rubric, ours or the file's."""
        return shipped(self.rubric) if isinstance(self.rubric, str) else read(sources[self.rubric.file].path)

    def _check_judges(self, rubric: Rubric) -> None:
        files: dict[str, str] = {}
        for index, name in enumerate(self.names):
            other = files.setdefault(verdicts_path(Path(), name).name, name)
            if index and name in self.names[:index]:
                cure = "give one of them a `name`"
                raise RecipeError("two judges have one name", where=f"judges.{index}", value=name, cure=cure)
            if other != name:
                what = f"the judges {other!r} and {name!r} would share a file"
                raise RecipeError(what, where=f"judges.{index}", cure="give one of them a `name`")
            if name == EVIDENCE and rubric.name != "consistency":
                raise RecipeError(
                    "the evidence judge decides consistency alone",
                    where=f"judges.{index}",
                    value=rubric.name,
                    cure="leave it out, or judge consistency in a step of its own",
                )
            if name == EVIDENCE and self.by == "question":
                cure = "set `by: reference` or `by: context`"
                raise RecipeError("the evidence judge needs evidence", where="by", value=self.by, cure=cure)

    def _check_endpoint(self, one: Endpoint, where: str) -> None:
        from metier.engine.remote import RemoteEngine

        try:
            one.check()
            RemoteEngine(one, Asking(self.max_new_tokens)).check(likelihoods=one.choose == "logprobs")
        except InputError as error:
            raise error.within(where)  # noqa: B904 - the same error

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write verdicts and what they come to. Returns every contender's share of the good label by every judge."""
        from metier.judge.judging import judge_all

        return judge_all(self, ctx, self.read_rubric(ctx.sources))


class Calibrate(Stage):
    """Hold judges against what people say of the same answers, and correct their rates by it.

    The labels are made with `metier label`: a JSONL file of which each row names an answer, its text's digest and the
    label. A label of an answer whose text has changed since is left out and counted.
    """

    kind: Literal["calibrate"] = "calibrate"
    produces: ClassVar[str] = "agreement"
    version: ClassVar[int] = 1

    verdicts: Annotated[str, Needs("verdicts")]
    """The step whose judges to hold against people."""
    labels: FilePattern
    """The file, or files, of people's labels."""
    pooled: bool = True
    """A judge's errors are counted over all contenders' labelled answers. false: over each contender's own, which takes
    more labels but holds where a judge favours one."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the intervals."""
    seed: int = Field(0, ge=0)
    """Of the draws behind the intervals of corrected rates."""

    def check(self, sources: Mapping[str, Source]) -> None:
        """The labels can be read and, where the verdicts are there, some of them are of answers that were judged."""
        from metier.judge.labels import read_labels

        rows = read_labels(sources[self.labels].paths)
        if not rows:
            cure = "label a sample first: metier label RECIPE"
            raise DataError("nobody labelled anything", where="labels", value=self.labels, cure=cure)

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write agreement.json. Returns every judge's kappa with people, and the corrected shares."""
        from metier.judge.calibrating import calibrate

        return calibrate(self, ctx)


def verdicts_path(folder: Path, judge: str) -> Path:
    """Where one judge's verdicts lie below an artifact's `files`."""
    return folder / "verdicts" / f"{judge.replace('/', '--')}.jsonl"
