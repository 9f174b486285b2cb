"""Metier from Python, as in a notebook: run a recipe, look at its report and scores, talk with what it made.

    import metier

    run = metier.run("recipe.yaml", overrides=["reader.epochs=1"])
    run.report()                                      # shows inline in a notebook; str() of it is the path
    run.scores()                                      # rows, shown as a table
    run.model("specialist").chat("What does the narwhal eat?")

These do what `metier init`, `metier run` and `metier chat` do, on the same store: what one made, the other keeps.
Everything that is wrong raises a `metier.core.errors.MetierError`, which names place, value and cure.
"""

import html
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metier.core.errors import InputError, ModelError, nearest
from metier.core.store import Artifact, Store, store_folder

if TYPE_CHECKING:
    from metier.cli.chat import Conversation, Settings
    from metier.pipeline import Result

Place = str | os.PathLike[str]
HEIGHT = 720
"""Of a report shown inline, in pixels."""
warnings.filterwarnings("ignore", message="IProgress not found")  # said in notebooks of bars that we do not show
COLUMNS = ("contender", "step", "metric", "group", "n", "mean", "low", "high")


def init(data: Sequence[Place] | Place, out: Place = "recipe.yaml", *, model: str = "seedling") -> Path:
    """Look at files and write a commented recipe that runs; returns its path. Raises InputError, also where `out` is.

    data: files, folders or globs. model: what to start from: built-in, a folder, or an id in the local cache.
    """
    from metier.cli.init import write_recipe

    given = [data] if isinstance(data, str | os.PathLike) else list(data)
    write_recipe([os.fspath(one) for one in given], Path(out), model)
    return Path(out)


def run(
    recipe: Place,
    overrides: Sequence[str] = (),
    *,
    variant: str | None = None,
    smoke: bool = False,
    store: Place = ".metier",
    out: Place = "runs",
    quiet: bool = False,
    max_minutes: float | None = None,
) -> "Run":
    """Run a recipe and publish its report; what the store has already is kept.

    overrides: as after `--set`, such as `"reader.epochs=1"`. variant: one of the recipe's variants. smoke: every step
    small, a stand-in for each model, no network. quiet: show no progress. max_minutes: stop at a safe point
    after so long. Raises InputError before any model is loaded where the recipe or its data are wrong, Interrupted
    where it was stopped (the kernel's interrupt stops at a safe point, a second one at once): call it again to go on.
    """
    from metier.cli.run import carry_out, make_display
    from metier.recipe import load_recipe
    from metier.trial.reshape import Trial

    if isinstance(overrides, str):
        raise InputError("overrides are a list", where="metier.run", value=overrides, cure=f"write [{overrides!r}]")
    loaded = load_recipe(Path(recipe), overrides, trial=Trial(variant, smoke))
    display = make_display("quiet" if quiet else "auto")
    result, path = carry_out(loaded, store_folder(os.fspath(store)), Path(out), display, max_minutes=max_minutes)
    assert path is not None  # none only where a part was run
    return Run(result, Store(store_folder(os.fspath(store))), path)


def model(name: Place, *, store: Place = ".metier") -> "Model":
    """Load a model to talk with: `recipe/step` of the store, a folder, or a built-in name. Raises ModelError."""
    from metier.cli.chat import find_model

    return Model(os.fspath(name), find_model(os.fspath(name), Store(store_folder(os.fspath(store)))))


