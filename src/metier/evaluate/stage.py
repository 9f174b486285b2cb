"""What a recipe may ask of evaluation: `answer` generates once, `score` and `perplexity` measure.

Imports without torch, numpy or scipy; those start inside `run`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from metier.core.errors import DataError, RecipeError, nearest
from metier.core.stage import Context, ModelRef, Needs, Source, Stage
from metier.evaluate.exposure import ExposureGate, expose, refuse_early, settle, ticker
from metier.evaluate.metrics import METRICS, metric
from metier.evaluate.scoring import check_references, contenders, exposed, item_rows, read_all
from metier.text.artifacts import answers_path, read_documents, read_questions, write_json, write_jsonl
from metier.text.nouns import Document, Question

MetricName = Literal["token_f1", "exact_match", "rouge_l", "stopped", "output_tokens", "length_ratio"]


class Answer(Stage):
    """Let every contender answer the same questions, once, for any number of scores to read.

    Seconds of an answer are its share of its batch's time (see engine.local.Generation): cost, not waiting time.
    """

    kind: Literal["answer"] = "answer"
    produces: ClassVar[str] = "answers"
    version: ClassVar[int] = 2

    models: list[ModelRef] = Field(min_length=1)
    """The contenders: steps, built-in names, folders or hub ids. The first is what others are compared with."""
    questions: Annotated[str, Needs("examples")]
    """The step whose conversations are asked; the last message of each is the reference."""
    split: Literal["test", "dev", "train"] = "test"
    """Which part of the examples to ask."""
    max_new_tokens: int = Field(64, ge=1)
    """An answer is cut after so many tokens."""
    temperature: float = Field(0.0, ge=0)
    """0 always takes the likeliest token; above, tokens are drawn, the more freely the higher."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw only among the likeliest tokens that together have this probability."""
    seed: int = Field(0, ge=0)
    """Of the draws. Each question has a generator of its own."""
    limit: int | None = Field(None, ge=1)
    """Ask at most so many questions, evenly spaced over the split."""
    batch_size: int = Field(32, ge=1)
    """Questions answered at a time. Part of the identity: rounding differs, and may break a near tie differently."""
    contamination: ExposureGate | Literal[False] = ExposureGate()
    """How questions that a contender was trained on are found, and what becomes of them. false: nobody looks."""

    def check(self, sources: Mapping[str, Source]) -> None:
        """Contenders are different, and there is something to ask."""
        check_contenders(self.models)
        source = sources[self.questions]
        check_split(source, self.split, "questions")
        if source.paths and self.contamination and self.contamination.action == "stop":
            questions = {q.id: q for q in read_questions(source.path, self.split)}
            refuse_early({name: sources[name] for name in self.models}, questions, self.contamination)

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write questions, contenders and answers. Returns each one's share of answers that stop, and mean tokens."""
        from metier.evaluate.answering import Asking, answer_all, spread

        questions = self._ask(ctx.source(self.questions))
        chosen = self._unseen(ctx, [questions[i] for i in spread(len(questions), self.limit)])
        asking = Asking(self.max_new_tokens, self.temperature, self.top_p, self.seed, self.batch_size)
        return answer_all(ctx, self.models, chosen, asking)

    def _unseen(self, ctx: Context, questions: list[Question]) -> list[Question]:
        """The questions that are left where the gate drops what was seen."""
        if self.contamination is False:
            return questions
        asked = {q.id: q for q in questions}
        found = expose({name: ctx.source(name) for name in self.models}, asked, self.contamination, ticker(ctx))
        dropped = settle(ctx, found, self.contamination, "questions")
        return [q for q in questions if q.id not in dropped]

    def _ask(self, source: Source) -> list[Question]:
        check_split(source, self.split, "questions")
        questions = read_questions(source.path, self.split)
        check_unique([q.id for q in questions], f"questions of {source.name!r}")
        return questions


