"""Process 0 and the others: a step together, and everything that does not fit or goes wrong, by name."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from typer.testing import CliRunner

import fakes
from conftest import ROOT
from metier.cli import app
from metier.core.errors import InputError, RecipeError, StoreError, TrainingError
from metier.core.events import Events
from metier.core.stage import Context, Source
from metier.core.store import Store
from metier.models.load import load
from metier.scale import crew as crew_module
from metier.scale.crew import Crew, crew
from metier.scale.link import Link, compare, hello, raised
from metier.text.artifacts import write_jsonl
from metier.train.stage import Pretrain, Tune

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo's interface is called otherwise elsewhere")
COURSE = {"model": "base", "documents": "data", "block_size": 64, "learning_rate": 1e-3, "precision": "fp32"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.save_tiny(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.save_documents(tmp_path_factory.mktemp("data") / "documents")


def context(folder: Path, base: Path, data: Path, **others: Any) -> Context:
    for name in ("out", "measured", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sources = {name: Source(name, (path,), str(path), "0") for name, path in (("base", base), ("data", data))}
    events = others.pop("events", Events("t", folder / "events.jsonl"))
    return Context("t", folder / "out", folder / "measured", folder / "scratch", events, sources, **others)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out/train.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    before = os.environ.copy()
    os.environ |= {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    with Crew(2, Store(tmp_path_factory.mktemp("store"))) as found:
        yield found
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


WAYS: list[dict[str, Any]] = [
    {"method": "full"},
    {"method": {"lora": {"r": 4}}},
    {"method": {"freeze": {"blocks": 1, "head": False}}},
    {"shard": True},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_step_together_makes_what_one_process_makes(
    tmp_path: Path, base: Path, data: Path, two: Crew, way: dict[str, Any]
):
    stage = Pretrain(**COURSE, **way, batch_size=4, epochs=2)
    alone, together = (context(tmp_path / name, base, data) for name in ("alone", "together"))
    expected = stage.run(alone)
    with two.together(stage, together) as ctx:
        found = stage.run(ctx)
    assert found == pytest.approx(expected, rel=1e-6)
    for one, other in zip(rows(tmp_path / "alone"), rows(tmp_path / "together"), strict=True):
        assert one == pytest.approx(other, rel=1e-4 if "grad_norm" in one else 1e-6)
    if way.get("shard"):
        weights, others = (dict(load(one.out).model.named_parameters()) for one in (alone, together))
        assert all(torch.allclose(weights[name], others[name], atol=1e-5) for name in weights)
        assert "shard has no effect with one process" in (tmp_path / "alone/events.jsonl").read_text()
    assert json.loads((together.measured / "about.json").read_text())["processes"] == 2
    notes = [json.loads(line).get("text", "") for line in (tmp_path / "together/events.jsonl").open()]
    assert "2 processes train together, 2 of them on this machine" in notes


def test_a_process_that_is_killed_is_named_and_leaves_a_checkpoint(tmp_path: Path, base: Path, data: Path, two: Crew):
    stage = Pretrain(**COURSE, batch_size=4, epochs=40)
    children: list[int] = []

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "train" and children:
            os.kill(children.pop(), signal.SIGKILL)

    events = Events("t", listeners=[kill])
    ctx = context(tmp_path, base, data, events=events)

    def train() -> None:
        with two.together(stage, ctx) as inside:
            children.append(two._children[0].pid)
            stage.run(inside)

    with pytest.raises(TrainingError, match=r"process 1 was killed \(signal 9\)") as caught:
        train()
    assert "goes on from the last checkpoint" in str(caught.value)
    assert [path.name for path in (tmp_path / "scratch").glob("checkpoint-*")]


def test_torchrun_starts_the_same_recipe(tmp_path: Path, base: Path):
    write_jsonl(tmp_path / "t.jsonl", [{"id": str(i), "text": f"the crab digs {i} " * 9} for i in range(24)])
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: two\nsteps:\n  texts: {{kind: documents, sources: [{{path: t.jsonl}}]}}\n"
        f"  reader: {{kind: pretrain, model: {base}, documents: texts, block_size: 64, max_steps: 3}}\n"
    )
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "metier"]
    command += ["run", str(recipe), "--store", str(tmp_path / "s"), "--out", str(tmp_path / "runs"), "--only", "reader"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes train together" in done.stdout
    assert done.stdout.count("two: finished") == 1
    (about,) = (tmp_path / "s/objects").glob("model-*/measured/about.json")
    assert json.loads(about.read_text())["processes"] == 2


def test_shard_is_refused_where_nothing_of_it_is_built():
    for wrong in ({"method": {"lora": {"r": 4}}}, {"optimizer": "muon"}, {"teacher": "base"}):
        with pytest.raises(ValidationError, match="shard is for `method: full` with `optimizer: adamw`"):
            Pretrain(**COURSE, shard=True, **wrong)


# ---- what does not fit ---------------------------------------------------------------------------------------------


def test_other_versions_are_named_with_host_and_package():
    mine = hello()
    theirs = {**mine, "host": "node-b", "same": {**mine["same"], "torch": "2.9.0", "code": "0"}}
    with pytest.raises(InputError, match=r"process 1 on node-b has code 0.*torch 2\.9\.0 \(process 0 has ") as caught:
        compare([mine, theirs])
    assert caught.value.exit_code == 2
    compare([mine, {**mine, "host": "node-b", "process": 1}])


def test_a_store_that_one_machine_does_not_see_is_named(tmp_path: Path):
    link = Link(dist.HashStore(), 0, 2, 1)  # type: ignore[attr-defined]
    link.tell("hello/1", {**hello(), "host": "node-b"})
    link.tell("sees/1", False)
    with pytest.raises(StoreError, match="process 1 on node-b does not see the store"):
        Crew(2, Store(tmp_path))._show_store(link)
    assert list((tmp_path / "running").iterdir()) == []


@pytest.mark.parametrize(
    ("batch", "accumulation", "count", "fits"), [(8, 1, 4, True), (3, 2, 4, False), (1, 1, 2, False)]
)
def test_a_number_of_processes_that_does_not_divide_is_refused(batch: int, accumulation: int, count: int, fits: bool):
    stage = Tune(model="base", examples="data", batch_size=batch, accumulation=accumulation)
    if fits:
        stage.check_processes(count)
        return
    with pytest.raises(RecipeError, match=f"{batch * accumulation} blocks .* which {count} processes cannot share"):
        stage.check_processes(count)


def test_it_is_refused_before_anything_runs(tmp_path: Path, base: Path):
    write_jsonl(tmp_path / "t.jsonl", [{"id": "a", "text": "the crab digs"}])
    (tmp_path / "r.yaml").write_text(
        "name: two\nsteps:\n  texts: {kind: documents, sources: [{path: t.jsonl}]}\n"
        f"  reader: {{kind: pretrain, model: {base}, documents: texts, batch_size: 3}}\n"
    )
    store = tmp_path / "s"
    done = CliRunner().invoke(app, ["run", str(tmp_path / "r.yaml"), "--store", str(store), "--processes", "2"])
    assert isinstance(done.exception, RecipeError)
    assert "r.yaml:4: reader" in str(done.exception)
    assert "run with 3 processes, or set batch_size or accumulation to a multiple of 2" in str(done.exception)
    assert not (store / "objects").exists()


def test_torchrun_and_processes_do_not_go_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="torchrun started 2 processes already"):
        crew(2, Store(tmp_path))


def test_what_another_process_raised_keeps_its_place_and_cure():
    link = Link(dist.HashStore(), 1, 2, 2)  # type: ignore[attr-defined]
    link.fail(StoreError("cannot be read", where="/x", value=3, cure="look there"))
    (told,) = link.failures().values()
    error = raised(1, told)
    assert isinstance(error, StoreError)
    assert error.what.endswith(": cannot be read")
    assert (error.where, error.value, error.cure) == ("/x", 3, "look there")
    link.fail(ValueError("odd"))
    assert isinstance(raised(1, link.failures()[1]), TrainingError)


def test_a_process_that_fell_silent_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crew_module, "LAST_WORDS", 0.2)
    monkeypatch.setattr("metier.scale.link.BEAT", 0.1)
    monkeypatch.setattr("metier.scale.link.SILENT", 0.5)
    link = Link(dist.HashStore(), 0, 3, 1)  # type: ignore[attr-defined]
    for rank in (1, 2):
        link.tell(f"hello/{rank}", {**hello(), "host": f"node-{rank}"})
        link.store.set(f"beat/{rank}", "7")
    over = Link(link.store, 2, 3, 1).beat()
    told = Crew(3, Store(tmp_path))._failure(link, RuntimeError("gloo: Timed out waiting 600000ms"))
    over.set()
    assert isinstance(told, TrainingError)
    assert told.what == "process 1 on node-1 has disappeared"
    assert Crew(3, Store(tmp_path))._failure(link, RuntimeError("a bug")).args == ("a bug",)


def test_one_that_never_comes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crew_module, "LAST_WORDS", 0.2)
    link = Link(dist.HashStore(), 0, 2, 1)  # type: ignore[attr-defined]
    with pytest.raises(TimeoutError):
        link.hear("hello/1", seconds=0.1)
    told = Crew(2, Store(tmp_path))._failure(link, TimeoutError("hello/1"))
    assert isinstance(told, InputError)
    assert "process 1 did not come within the time" in str(told)