@dataclass(frozen=True)
class Report:
    """A report's page. A notebook shows it inline; it is a path for all that opens files."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        page = html.escape(self.path.read_text(encoding="utf-8"), quote=True)
        return (
            f'<iframe title="report" sandbox="allow-scripts" srcdoc="{page}" '
            f'style="width: 100%; height: {HEIGHT}px; border: 1px solid #8888"></iframe>'
        )


class Table(list[dict[str, Any]]):
    """Rows as dicts with the same keys, which a notebook shows as a table. `pandas.DataFrame(rows)` takes them too."""

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no rows</p>"
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self[0])
        body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row.values()) + "</tr>" for row in self)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return html.escape(f"{value:.3f}" if isinstance(value, float) else str(value))


@dataclass(frozen=True)
class Run:
    """A finished run. result: its recipe and what each step made."""

    result: "Result" = field(repr=False)
    store: Store
    page: Path

    @property
    def name(self) -> str:
        """The recipe's."""
        return self.result.recipe.name

    @property
    def folder(self) -> Path:
        """Where it was published: the report, the leaderboard, the model."""
        return self.page.parent

    def report(self) -> Report:
        """The report's page."""
        return Report(self.page)

    def scores(self, *, metric: str | None = None, group: str | None = None) -> Table:
        """The leaderboard, a row for each contender, step, metric and group in rank order; `low` to `high` is the
        interval of the mean. Raises InputError where no row has that metric or that group.
        """
        board = json.loads((self.folder / "leaderboards_full.json").read_text(encoding="utf-8"))
        rows = [
            {"contender": contender["name"], **{name: score.get(name) for name in COLUMNS[1:]}}
            for contender in board["contenders"]
            for score in contender["scores"]
        ]
        for key, wanted in (("metric", metric), ("group", group)):
            known = {str(row[key]) for row in rows}
            if wanted is not None and wanted not in known:
                raise InputError(f"no score has this {key}", where="scores", value=wanted, cure=nearest(wanted, known))
        return Table(row for row in rows if metric in (None, row["metric"]) and group in (None, row["group"]))

    def artifact(self, step: str) -> Artifact:
        """What a step made: its `files`, `record` and metrics. Raises InputError where there is no such step."""
        made = self.result.artifacts
        if step not in made:
            raise InputError("the recipe has no such step", where=self.name, value=step, cure=nearest(step, made))
        return made[step]

    def model(self, step: str) -> "Model":
        """The model that a step made, to talk with. Raises InputError where the step made none."""
        artifact = self.artifact(step)
        if artifact.record["produces"] != "model":
            models = [name for name, one in self.result.artifacts.items() if one.record["produces"] == "model"]
            raise ModelError("that step made no model", where=f"{self.name}/{step}", cure=nearest(step, models))
        return Model(f"{self.name}/{step}", artifact.files)

    def _repr_html_(self) -> str:
        path = html.escape(str(self.page))
        return f"<p><b>{html.escape(self.name)}</b>: {len(self.result.artifacts)} steps; {path}</p>"


@dataclass
class Model:
    """A model in a folder. Its weights are loaded with the first question (seconds) and kept."""

    name: str
    folder: Path
    _talk: "Conversation | None" = field(default=None, repr=False)

    def ask(
        self, question: str, *, system: str | None = None, max_new_tokens: int = 256, temperature: float = 0.0,
        top_p: float = 1.0, seed: int = 0, stop: Sequence[str] = (),
    ) -> str:  # fmt: skip
        """Answer one question by itself. temperature 0: always the likeliest token. stop: texts that end the answer.

        Raises InputError where the question does not fit the model or a setting is out of its range.
        """
        settings = _settings(system, max_new_tokens, temperature, top_p, seed, stop)
        return "".join(replace(self._opened(), settings=settings, turns=[], asked=0).answer(question)).strip()

    def chat(
        self, message: str, *, system: str | None = None, max_new_tokens: int = 256, temperature: float = 0.0,
        top_p: float = 1.0, seed: int = 0, stop: Sequence[str] = (),
    ) -> str:  # fmt: skip
        """Answer with all that was said so far in mind; see `forget`. Settings as for `ask`, and they hold for this
        answer. Where the talk no longer fits the model, its oldest turns are forgotten, and that is said on stderr.
        """
        return "".join(
            self.stream(
                message, system=system, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
                seed=seed, stop=stop,
            )
        ).strip()  # fmt: skip

    def stream(
        self, message: str, *, system: str | None = None, max_new_tokens: int = 256, temperature: float = 0.0,
        top_p: float = 1.0, seed: int = 0, stop: Sequence[str] = (),
    ) -> Iterator[str]:  # fmt: skip
        """As `chat`, in pieces as they come."""
        talk = self._opened()
        talk.settings = _settings(system, max_new_tokens, temperature, top_p, seed, stop)
        return talk.answer(message)

    def forget(self) -> None:
        """Start a new talk."""
        if self._talk is not None:
            self._talk.turns.clear()

    def _opened(self) -> "Conversation":
        if self._talk is None:
            from metier.cli.chat import Conversation
            from metier.models.load import load

            self._talk = Conversation(load(self.folder), _settings(None, 256, 0.0, 1.0, 0, ()))
        return self._talk


def _settings(
    system: str | None, max_new_tokens: int, temperature: float, top_p: float, seed: int, stop: Sequence[str]
) -> "Settings":
    from metier.cli.chat import Settings

    for name, value, good in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1),
        ("temperature", temperature, temperature >= 0),
        ("top_p", top_p, 0 < top_p <= 1),
    ):
        if not good:
            raise InputError("out of its range", where=name, value=value, cure=RANGES[name])
    if isinstance(stop, str):
        raise InputError("stop is a list", where="stop", value=stop, cure=f"write [{stop!r}]")
    return Settings(system, temperature, max_new_tokens, top_p, seed, tuple(stop))


RANGES = {
    "max_new_tokens": "give 1 or more",
    "temperature": "give 0 or more; 0 takes the likeliest token",
    "top_p": "give more than 0 and at most 1",
}
