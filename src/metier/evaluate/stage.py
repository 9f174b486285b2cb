"""What a recipe may ask of evaluation: `answer` generates once, `score` and `perplexity` measure.

Imports without torch, numpy or scipy; those start inside `run`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from metier.core.errors import DataError, InputError, RecipeError, nearest
from metier.core.stage import Context, ModelRef, Needs, Source, Stage
from metier.engine.endpoint import Endpoint
from metier.engine.interface import Asking
from metier.engine.remote import RemoteEngine
from metier.evaluate.exposure import ExposureGate, expose, refuse_early, settle, ticker
from metier.evaluate.held import Held, check_held
from metier.evaluate.scoring import (
    SHOWN,
    baseline,
    check_applies,
    check_references,
    clusters,
    contenders,
    exposed,
    item_rows,
    kinds,
    read_all,
)
from metier.evaluate.trivial import NAMES as BASELINES
from metier.evaluate.trivial import Baseline, copies, nearest_answers
from metier.measure.metrics import METRICS, ModelMetric, cure_for, metric, require
from metier.measure.metrics import Metric as Measured
from metier.text.artifacts import answers_path, read_asked, read_documents, read_questions, write_json, write_jsonl
from metier.text.items import is_choices
from metier.text.nouns import Document, Question
from metier.text.refusals import REFUSALS_TEST

MetricName = Literal[
    "token_f1",
    "exact_match",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "bleu",
    "chrf",
    "tfidf",
    "distinct_1",
    "distinct_2",
    "repetition",
    "stopped",
    "output_tokens",
    "length_ratio",
    "unsafe_compliance",
    "harmless_refusal",
]


class Answer(Stage):
    """Let every contender answer the same questions, once, for any number of scores to read.

    Seconds of an answer are its share of its batch's time (see engine.local.Generation): cost, not waiting time. Every
    answer is kept as it comes, so a run that was killed goes on where it was. Models from outside (Phi-3-mini,
    Gemma, Falcon, OPT ...) are named by hub id or folder, models elsewhere by their endpoint.
    """

    kind: Literal["answer"] = "answer"
    spreads: ClassVar[bool] = True
    produces: ClassVar[str] = "answers"
    version: ClassVar[int] = 3

    models: list[ModelRef | Held | Endpoint] = Field(min_length=1)
    """The contenders: steps, built-in names, folders, hub ids or `{endpoint: http://127.0.0.1:8080/v1, model: name}`,
    with `key_env: NAME` where the server wants a key, or `{model: X, bits: 4bit}`, which is X with its weights rounded
    when it is loaded. The first is what others are compared with."""
    questions: Annotated[str, Needs("examples")]
    """The step whose conversations are asked; the last message of each is the reference."""
    split: Literal["test", "dev", "train", "refusals_test"] = "test"
    """Which part of the examples to ask. refusals_test: the unsafe and harmless prompts of their `refusals`."""
    prompt: Literal["chat", "continue"] = "chat"
    """chat: questions are asked through each model's own template. continue: each is the beginning of a text, put as it
    is for the model to go on with, as models that have only read are asked."""
    max_new_tokens: int = Field(64, ge=1)
    """An answer is cut after so many tokens."""
    temperature: float = Field(0.0, ge=0)
    """0 always takes the likeliest token, which is what comparisons want: the same answers every time. Above, tokens
    are drawn, the more freely the higher: 0.7 is lively, 1 is the model's own distribution."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Where tokens are drawn: only among the likeliest that together have this probability; 0.9 cuts the tail."""
    seed: int = Field(0, ge=0)
    """Of the draws. Each question has a generator of its own, by this and its text, so its answer does not depend on
    the other questions; an endpoint gets this number plus the question's place."""
    limit: int | None = Field(None, ge=1)
    """Ask at most so many questions, evenly spaced over the split."""
    batch_size: int = Field(32, ge=1)
    """Questions answered at a time. Part of the identity: rounding differs, and may break a near tie differently."""
    baselines: bool = True
    """Whether a copy of the question and the answer of the nearest training question are asked too: contenders that
    need no model, and that any model should be better than. The second needs a train split beside the one asked."""
    contamination: ExposureGate | Literal[False] = ExposureGate()
    """How questions that a contender was trained on are found, and what becomes of them. false: nobody looks."""

    def check(self, sources: Mapping[str, Source]) -> None:
        """Contenders are different, endpoints can be spoken to, and there is something to ask."""
        check_contenders([*self.names, *(BASELINES if self.baselines else ())])
        check_held(self.models)
        for index, one in enumerate(self.models):
            if isinstance(one, Endpoint):
                if self.prompt == "continue":
                    what, cure = "an endpoint for chats goes on with no text", "leave it out, or ask with prompt: chat"
                    raise RecipeError(what, where="prompt", value=one.title, cure=cure)
                self._check_endpoint(one, f"models.{index}")
        source = sources[self.questions]
        check_split(source, self.split, "questions")
        if source.paths and self.contamination and self.contamination.action == "stop":
            questions = {q.id: q for q in read_questions(source.path, self.split)}
            refuse_early(self._here(sources), questions, self._gate)

    @property
    def _gate(self) -> ExposureGate:
        """The gate where one is asked for. All that is declined is declined in the same words: those show nothing."""
        assert self.contamination is not False
        unlike = self.split == REFUSALS_TEST
        return self.contamination.model_copy(update={"answers": False}) if unlike else self.contamination

    @property
    def local(self) -> list[str]:
        """The models that are here, each once."""
        here = (one if isinstance(one, str) else one.model for one in self.models if not isinstance(one, Endpoint))
        return list(dict.fromkeys(here))

    def _here(self, sources: Mapping[str, Source]) -> dict[str, Source]:
        """The models behind the contenders that are here, by what these are called."""
        here = (one for one in self.models if not isinstance(one, Endpoint))
        return {
            one if isinstance(one, str) else one.title: sources[one if isinstance(one, str) else one.model]
            for one in here
        }

    @property
    def names(self) -> list[str]:
        """What the contenders are called in results, in order."""
        return [one if isinstance(one, str) else one.title for one in self.models]

    def _check_endpoint(self, one: Endpoint, where: str) -> None:
        """Before anything costs time: the key is there, the server answers, lets us in and has the model."""
        for name in ("constrain", "choose"):
            if name in one.model_fields_set:
                cure = "leave it out: it is for judges and teachers"
                raise RecipeError("free answers are held to no form", where=f"{where}.{name}", cure=cure)
        try:
            one.check()
            RemoteEngine(one, Asking(self.max_new_tokens)).check()
        except InputError as error:
            raise error.within(where)  # noqa: B904 - the same error

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write questions, contenders and answers. Returns each one's share of answers that stop, and mean tokens."""
        from metier.evaluate.answering import answer_all, spread

        questions = self._ask(ctx.source(self.questions))
        chosen = self._unseen(ctx, [questions[i] for i in spread(len(questions), self.limit)])
        asking = Asking(self.max_new_tokens, self.temperature, self.top_p, self.seed, self.batch_size)
        continuing = self.prompt == "continue"
        return answer_all(ctx, self.models, chosen, asking, self._baselines(ctx, chosen), continuing=continuing)

    def _baselines(self, ctx: Context, questions: list[Question]) -> list[Baseline]:
        """The contenders that need no model, as far as there is what they need."""
        if not self.baselines:
            return []
        folder = ctx.source(self.questions).path
        path = folder / "train.jsonl"
        if self.split == "train" or not path.is_file() or not path.stat().st_size:
            ctx.events.note("no training questions beside those asked: no answer of the nearest one is looked up")
            return [copies(questions)]
        return [copies(questions), nearest_answers(questions, read_questions(folder, "train"))]

    def _unseen(self, ctx: Context, questions: list[Question]) -> list[Question]:
        """The questions that are left where the gate drops what was seen."""
        if self.contamination is False:
            return questions
        asked = {q.id: q for q in questions}
        away = [one.title for one in self.models if isinstance(one, Endpoint)]
        found = expose(self._here(ctx.sources), asked, self._gate, ticker(ctx), away)
        dropped = settle(ctx, found, self._gate, "questions")
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
    Trivial contenders are shown with their intervals and take part in no comparison, unless `against` names them.
    """

    kind: Literal["score"] = "score"
    produces: ClassVar[str] = "scores"
    version: ClassVar[int] = 3

    answers: Annotated[str, Needs("answers", "choices")]
    """The step whose answers to score; or whose choices (`choose`), which have metrics of their own."""
    metrics: list[MetricName | ModelMetric] = Field(default=["token_f1", "exact_match", "rouge_l"], min_length=1)
    """What to measure of each answer: names, and `{semantic: {model: ...}}` or `{bertscore: {model: ...}}`."""
    against: list[str] | None = None
    """The contenders that every other is compared with; the first that is no trivial one where nothing is given."""
    cluster: str | None = None
    """The entry of the questions' `meta` (a source's `keep`) that says which belong together (document, patient):
    these are taken for one unit, because they are not independent. Left out: the entry `cluster`, of those that have
    it. Groups that scores are broken down by are no clusters."""
    resamples: int = Field(2000, ge=200)
    """Bootstrap resamples of the interval of a figure of the whole set, such as corpus BLEU; means need none."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the intervals; 1 minus this is the tests' error rate."""
    seed: int = Field(0, ge=0)
    """Of the sign flips and the resampling."""

    @field_validator("metrics", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        for name in value if isinstance(value, list) else ():
            if isinstance(name, str) and name not in METRICS:
                raise ValueError(f"no such metric: {name!r}; {cure_for(name)}")
        return value

    @property
    def names(self) -> list[str]:
        """The metrics' names."""
        return [one if isinstance(one, str) else one.name for one in self.metrics]

    def check(self, sources: Mapping[str, Source]) -> None:
        """Every metric is named once and can be measured; whom to compare with exists, where that is known already."""
        check_distinct("metrics", self.names)
        for name in self.names:
            require(name)
        check_against(self.against)
        if sources[self.answers].paths:
            folder = sources[self.answers].path
            check_against(self.against, contenders(folder))
            if is_choices(folder):
                self._check_choices()
                return
            questions = read_asked(folder)
            check_references(questions, self._measured(sources))
            check_applies(questions, self._measured(sources))
            clusters(questions, self.cluster)

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write items and scores. Returns every contender's mean of every metric over all items, and the clean ones."""
        from metier.evaluate.table import ALL, CLEAN, Settings, answer_columns, table

        folder = ctx.source(self.answers).path
        if is_choices(folder):
            return self._score_choices(ctx, folder)
        measured, answers, kind = self._measured(ctx.sources), read_all(folder), kinds(folder)
        questions = [item.question for item in next(iter(answers.values()))]
        check_against(self.against, list(kind))
        check_references(questions, measured)
        check_applies(questions, measured)
        rows = item_rows(answers, measured)
        settings = Settings(tuple(self.against or [baseline(kind)]), self.confidence, self.resamples, self.seed)
        exposure = exposed(folder)
        columns = answer_columns(
            rows,
            measured,
            exposure.seen,
            clusters=clusters(questions, self.cluster),
            shown=[name for name, what in kind.items() if what in SHOWN],
            answers=answers,
        )
        scores = table(columns, settings) | {"contenders": kind} | exposure.summary
        write_jsonl(ctx.out / "items.jsonl", rows)
        write_json(ctx.out / "scores.json", scores)
        named = {ALL: "", CLEAN: f" {CLEAN}"}
        return {
            f"{r['contender']} {r['metric']}{named[r['group']]}": r["mean"]
            for r in scores["rows"]
            if r["group"] in named
        }

    def _check_choices(self) -> None:
        for name in ("metrics", "cluster"):
            if name in self.model_fields_set:
                raise RecipeError(
                    "choices have metrics of their own, which are all given", where=name, cure="leave it out"
                )

    def _score_choices(self, ctx: Context, folder: Path) -> Mapping[str, float]:
        """The same of an artifact of `choose`."""
        from metier.evaluate.labels import score_choices
        from metier.evaluate.table import ALL, CLEAN, Settings

        self._check_choices()
        check_against(self.against, contenders(folder))
        exposure = exposed(folder)
        rows, scores = score_choices(
            folder,
            lambda names: Settings(tuple(self.against or names[:1]), self.confidence, self.resamples, self.seed),
            exposure.seen,
        )
        write_jsonl(ctx.out / "items.jsonl", rows)
        write_json(ctx.out / "scores.json", scores | exposure.summary)
        named = {ALL: "", CLEAN: f" {CLEAN}"}
        return {
            f"{r['contender']} {r['metric']}{named[r['group']]}": r["mean"]
            for r in scores["rows"]
            if r["group"] in named
        }

    def _measured(self, sources: Mapping[str, Source]) -> list[Measured]:
        """The metrics, with the models that they read with."""
        folders = {name: source.path for name, source in sources.items() if source.paths and name != self.answers}
        return [metric(one) if isinstance(one, str) else one.metric(folders) for one in self.metrics]


class Perplexity(Stage):
    """Read held-out documents with every contender: bits per byte and perplexity, paired between contenders."""

    kind: Literal["perplexity"] = "perplexity"
    produces: ClassVar[str] = "scores"
    version: ClassVar[int] = 3

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
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """As in `score`."""
    seed: int = Field(0, ge=0)
    """Of the sign flips."""
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
        self._refuse_early(sources)

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
        scores = table(reading.columns(rows, seen), Settings(against, self.confidence, seed=self.seed))
        write_jsonl(ctx.out / "items.jsonl", rows)
        write_json(ctx.out / "scores.json", scores)
        means = [r for r in scores["rows"] if r["metric"] == "bits_per_byte"]
        return {f"{r['contender']} {r['group']} bits_per_byte": r["mean"] for r in means}

    def _refuse_early(self, sources: Mapping[str, Source]) -> None:
        """What is to be refused for having been trained on is refused before anything runs, as far as it is known."""
        if self.contamination is False or self.contamination.action != "stop":
            return
        ready = [step for step in self.documents if sources[step].paths]
        items = {f"{step}/{d.id}": d for step in ready for d in read_documents(sources[step].path, "heldout")}
        if items:
            refuse_early({name: sources[name] for name in self.models}, items, self.contamination, "documents")

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
