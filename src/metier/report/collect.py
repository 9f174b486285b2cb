"""Finished artifacts -> plain dataclasses. The only module of the report that reads an artifact's files.

A run may lack any of it (no scores, no perplexity, one contender, training alone): what is absent becomes an empty
tuple or None, and the page says less. What is present must be sound: a file that is not JSON, or holds NaN, is a
StoreError that names file and line. Costs one pass over the answers, the scores' items and the training curves.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metier.core.errors import StoreError
from metier.core.fingerprint import Json
from metier.core.store import Artifact
from metier.report.wording import cut

LONGEST_WARNING = 1000
PRUNING = ("prune", "guard")
LONGEST_NAME = 80
"""Characters shown of a name."""
TEXT_METRICS = ("bits_per_byte", "perplexity")
"""Metrics of a model on running text; all others are metrics of its answers."""
REFUSING = ("unsafe_compliance", "harmless_refusal")
"""Metrics of refusing, both ways."""

Row = dict[str, Any]
Result = Mapping[str, tuple[Mapping[str, Json], Artifact]]
"""Step name -> (the stage as a dict with its `kind`, defaults included; its artifact), in the recipe's order."""


@dataclass(frozen=True)
class Input:
    """What a step read. step: the step of this run that made it, or None for a file or an outside model."""

    value: str
    field: str
    step: str | None


@dataclass(frozen=True)
class Training:
    """How a model was trained.

    points: logged steps (step, loss, learning_rate, tokens ...), oldest first; dev: rows {"step", "dev_loss"}.
    about: counts that two runs share; measured: seconds, speed and memory of this one.
    """

    points: tuple[Row, ...]
    dev: tuple[Row, ...]
    about: Row
    measured: Row


@dataclass(frozen=True)
class Data:
    """What came into a documents or examples step, and what was kept out. rejects: reason -> rows.

    synthesis, asking: how its pairs were made, and what it cost to ask for them; known: what a model knew of them.
    """

    counts: dict[str, int]
    replay_ratio: float | None
    rejects: dict[str, int]
    synthesis: Row = field(default_factory=dict)
    asking: Row = field(default_factory=dict)
    known: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Vocabulary:
    """What a step did to a tokenizer. about: fertility and counts; tokens: rows {token, pieces, count}."""

    about: Row
    tokens: tuple[Row, ...]


@dataclass(frozen=True)
class Step:
    """One step of the run. settings: its stage, defaults included.

    pruned: of a step that tried models, {ratio, score, low, high, size_bytes} of each. pruning, pruning_measured: all
    that it says of them, and how fast they were.
    """

    name: str
    kind: str
    produces: str
    settings: Mapping[str, Json]
    artifact: Artifact
    record: Row
    inputs: tuple[Input, ...]
    warnings: tuple[str, ...]
    training: Training | None = None
    data: Data | None = None
    pruned: tuple[Row, ...] = ()
    vocabulary: Vocabulary | None = None
    pruning: Row = field(default_factory=dict)
    pruning_measured: Row = field(default_factory=dict)

    @property
    def is_adapter(self) -> bool:
        """It leaves an adapter, which needs its base."""
        return (self.artifact.files / "adapter_config.json").exists()


@dataclass(frozen=True)
class Versus:
    """A paired comparison with another contender.

    detectable: the smallest true difference that so many items show in 80 of 100 studies. method: of the interval.
    """

    against: str
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    verdict: str
    detectable: float | None
    method: str = ""
    test: str = ""


@dataclass(frozen=True)
class Score:
    """A contender's mean on one metric and group, with its interval.

    higher_is_better: None where neither is. at_most: of what was not met once, the rule of three's bound.
    """

    contender: str
    metric: str
    group: str
    n: int
    mean: float
    low: float | None
    high: float | None
    higher_is_better: bool | None
    method: str
    versus: tuple[Versus, ...]
    at_most: float | None = None


