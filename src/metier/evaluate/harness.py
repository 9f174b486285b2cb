"""Tasks of lm-evaluation-harness, run on the contenders as they are in memory, with our intervals and tests.

The harness asks and measures; what it found of each item becomes columns, so that contenders are compared item by item
as everywhere else. Tasks are YAML files in a folder, with data that lies there too: nothing is fetched. Needs the extra
`harness`. Refuses tasks that are not in the folder, and tasks with Python of their own, unless `run_code` allows it.
Whether a contender was trained on the items is not looked at. Costs what the harness costs (see `choose` for labels).
"""

import contextlib
import io
import logging
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from metier.core.errors import DataError, MissingExtra, RecipeError, nearest
from metier.core.stage import Context, FilePattern, ModelRef, Source, Stage
from metier.evaluate.choose import check_names
from metier.text.artifacts import write_json, write_jsonl

PACKAGE = "lm_eval"
_NAME = re.compile(r"^task:[ \t]*['\"]?([\w.-]+)", re.MULTILINE)
_CODE = re.compile(r"!function|^class:", re.MULTILINE)

Row = dict[str, Any]


class Harness(Stage):
    """Run tasks of lm-evaluation-harness from a folder of YAML files, offline."""

    kind: Literal["harness"] = "harness"
    produces: ClassVar[str] = "scores"
    version: ClassVar[int] = 1

    models: list[ModelRef] = Field(min_length=1)
    """The contenders, as in `answer`."""
    folder: FilePattern
    """The folder with the tasks' YAML files and their data. Paths in them start there."""
    tasks: list[str] = Field(min_length=1)
    """The names of the tasks to run, as their files say (`task: ...`)."""
    shots: int | None = Field(None, ge=0)
    """Examples shown first; each task's own number where nothing is given."""
    chat: bool = False
    """Put questions through the model's chat template."""
    limit: int | None = Field(None, ge=1)
    """Ask at most so many items of each task: the first, as the harness does."""
    batch_size: int = Field(8, ge=1)
    """Strings read at a time."""
    run_code: bool = False
    """Let tasks run the Python that stands in their folder. Look at it first."""
    against: list[str] | None = None
    """As in `score`."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """As in `score`."""
    seed: int = Field(0, ge=0)
    """Of the resampling, and of the examples shown."""

    def check(self, sources: Mapping[str, Source]) -> None:
        """The extra is installed, contenders are different, and every task is there."""
        if find_spec(PACKAGE) is None:
            raise MissingExtra(PACKAGE, "harness", needed_by="a step of kind harness")
        check_names(self.models)
        for name in self.against or ():
            if name not in self.models:
                cure = nearest(name, self.models)
                raise RecipeError("no contender of that name to compare with", where="against", value=name, cure=cure)
        self._files(sources[self.folder].paths)

    def _files(self, paths: Sequence[Path]) -> dict[str, Path]:
        """The file of every task. Raises DataError for one that is not there or runs code."""
        found: dict[str, Path] = {}
        for path in paths:
            if path.suffix in (".yaml", ".yml"):
                text = path.read_text(encoding="utf-8")
                found |= dict.fromkeys(_NAME.findall(text), path)
        for name in self.tasks:
            if name not in found:
                raise DataError(
                    "the folder has no task of that name", where="tasks", value=name, cure=nearest(name, found)
                )
            if not self.run_code and _CODE.search(found[name].read_text(encoding="utf-8")):
                raise DataError(
                    f"the task {name!r} runs Python that stands beside it",
                    where=str(found[name]),
                    cure="read that code, then set run_code: true",
                )
        return found

    def run(self, ctx: Context) -> Mapping[str, float]:
        """Write items and scores. Returns every contender's mean of every metric of every task."""
        from metier.evaluate.table import Column, Settings, table

        folder = self._files(ctx.source(self.folder).paths)[self.tasks[0]].parent
        items: list[Row] = []
        better: dict[str, bool] = {}
        for name in self.models:
            ctx.check_stop()
            found = self._run(ctx, name, folder)
            items += _items(name, found)
            better |= _directions(found)
        columns = [
            Column(name, metric, task, values, better.get(metric, True))
            for metric in dict.fromkeys(key for item in items for key in item["measured"])
            for task in self.tasks
            for name in self.models
            if (values := _values(items, name, task, metric))
        ]
        settings = Settings(tuple(self.against or self.models[:1]), self.confidence, seed=self.seed)
        scores = table([_exact(column) for column in columns], settings)
        write_jsonl(ctx.out / "items.jsonl", (_flat(item) for item in items))
        write_json(ctx.out / "scores.json", scores | {"contenders": dict.fromkeys(self.models, "model")})
        return {f"{r['contender']} {r['group']} {r['metric']}": r["mean"] for r in scores["rows"]}

    def _run(self, ctx: Context, name: str, folder: Path) -> Row:
        """What the harness says of one contender."""
        from metier.models.load import load
        from metier.models.placed import place

        ctx.events.note(f"{name}: lm-evaluation-harness runs {', '.join(self.tasks)}")
        loaded = place(load(ctx.source(name).path), ctx.events.warning)
        loaded.model.register_forward_pre_hook(lambda *_: ctx.check_stop())  # the harness has no place to ask
        try:
            with contextlib.chdir(folder), _quiet():
                from lm_eval import simple_evaluate
                from lm_eval.models.huggingface import HFLM
                from lm_eval.tasks import TaskManager

                lm = HFLM(
                    pretrained=loaded.model,
                    tokenizer=loaded.tokenizer,
                    batch_size=self.batch_size,
                    max_length=loaded.context,
                    device=str(loaded.model.device),
                )
                found = simple_evaluate(
                    model=lm,
                    tasks=list(self.tasks),
                    task_manager=TaskManager(include_path=str(folder), include_defaults=False),
                    num_fewshot=self.shots,
                    limit=self.limit,
                    apply_chat_template=self.chat,
                    bootstrap_iters=0,
                    fewshot_random_seed=self.seed,
                    log_samples=True,
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"lm-evaluation-harness cannot run the tasks: {type(error).__name__}: {error}",
                where=str(folder),
                value=self.tasks,
                cure="their data must lie in the folder (dataset_path: json with dataset_kwargs: data_files)",
            ) from error
        return dict(found)


@contextlib.contextmanager
def _quiet() -> Any:
    """Hold back what the harness prints; what matters comes back as values or errors."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _items(name: str, found: Row) -> list[Row]:
    """One row for each item, with what was measured of it alone."""
    rows = []
    for task, samples in found["samples"].items():
        for sample in sorted(samples, key=lambda one: one["doc_id"]):
            measured = {
                metric: float(sample[metric])
                for metric in sample.get("metrics", ())
                if isinstance(sample.get(metric), int | float)
            }
            rows.append({"id": f"{task}/{sample['doc_id']}", "contender": name, "group": task, "measured": measured})
    return rows


def _directions(found: Row) -> dict[str, bool]:
    return {metric: bool(up) for task in found["higher_is_better"].values() for metric, up in task.items()}


def _values(items: Sequence[Row], name: str, task: str, metric: str) -> list[float]:
    here = [item for item in items if item["contender"] == name and item["group"] == task]
    return [item["measured"][metric] for item in here if metric in item["measured"]]


def _exact(column: Any) -> Any:
    """The column, told whether its values are 0 and 1."""
    from dataclasses import replace

    values = set(column.values)
    return replace(column, binary=values <= {0.0, 1.0}, bounded=all(0 <= value <= 1 for value in values))


def _flat(item: Row) -> Row:
    return {**{key: value for key, value in item.items() if key != "measured"}, **item["measured"]}