class Score(Stage):
    """Measure answers against their references: an interval for every mean, a paired test for every difference.

    All comparisons of the step are corrected together (Holm), so asking more of one step makes each claim harder.
    Where a contender was trained on some of the questions, everything is given on all and on the others (`clean`).
    """

    kind: Literal["score"] = "score"
    produces: ClassVar[str] = "scores"
    version: ClassVar[int] = 2

    answers: Annotated[str, Needs("answers")]
    """The step whose answers to score."""
    metrics: list[MetricName] = Field(default=["token_f1", "exact_match", "rouge_l"], min_length=1)
    """What to measure of each answer."""
    against: list[str] | None = None
    """The contenders that every other is compared with; the first contender alone where nothing is given."""
    resamples: int = Field(2000, ge=200)
    """Bootstrap resamples of an interval."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the intervals; 1 minus this is the tests' error rate."""
    seed: int = Field(0, ge=0)
    """Of the resampling."""

    @field_validator("metrics", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        for name in value if isinstance(value, list) else ():
            if isinstance(name, str) and name not in METRICS:
                raise ValueError(f"no such metric: {name!r}; {nearest(name, METRICS)}")
        return value

    def check(self, sources: Mapping[str, Source]) -> None:
        """No metric or contender is named twice; those to compare with exist, where that is known already."""
        check_distinct("metrics", self.metrics)
        check_against(self.against)
        if sources[self.answers].paths:
            check_against(self.against, contenders(sources[self.answers].path))

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write items and scores. Returns every contender's mean of every metric over all items, and the clean ones."""
        from metier.evaluate.table import ALL, CLEAN, Settings, answer_columns, table

        measured = [metric(name) for name in self.metrics]
        answers = read_all(ctx.source(self.answers).path)
        names = list(answers)
        check_against(self.against, names)
        check_references(answers, measured)
        rows = item_rows(answers, measured)
        settings = Settings(tuple(self.against or names[:1]), self.confidence, self.resamples, self.seed)
        exposure = exposed(ctx.source(self.answers).path)
        scores = table(answer_columns(rows, measured, exposure.seen), settings) | exposure.summary
        write_jsonl(ctx.out / "items.jsonl", rows)
        write_json(ctx.out / "scores.json", scores)
        named = {ALL: "", CLEAN: f" {CLEAN}"}
        return {
            f"{r['contender']} {r['metric']}{named[r['group']]}": r["mean"]
            for r in scores["rows"]
            if r["group"] in named
        }


class Perplexity(Stage):
    """Read held-out documents with every contender: bits per byte and perplexity, paired between contenders."""

    kind: Literal["perplexity"] = "perplexity"
    produces: ClassVar[str] = "scores"
    version: ClassVar[int] = 2

    models: list[ModelRef] = Field(min_length=1)
    """The contenders, as in `answer`."""
    documents: list[Annotated[str, Needs("documents")]] = Field(min_length=1)
    """The steps whose held-out documents to read; each is a group of its own in the scores."""
    window: int | None = Field(None, ge=2)
    """Tokens read at once; the model's whole context where nothing is given."""
    stride: int | None = Field(None, ge=1)
    """Tokens by which the window moves; half of it where nothing is given. Smaller is slower and a little kinder."""
    limit: int | None = Field(None, ge=1)
    """Read at most so many documents of each step, evenly spaced."""
    against: list[str] | None = None
    """As in `score`."""
    resamples: int = Field(2000, ge=200)
    """As in `score`; whole documents are resampled."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """As in `score`."""
    seed: int = Field(0, ge=0)
    """Of the resampling."""
    contamination: ExposureGate | Literal[False] = ExposureGate()
    """As in `answer`, of documents."""

    def check(self, sources: Mapping[str, Source]) -> None:
        """Contenders and documents are different, those to compare with are among them, and there is text to read."""
        check_contenders(self.models)
        check_distinct("documents", self.documents)
        check_against(self.against, self.models)
        if self.window is not None and self.stride is not None and self.stride >= self.window:
            raise RecipeError(
                f"the stride must be below the window of {self.window}", where="stride", value=self.stride
            )
        for step in self.documents:
            check_split(sources[step], "heldout", "documents")

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write items (one a document) and scores. Returns every contender's bits per byte on every documents step."""
        from metier.evaluate import reading
        from metier.evaluate.answering import spread
        from metier.evaluate.table import Settings, table

        texts: dict[str, list[Document]] = {}
        for step in self.documents:
            held = _held_out(ctx.source(step))
            texts[step] = [held[i] for i in spread(len(held), self.limit)]
        seen, left_out = self._seen(ctx, texts)
        kept = {step: [d for d in held if (step, d.id) not in left_out] for step, held in texts.items()}
        texts = {step: held for step, held in kept.items() if held}
        rows = reading.read_all(ctx, self.models, texts, window=self.window, stride=self.stride)
        against = tuple(self.against or self.models[:1])
        scores = table(reading.columns(rows, seen), Settings(against, self.confidence, self.resamples, self.seed))
        write_jsonl(ctx.out / "items.jsonl", rows)
        write_json(ctx.out / "scores.json", scores)
        means = [r for r in scores["rows"] if r["metric"] == "bits_per_byte"]
        return {f"{r['contender']} {r['group']} bits_per_byte": r["mean"] for r in means}

    def _seen(
        self, ctx: Context, texts: Mapping[str, Sequence[Document]]
    ) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
        """The (step, id) of documents that a contender was trained on, and of those not to be read."""
        if self.contamination is False:
            return set(), set()
        names = {f"{step}/{d.id}": (step, d.id) for step, held in texts.items() for d in held}
        items = {f"{step}/{d.id}": d for step, held in texts.items() for d in held}
        found = expose({name: ctx.source(name) for name in self.models}, items, self.contamination, ticker(ctx))
        dropped = settle(ctx, found, self.contamination, "documents")
        return {names[one] for one in found.any - dropped}, {names[one] for one in dropped}


def check_contenders(models: Sequence[str]) -> None:
    """Raise RecipeError where two contenders are the same, or their files would be."""
    check_distinct("models", models)
    files: dict[str, str] = {}
    for name in models:
        other = files.setdefault(answers_path(Path(), name).name, name)
        if other != name:
            raise RecipeError(
                f"the contenders {other!r} and {name!r} would share a file", where="models", cure="rename one of them"
            )


def check_distinct(field: str, values: Sequence[str]) -> None:
    """Raise RecipeError for the first value that is named twice."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise RecipeError(f"{field} names the same thing twice", where=field, value=value, cure="name it once")


def check_split(source: Source, split: str, field: str) -> None:
    """Raise DataError where a step that has run left nothing in that split. Looks at sizes alone: plans are fast."""
    if not source.paths:
        return
    path = source.path / f"{split}.jsonl"
    if not path.is_file() or not path.stat().st_size:
        raise DataError(
            f"there are no {field}: the {split} split of {source.name!r} is empty",
            where=field,
            cure=f"give that step `{split}_fraction` or a source for this split",
        )


def check_unique(ids: Sequence[str], what: str) -> None:
    """Raise DataError for ids that are not unique: answers could not be told apart."""
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            raise DataError(f"two {what} have the same id", value=one, cure="give each an id of its own")
        seen.add(one)


def check_against(against: Sequence[str] | None, models: Sequence[str] | None = None) -> None:
    """Raise RecipeError for an empty list, a name twice or, where the contenders are known, one that is none."""
    if against is None:
        return
    if not against:
        raise RecipeError("against names nobody", where="against", cure="leave it out to compare with the first")
    check_distinct("against", against)
    for name in against:
        if models is not None and name not in models:
            raise RecipeError(
                "no contender of that name to compare with", where="against", value=name, cure=nearest(name, models)
            )


def _held_out(source: Source) -> list[Document]:
    check_split(source, "heldout", "documents")
    documents = read_documents(source.path, "heldout")
    check_unique([d.id for d in documents], f"documents of {source.name!r}")
    return documents
