"""A store behind a URL: what one machine makes another finds, whole or not at all, and goes on with."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fakes
from conftest import ROOT
from metier.cli import app
from metier.core import elsewhere, remote
from metier.core.elsewhere import Elsewhere
from metier.core.errors import InputError, Interrupted, MissingExtra, StoreError
from metier.core.fingerprint import tree
from metier.core.store import Artifact, Key, Store, store_folder
from metier.core.upkeep import clear, verify
from metier.pipeline import run
from metier.recipe import load_recipe

pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def endpoint(s3_server: str) -> str:
    """An S3-compatible server on this machine, with a bucket."""
    import boto3

    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket="bucket")
    return s3_server


@pytest.fixture
def url(endpoint: str, request: pytest.FixtureRequest) -> str:
    return f"s3://bucket/{request.node.name[:40]}"


def machine(tmp_path: Path, name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store as a machine of that name sees it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    return Store(store_folder(url))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make(store: Store, text: str = "x", inputs: dict[str, Any] | None = None) -> Artifact:
    key = Key.of("thing", {"text": text})
    with store.build(key) as workspace:
        (workspace.files / "below").mkdir()
        (workspace.files / "below/a.txt").write_text(text)
        (workspace.measured / "b.json").write_text("{}")
        workspace.events.write_text("{}\n")
        return store.commit(workspace, {"recipe": "r", "step": text, "inputs": inputs or {}, "format": 2})


def test_what_one_machine_made_another_finds(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = machine(tmp_path, "here", url, monkeypatch)
    made = make(here)
    here.set_ref("r", "s", made.key)
    there = machine(tmp_path, "there", url, monkeypatch)
    assert there.root != here.root
    assert there.ref_key("r", "s") == made.key
    found = there.find(Key.of("thing", {"text": "x"}))
    assert found is not None
    assert {n: p.read_bytes() for n, p in tree(found.folder).items()} == {
        n: p.read_bytes() for n, p in tree(made.folder).items()
    }
    assert there.find(Key.of("thing", {"text": "y"})) is None
    there.set_ref("r", "s", make(there, "y").key)
    assert here.ref_key("r", "s") == Key.of("thing", {"text": "y"}).__str__()
    assert there.elsewhere is not None
    assert there.elsewhere.states() == {}


def test_two_writers_of_one_artifact_leave_one(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one, two = (machine(tmp_path, name, url, monkeypatch) for name in ("one", "two"))
    key = Key.of("thing", {"text": "x"})
    with one.build(key) as workspace:
        (workspace.files / "a.txt").write_text("x")
        with two.build(key) as other:
            (other.files / "a.txt").write_text("x")
            two.commit(other, {"inputs": {}})
        one.commit(workspace, {"inputs": {}})
    assert two.elsewhere is not None
    assert two.elsewhere.whole() == [str(key)]
    assert verify(machine(tmp_path, "three", url, monkeypatch)).damage == []


KILLED = """
import os, signal, sys
from pathlib import Path
from metier.core.elsewhere import Elsewhere
from metier.core.store import Key, Store, store_folder

