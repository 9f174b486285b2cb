"""A streamed corpus with two processes: the losses of one, from checkpoints of either, and refusals in both."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fakes
from conftest import ROOT
from metier.cli import app
from metier.core.errors import InputError, Interrupted, RecipeError
from metier.core.events import Events
from metier.core.stage import Context, Source
from metier.core.store import Store
from metier.data.streaming import Stream
from metier.scale.crew import Crew
from metier.train.stage import Pretrain

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo's interface is called otherwise elsewhere")
STAGE = Pretrain.model_validate(
    {
        "model": "base",
        "documents": "corpus",
        "block_size": 64,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "batch_size": 2,
        "accumulation": 2,
        "max_steps": 10,
        "log_every": 1,
    }
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.save_tiny(tmp_path_factory.mktemp("base") / "model")


def write(folder: Path, shards: int) -> Path:
    folder.mkdir(parents=True)
    for shard in range(shards):
        rows = [{"text": f"the crab {20 * shard + i} digs in sand. " * (1 + i % 4)} for i in range(20)]
        (folder / f"part-{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    """An environment for processes that are started."""
    before = os.environ.copy()
    os.environ |= {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


def context(folder: Path, base: Path, shards: Path, stop: Callable[[], bool] = lambda: False, **told: Any) -> Context:
    for name in ("out", "measured", "scratch", "corpus"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    files = Source("*.jsonl", tuple(sorted(shards.glob("*.jsonl"))), "", "0")
    settings = {"sources": [{"path": "*.jsonl"}], "heldout": 4, "shuffle_buffer": 0.002, "lanes": 4, **told}
    listing = Context(
        "c",
        folder / "corpus",
        folder / "measured",
        folder / "scratch",
        Events("c", folder / "listing.jsonl"),
        {"*.jsonl": files},
    )
    Stream.model_validate(settings).run(listing)
    corpus = Source("corpus", (folder / "corpus",), "", "0", (files,), "stream")
    sources = {"base": Source("base", (base,), str(base), "0"), "corpus": corpus}
    events = Events("t", folder / "events.jsonl")
    return Context("t", folder / "out", folder / "measured", folder / "scratch", events, sources, stop)


def rows(ctx: Context) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ctx.out / "train.jsonl").read_text().splitlines()]


def same(one: Context, other: Context) -> None:
    for a, b in zip(rows(one), rows(other), strict=True):
        assert a == pytest.approx(b, rel=1e-4 if "grad_norm" in a else 1e-6)


class Once:
    """Asks to stop once so many steps were told of."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.path, self.steps = folder / "events.jsonl", steps

    def __call__(self) -> bool:
        return self.path.is_file() and self.path.read_text().count('"train"') >= self.steps


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, base: Path, environment: None) -> dict[str, Context]:
    """What one process makes and what two do, of nine shards and of three; each going on where the other stopped."""
    folder = tmp_path_factory.mktemp("made")
    nine, three = write(folder / "nine", 9), write(folder / "three", 3)
    found = {}
    for name, shards in (("one", nine), ("two", nine), ("one, few", three), ("two, few", three)):
        found[name] = context(folder / name, base, shards)
    for name in ("one", "one, few"):
        STAGE.run(found[name])
    with pytest.raises(Interrupted):
        STAGE.run(context(folder / "one, two", base, nine, Once(folder / "one, two", 4)))
    found["one, two"] = context(folder / "one, two", base, nine)
    with Crew(2, Store(folder / "store")) as crew:
        for name in ("two", "two, few", "one, two"):
            with crew.together(STAGE, found[name]) as ctx:
                STAGE.run(ctx)
        stopped = context(folder / "two, one", base, nine, Once(folder / "two, one", 4))
        with pytest.raises(Interrupted), crew.together(STAGE, stopped) as ctx:
            STAGE.run(ctx)
    found["two, one"] = context(folder / "two, one", base, nine)
    STAGE.run(found["two, one"])
    return found


@pytest.mark.parametrize(("one", "other"), [("one", "two"), ("one, few", "two, few")])
def test_two_processes_give_the_losses_of_one(made: dict[str, Context], one: str, other: str):
    same(made[one], made[other])


@pytest.mark.parametrize("name", ["one, two", "two, one"])
def test_a_checkpoint_of_either_is_gone_on_with_by_the_other(made: dict[str, Context], name: str):
    told = (made[name].events.path or Path()).read_text()
    assert "going on from step" in told
    assert "going on from step 0 " not in told
    same(made["one"], made[name])


def test_fewer_shards_than_lanes_are_dealt_by_lines_and_that_is_said(tmp_path: Path, base: Path):
    ctx = context(tmp_path / "a", base, write(tmp_path / "shards", 3))
    told = json.loads((ctx.source("corpus").path / "shards.json").read_text())
    assert (len(told["shards"]), told["lanes"]) == (3, 4)
    assert "3 shards for 4 lanes: lanes share shards line by line" in (tmp_path / "a/listing.jsonl").read_text()


def test_a_malformed_line_in_the_other_process_stops_both_by_name(tmp_path: Path, base: Path, environment: None):
    folder = write(tmp_path / "shards", 9)
    path = folder / "part-4.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:9], "{broken\n", *lines[9:]]))
    ctx = context(tmp_path / "a", base, folder)
    told = STAGE.model_copy(update={"max_steps": 40})
    refused = pytest.raises(InputError, match="malformed JSON")
    with Crew(2, Store(tmp_path / "store")) as crew, refused as caught, crew.together(told, ctx) as inside:
        told.run(inside)
    assert f"{path}:10" in str(caught.value)


def test_a_recipe_streams_from_files(tmp_path: Path, base: Path):
    write(tmp_path / "shards", 6)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: bay\nsteps:\n  corpus: {kind: stream, sources: [{path: shards}], heldout: 4, lanes: 2}\n"
        f"  reader: {{kind: pretrain, model: {base}, documents: corpus, block_size: 64, tokens: 2000}}\n"
    )

    def metier(*words: str) -> str:
        done = CliRunner().invoke(app, [words[0], str(recipe), "--store", str(tmp_path / "s"), *words[1:]])
        assert done.exception is None or isinstance(done.exception, RecipeError | SystemExit), done.exception
        return f"{' '.join(done.output.split())} {done.exception}"

    assert "2,048 tokens of a stream are read" in metier("plan")
    metier("run", "--out", str(tmp_path / "runs"))
    assert "Nothing to do" in metier("plan")
    (about,) = (tmp_path / "s/objects").glob("model-*/files/about.json")
    assert json.loads(about.read_text())["steps"] == 4
    (tmp_path / "shards/part-3.jsonl").write_text('{"text": "other"}\n')
    assert "sources.0.path: shards changed" in metier("plan")
    recipe.write_text(recipe.read_text().replace(", tokens: 2000", ""))
    said = metier("run", "--out", str(tmp_path / "runs"))
    assert f"{recipe}:4: reader: tokens: 'corpus' is a stream, whose end nobody knows" in said
    text = recipe.read_text().replace("path: shards", "path: 's3://b/*.jsonl'")
    recipe.write_text(text.replace("name: bay", "name: bay\noffline: true"))
    assert "the recipe is offline, and this is a URL" in metier("plan")