@dataclass(frozen=True)
class Scores:
    """One score or perplexity step. items: (contender, question id) -> metric -> value, for score steps alone.

    kinds: contender -> model, endpoint, trivial or human. confusion: rows {contender, labels, matrix}; reliability:
    {contender, bins, ece}; coverage: {contender, points}. contamination: the summary of what training had seen. held:
    contender -> {model, bits} of those whose weights were rounded.
    """

    step: str
    baseline: str
    confidence: float
    rows: tuple[Score, ...]
    answers: str | None
    items: Mapping[tuple[str, str], Row] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    confusion: tuple[Row, ...] = ()
    reliability: tuple[Row, ...] = ()
    coverage: tuple[Row, ...] = ()
    contamination: Row = field(default_factory=dict)
    held: Row = field(default_factory=dict)

    @property
    def of_text(self) -> bool:
        """It measures likelihood of running text, not answers."""
        return all(row.metric in TEXT_METRICS for row in self.rows)

    @property
    def of_refusing(self) -> bool:
        """It measures refusing, on prompts of its own."""
        return any(row.metric in REFUSING for row in self.rows)

    @property
    def of_knowledge(self) -> bool:
        """It measures what is known of texts that were to be forgotten, and kept."""
        return any(row.metric.startswith("forget_") for row in self.rows)

    @property
    def apart(self) -> bool:
        """It measures something else than answers in the trade or running text, and has a part of its own."""
        return self.of_refusing or self.of_knowledge

    def row(self, contender: str, metric: str, group: str) -> Score | None:
        """The one row, or None where it was not scored."""
        wanted = (contender, metric, group)
        return next((r for r in self.rows if (r.contender, r.metric, r.group) == wanted), None)

    def metrics(self) -> list[str]:
        """Metric names in the order in which they stand."""
        return list(dict.fromkeys(r.metric for r in self.rows))

    def groups(self) -> list[str]:
        """Group names in the order in which they stand, `all` first."""
        names = list(dict.fromkeys(r.group for r in self.rows))
        return sorted(names, key=lambda name: name != "all")


@dataclass(frozen=True)
class Contender:
    """Who was asked. kind: model, endpoint, trivial or human; the last two are points of reference, not models. bits:
    in which its model's weights were held, where these were rounded when it was loaded.

    measured: seconds, tokens_per_second, peak_rss_bytes, p50_seconds, p95_seconds, first_token_p50_seconds ...
    """

    name: str
    model: str
    parameters: int | None
    measured: Row
    kind: str = "model"
    bits: str = ""

    @property
    def is_reference(self) -> bool:
        """It stands for what no model is needed for (a constant, a look-up), or for a person."""
        return self.kind in ("trivial", "human")


@dataclass(frozen=True)
class Answers:
    """One answer or choose step. texts: contender -> question id -> {"text", "tokens", "stopped"}; of answers alone.

    exposure: what was found of the questions in training data (`contamination.json`); empty where nobody looked.
    """

    step: str
    contenders: tuple[Contender, ...]
    questions: tuple[Row, ...]
    texts: Mapping[str, Mapping[str, Row]]
    exposure: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """All that the report knows of a run."""

    recipe: str
    description: str
    steps: tuple[Step, ...]
    answers: tuple[Answers, ...]
    scores: tuple[Scores, ...]
    notice: str = ""

    def step(self, name: str) -> Step | None:
        """The step of that name."""
        return next((s for s in self.steps if s.name == name), None)

    def contenders(self) -> tuple[Contender, ...]:
        """Every contender once, in the order in which the steps name them."""
        found: dict[str, Contender] = {}
        for answers in self.answers:
            for contender in answers.contenders:
                found.setdefault(contender.name, contender)
        for scores in self.scores:
            for row in scores.rows:
                kind, held = scores.kinds.get(row.contender, "model"), scores.held.get(row.contender) or {}
                model = str(held.get("model", row.contender))
                made = Contender(row.contender, model, None, {}, kind, str(held.get("bits", "")))
                found.setdefault(row.contender, made)
        return tuple(found.values())

    def label(self, name: str) -> str:
        """A model's name as the page shows it: of a folder or hub id the last part, where that is no other's."""
        short = name.rstrip("/").rsplit("/", 1)[-1]
        others = {c.name for c in self.contenders()} | {s.name for s in self.steps}
        clash = any(other != name and other.rstrip("/").rsplit("/", 1)[-1] == short for other in others)
        return cut(short if short and not clash else name, LONGEST_NAME)

    def ancestors(self, name: str) -> set[str]:
        """Every step and outside model that `name` was made from, itself included."""
        seen: set[str] = set()
        todo = [name]
        while todo:
            current = todo.pop()
            if current in seen:
                continue
            seen.add(current)
            step = self.step(current)
            todo.extend((i.step or i.value) for i in step.inputs) if step else None
        return seen


