"""A real Ray on this machine: steps that train, and what becomes of them when workers are killed or do not fit."""

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fakes
from conftest import ROOT
from metier.core.errors import InputError, Interrupted
from metier.core.events import Events
from metier.core.stage import Context, Resources, Source
from metier.core.store import Store
from metier.scale.cluster import Cluster
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
    folder = tmp_path_factory.mktemp("data")
    texts = [f"the crab digs, number {i}. " * (1 + i % 5) for i in range(24)]
    write_jsonl(folder / "train.jsonl", [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)])
    write_jsonl(folder / "heldout.jsonl", [{"id": "h", "text": "the crab digs again"}])
    write_jsonl(folder / "replay.jsonl", [])
    (folder / "about.json").write_text('{"replay_ratio": 0.0, "counts": {}}')
    return folder


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


# ---- training ------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_changes_nothing(tmp_path: Path, base: Path, data: Path, ray_here: Cluster):
    stage = Pretrain(**COURSE, epochs=4, resources=Resources(workers=2, cpus=1))
    whole, hurt = (context(tmp_path / name, base, data) for name in ("whole", "hurt"))
    expected = ray_here.run(stage, whole)
    workers: list[dict[str, Any]] = []

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "workers":
            workers[:] = event["workers"]
        if event["event"] == "train" and event["at"] >= 3 and workers:
            os.kill(workers.pop()["process"], signal.SIGKILL)
            workers.clear()
            hurt.events.listeners.clear()

    hurt.events.listeners.append(kill)
    assert ray_here.run(stage, hurt) == expected
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
