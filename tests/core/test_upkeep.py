"""Looking after a store: what changed is found to the byte, and only what nobody reaches is deleted."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from metier.cli import app
from metier.core.errors import StoreError
from metier.core.store import RECORD, Artifact, Key, Store
from metier.core.upkeep import clear, verify


def make(store: Store, name: str, *made_from: Artifact, step: str = "") -> Artifact:
    described: dict[str, Any] = {"kind": "k", "version": 1, "produces": "thing", "identity": {"name": name}}
    key = Key.of("thing", described)
    with store.build(key) as workspace:
        (workspace.files / "a.txt").write_text(f"{name} and more")
        (workspace.files / "sub").mkdir()
        (workspace.files / "sub" / "b.txt").write_text("b")
        inputs = {one.key: {"link": f"../../{one.key}/files", "digest": "", "field": "x"} for one in made_from}
        made = store.commit(
            workspace, {**described, "format": 2, "recipe": "r", "step": name, "metrics": {}, "inputs": inputs}
        )
    if step:
        store.set_ref("r", step, made.key)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "s")


def test_every_change_of_any_byte_is_found(store: Store):
    made = make(store, "one", step="one")
    assert verify(store).damage == []
    for path in (made.files / "a.txt", made.files / "sub" / "b.txt", made.folder / RECORD):
        good = path.read_bytes()
        for place in range(len(good)):
            path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            (found,) = verify(store).damaged
            assert found == made.key
        for length in range(len(good)):
            path.write_bytes(good[:length])
            assert verify(store).damaged == [made.key]
        path.write_bytes(good)
    assert verify(store).damage == []


def test_files_too_few_or_too_many_and_refs_to_nothing(store: Store):
    made = make(store, "one", step="one")
    (made.files / "more").write_text("")
    assert "knows nothing" in verify(store).damage[0].what
    (made.files / "more").unlink()
    (made.files / "a.txt").unlink()
    assert "is gone" in verify(store).damage[0].what
    (made.folder / RECORD).unlink()
    found = verify(store)
    assert "the record is gone" in found.damage[0].what
    assert found.lost == ["r/one"]


def test_an_artifact_under_anothers_name(store: Store):
    made = make(store, "one")
    made.folder.rename(made.folder.with_name("thing-0123456789ab"))
    assert "belongs to another" in verify(store).damage[0].what


def test_what_was_cut_or_taken_away_is_made_again(store: Store):
    made = make(store, "one")
    key = Key("thing", made.record["digest"])
    (made.files / "a.txt").write_text("cut")
    assert store.find(key) is None
    assert make(store, "one").loss() == ""
    assert store.find(key) is not None
    assert verify(store).damage == []


def test_only_what_no_ref_reaches_is_deleted(store: Store):
    base = make(store, "base")
    old = make(store, "old", base, step="model")
    new = make(store, "new", base, step="model")
    alone = make(store, "alone")
    with pytest.raises(ZeroDivisionError), store.build(Key.of("thing", {"stopped": 1})) as workspace:  # noqa: PT012
        (workspace.state / "step").write_text("7")
        raise ZeroDivisionError
    rehearsal = clear(store, dry_run=True)
    assert {one.folder.name for one in rehearsal.objects} == {old.key, alone.key}
    assert [one.step for one in rehearsal.objects] == [
        f"r/{Artifact(o.folder).record['step']}" for o in rehearsal.objects
    ]
    assert old.folder.exists()
    found = clear(store)
    assert found == rehearsal
    assert found.kept == 2
    assert sorted(p.name for p in store.objects.iterdir()) == sorted([base.key, new.key])
    assert (workspace.state / "step").exists()
    assert verify(store).damage == []
    clear(store, unfinished=True)
    assert not workspace.state.exists()
    assert list((store.root / "scratch").iterdir()) == []


def test_nothing_is_deleted_beside_a_run_or_through_a_damaged_record(store: Store):
    base = make(store, "base")
    make(store, "model", base, step="model")
    make(store, "alone")
    with store.in_use(), pytest.raises(StoreError, match="a run is using the store"):
        clear(store)
    reached = store.ref("r", "model")
    assert reached is not None
    (reached.folder / RECORD).write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        clear(store)
    assert len(list(store.objects.iterdir())) == 3


def test_a_run_waits_while_something_is_deleted_and_a_killed_one_is_forgotten(store: Store):
    (store.root / "running").mkdir(parents=True)
    (store.root / "running" / "killed.lock").write_text("")
    entered, waited = threading.Event(), threading.Event()

    def run() -> None:
        with store.in_use(waited.set):
            entered.set()

    with store.alone():
        other = threading.Thread(target=run)
        other.start()
        assert waited.wait(10)
        assert not entered.is_set()
    other.join()
    assert entered.is_set()
    assert list((store.root / "running").iterdir()) == []


def test_the_commands(store: Store):
    made, runner = make(store, "one", step="one"), CliRunner()
    make(store, "alone")
    where = ["--store", str(store.root)]
    done = runner.invoke(app, ["store", "verify", *where])
    assert done.exit_code == 0
    assert "All is as it was written" in done.output
    done = runner.invoke(app, ["gc", "--dry-run", *where])
    assert "1 would be deleted" in done.output
    assert "r/alone" in done.output
    assert "1 deleted" in runner.invoke(app, ["gc", *where]).output
    (made.files / "a.txt").write_text("changed, and longer")
    done = runner.invoke(app, ["store", "verify", "--json", *where])
    assert isinstance(done.exception, StoreError)
    assert json.loads(done.output)["damage"][0]["key"] == made.key
    done = runner.invoke(app, ["store", "verify", "--remove", *where])
    assert done.exit_code == 0
    assert "1 damaged artifacts removed" in done.output
    done = runner.invoke(app, ["store", "verify", *where])
    assert "gone: what r/one last made" in done.output


def test_a_store_that_is_not_there(tmp_path: Path):
    assert verify(Store(tmp_path / "none")).objects == 0
    assert clear(Store(tmp_path / "none")).objects == []
    assert not (tmp_path / "none").exists()