def collect(result: Result, recipe: str, description: str = "", notice: str = "") -> Run:
    """Read all that the report shows. Raises StoreError where an artifact's file is damaged."""
    by_key = {artifact.key: name for name, (_, artifact) in result.items()}
    steps = tuple(_step(name, stage, artifact, result, by_key) for name, (stage, artifact) in result.items())
    return Run(
        recipe,
        description,
        steps,
        tuple(_answers(s) for s in steps if s.produces in ("answers", "choices")),
        tuple(_scores(s) for s in steps if s.produces == "scores"),
        notice,
    )


def _step(name: str, stage: Mapping[str, Json], artifact: Artifact, result: Result, by_key: dict[str, str]) -> Step:
    record = artifact.record
    produces = str(record.get("produces", ""))
    inputs = tuple(
        Input(value, str(given.get("field", "")), _made_by(value, str(given.get("link", "")), result, by_key))
        for value, given in (record.get("inputs") or {}).items()
    )
    warnings = Counter(str(e.get("text", "")) for e in artifact.events() if e.get("event") == "warning")
    pruning = _object(artifact.files / "about.json") if record.get("kind") in PRUNING else {}
    return Step(
        name=name,
        kind=str(stage.get("kind", record.get("kind", ""))),
        produces=produces,
        settings=stage,
        artifact=artifact,
        record=record,
        inputs=inputs,
        warnings=tuple(cut(text, LONGEST_WARNING) + (f" (×{n})" if n > 1 else "") for text, n in warnings.items()),
        training=_training(artifact) if produces == "model" and (artifact.files / "train.jsonl").exists() else None,
        data=_data(artifact) if produces in ("documents", "examples") else None,
        vocabulary=_vocabulary(artifact) if record.get("kind") in ("extend_tokenizer", "train_tokenizer") else None,
        pruned=tuple(pruning.get("points") or ()),
        pruning=pruning,
        pruning_measured=_object(artifact.measured / "about.json") if pruning else {},
    )


def _vocabulary(artifact: Artifact) -> Vocabulary:
    return Vocabulary(_object(artifact.files / "about.json"), tuple(_rows(artifact.files / "tokens.jsonl")))


def _made_by(value: str, link: str, result: Result, by_key: dict[str, str]) -> str | None:
    """The step of this run behind an input.

    A cached record may have been written by another recipe, under other step names; the key in its link stays.
    """
    parts = link.split("/")
    key = parts[-2] if parts[:2] == ["..", ".."] and len(parts) >= 4 else None
    if value in result and key in (None, result[value][1].key):
        return value
    return by_key.get(key) if key else None


def _training(artifact: Artifact) -> Training:
    rows = list(_rows(artifact.files / "train.jsonl"))
    return Training(
        points=tuple(r for r in rows if "loss" in r),
        dev=tuple(r for r in rows if "dev_loss" in r),
        about=_object(artifact.files / "about.json"),
        measured=_object(artifact.measured / "about.json"),
    )


def _data(artifact: Artifact) -> Data:
    about = _object(artifact.files / "about.json")
    rejects = Counter(str(row.get("kind") or row.get("reason", "")) for row in _rows(artifact.files / "rejects.jsonl"))
    return Data(
        dict(about.get("counts") or {}),
        about.get("replay_ratio"),
        dict(rejects.most_common()),
        about.get("synthesis") or {},
        _object(artifact.measured / "asking.json"),
        about.get("known") or {},
    )


