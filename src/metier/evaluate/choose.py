"""What a recipe may ask of questions with choices: `choose` lets contenders decide by log-likelihood.

Nothing is generated and nothing parsed: every choice's full string gets its log-likelihood after the question, for
`score` to read. Imports without torch, numpy or scipy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from metier.core.errors import DataError, RecipeError, nearest
from metier.core.stage import Config, Context, FilePattern, ModelRef, Needs, Source, Stage
from metier.evaluate.exposure import ExposureGate, expose, refuse_early, settle, ticker
from metier.evaluate.taskfiles import SHIPPED, TASK, read_task, shipped
from metier.text.artifacts import answers_path, read_questions
from metier.text.items import Item, check_ids, item_of

Form = Literal["cloze", "letter"]
PromptKind = Literal["chat", "plain"]


class TaskFolder(Config):
    """A benchmark of one's own."""

    folder: FilePattern
    """A folder with a task.yaml and a README.md, as those that come along."""


@dataclass(frozen=True)
class Material:
    """What is asked. train: items that may be shown as examples and whose labels say which is the commonest."""

    test: tuple[Item, ...]
    train: tuple[Item, ...] = ()
    folds: tuple[tuple[Item, ...], ...] = ()


class Choose(Stage):
    """Let every contender choose among each question's choices, by the log-likelihood of their full strings.

    The questions are an examples step's, whose rows carry `choices` and `label` along, or a task's. Points of reference
    are written too: the commonest label, each label every time, and people where the task knows what they answered.
    """

    kind: Literal["choose"] = "choose"
    spreads: ClassVar[bool] = True
    produces: ClassVar[str] = "choices"
    version: ClassVar[int] = 2

    models: list[ModelRef] = Field(min_length=1)
    """The contenders: steps, built-in names, folders or hub ids. The first is what others are compared with."""
    questions: Annotated[str, Needs("examples")] | None = None
    """The step whose questions are asked; their rows carry `choices` and `label` (source setting `keep`)."""
    split: Literal["test", "dev", "train"] = "test"
    """Which part of the examples to ask."""
    task: str | TaskFolder | None = None
    """A benchmark instead: the name of one that comes along, or {folder: my-task}."""
    data: FilePattern | None = None
    """The file of items, for a task that does not bring them along."""
    way: str | None = None
    """Which of the task's ways to ask; its first where nothing is given."""
    part: Literal["test", "train", "dev"] = "test"
    """Which of the task's items to ask: those of the test, the others, or one fold of the others (`fold`)."""
    fold: int | None = Field(None, ge=0)
    """With `part: dev`, the fold on which models are selected; those that ask it were trained on the other folds."""
    select: list[ModelRef] = Field(default_factory=list)
    """One model for each of the task's folds, in their order, trained on the other folds: each chooses on its own fold,
    and the one that is right most often joins the contenders, as the task's protocol selects a model."""
    form: Form = "cloze"
    """cloze: the choices' own words are compared. letter: the question lists them as A, B, C, and letters are."""
    prompt: PromptKind = "chat"
    """chat: through the model's own template. plain: Question: ... Answer: ..., whatever template the model has."""
    shots: int = Field(0, ge=0)
    """So many items that are not asked are shown first, with their answers."""
    unconditional: bool = True
    """Measure the choices after an empty question too: scores then include pointwise mutual information (PMI)."""
    overflow: Literal["refuse", "truncate"] = "refuse"
    """What becomes of a question that does not fit the model's context: refuse it, or leave out its beginning, as
    lm-evaluation-harness does; items say where that was done."""
    limit: int | None = Field(None, ge=1)
    """Ask at most so many questions, evenly spaced."""
    contamination: ExposureGate | Literal[False] = ExposureGate()
    """As in `answer`: how questions that a contender was trained on are found, and what becomes of them."""

    @model_validator(mode="after")
    def _one_source(self) -> "Choose":
        if (self.questions is None) == (self.task is None):
            raise ValueError("say what is asked: `questions` (an examples step) or `task`, one of both")
        of_task = [name for name in ("data", "way", "part", "fold") if name in self.model_fields_set]
        if self.task is None and of_task:
            raise ValueError(f"`{of_task[0]}` belongs to a task, and there is none")
        if self.task is not None and "split" in self.model_fields_set:
            raise ValueError("`split` belongs to an examples step; a task has `part`")
        if self.select and (self.task is None or self.part != "test"):
            raise ValueError("`select` needs a task that has folds, of which the test is asked")
        if (self.fold is not None) != (self.part == "dev"):
            raise ValueError("`part: dev` and `fold` go together: the fold to select models on")
        if isinstance(self.task, str) and self.task not in shipped():
            raise ValueError(
                f"no such task: {self.task!r}; {nearest(self.task, shipped())} One of your own is task: {{folder: ...}}"
            )
        return self

    def check(self, sources: Mapping[str, Source]) -> None:
        """Contenders are different, the task is whole, and every item has choices of which its label is one."""
        check_names([*self.models, *self.select])
        material = self._material(sources)
        if material is None:
            return
        if self.select and len(self.select) != len(material.folds):
            raise RecipeError(
                f"the task has {len(material.folds)} folds: select takes a model for each",
                where="select",
                value=self.select,
            )
        if self.shots > len(material.train):
            raise RecipeError(
                f"there are {len(material.train)} items to show as examples", where="shots", value=self.shots
            )
        if self.contamination and self.contamination.action == "stop":
            questions = {item.id: item.question for item in material.test}
            refuse_early({name: sources[name] for name in [*self.models, *self.select]}, questions, self.contamination)

    def count(self, sources: Mapping[str, Source]) -> int | None:
        """How many items there are to ask, where that is known already."""
        material = self._material(sources)
        return None if material is None else len(material.test)

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write items, contenders and the likelihood of every choice. Returns each contender's accuracy."""
        from metier.evaluate.answering import spread
        from metier.evaluate.choosing import How, choose_all, select

        material = self._material(ctx.sources)
        assert material is not None, "every step before has run"
        chosen = [material.test[i] for i in spread(len(material.test), self.limit)]
        shown = [material.train[i] for i in spread(len(material.train), self.shots)] if self.shots else []
        how = How(self.form, self.prompt, tuple(shown), self.unconditional, self.overflow == "truncate")
        names = [*self.models, *([select(ctx, self.select, material.folds, how)] if self.select else [])]
        return choose_all(ctx, names, self._unseen(ctx, names, chosen), material.train, how)

    def _unseen(self, ctx: Context, names: Sequence[str], items: list[Item]) -> list[Item]:
        """The items that are left where the gate drops what was seen."""
        if self.contamination is False:
            return items
        asked = {item.id: item.question for item in items}
        found = expose({name: ctx.source(name) for name in names}, asked, self.contamination, ticker(ctx))
        dropped = settle(ctx, found, self.contamination, "questions")
        return [item for item in items if item.id not in dropped]

    def _material(self, sources: Mapping[str, Source]) -> Material | None:
        """What is asked; None while the step that makes it has not run."""
        if self.questions is not None:
            return _from_examples(sources[self.questions], self.split)
        task = read_task(self._folder(sources))
        if task.file.items is None and self.data is not None and len(sources[self.data].paths) != 1:
            raise RecipeError("the items are one file", where="data", value=self.data, cure="name the file")
        parts = task.items(None if self.data is None else sources[self.data].path, task.way(self.way))
        if self.part == "dev":
            assert self.fold is not None
            if self.fold >= len(parts.folds):
                raise RecipeError(
                    f"the task has {len(parts.folds)} folds, counted from 0", where="fold", value=self.fold
                )
            dev = parts.folds[self.fold]
            others = tuple(item for n, fold in enumerate(parts.folds) if n != self.fold for item in fold)
            return Material(dev, others)
        if self.part == "train":
            check_ids(parts.train, f"the task {task.name!r} that are not its test")
            return Material(parts.train)
        return Material(parts.test, parts.train, parts.folds)

    def _folder(self, sources: Mapping[str, Source]) -> Path:
        if isinstance(self.task, TaskFolder):
            found = [path for path in sources[self.task.folder].paths if path.name == TASK]
            if len(found) == 1:
                return found[0].parent
            raise DataError(
                f"the task's folder has {'no' if not found else 'more than one'} {TASK}",
                where="task.folder",
                value=self.task.folder,
                cure=f"write one as in {SHIPPED.name}/pubmedqa, with a README.md",
            )
        assert isinstance(self.task, str)
        return SHIPPED / self.task


def check_names(models: Sequence[str]) -> None:
    """Raise RecipeError where two contenders are the same, or their files would be."""
    files: dict[str, str] = {}
    for name in models:
        other = files.setdefault(answers_path(Path(), name).name, name)
        if other != name or models.count(name) > 1:
            raise RecipeError(
                f"the contenders {other!r} and {name!r} are one, or would share a file",
                where="models",
                value=name,
                cure="name each once",
            )


def _from_examples(source: Source, split: str) -> Material | None:
    if not source.paths:
        return None
    test = tuple(item_of(question) for question in read_questions(source.path, split))
    check_ids(test, f"the {split} split of {source.name!r}")
    if split == "train" or not (source.path / "train.jsonl").is_file():
        return Material(test)
    train = (question for question in read_questions(source.path, "train") if "choices" in question.meta)
    return Material(test, tuple(item_of(question) for question in train))
