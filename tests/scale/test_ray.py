"""A real Ray on this machine: steps that train, and what becomes of them when workers are killed or do not fit."""

import importlib.util
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fakes
from conftest import ROOT
from metier.core.beside import as_ready
from metier.core.beside import beside as beside_each
from metier.core.errors import InputError, Interrupted, MissingExtra, StoreError, TrainingError
from metier.core.events import Events
from metier.core.fingerprint import tree
from metier.core.stage import Context, Resources, Source
from metier.core.store import Store
from metier.pipeline import plan, run
from metier.recipe import Recipe, load_recipe
from metier.report.partial import PartialBoard
from metier.scale.cluster import Cluster, Node, check_nodes, places, shown
from metier.scale.link import hello
from metier.text.artifacts import write_jsonl
from metier.train.stage import Pretrain

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="gloo's interface is called otherwise elsewhere"),
]
COURSE: dict[str, Any] = {"model": "base", "documents": "data", "block_size": 64, "learning_rate": 1e-3}
COURSE |= {"precision": "fp32", "batch_size": 4, "log_every": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.save_tiny(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.save_documents(tmp_path_factory.mktemp("data") / "documents")


@pytest.fixture(scope="module")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One cluster for all tests; a machine with one core gets two CPUs of Ray's."""
    before = os.environ.copy()
    os.environ |= {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "METIER_CHECKPOINT_SECONDS": "0"}
    with Cluster("local", Store(tmp_path_factory.mktemp("store"))) as found:
        yield found
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


def context(folder: Path, base: Path, data: Path, **others: Any) -> Context:
    for name in ("build/files", "build/measured", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sources = {name: Source(name, (path,), str(path), "0") for name, path in (("base", base), ("data", data))}
    events = others.pop("events", Events("t", folder / "events.jsonl"))
    out, measured = folder / "build/files", folder / "build/measured"
    return Context("t", out, measured, folder / "scratch", events, sources, **others)


def files(ctx: Context) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(ctx.out.iterdir()) if path.is_file()}


def heard(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").open()]


# ---- a whole recipe ------------------------------------------------------------------------------------------------

RECIPE = """\
name: whole
steps:
  texts: {kind: documents, sources: [{path: texts.jsonl}], heldout_fraction: 0.2, duplicates: {near: true},
    privacy: {action: redact}, resources: {workers: 2}}
  others: {kind: documents, sources: [{path: others.jsonl}], resources: {cpus: 1}}
  questions: {kind: examples, sources: [{path: qa.jsonl}], test_fraction: 0.6}
  answers: {kind: answer, models: [seedling, MODEL], questions: questions, max_new_tokens: 6, batch_size: 1,
    resources: {workers: 2}}
  health: {kind: examples, test: [{path: choices.jsonl, keep: [choices, label]}]}
  choices: {kind: choose, models: [seedling], questions: health, resources: {workers: 2}}
  verdicts: {kind: judge, judges: [{model: seedling}], answers: answers, resources: {workers: 2}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Recipe:
    folder = tmp_path_factory.mktemp("recipe")
    texts = [f"The crab {i // 2} digs in the sand of bay {i // 2}, and eats {i // 2} clams a day." for i in range(40)]
    texts = [text + " Often." * (i % 2) for i, text in enumerate(texts)]
    texts[3] += " Write to anna@example.org."
    write_jsonl(folder / "texts.jsonl", [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)])
    write_jsonl(folder / "others.jsonl", [{"id": "a", "text": "The seal sleeps."}, {"id": "b", "text": "A gull."}])
    asked = [{"question": f"What does crab {i} eat?", "answer": f"It eats {i} clams."} for i in range(30)]
    write_jsonl(folder / "qa.jsonl", asked)
    rows = [{"question": f"Is {i} a crab? {'Well? ' * i}", "answer": "no", "label": "no"} for i in range(40)]
    write_jsonl(folder / "choices.jsonl", [row | {"choices": "yes|no"} for row in rows])
    (folder / "recipe.yaml").write_text(RECIPE.replace("MODEL", str(base)))
    return load_recipe(folder / "recipe.yaml")


def test_a_recipe_makes_the_same_on_a_cluster_as_here(tmp_path: Path, recipe: Recipe, ray_here: Cluster):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = run(recipe, Store(tmp_path / "here"))
    finally:
        torch.set_num_threads(threads)
    events: list[dict[str, Any]] = []
    board = PartialBoard(tmp_path / "out", recipe.name, {n: s.model_dump(mode="json") for n, s in recipe.steps.items()})
    there = run(recipe, Store(tmp_path / "there"), listeners=[events.append, board.hear], helpers=ray_here)
    assert list(there.artifacts) == list(here.artifacts)
    for name, artifact in here.artifacts.items():
        made = {n: path.read_bytes() for n, path in tree(there.artifacts[name].files).items()}
        assert made == {n: path.read_bytes() for n, path in tree(artifact.files).items()}, name
    told = json.loads((there.artifacts["texts"].files / "about.json").read_text())
    assert told["near"] + told["leaked"] >= 15
    order = [(e["event"], e["step"]) for e in events if e["event"] in ("started", "finished")]
    through = order.index(("finished", "texts"))  # it takes longest of the three that need nothing
    assert {("started", "texts"), ("started", "others"), ("started", "questions")} <= set(order[:through])
    partial = json.loads((tmp_path / "out/leaderboards_partial.json").read_text())["steps"]["answers"]
    assert {row["done"] for row in partial["contenders"]} == {partial["questions"]}


# ---- training ------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_changes_nothing(tmp_path: Path, base: Path, data: Path, ray_here: Cluster):
    stage = Pretrain(**COURSE, epochs=4, resources=Resources(workers=2, cpus=1))
    whole, hurt = (context(tmp_path / name, base, data) for name in ("whole", "hurt"))
    expected = ray_here.run(stage, whole).metrics
    workers: list[dict[str, Any]] = []

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "workers":
            workers[:] = event["workers"]
        if event["event"] == "train" and event["at"] >= 3 and workers:
            os.kill(workers.pop()["process"], signal.SIGKILL)
            workers.clear()
            hurt.events.listeners.clear()

    hurt.events.listeners.append(kill)
    assert ray_here.run(stage, hurt).metrics == expected
    assert files(hurt) == files(whole)
    said = heard(tmp_path / "hurt")
    assert any("a worker was lost" in event.get("text", "") for event in said)
    assert any("going on from step" in event.get("text", "") for event in said)
    assert not any("a worker was lost" in event.get("text", "") for event in heard(tmp_path / "whole"))
    assert json.loads((whole.measured / "about.json").read_text())["processes"] == 2


def test_a_worker_that_refuses_its_data_is_not_tried_again(tmp_path: Path, base: Path, data: Path, ray_here: Cluster):
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("train", "heldout", "replay"):
        write_jsonl(empty / f"{name}.jsonl", [])
    (empty / "about.json").write_text('{"replay_ratio": 0.0, "counts": {}}')
    stage = Pretrain(**COURSE, resources=Resources(cpus=1))
    with pytest.raises(InputError, match="no row is left to learn from"):
        ray_here.run(stage, context(tmp_path, base, empty))
    assert sum(event["event"] == "workers" for event in heard(tmp_path)) == 1


def test_a_run_that_is_stopped_goes_on(tmp_path: Path, base: Path, data: Path, ray_here: Cluster):
    stage = Pretrain(**COURSE, epochs=30, resources=Resources(cpus=1))
    steps: list[int] = []
    events = Events(
        "t", tmp_path / "events.jsonl", [lambda e: steps.append(e["at"]) if e["event"] == "train" else None]
    )
    with pytest.raises(Interrupted):
        ray_here.run(stage, context(tmp_path, base, data, events=events, stop=lambda: bool(steps)))
    assert [path.name for path in (tmp_path / "scratch").glob("checkpoint-*")]
    assert not (tmp_path / "scratch/ray").exists()


# ---- what does not fit: nothing of it starts a Ray -----------------------------------------------------------------

TWO = (Node("a", "one", {"CPU": 8.0, "GPU": 2.0, "memory": 64e9}), Node("b", "two", {"CPU": 8.0, "memory": 64e9}))


def beside(tmp_path: Path, processes: int | None = None, nodes: tuple[Node, ...] = TWO) -> Cluster:
    """A cluster as it is once it was reached."""
    found = Cluster("local", Store(tmp_path / "store"), processes)
    found.nodes = nodes
    return found


@pytest.mark.parametrize("on", ["", "nowhere", "ray://", "ray://host", "host:99999", "http://host:1", "host:port"])
def test_what_is_no_address_is_refused(tmp_path: Path, on: str):
    with pytest.raises(InputError, match=r"--on: this is no address of a Ray cluster[\s\S]*ray://HOST:PORT"):
        Cluster(on, Store(tmp_path))


def test_an_address_where_no_ray_answers_is_named(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        on = f"127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(InputError, match="no Ray answers there") as caught, Cluster(on, Store(tmp_path)):
        pass
    assert caught.value.where == "--on"
    assert "--on local" in str(caught.value)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("Version mismatch: The cluster was started with: Ray: 2.50", "another version of Ray"),
        ("Failed to connect: Unauthenticated: InvalidAuthToken", "does not let us in"),
        ("Could not find any running Ray instance", "no Ray answers"),
    ],
)
def test_why_a_cluster_is_not_reached_is_told(tmp_path: Path, said: str, what: str):
    error = Cluster("node:6379", Store(tmp_path))._refused(RuntimeError(said))
    assert what in str(error)
    assert error.exit_code == 2


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtra, match=r"--on needs the package 'ray'[\s\S]*metier\[ray\]"):
        Cluster("local", Store(tmp_path))
    assert not (tmp_path / "objects").exists()


def test_machines_that_do_not_fit_together_are_named(tmp_path: Path):
    store = Store(tmp_path)
    same = {**hello(), "host": "one", "sees": True}
    check_nodes([same], store)
    with pytest.raises(InputError, match=r"machines of the cluster cannot run Metier[\s\S]*two: Metier cannot be"):
        check_nodes([same, {"host": "two", "error": "Metier cannot be imported (No module named 'metier')"}], store)
    other = {**same, "host": "two", "same": {**same["same"], "torch": "1.0"}}
    with pytest.raises(InputError, match=r"process 2 on two has torch 1\.0 \(process 0 has "):
        check_nodes([same, other], store)
    with pytest.raises(StoreError, match=r"two does not see the store[\s\S]*mount at the same place"):
        check_nodes([same, {**same, "host": "two", "sees": False}], store)


def test_workers_go_where_there_is_room(tmp_path: Path):
    assert places(TWO, {"CPU": 3.0}) == 4
    assert places(TWO, {"CPU": 1.0, "GPU": 0.5}) == 4
    assert shown({"CPU": 1.0, "GPU": 2.0, "memory": 16e9}) == "1 CPU, 2 GPUs, 16.0 GB"
    cluster = beside(tmp_path, processes=2)
    stage = Pretrain(**COURSE)
    assert cluster.processes(stage) == 2
    assert cluster.workers_of(stage, 2) == {"CPU": 4.0, "GPU": 1.0}  # GPUs are used where some are
    four = Pretrain(**COURSE, resources=Resources(workers=4, gpus=0, memory="8GB"))
    assert cluster.processes(four) == 4
    assert cluster.workers_of(four, 4) == {"CPU": 4.0, "memory": 8e9}
    for wanted in (Resources(workers=5, cpus=4, gpus=0), Resources(memory="100GB", gpus=0), Resources(gpus=4)):
        with pytest.raises(InputError, match="find no room: there is room for") as caught:
            cluster.check(Pretrain(**COURSE, resources=wanted))
        assert "one: 8 CPUs, 2 GPUs, 64.0 GB; two: 8 CPUs, 64.0 GB" in str(caught.value)
    headless = (Node("h", "head", {"memory": 64e9}), *TWO)
    assert beside(tmp_path, nodes=headless).workers_of(four, 4)["CPU"] == 4.0


def test_a_number_of_workers_that_does_not_divide_is_refused_before_anything_runs(recipe: Recipe, tmp_path: Path):
    where = recipe.path.with_name("odd.yaml")
    where.write_text(
        "name: odd\nsteps:\n  texts: {kind: documents, sources: [{path: texts.jsonl}]}\n"
        "  reader: {kind: pretrain, model: seedling, documents: texts, batch_size: 4, accumulation: 1, "
        "resources: {workers: 3, gpus: 0}}\n"
    )
    with pytest.raises(InputError, match="which 3 processes cannot share evenly"):
        run(load_recipe(where), Store(tmp_path / "store"), helpers=beside(tmp_path))
    assert not (tmp_path / "store/objects").exists()


def test_wrong_resources_are_explained(recipe: Recipe):
    scored = recipe.path.with_name("scored.yaml")
    scored.write_text(recipe.path.read_text() + "  scores: {kind: score, answers: answers}\n")

    def refused(step: str, text: str) -> str:
        with pytest.raises(InputError) as caught:
            load_recipe(scored, [f"{step}.resources={text}"])
        return str(caught.value)

    assert "did you mean 'workers'" in refused("texts", "{worker: 2}")
    assert "16GB" in refused("texts", "{memory: 16}") or "text" in refused("texts", "{memory: 16}")
    assert "write a number with MB, GB or TB" in refused("texts", "{memory: lots}")
    assert "more than one GPU comes whole" in refused("answers", "{gpus: 1.5}")
    assert "resources.workers has no effect" in refused("scores", "{workers: 2}")
    assert "resources.restarts has no effect" in refused("texts", "{restarts: 2}")


def test_resources_change_no_identity_and_say_where_they_have_no_effect(recipe: Recipe, tmp_path: Path):
    events: list[dict[str, Any]] = []
    store = Store(tmp_path)
    run(recipe, store, only="others", listeners=[events.append])
    assert any("no effect here" in event.get("text", "") for event in events)
    again = load_recipe(recipe.path, ["others.resources={cpus: 4, memory: 2GB}"])
    assert {step.state for step in plan(again, store, only="others")} == {"cached"}


def test_events_side_by_side_and_what_fails_stops_the_others():
    stopped: list[str] = []

    def waits(stop: Any) -> None:
        while not stop():
            time.sleep(0.01)
        stopped.append("waits")

    def fails(_stop: Any) -> None:
        raise TrainingError("too bad")

    with pytest.raises(TrainingError, match="too bad"):
        list(as_ready({"a": waits, "b": fails}, {}, lambda: False))
    assert stopped == ["waits"]
    order = [name for name, _ in as_ready({"a": lambda _: 1, "b": lambda _: 2}, {"a": {"b"}}, lambda: False)]
    assert order == ["b", "a"]
    assert beside_each([lambda _: 1, lambda _: 2], lambda: False) == [1, 2]