def _answers(step: Step) -> Answers:
    files, measured = step.artifact.files, _object(step.artifact.measured / "contenders.json")
    contenders = tuple(
        Contender(
            str(c["name"]),
            str(c.get("model", c["name"])),
            c.get("parameters"),
            measured.get(str(c["name"])) or {},
            str(c.get("kind", "model")),
            str(c.get("bits", "")),
        )
        for c in _json(files / "contenders.json")
    )
    texts = {c.name: {str(r["id"]): r for r in _rows(_answer_file(files, c.name))} for c in contenders}
    exposure = _object(files / "contamination.json")
    return Answers(step.name, contenders, tuple(_rows(files / "questions.jsonl")), texts, exposure)


def _answer_file(files: Path, contender: str) -> Path:
    return files / "answers" / f"{contender.replace('/', '--')}.jsonl"


def _scores(step: Step) -> Scores:
    scores = _object(step.artifact.files / "scores.json")
    rows = tuple(_score(row) for row in scores.get("rows") or ())
    of_answers = next((i.step for i in step.inputs if i.field.split(".")[0] == "answers"), None)
    items: dict[tuple[str, str], Row] = {}
    if of_answers is not None:
        items = {(str(r["contender"]), str(r["id"])): r for r in _rows(step.artifact.files / "items.jsonl")}
    return Scores(
        step.name,
        str(scores.get("baseline", "")),
        float(scores.get("confidence", 0.95)),
        rows,
        of_answers,
        items,
        kinds={str(name): str(kind) for name, kind in (scores.get("contenders") or {}).items()},
        confusion=tuple(scores.get("confusion") or ()),
        reliability=tuple(scores.get("reliability") or ()),
        coverage=tuple(scores.get("coverage") or ()),
        contamination=scores.get("contamination") or {},
        held=scores.get("held") or {},
    )


def _score(row: Row) -> Score:
    return Score(
        contender=str(row["contender"]),
        metric=str(row["metric"]),
        group=str(row["group"]),
        n=int(row["n"]),
        mean=float(row["mean"]),
        low=row.get("low"),
        high=row.get("high"),
        higher_is_better=row.get("higher_is_better"),
        method=str(row.get("method", "")),
        versus=tuple(
            Versus(
                against=str(v["against"]),
                difference=float(v["difference"]),
                low=v.get("low"),
                high=v.get("high"),
                p=v.get("p"),
                p_holm=v.get("p_holm"),
                verdict=str(v.get("verdict", "")),
                detectable=v.get("detectable"),
                method=str(v.get("method", "")),
                test=str(v.get("test", "")),
            )
            for v in row.get("versus") or ()
        ),
        at_most=row.get("at_most"),
    )


def value_of(step: Step, file: str, *, measured: bool = False) -> Any:
    """The JSON of a step's file; None where it has no such file."""
    path = (step.artifact.measured if measured else step.artifact.files) / file
    return _json(path) if path.exists() else None


def rows_of(step: Step, file: str) -> Iterator[Row]:
    """The objects of a JSONL file of a step's artifact; none where it has no such file."""
    return _rows(step.artifact.files / file)


def _rows(path: Path) -> Iterator[Row]:
    """The objects of a JSONL file; none where the step wrote no such file."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            yield _parse(line, f"{path}:{number}")


def _object(path: Path) -> Row:
    """A JSON object; empty where the step wrote no such file."""
    value = _json(path) if path.exists() else {}
    if not isinstance(value, dict):
        raise StoreError("not a JSON object", where=str(path), cure="delete the artifact's folder and run again")
    return value


def _json(path: Path) -> Any:
    return _parse(path.read_text(encoding="utf-8"), str(path))


def _parse(text: str, where: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number to report")

    try:
        return json.loads(text, parse_constant=refuse)
    except ValueError as error:
        raise StoreError(
            f"the artifact cannot be read ({error})", where=where, cure="delete the artifact's folder and run again"
        ) from error