put = Elsewhere._put
def dies(self, path, name):
    if name.endswith("run.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, path, name)
Elsewhere._put = dies
store = Store(store_folder(sys.argv[1]))
with store.build(Key.of("thing", {"text": "x"})) as workspace:
    (workspace.files / "a.txt").write_text("x")
    store.commit(workspace, {"inputs": {}})
"""


def test_a_writer_that_is_killed_leaves_nothing_half(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "killed"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    done = subprocess.run([sys.executable, "-c", KILLED, url], check=False)
    assert done.returncode == -signal.SIGKILL
    other = machine(tmp_path, "other", url, monkeypatch)
    assert other.find(Key.of("thing", {"text": "x"})) is None
    assert other.elsewhere is not None
    assert other.elsewhere.leftovers() == [str(Key.of("thing", {"text": "x"}))]
    assert len(clear(other).objects) == 1
    assert other.elsewhere.leftovers() == []
    again = machine(tmp_path, "killed", url, monkeypatch)  # its mirror has it whole, so it is put there now
    assert again.find(Key.of("thing", {"text": "x"})) is not None
    assert other.find(Key.of("thing", {"text": "x"})) is not None


def test_what_was_changed_there_is_found_and_made_again(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = machine(tmp_path, "here", url, monkeypatch)
    made = make(store)
    store.set_ref("r", "x", made.key)
    system, path = remote.opened(f"{url}/objects/{made.key}/files/below/a.txt")
    system.pipe_file(path, b"y")
    (damage,) = verify(store).damage
    assert damage.where == f"{url}/objects/{made.key}/files/below/a.txt"
    assert damage.what == "its contents have changed"
    there = machine(tmp_path, "there", url, monkeypatch)
    with pytest.raises(StoreError, match="not as it was written"):
        there.find(Key.of("thing", {"text": "x"}))
    runner = CliRunner()
    done = runner.invoke(app, ["store", "verify", "--remove", "--store", url])
    assert "1 damaged artifacts removed" in done.output
    assert there.find(Key.of("thing", {"text": "x"})) is None
    assert verify(there).lost == ["r/x"]
    assert store.find(Key.of("thing", {"text": "x"})) is not None  # a mirror that has it whole puts it there again
    assert verify(there).damage == []


def test_gc_deletes_what_no_ref_reaches_and_waits_for_runs(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = machine(tmp_path, "here", url, monkeypatch)
    base = make(store, "base")
    top = make(store, "top", {"m": {"link": f"../../{base.key}/files"}})
    make(store, "old")
    store.set_ref("r", "s", top.key)
    there = machine(tmp_path, "there", url, monkeypatch)
    with store.in_use(), pytest.raises(StoreError, match="a run is using the store"):
        clear(there)
    assert [one.step for one in clear(there, dry_run=True).objects] == ["r/old"]
    assert there.elsewhere is not None
    assert len(there.elsewhere.whole()) == 3
    found = clear(there)
    assert (len(found.objects), found.kept) == (1, 2)
    assert there.elsewhere.whole() == sorted([base.key, top.key])


def test_another_machine_goes_on_from_the_last_checkpoint(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(elsewhere, "LOOK_SECONDS", 0.1)
    base = fakes.save_tiny(tmp_path / "model")
    texts = [{"id": str(i), "text": f"the crab digs, number {i}. " * (1 + i % 5)} for i in range(40)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    (tmp_path / "r.yaml").write_text(
        "name: bay\nsteps:\n  texts: {kind: documents, sources: [{path: t.jsonl}]}\n"
        f"  reader: {{kind: pretrain, model: {base}, documents: texts, block_size: 64, batch_size: 2, max_steps: 12, "
        "precision: fp32, log_every: 1}\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    steps, told = 0, []

    def hear(event: dict[str, Any]) -> None:
        nonlocal steps
        steps += event["event"] == "train"
        told.append(str(event.get("text", "")))

    here = machine(tmp_path, "here", url, monkeypatch)
    with pytest.raises(Interrupted):
        run(recipe, here, listeners=[hear], stop=lambda: steps >= 5)
    assert here.elsewhere is not None
    (key,) = here.elsewhere.states()
    there = machine(tmp_path, "there", url, monkeypatch)
    run(recipe, there, listeners=[hear])
    assert "going on from step 5 of 12" in told
    assert here.elsewhere.states() == {}
    whole = run(recipe, Store(tmp_path / "plain"))
    found = here.ref("bay", "reader")
    assert found is not None
    assert found.key == key
    for name in ("train.jsonl", "model.safetensors"):
        assert (found.files / name).read_bytes() == (whole.artifacts["reader"].files / name).read_bytes()


def test_checkpoints_are_put_there_as_they_are_made(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = machine(tmp_path, "here", url, monkeypatch)
    far, state = Elsewhere(url, store.root), tmp_path / "state"
    for step in (1, 2, 3):
        folder = state / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "tensors.safetensors").write_bytes(bytes([step]) * 100)
        if step < 3:  # the third is still being written
            (folder / "manifest.json").write_text("{}")
    (state / "aside-checkpoint-4").mkdir()
    (state / "chosen.json").write_text("{}")
    far.push_state("k", state)
    other = tmp_path / "other"
    other.mkdir()
    far.pull_state("k", other)
    assert sorted(tree(other)) == [
        "checkpoint-1/manifest.json",
        "checkpoint-1/tensors.safetensors",
        "checkpoint-2/manifest.json",
        "checkpoint-2/tensors.safetensors",
        "chosen.json",
    ]
    (state / "checkpoint-1/manifest.json").unlink()
    far.push_state("k", state)
    assert far.states() == {"k": 104}


def test_a_checkpoint_is_there_before_the_step_ends(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(elsewhere, "LOOK_SECONDS", 0.05)
    store = machine(tmp_path, "here", url, monkeypatch)
    there = machine(tmp_path, "there", url, monkeypatch)
    assert there.elsewhere is not None
    with store.build(Key.of("thing", {})) as workspace:
        folder = workspace.state / "checkpoint-7"
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
        until = time.monotonic() + 30
        while not there.elsewhere.states() and time.monotonic() < until:
            time.sleep(0.1)
        assert list(there.elsewhere.states().values()) == [2]


# ---- what is refused -----------------------------------------------------------------------------------------------


def reach(url: str) -> None:
    assert not (Path(store_folder(url)) / elsewhere.FILE).exists()  # naming one neither asks nor writes
    Store(store_folder(url)).ref_key("r", "s")


def test_a_bucket_that_is_not_there(endpoint: str):
    with pytest.raises(InputError, match="it is not there") as caught:
        reach("s3://no-such-bucket/x")
    assert caught.value.where == "s3://no-such-bucket/x"
    assert "a bucket is made beforehand" in str(caught.value)
    assert caught.value.exit_code == 2


def test_no_credentials(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(InputError, match="no credentials") as caught:
        reach("s3://bucket/x")
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(import_module("fsspec.registry")._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtra, match="s3fs") as caught:
        store_folder("s3://bucket/x")
    assert "metier[s3]" in str(caught.value)


def test_a_server_that_does_not_answer(endpoint: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(InputError, match="does not answer"):
        reach("s3://bucket/x")


def test_a_recipe_is_not_begun_with_a_store_that_cannot_be_reached(endpoint: str, tmp_path: Path):
    (tmp_path / "r.yaml").write_text("name: x\nsteps:\n  a: {kind: documents, sources: [{path: t.txt}]}\n")
    (tmp_path / "t.txt").write_text("the crab digs")
    command = [sys.executable, "-m", "metier", "run", str(tmp_path / "r.yaml"), "--store", "s3://no-such-bucket/x"]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "s3://no-such-bucket/x: it is not there" in done.stderr


def test_a_folder_is_a_store_of_its_own(tmp_path: Path):
    assert store_folder(tmp_path) == store_folder(str(tmp_path)) == tmp_path
    assert Store(tmp_path).elsewhere is None
